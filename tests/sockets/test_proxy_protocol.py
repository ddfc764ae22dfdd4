"""PROXY headers as bytes: what they say, how many are missing, and what is none."""

import random
import struct
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.detect import ProxyProtocolDetect
from support.scenes import table

from trioserver import ProxyInfo, ProxyProtocol, ProxyTLS
from trioserver._sockets.proxy_protocol import SIGNATURE, BadHeader, crc32c, missing, parse

LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31
ENDS = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack("!HH", 5000, 443)
CLIENT, ASKED = ("192.0.2.1", 5000), ("198.51.100.7", 443)
V4 = {"source": CLIENT, "destination": ASKED}
SIX = {"source": ("2001:db8::1", 5000, 0, 0), "destination": ("::1", 443, 0, 0)}
ENDS6 = bytes.fromhex("20010db8000000000000000000000001") + bytes(15) + b"\x01"
LONG = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
LONGEST = f"PROXY UNKNOWN {LONG} {LONG} 65535 65535\r\n".encode()


def v2(command, family, rest, *, length=None):
    """A header of version 2."""
    size = len(rest) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + rest


def tlv(kind, value):
    """Type, length and value."""
    return struct.pack("!BH", kind, len(value)) + value


def summed(*tlvs):
    """A header with a checksum, which is the last but one of its TLVs."""
    before = v2(PROXY, TCP4, ENDS + b"".join(tlvs) + tlv(3, bytes(4)) + tlv(4, b"pad"))
    at = before.rindex(tlv(3, bytes(4))) + 3
    return before[:at] + crc32c(before).to_bytes(4, "big") + before[at + 4 :]


OF_TLS = b"\x07" + bytes(4) + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"Ann") + tlv(0x23, b"AES")
TLS = ProxyTLS(
    version="TLSv1.3", cipher="AES", common_name="Ann", has_certificate=True, is_verified=True
)
FACTS = [(1, b"h2"), (2, b"example.org"), (5, b"id"), (0x30, b"blue"), (0xE0, b"ours")]
SAID = {"alpn": b"h2", "authority": "example.org", "unique_id": b"id", "netns": "blue"}

HEADERS = {
    "1, IPv4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n", V4),
    "1, IPv6": (b"PROXY TCP6 2001:db8::1 ::1 5000 443\r\n", SIX),
    "1, the proxy does not know": (b"PROXY UNKNOWN\r\n", {}),
    "1, it says what it does not know, up to the whole 107 bytes": (LONGEST, {}),
    "2, IPv4": (v2(PROXY, TCP4, ENDS), V4),
    "2, IPv6": (v2(PROXY, TCP6, ENDS6 + ENDS[8:]), SIX),
    "2, Unix, a path and an abstract name": (
        v2(PROXY, UNIX, b"/run/a".ljust(108, b"\0") + b"\0name".ljust(108, b"\0")),
        {"source": "/run/a", "destination": b"\0name"},
    ),
    "2, Unix, clients have no name": (
        v2(PROXY, UNIX, bytes(216)),
        {"source": "", "destination": ""},
    ),
    "2, no addresses": (v2(PROXY, 0, b""), {}),
    "2, LOCAL is not obeyed as PROXY": (v2(LOCAL, TCP4, ENDS), {}),
    "2, LOCAL, and what follows means nothing": (v2(LOCAL, 0xFF, b"anything"), {}),
    "2, TLVs of all kinds": (
        v2(PROXY, TCP4, ENDS + b"".join(tlv(*it) for it in FACTS)),
        {**V4, **SAID, "tlvs": tuple(FACTS)},
    ),
    "2, TLVs that a buffer of 108 bytes would not hold": (
        v2(PROXY, TCP4, ENDS + tlv(0xE1, bytes(4000))),
        {**V4, "tlvs": ((0xE1, bytes(4000)),)},
    ),
    "2, of two of a type the first counts": (
        v2(PROXY, TCP4, ENDS + tlv(5, b"a") + tlv(5, b"b")),
        {**V4, "unique_id": b"a", "tlvs": ((5, b"a"), (5, b"b"))},
    ),
    "2, TLS at the proxy": (
        v2(PROXY, TCP4, ENDS + tlv(0x20, OF_TLS)),
        {**V4, "tls": TLS, "tlvs": ((0x20, OF_TLS),)},
    ),
    "2, no TLS at the proxy": (
        v2(PROXY, TCP4, ENDS + tlv(0x20, bytes(5))),
        {**V4, "tlvs": ((0x20, bytes(5)),)},
    ),
}


class Cut(Exception):
    """The end of a header has not come."""


def read(data, portions=None):
    """Read the header at the beginning, never more than is surely of it; what it says, and it."""
    got = bytearray()
    while left := missing(got):
        if len(got) + left > len(data):
            raise Cut("more is asked for than there is")
        got += data[len(got) : len(got) + min(left, next(portions) if portions else left)]
    return parse(bytes(got)), bytes(got)


@table(("header", "says"), HEADERS)
def test_header(header, says):
    """It is read to its last byte and no further, in whatever portions it comes."""
    expected = ProxyInfo(version=1 if header[:1] == b"P" else 2, **says)
    for portions in (None, iter([1] * len(header)), iter([1, 2, 7] * len(header))):
        assert read(header + b"GET / HTTP/1.1\r\n\r\n", portions) == (expected, header)


LINE = b"PROXY TCP4 192.0.2.1 198.51.100.7 "
TOO_LONG = b"PROXY UNKNOWN " + bytes(100).replace(b"\0", b"x")


@table(
    ("header", "why"),
    {
        "nothing of it": (b"GET / HTTP/1.1\r\n", "does not begin with a header"),
        "nearly version 2": (SIGNATURE[:-1] + b"?" + bytes(8), "does not begin"),
        "another family": (b"PROXY UDP4 1.1.1.1 2", "neither TCP4 nor TCP6 nor UNKNOWN"),
        "a line that only LF ends": (LINE + b"1 2\n" + LINE, "ends wrong"),
        "UNKNOWN that only LF ends": (b"PROXY UNKNOWN\nGET /", "ends wrong"),
        "CR in the midst": (LINE + b"1\r2\r\n", "not understood"),
        "a line without an end does not wait for ever": (TOO_LONG, "more than 107 bytes"),
        "a wrong address": (b"PROXY TCP4 192.0.2.256 1.1.1.1 1 2\r\n", "192.0.2.256"),
        "zeros in front": (b"PROXY TCP4 192.0.02.1 1.1.1.1 1 2\r\n", "192.0.02.1"),
        "an address of the other family": (b"PROXY TCP4 ::1 ::1 1 2\r\n      ", "::1"),
        "a port that is none": (LINE + b"65536 2\r\n", "wrong port: 65536"),
        "zeros in front of a port": (LINE + b"1 02\r\n", "wrong port: 02"),
        "a sign in front of a port": (LINE + b"1 +2\r\n", "not understood"),
        "two blanks": (b"PROXY TCP4  1.1.1.1 1.1.1.1 1 2\r\n", "not understood"),
        "one part too many": (LINE + b"1 2 3\r\n", "not understood"),
        "more than is allowed": (v2(PROXY, TCP4, b"", length=5000), "5000 bytes"),
        "version 3": (v2(0x31, TCP4, ENDS), "0x31"),
        "another command": (v2(0x22, TCP4, ENDS), "0x22"),
        "a family that is not defined": (v2(PROXY, 0x41, ENDS), "0x41"),
        "a kind of socket that is not defined": (v2(PROXY, 0x13, ENDS), "0x13"),
        "addresses that are cut": (v2(PROXY, TCP6, ENDS), "36 are needed"),
        "a TLV that goes beyond the end": (v2(PROXY, 0, tlv(5, b"12")[:-1]), "beyond the end"),
        "half a TLV": (v2(PROXY, 0, b"\x05\x00"), "beyond the end"),
        "a checksum that is wrong": (summed()[:-10] + b"?" + summed()[-9:], "CRC32C"),
        "a checksum that is too short": (v2(PROXY, 0, tlv(3, b"123")), "4 are needed"),
        "a unique id that is too long": (v2(PROXY, 0, tlv(5, bytes(129))), "more than 128"),
        "no UTF-8": (v2(PROXY, 0, tlv(2, b"\xff")), "UTF-8"),
        "too little of TLS": (v2(PROXY, 0, tlv(0x20, b"\1")), "5 are needed"),
    },
)
def test_what_is_no_header(header, why):
    """It is refused, and by what; never is more asked for than it can still have."""
    with pytest.raises(BadHeader, match=why):
        read(header + bytes(200))


@given(st.lists(st.binary(max_size=40).map(lambda value: tlv(0xE0, value)), max_size=3))
def test_checksum(tlvs):
    """One that is right is let in, wherever it stands."""
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    said, _ = read(summed(*tlvs))
    assert said.source == CLIENT
    assert len(said.tlvs) == len(tlvs) + 2


def mutations(number, seed=0):
    """Headers of which a few bytes are others, gone, or there twice."""
    rng = random.Random(seed)
    headers = [header for header, _ in HEADERS.values()]
    for _ in range(number):
        data = bytearray(rng.choice(headers))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        yield bytes(data)


def outcome_of(data):
    """What comes of reading a header from it; anything else than the declared error is raised."""
    try:
        _, header = read(data)
    except BadHeader:
        return "refused"
    except Cut:
        return "cut"
    assert data.startswith(header)
    return "read"


def test_mutated_headers():
    """Whatever comes, the only error is the declared one; ``tests/soak`` has a million."""
    outcomes = Counter(map(outcome_of, mutations(20_000)))
    assert min(outcomes[it] for it in ("read", "refused", "cut")) > 100, outcomes


def test_second_opinion():
    """Another implementation reads the same addresses, where it does not fail otherwise."""
    compared = 0
    for data in mutations(5000, seed=1):
        with suppress(BadHeader, Cut):
            said, header = read(data)
            theirs = None
            with suppress(Exception):  # of more kinds than it declares
                theirs = ProxyProtocolDetect().unpack(header).source
            if isinstance(theirs, tuple) and isinstance(said.source, tuple):
                compared += 1
                if (str(theirs[0]), theirs[1]) != said.source[:2]:
                    pytest.fail(f"{header!r}: {theirs} or {said.source}")
    assert compared > 500


# Whom to believe ----------------------------------------------------------------------


@table(
    ("trusted", "peer", "believed"),
    {
        "by default, this machine": (None, ("127.0.0.9", 1), True),
        "by IPv6": (None, ("::1", 1, 0, 0), True),
        "and its Unix sockets": (None, "", True),
        "nobody else": (None, ("192.0.2.1", 1), False),
        "a network": (["10.0.0.0/8"], ("10.9.9.9", 1), True),
        "no other one": (["10.0.0.0/8"], ("11.0.0.1", 1), False),
        "an IPv4 peer of an IPv6 socket": (["10.0.0.0/8"], ("::ffff:10.1.1.1", 1, 0, 0), True),
        "an address with its zone": (["fe80::1"], ("fe80::1%eth0", 1, 0, 2), True),
        "a Unix peer by its user": (["unix:7"], "/run/a", True),
        "not by another one": (["unix:8"], "/run/a", False),
        "not where only addresses are": (["10.0.0.0/8"], "", False),
        "what is no address": (["0.0.0.0/0"], ("memory", 1), False),
        "nobody at all": ([], ("127.0.0.1", 1), False),
    },
)
def test_trusted(trusted, peer, believed):
    """Peers are believed by their address, or by their user."""
    config = ProxyProtocol() if trusted is None else ProxyProtocol(trusted)
    assert config.trusts(peer, 7) is believed


@table(
    ("trusted", "kind"),
    {
        "text": ("127.0.0.1", TypeError),
        "a number": ([1], TypeError),
        "a name": (["localhost"], ValueError),
        "no user": (["unix:"], ValueError),
        "a user by name": (["unix:root"], ValueError),
    },
)
def test_trusted_is_checked(trusted, kind):
    """What is wrong is named, with what was expected."""
    with pytest.raises(kind, match=r"ProxyProtocol.trusted must be a sequence of addresses"):
        ProxyProtocol(trusted)


@table(
    ("peer", "message"),
    {
        "bits beyond the prefix": ("10.0.0.1/8", "the network is '10.0.0.0/8'"),
        "an IPv4 address that looks like none": ("::ffff:192.0.2.1", "'192.0.2.1'"),
        "a network of those": ("::ffff:10.0.0.0/104", "count by their own address"),
        "a zone": ("fe80::1%eth0", "write no zone"),
    },
)
def test_trusted_that_would_never_count(peer, message):
    """Nor would it be what it looks like. What to write is said."""
    with pytest.raises(ValueError, match=r"^ProxyProtocol.trusted: ") as error:
        ProxyProtocol([peer])
    assert message in str(error.value)
