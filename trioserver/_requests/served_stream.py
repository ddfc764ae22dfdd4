"""A connection as the engine sees it: how it ends, and what a drain may do to it."""

from __future__ import annotations

import contextlib

import trio

from .._facts.config import Limits, Timeouts
from .._sockets.descriptors import lost
from .._sockets.stream_sockets import SocketTransport
from .._sockets.transport import Transport
from .any_request import Fate
from .client import OfClient
from .receiving import Receiver
from .sending import Sender
from .stream_state import StreamState


class ServedStream(OfClient):
    """What the engine asks of a connection, beside what a handler does."""

    timeouts: Timeouts
    limits: Limits
    _transport: Transport
    _stream: StreamState
    _sender: Sender
    _receiver: Receiver
    _fate: Fate

    async def linger(self) -> None:
        """End the output, then discard input until the peer ends it too.

        `BaseServer.shutdown_request` does this before it closes. Closing with unread input
        makes the kernel send a reset, which can destroy a reply that is still on its way: of
        1 MB, slow clients got 995 kB.

        It gives up after ``Timeouts.linger`` seconds or ``Limits.linger`` bytes. It does
        nothing where there is nothing to save: after the peer's end of input, after a send
        that failed, and for a request that was cancelled. During a drain it does nothing, too,
        where nothing was sent and nothing is unread.
        """
        if not self._must_linger:
            return
        gone = contextlib.suppress(OSError, trio.ClosedResourceError)
        with trio.move_on_after(self.timeouts.linger), gone:
            if not self._stream.output_ended:
                self._sender.send_eof_now()
            await self._receiver.discard(self.limits.linger)

    @property
    def _must_linger(self) -> bool:
        """Whether closing at once could lose a reply."""
        stream = self._stream
        nothing_to_save = stream.at_eof or self._sender.closed or stream.broken is not None
        # A handler that has detached the descriptor ends the output itself.
        nothing_to_save = nothing_to_save or stream.detached or self._is_lost()
        if nothing_to_save or self._fate.must_not_linger or not self.timeouts.linger:
            return False
        if not self._receiver.drain.began:
            return True
        # A drain does not wait for a client that was told nothing: it can lose nothing, and
        # sees an orderly end. Unless the kernel has input: then closing would reset.
        return stream.sent > 0 or stream.may_have_sent or self._transport.has_input()

    async def _flush(self) -> None:
        """Send what is buffered, unless the handler has closed the connection.

        Raises:
          OSError: the handler has closed the descriptor by its number.
        """
        if not self._sender.closed:
            if self._is_lost():
                raise lost()
            await self._sender.flush()

    def _is_lost(self) -> bool:
        transport = self._transport
        return isinstance(transport, SocketTransport) and transport.is_lost()

    def _go_on_with(self, stream: StreamState) -> None:
        """Go on with the state in which another process or thread has left the connection."""
        self._stream = self._sender.stream = stream
        self._receiver.go_on_with(stream)

    # For the drain ---------------------------------------------------------

    def _note_arrival(self) -> None:
        self._receiver.awaits_first_byte()

    @property
    def _new_until(self) -> float:
        return self._receiver.new_until

    @property
    def _ended_idle(self) -> bool:
        return self._stream.ended_idle

    def _end_idle_waits(self) -> None:
        self._receiver.end_idle_waits()
