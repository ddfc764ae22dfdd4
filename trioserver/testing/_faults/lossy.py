"""Datagrams with faults: some are lost, some come twice, some late, by chance.

A task takes in what arrives at the listener beneath, and decides; a datagram that is
late has a task of its own. A server's replies are decided upon when it sends them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

import attrs
import trio
from trio.lowlevel import ParkingLot

import trioserver

from .._memory.listener import ListenerWrapper
from .faults import Faults
from .kinds import Duplicate, Latency, Loss, Reorder, Towards


def fates(faults: Faults, towards: Towards, chance: random.Random) -> Iterator[float]:
    """How late a datagram arrives, in seconds: not at all if there is none; twice if there are two.

    Draws as many numbers for each, so that a fault more changes nothing else.
    """
    lost, twice, overtaken, shift = (chance.random() for _ in range(4))
    late = sum(fault.late(shift) for fault in faults.of(Latency, towards))
    for fault in faults.of(Reorder, towards):
        late += fault.seconds if overtaken < fault.share else 0.0
    if any(lost < fault.share for fault in faults.of(Loss, towards)):
        return
    yield late
    if any(twice < fault.share for fault in faults.of(Duplicate, towards)):
        yield late


class LossyListener(ListenerWrapper):
    """A listener whose datagrams have faults; a `trioserver.Listener` of datagrams.

    Args:
      listener: where they come from, in memory or of the kernel.
      faults: what is wrong with them; may change at any time.
      nursery: where the tasks run that carry them; it has to outlive the server.
    """

    def __init__(
        self, listener: trioserver.Listener, faults: Faults, nursery: trio.Nursery
    ) -> None:
        super().__init__(listener)
        self._faults = faults
        self._nursery = nursery
        self._chance = faults.chance("server")
        self._replies = faults.chance("client")
        self._ready: deque[tuple[trioserver.DatagramTransport, Any] | OSError] = deque()
        self._changed = ParkingLot()
        self._closed = False
        nursery.start_soon(self._take_in, name="faults of datagrams")

    @property
    def dropped(self) -> int:
        """How many were lost beneath; those that a `Loss` takes are not counted."""
        return getattr(self.beneath, "dropped", 0)

    def accept_now(self) -> tuple[trioserver.DatagramTransport, Any] | None:
        if not self._ready and not self._closed:
            self._take_in_now()  # a drain does not wait for the task below
        if not self._ready:
            return None
        self._changed.unpark_all()
        answer = self._ready.popleft()
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def wait_acceptable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._closed:
                raise trio.ClosedResourceError("the listener is closed")
            await self._changed.park()

    def close(self) -> None:
        self._closed = True
        self._forget()
        self._changed.unpark_all()
        super().close()

    async def _take_in(self) -> None:
        with suppress(trio.ClosedResourceError):
            while not self._closed:
                while self._ready:
                    await self._changed.park()
                await self.beneath.wait_acceptable()
                self._take_in_now()

    def _take_in_now(self) -> None:
        """Decide upon what is there, until something has arrived."""
        while not self._ready:
            try:
                accepted = self.beneath.accept_now()
            except OSError as error:
                self._arrives(error)
                return
            if accepted is None:
                return
            self._decide(*accepted)

    def _decide(self, transport: Any, client_address: Any) -> None:
        while (error := self._faults.accept_error()) is not None:
            self._arrives(error)
        way_back = _WayBack(transport).shared()
        for late in fates(self._faults, "server", self._chance):
            datagram = FaultyDatagram(way_back.shared(), self._faults, self._nursery, self._replies)
            if late:
                self._nursery.start_soon(self._arrive_later, late, datagram, client_address)
            else:
                self._arrives((datagram, client_address))
        way_back.close()

    async def _arrive_later(self, seconds: float, datagram: FaultyDatagram, address: Any) -> None:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            datagram.close()
            raise
        self._arrives((datagram, address))

    def _arrives(self, answer: tuple[FaultyDatagram, Any] | OSError) -> None:
        self._ready.append(answer)
        if self._closed:
            self._forget()
        self._changed.unpark_all()

    def _forget(self) -> None:
        """Nobody takes what is there any more."""
        while self._ready:
            answer = self._ready.popleft()
            if not isinstance(answer, OSError):
                answer[0].close()


@attrs.define(eq=False)
class _WayBack:
    """The way back from one datagram: of all its copies, and of replies that are late."""

    transport: trioserver.DatagramTransport
    _users: int = 0

    def shared(self) -> Self:
        """Count one more user, and return this; each user closes it once."""
        self._users += 1
        return self

    def close(self) -> None:
        """One user less; the last one closes it."""
        self._users -= 1
        if not self._users:
            self.transport.close()


@attrs.define(eq=False)
class FaultyDatagram:
    """A datagram whose replies have faults; a `trioserver.DatagramTransport`."""

    _way_back: _WayBack
    _faults: Faults
    _nursery: trio.Nursery
    _chance: random.Random
    _closed: bool = False

    @property
    def _beneath(self) -> trioserver.DatagramTransport:
        return self._way_back.transport

    @property
    def data(self) -> bytes:
        return self._beneath.data

    @property
    def local_address(self) -> Any:
        return self._beneath.local_address

    @property
    def peer_credentials(self) -> trioserver.PeerCredentials | None:
        return self._beneath.peer_credentials

    def send_now(self, data: bytes | bytearray | memoryview, address: Any) -> bool:
        before = self._chance.getstate()
        for copy, late in enumerate(list(fates(self._faults, "client", self._chance))):
            if late:
                self._nursery.start_soon(
                    self._send_later, late, bytes(data), address, self._way_back.shared()
                )
            elif not self._beneath.send_now(data, address) and not copy:
                self._chance.setstate(before)  # it is tried again, and has its fate already
                return False
        return True

    async def _send_later(
        self, seconds: float, data: bytes, address: Any, way_back: _WayBack
    ) -> None:
        try:
            await trio.sleep(seconds)
            # Nobody is there any more to be told.
            with suppress(OSError, trio.ClosedResourceError):
                while not self._beneath.send_now(data, address):
                    await self._beneath.wait_writable()
        finally:
            way_back.close()

    async def wait_writable(self) -> None:
        await self._beneath.wait_writable()

    def fileno(self) -> int:
        return self._beneath.fileno()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._way_back.close()
