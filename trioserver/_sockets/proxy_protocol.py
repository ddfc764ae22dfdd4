"""PROXY headers, versions 1 and 2: bytes in, and what they say, or how many are missing, out.

The specification is HAProxy's proxy-protocol.txt; its numbers are named below.

The rules that this file keeps:

* Nothing is read past a header. `missing` never asks for a byte that may be the client's own.
* A wrong header is seen as soon as it can be, and is a `BadHeader`, whatever its bytes.
* All of it counts: a length that does not fit, or a checksum that is wrong, is no header.
"""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterator

from .._facts.address import Address
from .._facts.proxy import ProxyInfo, ProxyTLS

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""What version 2 begins with: nothing that another protocol would take for a request."""

MOST_OF_V1 = 107
"""Bytes of the longest line: two IPv6 addresses of 39 characters (specification, 2.1)."""

MOST_OF_V2 = 4096
"""Bytes that may follow the first 16; the specification asks for 2 KiB at least (2.2)."""

_LINE = b"PROXY "
_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_FIXED = struct.Struct("!12sBBH")  # signature, version and command, family, length


class BadHeader(ValueError):
    """The bytes are no PROXY header; says why."""


def missing(data: bytes | bytearray) -> int:
    """How many bytes are missing of a header that begins with ``data``, at least; 0: none.

    Raises:
      BadHeader: no header begins like that.
    """
    if data[: len(_LINE)] == _LINE[: len(data)]:
        return _missing_of_v1(data)
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _missing_of_v2(data)
    raise BadHeader(f"it does not begin with a header, but with {bytes(data[:16])!r}")


def _missing_of_v1(data: bytes | bytearray) -> int:
    if len(data) < _SHORTEST:
        return _SHORTEST - len(data)
    end = data.find(b"\n")
    if end == len(data) - 1 and data[-2:] == b"\r\n":
        return 0
    if end != -1 or b"\r" in data[:-1]:
        raise BadHeader(f"a line that ends wrong: {bytes(data[:MOST_OF_V1])!r}")
    if not data.startswith((b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")):
        raise BadHeader(f"a line of neither TCP4 nor TCP6 nor UNKNOWN: {bytes(data)!r}")
    # Each part that is still to come has a blank and a character at least.
    parts = 0 if data.startswith(b"PROXY UNKNOWN") else max(0, 5 - data.count(b" "))
    left = 1 if data.endswith(b"\r") else 2 + 2 * parts
    if len(data) + left > MOST_OF_V1:
        raise BadHeader(f"a line of more than {MOST_OF_V1} bytes: {bytes(data)!r}")
    return left


def _missing_of_v2(data: bytes | bytearray) -> int:
    if len(data) < _FIXED.size:
        return _FIXED.size - len(data)
    length = int.from_bytes(data[14:16], "big")
    if length > MOST_OF_V2:
        raise BadHeader(f"{length} bytes of addresses and more, {MOST_OF_V2} at most are allowed")
    return _FIXED.size + length - len(data)


def parse(data: bytes) -> ProxyInfo:
    """What a whole header says.

    Args:
      data: all of its bytes, and no more: `missing` says 0.

    Raises:
      BadHeader: it is wrong; says why.
    """
    if data.startswith(_LINE):
        return _parse_v1(data)
    return _parse_v2(data)


# Version 1 ----------------------------------------------------------------------------

_TCP = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (\d{1,5}) (\d{1,5})\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


def _parse_v1(data: bytes) -> ProxyInfo:
    if _UNKNOWN.fullmatch(data):
        return ProxyInfo(version=1)
    found = _TCP.fullmatch(data)
    if found is None:
        raise BadHeader(f"a line that is not understood: {data!r}")
    family, *hosts = found.group(1, 2, 3)
    ends = zip(hosts, found.group(4, 5), strict=True)
    source, destination = (_end(family, host.decode(), port.decode(), data) for host, port in ends)
    return ProxyInfo(version=1, source=source, destination=destination)


def _end(family: bytes, host: str, port: str, data: bytes) -> Address:
    kind = ipaddress.IPv4Address if family == b"4" else ipaddress.IPv6Address
    try:
        ip = kind(host)
    except ValueError as error:
        raise BadHeader(f"a wrong address: {error}, in {data!r}") from None
    if int(port) > 65535 or port != str(int(port)):  # no zeros in front, says 2.1
        raise BadHeader(f"a wrong port: {port}, in {data!r}")
    return _address(ip, int(port))


def _address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    """As the socket module has it."""
    return (str(ip), port) if ip.version == 4 else (str(ip), port, 0, 0)


# Version 2 ----------------------------------------------------------------------------

_LOCAL, _PROXY = 0x20, 0x21
_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _TLS, _NETNS = 0x01, 0x02, 0x03, 0x05, 0x20, 0x30
_TLS_VERSION, _TLS_COMMON_NAME, _TLS_CIPHER = 0x21, 0x22, 0x23
_IS_TLS, _HAS_CERTIFICATE = 0x01, 0x02 | 0x04  # in this connection, in its session
_LONGEST_ID = 128

# How long the addresses of a family are; family and kind of socket are one byte.
_LENGTHS = {0x1: 12, 0x2: 36, 0x3: 216}


def _parse_v2(data: bytes) -> ProxyInfo:
    _, command, family, _ = _FIXED.unpack_from(data)
    if command == _LOCAL:
        return ProxyInfo(version=2)  # the rest means nothing, whatever it is
    if command != _PROXY:
        raise BadHeader(f"version and command are {command:#x}, not {_LOCAL:#x} or {_PROXY:#x}")
    rest = data[_FIXED.size :]
    source = destination = None
    if family:
        length = _LENGTHS.get(family >> 4)
        if length is None or family & 0xF not in {1, 2}:
            raise BadHeader(f"the family of the addresses is {family:#x}, which is not defined")
        if len(rest) < length:
            raise BadHeader(f"addresses of {len(rest)} bytes, {length} are needed")
        source, destination = _ends(family >> 4, rest[:length])
        rest = rest[length:]
    tlvs = tuple(_tlvs(rest))
    facts = dict(reversed(tlvs))  # the first of each type
    if _CRC32C in facts:
        _check_sum(data, facts[_CRC32C])
    if len(facts.get(_UNIQUE_ID, b"")) > _LONGEST_ID:
        raise BadHeader(f"a unique id of more than {_LONGEST_ID} bytes")
    return ProxyInfo(
        version=2,
        source=source,
        destination=destination,
        authority=_text(facts.get(_AUTHORITY)),
        alpn=facts.get(_ALPN),
        unique_id=facts.get(_UNIQUE_ID),
        netns=_text(facts.get(_NETNS)),
        tls=_tls(facts[_TLS]) if _TLS in facts else None,
        tlvs=tlvs,
    )


def _ends(family: int, block: bytes) -> tuple[Address, Address]:
    if family == 3:
        return _path(block[:108]), _path(block[108:])
    size = 4 if family == 1 else 16
    ports = struct.unpack("!HH", block[2 * size :])
    ips = (ipaddress.ip_address(block[:size]), ipaddress.ip_address(block[size : 2 * size]))
    source, destination = map(_address, ips, ports)
    return source, destination


def _path(raw: bytes) -> Address:
    """A path as the socket module has it: text, or the bytes of an abstract name."""
    if raw[0]:
        return os.fsdecode(raw.partition(b"\x00")[0])
    return raw.rstrip(b"\x00") or ""


def _tlvs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, length and value, one after the other, to the end."""
    while data:
        length = int.from_bytes(data[1:3], "big")
        if len(data) < 3 + length:
            raise BadHeader(f"a TLV of type {data[0]:#x} that goes beyond the end of the header")
        yield data[0], data[3 : 3 + length]
        data = data[3 + length :]


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadHeader(f"text that is no UTF-8: {value!r}") from None


def _tls(value: bytes) -> ProxyTLS | None:
    if len(value) < 5:
        raise BadHeader(f"a TLV about TLS of {len(value)} bytes, 5 are needed")
    flags, failed = struct.unpack_from("!BI", value)
    facts = dict(reversed(tuple(_tlvs(value[5:]))))
    if not flags & _IS_TLS:
        return None
    has_certificate = bool(flags & _HAS_CERTIFICATE)
    return ProxyTLS(
        version=_text(facts.get(_TLS_VERSION)),
        cipher=_text(facts.get(_TLS_CIPHER)),
        common_name=_text(facts.get(_TLS_COMMON_NAME)),
        has_certificate=has_certificate,
        is_verified=has_certificate and not failed,
    )


# The checksum ---------------------------------------------------------------------------


def _check_sum(data: bytes, given: bytes) -> None:
    if len(given) != 4:
        raise BadHeader(f"a checksum of {len(given)} bytes, 4 are needed")
    at = _place_of_sum(data)
    if crc32c(data[:at] + bytes(4) + data[at + 4 :]) != int.from_bytes(given, "big"):
        raise BadHeader("its checksum (CRC32C) is wrong")


def _place_of_sum(data: bytes) -> int:
    """Where the value of the first checksum begins."""
    family = data[13] >> 4
    at = _FIXED.size + (_LENGTHS[family] if data[13] else 0)
    while data[at] != _CRC32C:
        at += 3 + int.from_bytes(data[at + 1 : at + 3], "big")
    return at + 3


def _table() -> Iterator[int]:
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


_CRC32C_TABLE = tuple(_table())


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, B.4 (Castagnoli's polynomial, which zlib does not have)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
