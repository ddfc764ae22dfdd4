"""TLS as a function of bytes: however they are cut, the same text, and an end that is one."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import table
from support.tls import SERVER, Peer

from trioserver._sockets.client_hello import missing_of_hello
from trioserver._sockets.tls_errors import TLSError
from trioserver._sockets.tls_records import TLSRecords

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


def agreed(version=ssl.TLSVersion.TLSv1_3):
    """Both sides of a connection on which TLS is agreed."""
    records, peer = TLSRecords(SERVER.context()), Peer(version)
    while not peer.shake_hands(records):
        pass
    return records, peer


def read_all(records):
    """All the text that is there, and what `read` says then."""
    text = b""
    while data := records.read(7):
        text += data
    return text, data


@VERSIONS
@given(
    messages=st.lists(st.binary(min_size=1, max_size=40_000), max_size=4),
    cuts=st.lists(st.integers(1, 20_000), max_size=30),
)
def test_ciphertext_cut_anywhere_is_the_same_text(version, messages, cuts):
    """And at every cut it is known whether a record has begun that is not whole."""
    records, peer = agreed(version)
    pieces = [peer.says(message) for message in messages]
    ends = {sum(map(len, pieces[:number])) for number in range(len(pieces) + 1)}
    stream, text, at = b"".join(pieces), b"", 0
    for cut in [*cuts, len(stream) or 1]:
        if piece := stream[at : at + cut]:
            records.feed(piece)
            at += len(piece)
        more, end = read_all(records)
        text += more
        assert end is None
        assert at not in ends or not records.has_input
        assert records.has_input or at in record_ends(stream)
    assert text == b"".join(messages)


def record_ends(stream):
    """The positions at which records of a stream end."""
    ends, at = {0}, 0
    while at < len(stream):
        at += 5 + int.from_bytes(stream[at + 3 : at + 5], "big")
        ends.add(at)
    return ends


@VERSIONS
@pytest.mark.parametrize("read_before", [0, 1, 3000, None])
@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_own_end_loses_nothing_of_the_peer_s(version, read_before, cut):
    """A close_notify of ours: what has come before it, and what comes after, can be read."""
    records, peer = agreed(version)
    message = b"x" * 2000 + b"y" * 2000
    ciphertext = peer.says(message[:2000]) + peer.says(message[2000:])
    cut %= len(ciphertext)
    records.feed(ciphertext[:cut] or ciphertext[:1])
    text = b""
    while read_before is None or len(text) < read_before:
        data = records.read(1000 if read_before is None else read_before - len(text))
        if not data:
            break
        text += data
    records.write_end()
    assert peer.hears(records) == (b"", True)
    records.feed(ciphertext[cut:] if cut else ciphertext[1:])
    more, end = read_all(records)
    assert (text + more, end) == (message, None)
    records.feed(peer.ends())
    assert read_all(records) == (b"", b"")


@table(
    ("ciphertext", "missing"),
    {
        "nothing yet": (b"", 5),
        "the type alone": (b"\x16", 4),
        "a header": (b"\x16\x03\x01\x02\x00", 512),
        "most of a record": (b"\x16\x03\x01\x00\x06\x01\0\0\2a", 1),
        "all of it": (b"\x16\x03\x01\x00\x06\x01\0\0\2ab", 0),
        "and more": (b"\x16\x03\x01\x00\x06\x01\0\0\2abcde", 0),
        "a whole record of one byte": (b"\x16\x03\x01\x00\x01\x01", 5),
        "two records, the second with too little": (
            b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x05\0\0\3ab",
            5,
        ),
        "and the third with the rest": (
            b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x05\0\0\3ab\x16\x03\x01\x00\x01c",
            0,
        ),
    },
)
def test_what_is_missing_of_the_first_message(ciphertext, missing):
    """It is known from its length, in however many records it comes."""
    assert missing_of_hello(ciphertext) == missing
    assert missing_of_hello(bytearray(ciphertext)) == missing


@table(
    ("ciphertext", "reason"),
    {
        "another message": (b"\x16\x03\x01\x00\x01\x02", "something else than a ClientHello"),
        "a long one": (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "of 16777219 bytes is too long"),
        "empty records": (b"\x16\x03\x01\x00\x00" * 100, "comes in more than 64 records"),
    },
)
def test_first_message_that_nobody_takes(ciphertext, reason):
    """It is refused before anybody waits for the rest of it."""
    with pytest.raises(TLSError, match=reason):
        missing_of_hello(ciphertext)


def test_first_message_of_a_client():
    """That of OpenSSL, byte for byte: nothing is missing of the whole alone."""
    peer = Peer()
    peer.shakes()
    hello = peer.output()
    assert [size for size in range(len(hello) + 1) if not missing_of_hello(hello[:size])] == [
        len(hello)
    ]


@pytest.mark.parametrize("says", [b"GET / HTTP/1.1\r\n", b"\x80\x2e\x01", b"\x15\x03\x01\x00\x02"])
def test_what_is_no_handshake(says):
    """Whoever speaks no TLS is told from its first byte, before there is a record."""
    with pytest.raises(TLSError, match=r"^TLS: the peer speaks no TLS$"):
        missing_of_hello(bytearray(says))
    records = TLSRecords(SERVER.context())
    records.feed(says)
    for _ in range(2):  # the first reason stays
        with pytest.raises(TLSError, match=r"^TLS: the peer speaks no TLS$"):
            records.shake_hands()


def test_forged_record():
    """What was changed on its way is not read, and the reason is in words."""
    records, peer = agreed()
    ciphertext = bytearray(peer.says(b"pay 1"))
    ciphertext[-1] ^= 1
    records.feed(bytes(ciphertext))
    with pytest.raises(TLSError, match=r"^TLS: decryption failed or bad record mac$"):
        records.read(10)
