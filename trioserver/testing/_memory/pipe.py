"""Pipes in memory that hold a bounded number of bytes; each end is a transport.

A pipe behaves as TCP on one machine does, as far as either side can tell: both
directions hold a bounded number of bytes, the end of input and a reset are
different things, and closing with unread input resets the connection: the peer
can still read what has arrived, and is told then, once. There are no sockets and
no threads, so all of it can run on `trio.testing.MockClock`.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import attrs
import trio
from trio.lowlevel import ParkingLot, checkpoint

import trioserver

DEFAULT_CAPACITY = 65_536
"""Bytes that one direction holds before a send has to wait."""


@attrs.define(eq=False)
class _Direction:
    """The bytes on their way from one end to the other."""

    capacity: int
    data: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    reader_gone: bool = False
    reset: bool = False
    readers: ParkingLot = attrs.field(factory=ParkingLot)
    writers: ParkingLot = attrs.field(factory=ParkingLot)

    def cannot_take(self) -> bool:
        """Whether a send fails instead of waiting."""
        return self.ended or self.reset or self.reader_gone

    def changed(self) -> None:
        """Wake all waits, which look again."""
        self.readers.unpark_all()
        self.writers.unpark_all()

    def break_off(self) -> None:
        """A reset: nothing more gets through, and both ends are told."""
        self.reset = True
        self.changed()


@attrs.define(eq=False)
class Transcript:
    """What went through one end of a pipe.

    Attributes:
      received: what was received there.
      sent: what was sent there.
    """

    received: bytearray = attrs.field(factory=bytearray)
    sent: bytearray = attrs.field(factory=bytearray)


@attrs.define(eq=False)
class MemoryTransport:
    """One end of a pipe; a `trioserver.Transport`.

    Attributes:
      transcript: notes what goes through, if somebody has put one there.
    """

    local_address: Any
    _incoming: _Direction
    _outgoing: _Direction
    peer_credentials: trioserver.PeerCredentials | None = None
    closed: bool = False
    transcript: Transcript | None = None

    def receive_now(self, max_bytes: int) -> bytes | None:
        self._check_open()
        incoming = self._incoming
        if incoming.data:
            portion = bytes(incoming.data[:max_bytes])
            del incoming.data[:max_bytes]
            incoming.changed()
            if self.transcript is not None:
                self.transcript.received += portion
            return portion
        if incoming.reset:
            incoming.reset, incoming.ended = False, True  # told once, as the kernel does
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return b"" if incoming.ended else None

    def has_input(self) -> bool:
        return bool(self._incoming.data) and not self.closed

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        incoming, outgoing = self._incoming, self._outgoing
        if incoming.reset:
            incoming.reset, incoming.ended = False, True  # told once, by what comes first
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        if outgoing.ended or outgoing.reset:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if outgoing.reader_gone and len(data):
            # The bytes leave, and the peer's kernel answers them with a reset.
            outgoing.reset = True
            incoming.break_off()
            return len(data)
        portion = data[: outgoing.capacity - len(outgoing.data)]
        outgoing.data += portion
        outgoing.changed()
        if self.transcript is not None:
            self.transcript.sent += portion
        return len(portion)

    async def wait_readable(self) -> None:
        self._check_open()
        incoming = self._incoming
        if incoming.data or incoming.ended or incoming.reset:
            await checkpoint()
        else:
            await incoming.readers.park()
            self._check_open()

    def wake_reader(self) -> None:
        self._incoming.readers.unpark_all()

    async def wait_writable(self) -> None:
        self._check_open()
        outgoing = self._outgoing
        if len(outgoing.data) < outgoing.capacity or outgoing.cannot_take():
            await checkpoint()
        else:
            await outgoing.writers.park()
            self._check_open()

    async def wait_taken(self) -> None:
        """Wait until the other end has received all that was sent, or never will."""
        outgoing = self._outgoing
        await checkpoint()
        while outgoing.data and not outgoing.cannot_take():
            await outgoing.writers.park()

    def send_eof(self) -> None:
        if self._outgoing.reset:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        self._outgoing.ended = True
        self._outgoing.changed()

    def close(self) -> None:
        if self.closed:
            return
        if self._incoming.data:
            self.reset()
        else:
            self.closed = True
            self._outgoing.ended = True
            self._incoming.reader_gone = True
            self._outgoing.changed()
            self._incoming.changed()

    def reset(self) -> None:
        if not self.closed:
            self.closed = True
            self._incoming.break_off()
            self._outgoing.break_off()

    def fileno(self) -> int:
        return -1

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end of the pipe is closed")


def memory_pipe(
    capacity: int = DEFAULT_CAPACITY,
    *,
    addresses: tuple[Any, Any] = (("memory", 1), ("memory", 2)),
) -> tuple[MemoryTransport, MemoryTransport]:
    """Make two ends that are connected.

    Args:
      capacity: bytes that each direction holds before a send has to wait.
      addresses: what the two ends say that their addresses are.
    """
    there, back = _Direction(capacity), _Direction(capacity)
    return MemoryTransport(addresses[0], back, there), MemoryTransport(addresses[1], there, back)
