"""What a stream server's handler gets as its request: a Trio stream that knows its server.

A connection is a transport and two halves that do not know each other's work:
`Receiver` and `Sender`. ``rfile`` and ``wfile`` are views of the same halves, so
a handler may mix them with ``recv`` and ``sendall`` and no byte is lost between
the two.
"""

from __future__ import annotations

import math
import socket
import ssl
from contextlib import suppress
from typing import Literal

import attrs
import trio
from trio.lowlevel import checkpoint

from .._facts.config import LARGEST_PORTION, Limits, Timeouts
from .._facts.events import RequestInfo
from .._facts.proxy import ProxyInfo
from .._facts.tls import TLSInfo
from .._sockets.stream_sockets import SocketTransport
from .._sockets.transport import Data, Transport, holds_output
from .begin_tls import start_tls
from .drain import Drain
from .idle_block import IdleBlock
from .receiving import Receiver
from .sending import Sender
from .served_stream import ServedStream
from .stream_state import StreamState


class Connection(ServedStream, trio.abc.HalfCloseableStream):
    """One accepted stream, until it is closed.

    A `trio.abc.HalfCloseableStream` under Trio's full checkpoint rule, with the
    classic names `recv` and `sendall` beside Trio's own. The server makes it
    and closes it; a handler may close it early.

    Attributes:
      timeouts: the server's, as of the accept.
      limits: the server's, as of the accept.
      cancel_scope: the request's own scope; move its deadline, or cancel it
        with a reason.
    """

    def __init__(
        self,
        transport: Transport,
        info: RequestInfo,
        *,
        timeouts: Timeouts,
        limits: Limits,
        drain: Drain | None = None,
        stream: StreamState | None = None,
    ) -> None:
        self._info = info
        self.timeouts = timeouts
        self.limits = limits
        self.cancel_scope: trio.CancelScope = trio.CancelScope(
            deadline=info.started + timeouts.request
        )
        self._transport: Transport = transport
        self._stream = stream = stream or StreamState()
        drain = drain or Drain()
        self._sender = Sender(transport, info, drain, stream, timeouts.write)
        self._receiver = Receiver(
            transport, info, self._sender, drain, stream, info.started, timeouts.idle
        )

    # Facts -----------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<trioserver.Connection: {self.info}, {self.state}>"

    @property
    def info(self) -> RequestInfo:
        """The facts of the request."""
        return self._info

    @info.setter
    def info(self, info: RequestInfo) -> None:
        # For an arrival, which may learn who the client is. The errors of both halves tell, too.
        self._info = self._sender._info = self._receiver._info = info

    @property
    def proxy(self) -> ProxyInfo | None:
        """What a PROXY header has said of the client; None without one."""
        return self.info.proxy

    @property
    def tls(self) -> TLSInfo | None:
        """What was agreed on by TLS; None without it, and before the end of its handshake."""
        return None if self._tls is None else self._tls.info

    @property
    def bytes_received(self) -> int:
        """Bytes the transport gave so far."""
        return self._stream.received

    @property
    def bytes_sent(self) -> int:
        """Bytes the transport took so far."""
        return self._stream.sent

    @property
    def state(self) -> Literal["working", "reading", "idle", "writing", "closed"]:
        """What the connection is doing now; ``idle`` is a wait between two requests."""
        wait = self._receiver.wait
        if self._sender.closed:
            return "closed"
        if self._sender.busy and not (self._receiver.busy and wait is not None):
            return "writing"  # and not in the middle of a handshake
        if wait is not None and not wait.between_requests:
            return "reading"
        return "idle" if wait is not None or self._receiver.idle_blocks else "working"

    @property
    def idle_timeout(self) -> float:
        """Seconds a read waits for a byte; ``Timeouts.idle`` unless assigned."""
        return self._receiver.timeout

    @idle_timeout.setter
    def idle_timeout(self, seconds: float) -> None:
        self._receiver.timeout = attrs.evolve(self.timeouts, idle=seconds).idle

    @property
    def write_timeout(self) -> float:
        """Seconds a send waits for progress; ``Timeouts.write`` unless assigned."""
        return self._sender.timeout

    @write_timeout.setter
    def write_timeout(self, seconds: float) -> None:
        self._sender.timeout = attrs.evolve(self.timeouts, write=seconds).write

    @property
    def socket(self) -> socket.socket | None:
        """The kernel's socket, to read and set its options; None over another transport.

        Reading, writing or closing it behind the connection's back breaks
        every promise of this class.
        """
        if not isinstance(self._wire, SocketTransport):
            return None
        self._wire.show()
        return self._wire.socket

    def fileno(self) -> int:
        """The file descriptor; -1 once closed, and where there is none."""
        if isinstance(self._wire, SocketTransport):
            self._wire.show()
        return self._wire.fileno()

    # Receiving -------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to ``max_bytes`` bytes, what is buffered first.

        Args:
          max_bytes: at least 1; None is as many as are there, at most 64 KiB.

        Returns:
          The bytes, ``b""`` at the end of the peer's input.

        Raises:
          IdleTimeout: no byte for `idle_timeout` seconds.
          PeerGone: the peer reset the connection.
          Draining: the server drains, and the peer has never sent a byte.
          trio.ClosedResourceError: the connection was closed by this side.
          trio.BusyResourceError: another task is receiving.

        A cancelled receive has taken nothing.
        """
        portion = LARGEST_PORTION if max_bytes is None else max_bytes
        if not isinstance(portion, int):
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        if portion < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        return await self._receiver.receive(portion)

    recv = receive_some

    def idle(self) -> IdleBlock:
        """A block that waits between two requests: ``with request.idle(): ...``.

        When the server drains, the block *raises* `Draining` from the wait it
        is in. It never falls through, so nothing after it sees a variable that
        the block was to assign. It is inert, and goes on undisturbed, while
        bytes of a request are buffered or readable, and once a byte was
        received inside it: a request that has begun is never interrupted.
        """
        return self._receiver.idle_block()

    # Sending ---------------------------------------------------------------

    async def send_all(self, data: Data) -> None:
        """Send what is buffered, then all of ``data``.

        Raises:
          WriteTimeout: the peer took no byte for `write_timeout` seconds.
          PeerGone: the peer is not there any more.
          trio.BrokenResourceError: an earlier send was cancelled half-way.
          trio.ClosedResourceError: this side was closed, or its sending half.
          trio.BusyResourceError: another task is sending.

        A send that is cancelled while it waits has sent an unknown part: the
        connection can then only be closed.
        """
        await self._sender.send_all(data)

    sendall = send_all

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes a byte, without a bound of its own.

        Raises:
          trio.ClosedResourceError: this side was closed, or its sending half.
          trio.BusyResourceError: another task is sending.
          PeerGone, WriteTimeout, trio.BrokenResourceError: what an earlier send has met.

        A cancelled wait has sent nothing.
        """
        await self._sender.wait_writable()

    async def send_eof(self) -> None:
        """End this side's output: the peer reads what was sent, then its end.

        Receiving goes on. Twice is once. Raises what `send_all` does. Cancelled before it
        had to wait, it has done nothing; after that, it has sent an unknown part of what was
        buffered.
        """
        await self._sender.send_eof()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Begin TLS in the middle of the connection (STARTTLS), as the server.

        What is buffered goes out before. From then on all input and output is protected.

        Args:
          context: an `ssl.SSLContext` for servers, as `server_context` makes them.

        Raises:
          HandshakeFailed: the peer does not agree, or has sent more in plain text after the
            request for TLS, which may be an attacker's: then the connection is reset.
          Draining: the server drains, and the peer has never sent a byte.
          IdleTimeout: the handshake was not complete within ``Timeouts.handshake``.
          PeerGone: the peer has left.
          RuntimeError, TypeError, ValueError: it has TLS already; or this is no server's context.
          trio.ClosedResourceError, trio.BusyResourceError: see `send_all`, `receive_some`.
          WriteTimeout, trio.BrokenResourceError: see `send_all`.

        Cancelled, or failed, once the handshake has begun, it can only be closed.
        """
        await start_tls(self, context)

    # Closing ---------------------------------------------------------------

    async def aclose(self) -> None:
        """Close, at once; also when cancelled. Closing twice is once.

        What was sent is on its way, but input that was not read makes the
        kernel reset the connection, and then the peer can lose it. Return from
        the handler instead, and the server closes in order.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close as `aclose` does, from plain code, without a checkpoint."""
        is_cut = self._stream.broken and (self._stream.sent or holds_output(self._transport))
        if is_cut or self._sender.is_midway:
            self.reset()  # half a reply must not look like a whole one
        else:
            if self._tls is not None and self._ends_in_order():
                with suppress(OSError):
                    self._transport.send_eof()
            self._sender.closed = True
            self._transport.close()

    def _ends_in_order(self) -> bool:
        """Whether to tell the peer, where the end of the output is more than the close."""
        stream, cut = self._stream, trio.current_effective_deadline() == -math.inf
        gone = self._sender.closed or stream.detached  # and then it is the handler's to end
        done = gone or stream.output_ended or stream.broken is not None
        return not (done or cut or self._must_not_linger)

    def reset(self) -> None:
        """Close so that the peer sees an error (a reset, on TCP), not an orderly end.

        Over a Unix socket on Linux there is no reset: the peer sees an orderly end, unless
        some of its input was left unread.
        """
        self._sender.closed = True
        self._transport.reset()
