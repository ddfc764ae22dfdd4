"""A listener in memory, to connect to without a network, and one that wraps another."""

from __future__ import annotations

import collections
import errno
import itertools
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs
import trio
from trio.lowlevel import ParkingLot, checkpoint

import trioserver

from .client_end import ClientEnd
from .pipe import DEFAULT_CAPACITY, MemoryTransport, memory_pipe


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
        """Connect without waiting; refused when the queue is full."""
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
