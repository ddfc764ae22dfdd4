"""The sending half of a connection.

The rules this file keeps:

* A checkpoint first, then the operation: a send that is cancelled before it
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

import attrs
import trio
from trio.lowlevel import checkpoint

from .._facts.errors import PeerGone, RequestEnded, WriteTimeout
from .._facts.events import RequestInfo
from .._sockets.transport import Data, Transport
from .drain import Drain


@attrs.define(eq=False)
class Sender:
    """Sends to one transport, for one task at a time.

    Attributes:
      timeout: seconds a send waits without the peer taking a byte.
      total: bytes the transport took so far.
      buffer: output that waits for a flush.
      broken: why nothing can be sent any more, None while it can.
      reset_by: the system's error when the peer was found to be gone.
      peer_was_quiet: during a drain, whether the peer had sent nothing more when the
        last send began. The next request of who waits for each answer is one that the
        drain need not begin with, however soon after the answer it comes.
      busy: whether a send waits, or the socket is lent.
    """

    _transport: Transport
    _info: RequestInfo
    _drain: Drain
    timeout: float = math.inf
    total: int = 0
    buffer: bytearray = attrs.field(factory=bytearray)
    broken: str | None = None
    reset_by: OSError | None = None
    closed: bool = False
    eof_sent: bool = False
    busy: bool = False
    peer_was_quiet: bool = False
    _broken_by: type[Exception] = PeerGone

    async def send_all(self, data: Data) -> None:
        """Send the buffer, then ``data``. See `Connection.send_all`."""
        await checkpoint()
        self.check()
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        buffered = len(self.buffer)
        if buffered:
            data = bytes(self.buffer) + data
        sent = self._send_now(data)
        if sent < len(data):
            await self._send_rest(data, sent)
        if buffered:
            del self.buffer[:buffered]

    async def flush(self) -> None:
        """Send the buffer, if there is anything in it."""
        if self.buffer:
            await self.send_all(b"")

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
        if self.eof_sent and not self.closed:
            return
        await self.flush()
        self.check()
        self.send_eof_now()

    def send_eof_now(self) -> None:
        """End the output without a look at the buffer."""
        try:
            self._transport.send_eof()
        except OSError as error:
            raise self._gone_by(error) from error
        self.eof_sent = True

    def check(self) -> None:
        """Raise what a send would raise before it did anything."""
        if self.closed or self.eof_sent:
            half = "the connection" if self.closed else "its sending half"
            raise trio.ClosedResourceError(f"{half} was closed by this side")
        if self.busy:
            raise trio.BusyResourceError("another task is sending to this connection")
        if self.broken is not None:
            raise self.breaks(self._broken_by, self.broken)

    def _send_now(self, data: Data) -> int:
        if self._drain.began:
            self.peer_was_quiet = not self._transport.has_input()
        try:
            sent = self._transport.send_now(data)
        except OSError as error:
            raise self._gone_by(error) from error
        self.total += sent
        return sent

    async def _send_rest(self, data: Data, sent: int) -> None:
        self.busy = True
        try:
            with memoryview(data) as view:
                while sent < len(view):
                    with trio.move_on_after(self.timeout) as patience:
                        await self._transport.wait_writable()
                    # Asked once more when the time is up: room made in time counts.
                    progress = self._send_now(view[sent:])
                    if not progress and patience.cancelled_caught:
                        message = f"the peer took no byte for {self.timeout:g} s (write)"
                        raise self.breaks(WriteTimeout, message)
                    sent += progress
        finally:
            self.busy = False
            if 0 < sent < len(data) and self.broken is None:
                self.breaks(
                    trio.BrokenResourceError,
                    "an earlier send was cut short: the connection can only be closed",
                )

    def _gone_by(self, error: OSError) -> Exception:
        if error.errno != errno.EPIPE:  # which also follows a peer's orderly end
            self.reset_by = OSError(error.errno, error.strerror)  # without its traceback
        return self.breaks(PeerGone, f"the peer is gone: {error.strerror or error}")

    def breaks(self, kind: type[Exception], message: str) -> Exception:
        """The exception for this send, and for every later one."""
        self.broken, self._broken_by = message, kind
        self.buffer.clear()
        if issubclass(kind, RequestEnded):
            return kind(message, info=self._info)
        return kind(message)
