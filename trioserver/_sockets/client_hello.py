"""The first message of a TLS client, as far as it can be told whether all of it is there."""

from __future__ import annotations

from .tls_errors import NO_TLS, TLSError

HEADER = 5
"""Bytes before each record, of which the last two are its length (RFC 8446, 5.1)."""

HANDSHAKE = 22
"""The type of record that a client begins with (RFC 8446, 5.1)."""

_CLIENT_HELLO = 1
"""The type of its message (RFC 8446, 4)."""

_LONGEST_HELLO = 131_396
"""Bytes of it that OpenSSL takes (``CLIENT_HELLO_MAX_LENGTH``)."""

_MOST_RECORDS = 64
"""Records in which it may come. All send it in one, or in a few to get past a filter."""


def missing_of_hello(ciphertext: bytes | bytearray) -> int:
    """Bytes that are surely missing of a client's first message; 0 if that is whole.

    Raises:
      TLSError: it is no ClientHello, or one that OpenSSL would not take.
    """
    hello, at = bytearray(), 0
    for _ in range(_MOST_RECORDS):
        header = ciphertext[at : at + HEADER]
        if header and header[0] != HANDSHAKE:
            raise TLSError(NO_TLS)
        if len(header) < HEADER:
            return HEADER - len(header)
        size = int.from_bytes(header[3:], "big")
        portion = ciphertext[at + HEADER : at + HEADER + size]
        hello += portion
        if not _is_missing(hello):
            return 0
        if len(portion) < size:
            return size - len(portion)
        at += HEADER + size
    raise TLSError(f"the ClientHello comes in more than {_MOST_RECORDS} records")


def _is_missing(hello: bytearray) -> bool:
    """Whether a part of the message is missing (RFC 8446, 4: a type, and a length)."""
    if hello and hello[0] != _CLIENT_HELLO:
        raise TLSError("the peer begins with something else than a ClientHello")
    size = 4 + int.from_bytes(hello[1:4], "big")
    if size > _LONGEST_HELLO:
        raise TLSError(f"a ClientHello of {size} bytes is too long")
    return len(hello) < size
