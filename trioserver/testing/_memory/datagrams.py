"""Datagrams in memory: a place to send to, and clients that do.

It behaves as the kernel does, at its most awkward: what is not received in time
is dropped and counted, as over UDP, and a client that does not receive makes
whoever replies wait, as over a Unix socket.
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

from .servers import MemoryBase

DEFAULT_CAPACITY = 256
"""Datagrams that either side keeps until they are received."""

LARGEST_DATAGRAM = 65_507
"""Bytes of the largest datagram that can be sent, as over IPv4."""


@attrs.define(eq=False)
class MemoryDatagramClient:
    """Sends datagrams to a `MemoryDatagramListener`, and receives its replies.

    Attributes:
      address: what the server sees; ``""`` has none, and gets no replies.
      credentials: what the server sees as ``peer_credentials``.
      capacity: datagrams that are kept until they are received; whoever
        replies to more waits.
    """

    address: Any
    _listener: MemoryDatagramListener
    credentials: trioserver.PeerCredentials | None = None
    capacity: int = DEFAULT_CAPACITY
    _inbox: deque[bytes] = attrs.field(factory=deque)
    _closed: bool = False
    _arrivals: ParkingLot = attrs.field(factory=ParkingLot)
    _room: ParkingLot = attrs.field(factory=ParkingLot)

    async def send(self, data: bytes) -> None:
        """Send one datagram; lost without a sign if the server has no room for it.

        Raises:
          trio.ClosedResourceError: this client was closed.
          ConnectionRefusedError: nobody receives there any more.
          OSError: EMSGSIZE, it is larger than a datagram can be.
        """
        await checkpoint()
        self.send_now(data)

    def send_now(self, data: bytes) -> None:
        """Send one datagram from plain code, without a checkpoint."""
        self._check_open()
        _check_size(data)
        self._listener.deliver(bytes(data), self)

    async def receive(self) -> bytes:
        """The next datagram; waits for one."""
        await checkpoint()
        self._check_open()
        while not self._inbox:
            await self._arrivals.park()
            self._check_open()
        self._room.unpark_all()
        return self._inbox.popleft()

    def received(self) -> list[bytes]:
        """All that has arrived and was not received yet, now."""
        arrived = list(self._inbox)
        self._inbox.clear()
        self._room.unpark_all()
        return arrived

    def close(self) -> None:
        """Be gone: from now on, replies are refused."""
        self._closed = True
        if self._listener.clients.get(self.address) is self:
            del self._listener.clients[self.address]
        self._arrivals.unpark_all()
        self._room.unpark_all()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this client was closed")

    def take_in(self, data: bytes) -> bool:
        """Take a reply in, for the server; false if there is no room for it."""
        if self._closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if len(self._inbox) >= self.capacity:
            return False
        self._inbox.append(data)
        self._arrivals.unpark_all()
        return True

    async def wait_for_room(self) -> None:
        """Wait until it is worth trying again, for the server."""
        if self._closed or len(self._inbox) < self.capacity:
            await checkpoint()
        else:
            await self._room.park()


@attrs.define(eq=False)
class MemoryDatagramListener:
    """A place to send datagrams to, without a network; a `trioserver.Listener`.

    Attributes:
      address: what it says that its address is.
      largest: bytes of the largest datagram to receive.
      capacity: datagrams that are kept until they are received; more are
        dropped.
      shared: what a drain is told; see `trioserver.Listener`.
      errors: raised by the next receives, one each, before any datagram is taken.
      dropped: how many were.
    """

    address: Any
    largest: int = 65_535
    capacity: int = DEFAULT_CAPACITY
    shared: bool = False
    errors: collections.deque[Exception] = attrs.field(factory=deque)
    dropped: int = 0
    closed: bool = False
    clients: dict[Any, MemoryDatagramClient] = attrs.field(factory=dict)
    _queue: deque[tuple[bytes, MemoryDatagramClient]] = attrs.field(factory=deque)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    _receivers: ParkingLot = attrs.field(factory=ParkingLot)

    def client(
        self,
        address: Any = None,
        *,
        credentials: trioserver.PeerCredentials | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> MemoryDatagramClient:
        """A new client.

        Args:
          address: who the server sees; a new one without it; ``""`` for a
            client that nobody can reply to.
          credentials: what the server sees as ``peer_credentials``.
          capacity: datagrams that it keeps until it receives them.
        """
        if address is None:
            address = ("memory-client", next(self._numbers))
        client = MemoryDatagramClient(address, self, credentials, capacity)
        self.clients[address] = client
        return client

    def deliver(self, data: bytes, client: MemoryDatagramClient) -> None:
        """Take a datagram in, for a client."""
        if self.closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if len(self._queue) >= self.capacity:
            self.dropped += 1
            return
        self._queue.append((data, client))
        self._receivers.unpark_all()

    def fail(self, *errors: Exception) -> None:
        """Have the next receives raise these."""
        self.errors.extend(errors)
        self._receivers.unpark_all()

    def listen(self, backlog: int) -> None:
        """Nothing: it receives from the start."""

    def accept_now(self) -> tuple[MemoryDatagram, Any] | None:
        if self.closed:
            raise OSError(errno.EBADF, "the listener is closed")
        if self.errors:
            raise self.errors.popleft()
        if not self._queue:
            return None
        data, client = self._queue.popleft()
        if len(data) > self.largest:
            raise OSError(errno.EMSGSIZE, f"dropped a datagram of more than {self.largest} bytes")
        return MemoryDatagram(data, client, self), client.address

    async def wait_acceptable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("the listener is closed")
        if self._queue or self.errors:
            await checkpoint()
        else:
            await self._receivers.park()

    def close(self) -> None:
        self.closed = True
        self._queue.clear()
        self._receivers.unpark_all()


@attrs.define(eq=False)
class MemoryDatagram:
    """One datagram that was received; a `trioserver.DatagramTransport`."""

    data: bytes
    _client: MemoryDatagramClient
    _listener: MemoryDatagramListener
    closed: bool = False
    _full: MemoryDatagramClient | None = None

    @property
    def local_address(self) -> Any:
        return self._listener.address

    @property
    def peer_credentials(self) -> trioserver.PeerCredentials | None:
        return self._client.credentials

    def send_now(self, data: bytes | bytearray | memoryview, address: Any) -> bool:
        _check_size(data)
        client = self._listener.clients.get(address)
        if client is None or not address:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        sent = client.take_in(bytes(data))
        self._full = None if sent else client
        return sent

    async def wait_writable(self) -> None:
        if self._full is None:
            await checkpoint()
        else:
            await self._full.wait_for_room()

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


def _check_size(data: bytes | bytearray | memoryview) -> None:
    if memoryview(data).nbytes > LARGEST_DATAGRAM:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))


class MemoryDatagramMixIn(MemoryBase):
    """Serves in memory instead: put it first in the bases of a datagram server.

    Every run has a `MemoryDatagramListener` of its own, ``server.listener``, at
    the configured address.
    """

    memory_capacity = DEFAULT_CAPACITY

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        """Make the listener."""
        largest = getattr(self, "max_packet_size", 65_535)
        self.listener: MemoryDatagramListener = MemoryDatagramListener(
            self.server_address, largest, self.memory_capacity
        )
        return [self.listener]

    def client(
        self,
        address: Any = None,
        *,
        credentials: trioserver.PeerCredentials | None = None,
        capacity: int = DEFAULT_CAPACITY,
    ) -> MemoryDatagramClient:
        """A new client of the server; see `MemoryDatagramListener.client`."""
        return self.listener.client(address, credentials=credentials, capacity=capacity)


class MemoryDatagramServer(MemoryDatagramMixIn, trioserver.UDPServer):
    """A datagram server in memory; its address is any ``(name, number)``."""
