"""The receiving half of a connection, and how a drain ends its waits.

The rules this file keeps:

* A checkpoint first, then the operation: a cancelled receive has taken nothing.
* The receive is tried at once. Only where it would block is there a wait, and
  only around that wait is there a cancel scope for the time-out.
* Whatever ended a wait, its time-out or the drain, the transport is asked once
  more. Bytes that were there in time count.
* A drain ends waits *between* requests only: those that say so, and those for
  the first byte of a connection.
* A drain looks and takes nothing. What is in the kernel is left to the next receive, which
  need not be one of this file.
* During a drain, a request has begun if its first byte was there before the answer to the
  one before it was sent. Later ones have not: a client that waits for its answers sends the
  next request so soon that a drain would never end (500 of them: none of 5 s was enough).
"""

from __future__ import annotations

import contextlib
import math

import attrs
import trio
from trio.lowlevel import checkpoint

from .._facts.config import LARGEST_PORTION
from .._facts.errors import Draining, IdleTimeout, PeerGone
from .._facts.events import RequestInfo
from .._sockets.transport import Transport, UncleanEnd
from .drain import NEW_CONNECTION_GRACE, Drain
from .idle_block import IdleBlock
from .input_wait import Bound, InputWait
from .schedule_points import note_schedule_point
from .sending import Sender
from .stream_state import StreamState, cut


@attrs.define(eq=False, weakref_slot=False)  # 16 bytes less, of each idle connection
class Receiver:
    """Receives from one transport, for one task at a time.

    Attributes:
      drain: whether the server drains.
      stream: what is known of the connection's bytes.
      timeout: seconds a receive waits without a byte.
      portion: bytes that `fill` asks for at once.
      wait: the receive that waits, if one does.
      idle_blocks: the blocks of `Connection.idle` in which tasks are now; None: there was none.
      busy: whether something else than a wait keeps others from receiving: a flush
        before it, or a loan of the socket.
      buffer: the ``pending`` input of the stream, the same object.
    """

    _transport: Transport
    _info: RequestInfo
    _sender: Sender
    drain: Drain
    stream: StreamState
    _new_since: float
    timeout: float = math.inf
    portion: int = LARGEST_PORTION
    wait: InputWait | None = None
    idle_blocks: list[IdleBlock] | None = None
    _reset: OSError | None = None
    busy: bool = False
    buffer: bytearray = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.buffer = self.stream.pending

    def go_on_with(self, stream: StreamState) -> None:
        """Have another state in the place of this one."""
        self.stream, self.buffer = stream, stream.pending

    @property
    def at_eof(self) -> bool:
        """Whether the transport has said that there will be no more."""
        return self.stream.at_eof

    # For a handler's tasks -------------------------------------------------

    async def receive(self, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` bytes, what is buffered first; ``b""`` at the end of input."""
        if self._sender.buffer and not self.buffer:
            await self._flush()
        await checkpoint()
        while True:
            self.check()
            if self.buffer:
                return self.take(max_bytes)
            data = self._receive_now(max_bytes, between_requests=self._idles_here())
            if data is not None:
                self._note_in_idle_blocks()
                note_schedule_point()
                return data
            with self._waiting(between_requests=False) as wait:
                await self._transport.wait_readable()
            self._judge(wait)

    async def fill(self, *, between_requests: bool = False, deadline: float = math.inf) -> bool:
        """Wait for more input and append it to the buffer.

        Args:
          between_requests: a drain may end the wait.
          deadline: when to give up, by the Trio clock, whatever arrives.

        Returns:
          False at the end of input.
        """
        before = len(self.buffer)
        ends = between_requests and self.drain.began and self._nothing_has_begun()
        if self._sender.buffer:
            await self._flush()
        await checkpoint()
        while True:
            self.check()
            if ends:
                raise self.end_by_drain()
            if len(self.buffer) > before:
                return True  # a last look put it there
            may_leave = not before and (between_requests or self._idles_here())
            data = self._receive_now(self.portion, between_requests=may_leave)
            if data is not None:
                self.buffer += data
                note_schedule_point()
                return bool(data)
            with self._waiting(between_requests=between_requests, deadline=deadline) as wait:
                await self._transport.wait_readable()
            self._judge(wait)

    async def wait_for_input(self) -> None:
        """Wait until the transport has something, be it no plain text; raises what `fill` does."""
        with self._waiting(between_requests=False) as wait:
            await self._transport.wait_readable()
        self._judge(wait)

    def end_input(self, error: OSError) -> None:
        """Have nothing be received any more, because of ``error``."""
        self._reset = OSError(error.errno, error.strerror)

    def take(self, size: int) -> bytes:
        """Take up to ``size`` bytes from the buffer."""
        self._note_in_idle_blocks()
        return cut(self.buffer, size)

    def check(self) -> None:
        """Raise what a receive would raise before it did anything."""
        if self._sender.closed:
            raise trio.ClosedResourceError("the connection was closed by this side")
        if self.wait is not None or self.busy:
            raise trio.BusyResourceError("another task is receiving from this connection")

    async def _flush(self) -> None:
        """Send what is buffered: the peer may wait for that before it says anything more."""
        self.check()
        self.busy = True
        try:
            with contextlib.suppress(trio.BusyResourceError):  # another task is sending it
                await self._sender.flush()
        finally:
            self.busy = False

    def _waiting(self, *, between_requests: bool, deadline: float = math.inf) -> InputWait:
        """A block to wait in until the transport, or the buffer, has something."""
        between_requests = between_requests or not self.stream.received
        idle_until = trio.current_time() + self.timeout
        bound: Bound = "idle" if idle_until <= deadline else "line"
        deadline = min(deadline, idle_until)
        if self.drain.began and self._request_has_begun():
            between_requests = False  # by half a TLS record, say, that was no text yet
        if between_requests and self.drain.began:
            deadline = min(deadline, self.new_until)
            if deadline <= trio.current_time():
                raise self.end_by_drain()
        scope = trio.CancelScope(deadline=deadline)
        return InputWait(self, scope, between_requests, bound, len(self.buffer))

    def _judge(self, wait: InputWait) -> None:
        """Raise what has ended a wait, if it is not that there is more input than before."""
        if not wait.was_ended or len(self.buffer) > wait.before or self._take_in():
            return
        if wait.between_requests and self.drain.began:
            raise self.end_by_drain()
        if wait.bound == "idle":
            raise IdleTimeout(
                f"no byte from the peer for {self.timeout:g} s (idle)", info=self._info
            )
        raise IdleTimeout("a line was not complete in time (line)", info=self._info)

    def _receive_now(self, max_bytes: int, *, between_requests: bool = False) -> bytes | None:
        if self.stream.at_eof:
            return b""
        if self._reset is not None:
            return self._no_more(self._reset, between_requests=between_requests)
        try:
            data = self._transport.receive_now(max_bytes)
        except UncleanEnd as error:
            self._reset = UncleanEnd(str(error))
            return self._no_more(self._reset, between_requests=between_requests)
        except OSError as error:
            # The kernel reports the error once, and "end of input" after that. What is kept is
            # a copy: the traceback of the original would hold this object.
            self._reset = OSError(error.errno, error.strerror)
            raise self._peer_gone(error) from error
        if data:
            self.stream.received += len(data)
            self._sender.peer_was_quiet = False
        elif data is not None:
            if self._sender.reset_by is not None:
                # A send has met the reset, so this end of input is not an orderly one.
                self._reset = self._sender.reset_by
                raise self._peer_gone(self._reset) from self._reset
            self.stream.at_eof = True
        return data

    def _no_more(self, error: OSError, *, between_requests: bool) -> bytes:
        """The end of input, where a peer may just leave; else what that means is raised."""
        if between_requests and isinstance(error, UncleanEnd):
            return b""
        raise self._peer_gone(error) from error

    def _take_in(self) -> bool:
        """Buffer what the transport has now; whether it had anything, be it the end of input."""
        before = len(self.buffer)
        with contextlib.suppress(PeerGone):  # the next receive raises it
            self.buffer += self._receive_now(self.portion) or b""
        return len(self.buffer) > before or self.stream.at_eof or self._reset is not None

    def _peer_gone(self, error: OSError) -> PeerGone:
        return PeerGone(f"the peer is gone: {error.strerror or error}", info=self._info)

    # For the drain ---------------------------------------------------------

    def awaits_first_byte(self) -> None:
        """The client has something to say only now: it counts as new from now on."""
        self._new_since = trio.current_time()

    @property
    def new_until(self) -> float:
        """Until when, by the Trio clock, a drain waits for the very first byte."""
        return -math.inf if self.stream.received else self._new_since + NEW_CONNECTION_GRACE

    def end_idle_waits(self) -> None:
        """End the waits between requests, unless a request has begun."""
        if self._request_has_begun() or trio.current_time() < self.new_until:
            return
        if self.wait is not None and self.wait.between_requests:
            self.wait.end_by_drain()
        for block in self.idle_blocks or ():
            block.end()

    def _request_has_begun(self) -> bool:
        may_come = not self._sender.closed and not self._sender.peer_was_quiet
        return bool(self.buffer) or (may_come and self._transport.has_input())

    def _nothing_has_begun(self) -> bool:
        """Whether a wait that begins now would be for a request that may never come."""
        if self.buffer or self._sender.closed or self.busy or self.wait is not None:
            return False
        if trio.current_time() < self.new_until:
            return False
        came_too_late = self._sender.peer_was_quiet and self._transport.has_input()
        return came_too_late or not (self._take_in() or self._transport.has_input())

    def _idles_here(self) -> bool:
        """Whether the calling task is in an idle block in which no request has begun."""
        if not self.idle_blocks:
            return False  # as of every read but few
        return any(block.idles_here() for block in self.idle_blocks)

    def _note_in_idle_blocks(self) -> None:
        """Note that input was taken: in the blocks where that happened, a request has begun."""
        for block in self.idle_blocks or ():
            block.note_input()

    def end_by_drain(self) -> Draining:
        """End a wait by the drain, and the idle blocks of other tasks, too; what to raise in it."""
        self.stream.ended_idle = True
        for block in self.idle_blocks or ():
            block.end()
        return Draining("the server drains and no request has begun", info=self._info)

    def idle_block(self) -> IdleBlock:
        """A block for a wait between two requests; see `Connection.idle`."""
        if self.idle_blocks is None:
            self.idle_blocks = []
        return IdleBlock(self.idle_blocks, self._end_if_draining, self.end_by_drain)

    def _end_if_draining(self) -> None:
        if self.drain.began:
            self.end_idle_waits()
