"""A connection with faults: two tasks each way carry its bytes from one end to the other.

The server gets one end of a pipe in memory; the relay is between its other end and
the client's connection, whatever that is over. So faults are the same in memory and
on real sockets, and the server cannot tell.

The rules this file keeps:

* Without faults, nothing is different: both ends see every end, reset and wait for
  room of the other.
* Each way has a bounded store, so who sends too much waits.
* Whatever ends a relay, both its connections are closed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from contextlib import suppress
from typing import Any, cast

import attrs
import trio
from trio.lowlevel import ParkingLot

import trioserver

from .._memory.listener import ListenerWrapper
from .._memory.pipe import DEFAULT_CAPACITY, MemoryTransport, memory_pipe
from .faults import Faults
from .kinds import Bandwidth, Latency, LimitData, Refuse, Reset, Slice, SlowClose, Stall, Towards

_PORTION = 65_536

_TURNS_A_SECOND = 100
"""How often a limited rate has its next bytes pass."""


class Relay:
    """One connection with faults.

    Args:
      outside: the client's connection, as it was accepted.
      client_address: who the client is.
      faults: what is wrong with it.
      number: which of the listener's connections it is, for its own chances.

    Attributes:
      near: the end for the server.
    """

    def __init__(
        self,
        outside: trioserver.Transport,
        client_address: Any,
        faults: Faults,
        number: int,
    ) -> None:
        self.near, self._far = memory_pipe(addresses=(outside.local_address, client_address))
        self.near.peer_credentials = outside.peer_credentials
        self._outside = outside
        self._faults = faults
        self._scope = trio.CancelScope()
        self._flows = [
            Flow(self, faults, "server", outside, self._far, faults.chance(number, "server")),
            Flow(self, faults, "client", self._far, outside, faults.chance(number, "client")),
        ]
        faults.call_when_added(self._heed)

    async def run(self) -> None:
        """Carry bytes both ways until both have ended."""
        try:
            with self._scope:
                self._heed()
                async with trio.open_nursery() as flows:
                    for flow in self._flows:
                        flows.start_soon(flow.run)
        finally:
            self._faults.call_no_more(self._heed)
            self._outside.close()
            self._far.close()

    def _heed(self) -> None:
        """Have a `Reset` or `LimitData` end the connection at once if it is past it."""
        for flow in self._flows:
            flow.stop_at_limits()

    def reset(self) -> None:
        """Both sides see an error."""
        self._outside.reset()
        self._far.reset()
        self._scope.cancel(reason="the connection was reset")

    def close(self) -> None:
        """Both sides see the end."""
        self._outside.close()
        self._far.close()
        self._scope.cancel(reason="the connection was closed by a fault")


@attrs.define(eq=False)
class Flow:
    """One way of a connection: a task that takes bytes in, and one that passes them on."""

    _relay: Relay
    _faults: Faults
    _towards: Towards
    _source: trioserver.Transport
    _sink: trioserver.Transport
    _chance: random.Random
    _passed: int = 0
    _stored: int = 0
    _store: deque[tuple[float, bytes | None]] = attrs.field(factory=deque)
    _arrivals: ParkingLot = attrs.field(factory=ParkingLot)
    _room: ParkingLot = attrs.field(factory=ParkingLot)
    _stalled_since: float = -math.inf

    async def run(self) -> None:
        """Carry bytes this way until their end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_in)
            await self._pass_on()

    async def _take_in(self) -> None:
        """Note what arrives, and when: ``b""`` for the end, None for a reset."""
        data: bytes | None = b"-"
        with suppress(trio.ClosedResourceError):  # the relay is over
            while data:
                while self._stored >= DEFAULT_CAPACITY:
                    await self._room.park()
                await trio.lowlevel.checkpoint_if_cancelled()  # it may be closed by now
                await self._source.wait_readable()
                try:
                    data = self._source.receive_now(_PORTION)
                except OSError:
                    data = None
                else:
                    if data is None:
                        data = b"-"
                        continue
                self._stored += len(data or b"")
                self._store.append((trio.current_time(), data))
                self._arrivals.unpark_all()

    async def _pass_on(self) -> None:
        while True:
            while not self._store:
                await self._arrivals.park()
            came, data = self._store[0]
            await self._wait_while_stalled()
            await self._wait_until_due(came)
            if data is None:
                self._relay.reset()
                return
            if not data:
                await self._pass_end_on()
                return
            await self._pass_pieces_on(data)
            self._store.popleft()
            self._stored -= len(data)
            self._room.unpark_all()

    async def _pass_pieces_on(self, data: bytes) -> None:
        while data:
            await self._wait_while_stalled()
            size = self._size_of_piece()
            piece, data = data[:size], data[size:]
            if rates := [fault.rate for fault in self._faults.of(Bandwidth, self._towards)]:
                await trio.sleep(len(piece) / min(rates))
            await self._send(piece)
            self._passed += len(piece)
            self.stop_at_limits()
            await trio.lowlevel.checkpoint_if_cancelled()
            if slices := self._faults.of(Slice, self._towards):
                if isinstance(self._sink, MemoryTransport):
                    await self._sink.wait_taken()
                await trio.sleep(max(fault.delay for fault in slices))

    def _size_of_piece(self) -> int:
        """Bytes that can pass at once: not beyond the next limit."""
        faults, way, sizes = self._faults, self._towards, [_PORTION]
        sizes += (fault.size for fault in faults.of(Slice, way))
        rates = (fault.rate / _TURNS_A_SECOND for fault in faults.of(Bandwidth, way))
        sizes += (max(1, int(min(rate, _PORTION))) for rate in rates)
        sizes += (fault.size - self._passed for fault in faults.of(LimitData, way))
        sizes += (fault.after - self._passed for fault in faults.of(Reset, way))
        return max(1, min(sizes))

    def stop_at_limits(self) -> None:
        """End the connection if so many bytes have passed."""
        if any(fault.after <= self._passed for fault in self._faults.of(Reset, self._towards)):
            self._relay.reset()
        elif any(it.size <= self._passed for it in self._faults.of(LimitData, self._towards)):
            self._relay.close()

    async def _send(self, piece: bytes) -> None:
        left = memoryview(piece)
        try:
            while left:
                if sent := self._sink.send_now(left):
                    left = left[sent:]
                else:
                    await self._sink.wait_writable()
        except (OSError, trio.ClosedResourceError):  # the one there is gone: so is the one here
            self._relay.reset()
            await trio.lowlevel.checkpoint()

    async def _pass_end_on(self) -> None:
        faults = self._faults.of(SlowClose, self._towards)
        await trio.sleep(sum(fault.seconds for fault in faults))
        with suppress(OSError):  # it is gone
            self._sink.send_eof()

    async def _wait_until_due(self, came: float) -> None:
        """Wait until what came then may pass on; sooner if there is no `Latency` any more."""
        await trio.lowlevel.checkpoint()
        while (due := came + self._latency()) > trio.current_time():
            with trio.CancelScope(deadline=due) as time_is_up:
                await self._faults.change()
            if time_is_up.cancelled_caught:
                return

    def _latency(self) -> float:
        """Seconds that the next bytes are late."""
        faults = self._faults.of(Latency, self._towards)
        return sum(fault.late(self._chance.random()) for fault in faults)

    async def _wait_while_stalled(self) -> None:
        """Hold bytes up as long as there is a `Stall`; close when its time is up."""
        while stalls := self._faults.of(Stall, self._towards):
            if self._stalled_since == -math.inf:
                self._stalled_since = trio.current_time()
            until = self._stalled_since + min(fault.seconds for fault in stalls)
            with trio.CancelScope(deadline=until) as patience:
                await self._faults.change()
            if patience.cancelled_caught:
                self._relay.close()
                await trio.lowlevel.checkpoint()
        self._stalled_since = -math.inf


class FaultyListener(ListenerWrapper):
    """A listener whose connections have faults; a `trioserver.Listener` of streams.

    For a server's ``server_bind``: ``return [FaultyListener(one, faults, nursery) for one in
    await super().server_bind()]``. Handlers must run in Trio: one in a thread or in another
    process needs the kernel's socket.

    Args:
      listener: where clients come from, in memory or of the kernel.
      faults: what is wrong with their connections; may change at any time.
      nursery: where the tasks run that carry bytes; it has to outlive the server.
    """

    def __init__(
        self, listener: trioserver.Listener, faults: Faults, nursery: trio.Nursery
    ) -> None:
        super().__init__(listener)
        self._faults = faults
        self._nursery = nursery
        self._accepted = 0

    def accept_now(self) -> tuple[trioserver.Transport, Any] | None:
        if (error := self._faults.accept_error()) is not None:
            raise error
        while (accepted := self.beneath.accept_now()) is not None:
            outside, client_address = cast("tuple[trioserver.Transport, Any]", accepted)
            if self._faults.of(Refuse, "server"):
                outside.reset()
                continue
            self._accepted += 1
            relay = Relay(outside, client_address, self._faults, self._accepted)
            self._nursery.start_soon(relay.run, name=f"faults of connection {self._accepted}")
            return relay.near, client_address
        return None
