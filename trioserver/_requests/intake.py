"""What a connection has received, and what a drain may do to its waits. Nothing here waits.

The rules this file keeps:

* A drain ends waits *between* requests only: those that say so, and those for
  the first byte of a connection.
* A drain looks and takes nothing. What is in the kernel is left to the next receive, which
  need not be one of `Receiver`.
* During a drain, a request has begun if its first byte was there before the answer to the
  one before it was sent. Later ones have not: a client that waits for its answers sends the
  next request so soon that a drain would never end (500 of them: none of 5 s was enough).
"""

from __future__ import annotations

import contextlib
import math

import attrs
import trio

from .._facts.config import LARGEST_PORTION
from .._facts.errors import Draining, PeerGone
from .._facts.events import RequestInfo
from .._sockets.transport import Transport, UncleanEnd
from .drain import NEW_CONNECTION_GRACE, Drain
from .idle_block import IdleBlock
from .input_wait import InputWait
from .sending import Sender
from .stream_state import StreamState, cut, cut_line


@attrs.define(eq=False, weakref_slot=False)  # 16 bytes less, of each idle connection
class Intake:
    """Takes what one transport has, and keeps it.

    Attributes:
      transport: it.
      sender: the other half of the connection, which may have met the peer's end.
      drain: whether the server drains.
      stream: what is known of the connection's bytes.
      timeout: seconds a receive waits without a byte.
      portion: bytes that `Receiver.fill` asks for at once.
      wait: the receive that waits, if one does.
      idle_blocks: the blocks of `Connection.idle` in which tasks are now; None: there was none.
      busy: whether something else than a wait keeps others from receiving: a flush
        before it, or a loan of the socket.
      buffer: the ``pending`` input of the stream, the same object.
    """

    transport: Transport
    _info: RequestInfo
    sender: Sender
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

    def end_input(self, error: OSError) -> None:
        """Have nothing be received any more, because of ``error``."""
        self._reset = OSError(error.errno, error.strerror)

    def take(self, size: int) -> bytes:
        """Take up to ``size`` bytes from the buffer."""
        self._note_in_idle_blocks()
        return cut(self.buffer, size)

    def take_line(self, most: int) -> bytes | None:
        """Take a line, if all of it is buffered, and it has up to ``most`` bytes.

        Raises as `check` does.
        """
        if self.sender.closed or self.wait is not None or self.busy:
            self.check()
        line = cut_line(self.buffer, most)
        if line is not None and self.idle_blocks:
            self._note_in_idle_blocks()
        return line

    def check(self) -> None:
        """Raise what a receive would raise before it did anything."""
        if self.sender.closed:
            raise trio.ClosedResourceError("the connection was closed by this side")
        if self.wait is not None or self.busy:
            raise trio.BusyResourceError("another task is receiving from this connection")

    def receive_now(self, max_bytes: int, *, between_requests: bool = False) -> bytes | None:
        """What the transport has, as that says; what was met before is met again.

        Args:
          max_bytes: at least 1.
          between_requests: whether the peer may just leave, without an orderly end.

        Raises:
          PeerGone: the peer has left.
        """
        if self.stream.at_eof:
            return b""
        if self._reset is not None:
            return self._no_more(self._reset, between_requests=between_requests)
        try:
            data = self.transport.receive_now(max_bytes)
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
            self.sender.peer_was_quiet = False
        elif data is not None:
            if self.sender.reset_by is not None:
                # A send has met the reset, so this end of input is not an orderly one.
                self._reset = self.sender.reset_by
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
            self.buffer += self.receive_now(self.portion) or b""
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
        may_come = not self.sender.closed and not self.sender.peer_was_quiet
        return bool(self.buffer) or (may_come and self.transport.has_input())

    def nothing_has_begun(self) -> bool:
        """Whether a wait that begins now would be for a request that may never come."""
        if self.buffer or self.sender.closed or self.busy or self.wait is not None:
            return False
        if trio.current_time() < self.new_until:
            return False
        came_too_late = self.sender.peer_was_quiet and self.transport.has_input()
        return came_too_late or not (self._take_in() or self.transport.has_input())

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
