"""A connection as the engine sees it: how it ends, and what a drain may do to it."""

from __future__ import annotations

import contextlib

import trio

from .._facts.config import LARGEST_PORTION, Limits, Timeouts
from .._sockets.descriptors import lost
from .._sockets.stream_sockets import SocketTransport
from .._sockets.tls_transport import TLSTransport
from .._sockets.transport import Transport
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
    _tls: TLSTransport | None = None

    @property
    def _wire(self) -> Transport:
        """What moves the connection's bytes as they are on their way, by TLS or not."""
        return self._transport if self._tls is None else self._tls.beneath

    def _speak_by(self, tls: TLSTransport) -> None:
        """Have all bytes go by way of TLS from now on."""
        self._tls = self._transport = self._sender._transport = self._receiver.transport = tls

    def reset(self) -> None:
        """Close so that the peer sees an error; see `Connection.reset`."""
        raise NotImplementedError

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
            await self.end_output()
            await self._discard(self.limits.linger)

    async def _discard(self, most: int) -> None:
        """Discard up to ``most`` bytes of input, what is buffered first, until it ends.

        By TLS, nothing is deciphered any more.

        Raises:
          OSError: the peer is gone.
          trio.ClosedResourceError: the connection was closed meanwhile.
        """
        wire, buffer = self._wire, self._receiver.buffer
        left = most - len(buffer)
        buffer.clear()
        while left > 0 and not self._sender.closed:
            data = wire.receive_now(min(left, LARGEST_PORTION))
            if data is None:
                await wire.wait_readable()
            elif data:
                left -= len(data)
                await trio.lowlevel.checkpoint()
            else:
                return

    async def end_output(self) -> None:
        """End the output in order, whatever is buffered. Twice is once.

        Raises:
          OSError: the peer is gone, or takes nothing any more.
        """
        if not self._stream.output_ended:
            self._sender.send_eof_now()
        await self._sender.wait_for_end()

    @property
    def _must_linger(self) -> bool:
        """Whether closing at once could lose a reply."""
        stream = self._stream
        nothing_to_save = stream.at_eof or self._sender.closed or stream.broken is not None
        # A handler that has detached the descriptor ends the output itself.
        nothing_to_save = nothing_to_save or stream.detached or self._is_lost()
        if nothing_to_save or self._must_not_linger or not self.timeouts.linger:
            return False
        if not self._receiver.drain.began:
            return True
        # A drain does not wait for a client that was told nothing: it can lose nothing, and
        # sees an orderly end. Unless the kernel has input: then closing would reset.
        return stream.sent > 0 or stream.may_have_sent or self._wire.has_input()

    @property
    def _has_unsent(self) -> bool:
        return not self._sender.closed and (bool(self._sender.buffer) or self._is_lost())

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
        transport = self._wire
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
