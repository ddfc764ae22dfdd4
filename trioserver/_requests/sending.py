"""The sending half of a connection.

The rules this file keeps:

* A cancellation point first, then the operation: a send that is cancelled before it
  had to wait has sent nothing.
* The send is tried at once. Only where it would block is there a wait, and
  only around that wait is there a cancel scope for the time-out: a scope costs
  more than the system call.
* A send that was cut short has left an unknown part of its data on the wire.
  Nothing is ever sent after it.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable

import attrs
import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from .._facts.errors import PeerGone, RequestEnded, WriteTimeout
from .._facts.events import RequestInfo
from .._sockets.transport import Data, Transport, holds_output
from .drain import Drain
from .schedule_points import after_write
from .stream_state import StreamState


@attrs.define(eq=False, weakref_slot=False)  # 16 bytes less, of each idle connection
class Sender:
    """Sends to one transport, for one task at a time.

    Attributes:
      stream: what is known of the connection's bytes.
      timeout: seconds a send waits without the peer taking a byte.
      buffer: output that waits for a flush; see `keep`.
      reset_by: the system's error when the peer was found to be gone.
      peer_was_quiet: during a drain, whether the peer had sent nothing more when the
        last send began. A client that waits for each answer sends its next request soon
        after the answer; the drain need not begin with that one.
      closed: whether this side has closed the connection.
      busy: whether a send waits, or the socket is lent.
      is_midway: whether a part of what a send was given has gone, and not yet the rest.
    """

    _transport: Transport
    _info: RequestInfo
    _drain: Drain
    stream: StreamState
    timeout: float = math.inf
    buffer: bytearray | bytes = b""
    reset_by: OSError | None = None
    closed: bool = False
    busy: bool = False
    peer_was_quiet: bool = False
    is_midway: bool = False

    async def send_all(self, data: Data) -> None:
        """Send the buffer, then ``data``. See `Connection.send_all`."""
        await checkpoint()
        rest = self.send_at_once(data)
        if rest is not None:
            await rest

    def send_at_once(self, data: Data) -> Awaitable[None] | None:
        """Send the buffer, then ``data``, as far as that can be done now.

        Returns:
          What sends the rest when it is awaited, as it must be; None if there is none.
        """
        if self.closed or self.busy or self.stream.output_ended or self.stream.broken:
            self.check()
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        buffered = len(self.buffer)
        if buffered:
            data = bytes(self.buffer) + data
        sent = self._send_now(data)
        if sent < len(data):
            return self._send_rest(data, sent, buffered)
        if buffered:
            self.buffer = b""
        return None

    def keep(self, data: Data) -> None:
        """Have ``data`` wait for a flush."""
        if self.closed or self.busy or self.stream.output_ended or self.stream.broken:
            self.check()
        # Of an unbuffered connection there is no bytearray, which would be 64 bytes.
        self.buffer = self.buffer or bytearray()
        self.buffer += data

    async def flush(self) -> None:
        """Send the buffer, if there is anything in it."""
        if self.buffer:
            await checkpoint_if_cancelled()
            rest = self.send_at_once(b"") or after_write()
            if rest is not None:
                await rest

    async def wait_writable(self) -> None:
        """Wait until the transport takes a byte."""
        await checkpoint()
        self.check()
        self.busy = True
        try:
            await self._transport.wait_writable()
        finally:
            self.busy = False

    async def send_eof(self) -> None:
        """Send the buffer, then the end of output. Twice is once."""
        await checkpoint()
        if self.stream.output_ended and not self.closed:
            return
        await self.flush()
        self.check()
        self.send_eof_now()
        await self.wait_for_end()

    def send_eof_now(self) -> None:
        """End the output without a look at the buffer."""
        try:
            self._transport.send_eof()
        except OSError as error:
            raise self._lose_peer(error) from error
        self.stream.output_ended = True

    async def wait_for_end(self) -> None:
        """Wait until the end of the output has gone, where that takes more than a system call."""
        while holds_output(self._transport):
            with trio.move_on_after(self.timeout) as patience:
                await self._transport.wait_writable()
            self._send_now(b"")
            if patience.cancelled_caught and holds_output(self._transport):
                raise self._took_nothing()

    def check(self) -> None:
        """Raise what a send would raise before it did anything."""
        if self.closed or self.stream.output_ended:
            half = "the connection" if self.closed else "its sending half"
            raise trio.ClosedResourceError(f"{half} was closed by this side")
        if self.busy:
            raise trio.BusyResourceError("another task is sending to this connection")
        if self.stream.broken is not None:
            raise self._break_off(*self.stream.broken)

    def _send_now(self, data: Data) -> int:
        if self._drain.began:
            self.peer_was_quiet = not self._transport.has_input()
        try:
            sent = self._transport.send_now(data)
        except OSError as error:
            raise self._lose_peer(error) from error
        self.stream.sent += sent
        return sent

    async def _send_rest(self, data: Data, sent: int, buffered: int) -> None:
        self.busy = True
        try:
            with memoryview(data) as view:
                while sent < len(view):
                    self.is_midway = sent > 0 or holds_output(self._transport)
                    with trio.move_on_after(self.timeout) as patience:
                        await self._transport.wait_writable()
                    # When the time is up, the transport is asked once more: room that was
                    # made in time counts.
                    progress = self._send_now(view[sent:])
                    if not progress and patience.cancelled_caught:
                        raise self._took_nothing()
                    sent += progress
            if buffered:
                self.buffer = self.buffer[buffered:]
        finally:
            self.busy = self.is_midway = False
            is_cut = 0 < sent < len(data) or holds_output(self._transport)
            if is_cut and self.stream.broken is None:
                self._break_off(
                    trio.BrokenResourceError,
                    "an earlier send was cut short: the connection can only be closed",
                )

    def _took_nothing(self) -> Exception:
        message = f"the peer took no byte for {self.timeout:g} s (write)"
        return self._break_off(WriteTimeout, message)

    def _lose_peer(self, error: OSError) -> Exception:
        if error.errno != errno.EPIPE:  # which also follows a peer's orderly end
            self.reset_by = OSError(error.errno, error.strerror)  # without its traceback
        return self._break_off(PeerGone, f"the peer is gone: {error.strerror or error}")

    def _break_off(self, kind: type[Exception], message: str) -> Exception:
        """Send nothing any more; what to raise in this send and in every later one."""
        self.stream.broken = kind, message
        self.buffer = b""
        if issubclass(kind, RequestEnded):
            return kind(message, info=self._info)
        return kind(message)
