"""The requests of a worker whose handlers are asynchronous: one after the other, in one loop.

`RequestTask` does here what it does on the server, except for what is the server's to decide:
the hooks do nothing, an error is only told, and the server keeps the deadline of the whole
request.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from typing import Any

import attrs
import trio

from ...._engine.request_task import RequestTask
from ...._facts.address import Address
from ...._facts.chains import lone_errors
from ...._facts.config import Timeouts
from ...._facts.events import RequestInfo, RequestRecord
from ...._requests.connection import Connection
from ...._requests.datagram import Datagram
from ...._requests.drain import Drain
from ...._servers.handlers import awaitable
from ...._sockets.making import socket_of
from ...._sockets.stream_sockets import SocketTransport
from ...._sockets.transport import Data, PeerCredentials
from ..protocol.channel import Channel
from ..protocol.frames import Message, shorten
from ..protocol.replies import Replies
from ..protocol.result import Result
from ..protocol.status import SharedStatus, State
from ..protocol.task import DatagramTask, WorkerTask, unpack_task


async def serve_all(server: Any, channel: Channel, shared_status: SharedStatus) -> None:
    """Serve each request that the server sends, until it hangs up."""
    loop = _Loop(server, channel, shared_status)
    trio.lowlevel.add_instrument(loop)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            while (heard := await channel.listen_in_trio()) is not None:
                kind, body = heard
                if kind is Message.DRAIN:
                    nursery.start_soon(loop.end_idle_waits)
                else:
                    loop.request = loop.request_for(task := unpack_task(kind, body))
                    nursery.start_soon(loop.serve, task, loop.request)
            nursery.cancel_scope.cancel(reason="the server is gone")


@attrs.define(eq=False)
class _Loop(trio.abc.Instrument):
    """The requests of one worker, and what the server is shown of them.

    Attributes:
      request: the last one, as its handler has it.
      drain: whether the server drains.
    """

    _server: Any
    _channel: Channel
    _shared_status: SharedStatus
    request: Connection | Datagram | None = None
    drain: Drain = attrs.field(factory=Drain)

    def request_for(self, task: WorkerTask) -> Connection | Datagram:
        """The connection or datagram for the handler."""
        # By the clock of this loop, which has another zero.
        info = attrs.evolve(task.info, started=trio.current_time() - task.age)
        limits, timeouts = (
            self._server.limits,
            attrs.evolve(self._server.timeouts, request=math.inf),
        )
        if isinstance(task, DatagramTask):
            way_back = _WayBack(task.data, info, Replies(self._channel, info))
            return Datagram(way_back, info, timeouts=timeouts, limits=limits)
        sock = socket_of(task.kind, self._channel.take_descriptor())
        timeouts = attrs.evolve(timeouts, idle=task.idle, write=task.write)
        return TakenConnection(
            _Shared(sock),
            info,
            timeouts=timeouts,
            limits=limits,
            drain=self.drain,
            stream=task.stream,
        )

    async def serve(self, task: WorkerTask, request: Connection | Datagram) -> None:
        """Handle one request, and tell the server how it went."""
        self._shared_status.begin(task.info.id, request.bytes_received, request.bytes_sent)
        hooks = _WorkerSideHooks(self._server, request, request.timeouts)
        await hooks.task(task.client_address).serve()
        if self._channel.is_closed:  # this is a child that the handler has forked
            raise SystemExit(0)
        self._channel.say(Message.DONE, **hooks.result.as_facts())

    async def end_idle_waits(self) -> None:
        """End waits between requests, as the server drains; a new connection has its moment."""
        self.drain.began = True
        request = self.request
        if request is not None:
            request._end_idle_waits()
            await trio.sleep_until(request._new_until)
            request._end_idle_waits()

    def before_io_wait(self, timeout: float) -> None:
        """Let the server see what the handler waits for, as the loop has nothing to do."""
        request = self.request
        if isinstance(request, TakenConnection) and not request._transport.is_over:
            state = request.state
            # A handler that has closed its connection works on.
            shown: State = "working" if state == "closed" else state
            self._shared_status.publish(request.bytes_received, request.bytes_sent, shown)


@attrs.define(eq=False)
class _Shared(SocketTransport):
    """The transport of a connection whose descriptor the server has, too.

    Attributes:
      is_over: whether the handler has ended: the rest is left to the server.
    """

    is_over: bool = False

    def close(self) -> None:
        if not self.is_over:  # the server still has the descriptor, so the peer must be told
            with suppress(OSError):
                self.send_eof()
        super().close()

    def reset(self) -> None:
        self.is_over = True  # the server's close is the reset: no orderly end before it
        super().reset()


class TakenConnection(Connection):
    """A connection that the server has accepted, and perhaps read from."""

    _transport: _Shared


@attrs.define(eq=False)
class _WorkerSideHooks:
    """The hooks and the events of one request: they note how it went, and decide nothing."""

    _server: Any
    _request: Connection | Datagram
    timeouts: Timeouts
    result: Result = attrs.field(factory=Result)
    propagate_errors: bool = False

    def task(self, client_address: Address) -> RequestTask:
        """The task that serves the request by these hooks."""
        return RequestTask(self._request, self._request, client_address, self, self)

    # Hooks ---------------------------------------------------------------------

    async def _introduce(self, request: Any) -> str:
        """The server has learnt who the client is."""
        return ""

    async def _arrive(self, request: Any, client_address: Address) -> bool:
        """True: the request has arrived at the server."""
        return True

    async def process_request(self, request: Any, client_address: Address) -> None:
        """Construct the handler, and await it."""
        handler = self._server.RequestHandlerClass
        await awaitable(handler(request, client_address, self._server), handler)

    async def shutdown_request(self, request: Any) -> None:
        """Do nothing: the server shuts the request down."""

    async def handle_error(self, request: Any, client_address: Address) -> None:
        """Note the error, for the server to handle."""
        error = sys.exception()
        if error is not None:
            self.result.note_error(error)

    # Events --------------------------------------------------------------------

    def on_introduction(self, task: RequestTask) -> str:
        """The server has counted the client."""
        return ""

    def on_start(self, task: RequestTask) -> None:
        """Do nothing: the server has told its observers."""

    def on_exit(self, error: BaseException) -> None:
        """Have ``error`` end this process."""
        raise error

    def on_fatal(self, task: RequestTask, reason: str) -> None:
        """Do nothing: the error is raised, and ends this process."""

    def on_cancelled_from_outside(self) -> None:
        """Do nothing: the server is gone."""

    def on_outcome(self, task: RequestTask, record: RequestRecord) -> None:
        """Note the outcome, and in which state the connection is left."""
        result, request = self.result, self._request
        result.outcome, result.reason = record.outcome.value, shorten(record.reason)
        if isinstance(request, TakenConnection):
            result.stream = request._stream
            # For the peer that is the end of the output: the server only lingers and closes.
            result.stream.output_ended |= request._sender.closed
            request._transport.is_over = True

    def on_close(self, task: RequestTask) -> None:
        """Do nothing: the server has a descriptor of its own."""


@attrs.define(eq=False)
class _WayBack:
    """The transport of one datagram, by which the server sends the replies."""

    data: bytes
    _info: RequestInfo
    _replies: Replies

    @property
    def local_address(self) -> Address:
        return self._info.server_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        return None

    def send_now(self, data: Data, address: Address) -> bool:
        # It waits, but no other request is served here meanwhile.
        self._replies.send(data, address)
        return True

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass
