"""What a server and its workers say to each other: frames, as pure functions of bytes.

A frame is a letter, a length and a body. What the server says is pickled. What a
worker says is not: it talks to clients, and an attacker that takes it over must not
get the server with it. Its bodies are a line of JSON, and bytes after that.
"""

from __future__ import annotations

import enum
import json
import pickle
import struct
from typing import Any

import attrs

_HEADER = struct.Struct(">cI")

LONGEST_FROM_WORKER = 1 << 20
"""Bytes of a body. A datagram has 64 KiB at most; longer texts are cut by `shorten`."""

LARGEST_DATAGRAM = LONGEST_FROM_WORKER - (1 << 12)
"""Bytes of a datagram that a worker may want sent; no system that is known sends so many."""

_LONGEST_TEXT = 20_000
"""Characters; JSON makes 12 bytes of some, and a body has up to three texts."""


class Message(enum.Enum):
    """What a frame is about, and the letter with which it begins."""

    # The server:
    CONNECTION = b"C"
    """Serve this connection; its descriptor comes with the frame."""
    ARRIVAL = b"A"
    """Agree on TLS with this client; the descriptor comes with the frame."""
    GO_ON = b"G"
    """Serve the connection that has arrived."""
    FORGET = b"F"
    """Nobody is going to serve the connection that has arrived: end it."""
    DATAGRAM = b"D"
    """Serve this datagram."""
    SENT = b"S"
    """How the reply went that the worker asked for."""
    DRAIN = b"W"
    """The server drains: end waits between requests."""
    ORDER = b"O"
    """Do this, with the whole servers that this worker has."""

    # The worker:
    READY = b"r"
    """It is ready for a first request."""
    NOT_READY = b"n"
    """It will never be, and ends; why."""
    ARRIVED = b"a"
    """TLS is agreed on."""
    REPLY = b"s"
    """Send this datagram."""
    LOG = b"l"
    """A record for the server's loggers."""
    DONE = b"d"
    """The request has ended: how."""
    TOLD = b"t"
    """How its whole servers are."""
    RECORDS = b"c"
    """How requests went that were served when a drain began, or who was not served at all."""
    ENDED = b"e"
    """One of its whole servers has ended: how."""
    FAILED = b"f"
    """One of them has failed, and so this worker ends; why."""


class FrameError(Exception):
    """A peer does not keep to what is written here."""


def frame(kind: Message, body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return _HEADER.pack(kind.value, len(body)) + body


@attrs.define
class Frames:
    """Cuts what arrives into frames.

    Args:
      longest: bytes that a body may have; None: any number.
    """

    longest: int | None = None
    _buffer: bytearray = attrs.field(factory=bytearray)

    def feed(self, data: bytes) -> list[tuple[Message, bytes]]:
        """The frames that are complete now that ``data`` has arrived.

        Raises:
          FrameError: this is no frame, or one that is too long.
        """
        buffer = self._buffer
        buffer += data
        found = []
        while len(buffer) >= _HEADER.size:
            letter, size = _HEADER.unpack_from(buffer)
            if self.longest is not None and size > self.longest:
                raise FrameError(f"a frame of {size} bytes; {self.longest} are the most")
            end = _HEADER.size + size
            if len(buffer) < end:
                break
            found.append((_kind(letter), bytes(buffer[_HEADER.size : end])))
            del buffer[:end]
        return found


_KINDS = {kind.value: kind for kind in Message}


def _kind(letter: bytes) -> Message:
    try:
        return _KINDS[letter]
    except KeyError:
        raise FrameError(f"no frame begins with {letter!r}") from None


# What the server says ---------------------------------------------------------------


def pack(value: object) -> bytes:
    """The body of a frame of the server's, from any value that pickles."""
    return pickle.dumps(value, protocol=5)


def unpack(body: bytes) -> Any:
    """The value that the server has packed; for workers alone."""
    return pickle.loads(body)  # noqa: S301  (from the process that has started this one)


# What a worker says -----------------------------------------------------------------


def encode_facts(payload: bytes = b"", **facts: Any) -> bytes:
    """The body of a frame of a worker's.

    Args:
      facts: numbers, texts, None; and lists, tuples and dicts of them.
    """
    return json.dumps(facts).encode("ascii") + b"\n" + payload


def decode_facts(body: bytes) -> tuple[dict[str, Any], bytes]:
    """The facts and the payload of a worker's body.

    Raises:
      FrameError: it has none.
    """
    line, _, payload = body.partition(b"\n")
    try:
        facts = json.loads(str(line, "ascii"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not what a worker says: {error}") from None
    if not isinstance(facts, dict):
        raise FrameError(f"not what a worker says: {facts!r}")
    return facts, payload


def shorten(text: str) -> str:
    """A text that fits into a frame: of a longer one, the beginning and the end."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters ...\n{text[-half:]}"


def address_to_json(address: Any) -> Any:
    """A socket address in what JSON has.

    Raises:
      TypeError: it is no address.
    """
    if isinstance(address, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(address).hex()}
    if isinstance(address, tuple) and all(isinstance(part, (str, int)) for part in address):
        return list(address)
    if isinstance(address, str):
        return address
    raise TypeError(f"an address is a tuple, a str or bytes, not {address!r}")


def address_from_json(value: Any) -> Any:
    """Read an address that `address_to_json` has written.

    Raises:
      FrameError: ``value`` is not an address.
    """
    match value:
        case str():
            return value
        case [*parts] if all(isinstance(part, (str, int)) for part in parts):
            return tuple(parts)
        case {"bytes": str(digits)}:
            try:
                return bytes.fromhex(digits)
            except ValueError:
                pass
    raise FrameError(f"not an address: {value!r}")
