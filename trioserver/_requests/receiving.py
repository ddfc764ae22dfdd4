"""The receiving half of a connection.

The rules this file keeps:

* A checkpoint first, then the operation: a cancelled receive has taken nothing.
* The receive is tried at once. Only where it would block is there a wait, and
  only that has a time-out.
* Whatever ended a wait, its time-out or the drain, the transport is asked once
  more. Bytes that were there in time count.
"""

from __future__ import annotations

import math
from typing import Protocol

import attrs
import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._facts.errors import Draining, IdleTimeout
from .._sockets.transport import wakes_reader
from .input_wait import AlarmedWait, Bound, InputWait, ScopedWait
from .intake import Intake
from .schedule_points import before_read, note_schedule_point


class Reader(Protocol):
    """Who reads on where `Receiver.next_line` ends."""

    async def _rest_of_line(self) -> bytes:
        """A line that has begun, and whose end is not buffered, or too far away."""


@attrs.define(eq=False, weakref_slot=False)
class Receiver(Intake):
    """Receives from one transport, for one task at a time."""

    async def receive(self, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` bytes, what is buffered first; ``b""`` at the end of input."""
        if self.sender.buffer and not self.buffer:
            await self.flush()
        await checkpoint()
        note_schedule_point()
        while True:
            self.check()
            if self.buffer:
                return self.take(max_bytes)
            data = self.receive_now(max_bytes, between_requests=self._idles_here())
            if data is not None:
                self._note_in_idle_blocks()
                return data
            with self.waiting(between_requests=False) as wait:
                await self.transport.wait_readable()
            if wait.was_ended:
                await self.judge(wait)

    async def next_line(self, most: int, reader: Reader) -> bytes:
        """The next line between two requests, when it is there; nothing is buffered now.

        This is ``async for line in self.rfile``, the path that most servers take most often: one
        coroutine from the handler to the wait, where `RequestReader.more` and
        `RequestReader.readline` would be four. That saves 600 bytes of each idle connection, and
        a microsecond of each line. It does what they do, in their order. Input that is one whole
        line, as of a client that waits for its answer, is handed on past the buffer.

        Args:
          most: bytes that the line may have.
          reader: reads the rest of a line that has begun, or says that it is too long.

        Raises:
          StopAsyncIteration: the input has ended, or the server drains.
          Exception: as `fill` does.
        """
        try:
            ends = self.drain.began and self.nothing_has_begun()
            if self.sender.buffer:
                await self.flush()
            await before_read()
            while True:
                self.check()
                if ends:
                    raise self.end_by_drain()
                if self.buffer:
                    break  # a last look has put it there
                data = self.receive_now(self.portion, between_requests=True)
                if data is not None:
                    if not data:
                        raise StopAsyncIteration
                    if data.find(b"\n") == len(data) - 1 < most and not self.idle_blocks:
                        return data
                    self.buffer += data
                    break
                with self.waiting(between_requests=True) as wait:
                    await self.transport.wait_readable()
                note_schedule_point()
                if wait.was_ended:
                    await self.judge(wait)
        except Draining:
            raise StopAsyncIteration from None
        line = self.take_line(most)
        return await reader._rest_of_line() if line is None else line

    async def fill(self, *, between_requests: bool = False, deadline: float = math.inf) -> bool:
        """Wait for more input and append it to the buffer.

        Args:
          between_requests: a drain may end the wait.
          deadline: when to give up, by the Trio clock, whatever arrives.

        Returns:
          False at the end of input.
        """
        before = len(self.buffer)
        ends = between_requests and self.drain.began and self.nothing_has_begun()
        if self.sender.buffer:
            await self.flush()
        await before_read()
        while True:
            self.check()
            if ends:
                raise self.end_by_drain()
            if len(self.buffer) > before:
                return True  # a last look put it there
            may_leave = not before and (between_requests or self._idles_here())
            data = self.receive_now(self.portion, between_requests=may_leave)
            if data is not None:
                self.buffer += data
                return bool(data)
            with self.waiting(between_requests=between_requests, deadline=deadline) as wait:
                await self.transport.wait_readable()
            note_schedule_point()
            if wait.was_ended:
                await self.judge(wait)

    async def wait_for_input(self) -> None:
        """Wait until the transport has something, be it no plain text; raises what `fill` does."""
        with self.waiting(between_requests=False) as wait:
            await self.transport.wait_readable()
        if wait.was_ended:
            await self.judge(wait)

    async def flush(self) -> None:
        """Send what is buffered: the peer may wait for that before it says anything more."""
        self.check()
        self.busy = True
        try:
            await self.sender.flush()
        except trio.BusyResourceError:
            pass  # another task is sending it
        finally:
            self.busy = False

    def waiting(self, *, between_requests: bool, deadline: float = math.inf) -> InputWait:
        """A block to wait in until the transport, or the buffer, has something."""
        between_requests = between_requests or not self.stream.received
        idle_until, before = trio.current_time() + self.timeout, len(self.buffer)
        bound: Bound = "idle" if idle_until <= deadline else "line"
        alarms, transport = self.drain.alarms, self.transport
        rings = bound == "idle" and not self.drain.began and wakes_reader(transport) is not None
        if alarms is not None and rings:
            return AlarmedWait(
                self, alarms, transport, self.timeout, idle_until, between_requests, before
            )
        deadline = min(deadline, idle_until)
        if self.drain.began and self._request_has_begun():
            between_requests = False  # by half a TLS record, say, that was no text yet
        if between_requests and self.drain.began:
            deadline = min(deadline, self.new_until)
            if deadline <= trio.current_time():
                raise self.end_by_drain()
        scope = trio.CancelScope(deadline=deadline)
        return ScopedWait(self, scope, between_requests, bound, before)

    async def judge(self, wait: InputWait) -> None:
        """Raise what has ended a wait, if it is not that there is more input than before."""
        await checkpoint_if_cancelled()
        if len(self.buffer) > wait.before or self._take_in():
            return
        if wait.between_requests and self.drain.began:
            raise self.end_by_drain()
        if wait.bound == "idle":
            raise IdleTimeout(
                f"no byte from the peer for {self.timeout:g} s (idle)", info=self._info
            )
        raise IdleTimeout("a line was not complete in time (line)", info=self._info)
