"""A network in memory: bounded pipes, and a listener to connect to.

It behaves as TCP on one machine does, as far as either side can tell: both
directions hold a bounded number of bytes, the end of input and a reset are
different things, and closing with unread input resets the connection: the peer
can still read what has arrived, and is told then, once. There are no sockets and
no threads, so all of it can run on `trio.testing.MockClock`.
"""

from __future__ import annotations

import collections
import errno
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import ParkingLot, checkpoint

import trioserver

from ._client_end import ClientEnd

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
        """Let everybody who waits look again."""
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
    """Two connected ends.

    Args:
      capacity: bytes that each direction holds before a send has to wait.
      addresses: what the two ends say that their addresses are.
    """
    there, back = _Direction(capacity), _Direction(capacity)
    return MemoryTransport(addresses[0], back, there), MemoryTransport(addresses[1], there, back)


@attrs.define(eq=False)
class MemoryListener:
    """A place to connect to, without a network; a `trioserver.Listener`.

    Attributes:
      address: what it says that its address is.
      capacity: bytes that each direction of a connection holds.
      shared: what a drain is told; see `trioserver.Listener`.
      errors: raised by the next accepts, one each, before any client is taken.
    """

    address: Any
    capacity: int = DEFAULT_CAPACITY
    shared: bool = False
    errors: collections.deque[Exception] = attrs.field(factory=deque)
    closed: bool = False
    _backlog: int = 0
    _queue: deque[MemoryTransport] = attrs.field(factory=deque)
    _clients: dict[MemoryTransport, Any] = attrs.field(factory=dict)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    _acceptors: ParkingLot = attrs.field(factory=ParkingLot)
    _connectors: ParkingLot = attrs.field(factory=ParkingLot)

    def listen(self, backlog: int) -> None:
        self._backlog = max(backlog, 1)  # as the kernel does

    async def connect(
        self, client_address: Any = None, credentials: trioserver.PeerCredentials | None = None
    ) -> trioserver.Connection:
        """Connect; waits while the queue of clients that are not accepted yet is full.

        Args:
          client_address: who the server sees; a new one without it.
          credentials: what the server sees as ``peer_credentials``.

        Returns:
          The client's end, a stream without time-outs. It raises what a
          `trio.SocketStream` does: of a server that is gone,
          `trio.BrokenResourceError`.

        Raises:
          ConnectionRefusedError: nobody listens.
        """
        await checkpoint()
        while not self.closed and 0 < self._backlog <= len(self._queue):
            await self._connectors.park()
        return self.connect_now(client_address, credentials)

    def connect_now(
        self, client_address: Any = None, credentials: trioserver.PeerCredentials | None = None
    ) -> trioserver.Connection:
        """The same, without waiting; refused when the queue is full."""
        if self.closed or len(self._queue) >= self._backlog:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if client_address is None:
            client_address = ("memory-client", next(self._numbers))
        client, server = memory_pipe(self.capacity, addresses=(client_address, self.address))
        server.peer_credentials = credentials
        self._clients[server] = client_address
        self._queue.append(server)
        self._acceptors.unpark_all()
        return ClientEnd(client, self.address)

    def accept_now(self) -> tuple[MemoryTransport, Any] | None:
        if self.errors:
            raise self.errors.popleft()
        if not self._queue:
            return None
        transport = self._queue.popleft()
        self._connectors.unpark()
        return transport, self._clients.pop(transport)

    async def wait_acceptable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("the listener is closed")
        if self._queue or self.errors:
            await checkpoint()
        else:
            await self._acceptors.park()

    def fail(self, *errors: Exception) -> None:
        """Have the next accepts raise these."""
        self.errors.extend(errors)
        self._acceptors.unpark_all()

    def close(self) -> None:
        self.closed = True
        while self._queue:
            self._queue.popleft().reset()
        self._clients.clear()
        self._acceptors.unpark_all()
        self._connectors.unpark_all()


class ListenerWrapper:
    """A listener that does something more with what another one accepts.

    Attributes:
      beneath: the other one.
    """

    def __init__(self, listener: trioserver.Listener) -> None:
        self.beneath = listener

    @property
    def address(self) -> Any:
        return self.beneath.address

    @property
    def shared(self) -> bool:
        return self.beneath.shared

    def listen(self, backlog: int) -> None:
        self.beneath.listen(backlog)

    async def wait_acceptable(self) -> None:
        await self.beneath.wait_acceptable()

    def close(self) -> None:
        self.beneath.close()


class MemoryBase(trioserver.BaseServer):
    """A server in memory: one that makes its listener itself, for each run."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("listener", None)  # a copy has none, until it is bound
        return state


class MemoryMixIn(MemoryBase):
    """Serves in memory instead: put it first in the bases of a stream server.

    ``class InMemory(MemoryMixIn, MyServer): pass``. Every run has a
    `MemoryListener` of its own, ``server.listener``, at the configured address.
    """

    memory_capacity = DEFAULT_CAPACITY

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        """Make the listener."""
        self.listener: MemoryListener = MemoryListener(self.server_address, self.memory_capacity)
        return [self.listener]

    async def connect(
        self, client_address: Any = None, credentials: trioserver.PeerCredentials | None = None
    ) -> trioserver.Connection:
        """Connect to the server; see `MemoryListener.connect`."""
        return await self.listener.connect(client_address, credentials)


class MemoryServer(MemoryMixIn, trioserver.TCPServer):
    """A stream server in memory; its address is any ``(name, number)``."""
