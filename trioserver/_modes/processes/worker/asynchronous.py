"""The requests of a worker whose handlers are asynchronous: one after the other, in one loop.

`RequestTask` does here what it does on the server, except for what is the server's to decide:
the hooks do nothing, an error is only told, and the server keeps the deadline of the whole
request.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from typing import Any, ClassVar

import attrs
import trio

from ...._engine.request_task import Course, RequestTask
from ...._facts.address import Address
from ...._facts.chains import lone_errors
from ...._facts.config import Timeouts
from ...._facts.events import Outcome, RequestInfo
from ...._requests.begin_tls import begin_tls
from ...._requests.connection import Connection
from ...._requests.datagram import Datagram
from ...._requests.drain import Drain
from ...._sockets.making import socket_of
from ...._sockets.tls_errors import NO_HANDSHAKE_IN_TIME
from ...._sockets.transport import Data, PeerCredentials
from ..protocol.channel import Channel
from ..protocol.frames import Message, shorten
from ..protocol.replies import Replies
from ..protocol.result import Result
from ..protocol.status import SharedStatus, State
from ..protocol.task import (
    ArrivalTask,
    ConnectionTask,
    DatagramTask,
    WorkerTask,
    unpack_task,
)
from .contexts import Contexts
from .taken_connection import SharedTransport, TakenConnection


async def serve_all(
    server: Any, channel: Channel, shared_status: SharedStatus, contexts: Contexts
) -> None:
    """Serve each request that the server sends, until it hangs up."""
    loop = _Loop(server, channel, shared_status, contexts)
    trio.lowlevel.add_instrument(loop)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            while (heard := await channel.listen_in_trio()) is not None:
                nursery.start_soon(*loop.take_up(*heard))
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
    _contexts: Contexts
    request: Connection | Datagram | None = None
    drain: Drain = attrs.field(factory=Drain)

    def take_up(self, kind: Message, body: bytes) -> tuple[Any, ...]:
        """What to do as the server says: an async function, and its arguments."""
        if kind is Message.DRAIN:
            return (self.end_idle_waits,)
        arrived = self.request
        if kind is Message.FORGET:
            return self.end, arrived
        task = unpack_task(kind, body)
        if kind is Message.ARRIVAL:
            self.request = self._connection_over(self._take(task.kind), task)
            return self.arrive, task, self.request
        if kind is Message.GO_ON and isinstance(arrived, TakenConnection):
            self.request = self._after_arrival(arrived, task)
        else:
            self.request = self.request_for(task)
        return self.serve, task, self.request

    def request_for(self, task: WorkerTask) -> Connection | Datagram:
        """The connection or datagram for the handler."""
        if isinstance(task, DatagramTask):
            info = _info_here(task)
            way_back = _WayBack(task.data, info, Replies(self._channel, info))
            timeouts = attrs.evolve(self._server.timeouts, request=math.inf)
            return Datagram(way_back, info, timeouts=timeouts, limits=self._server.limits)
        return self._connection_over(self._take(task.kind), task)

    def _take(self, kind: tuple[int, int, int]) -> SharedTransport:
        return SharedTransport(socket_of(kind, self._channel.take_descriptor()))

    def _connection_over(
        self, transport: SharedTransport, task: ArrivalTask | ConnectionTask
    ) -> TakenConnection:
        timeouts, stream = attrs.evolve(self._server.timeouts, request=math.inf), None
        if isinstance(task, ConnectionTask):
            timeouts = attrs.evolve(timeouts, idle=task.idle, write=task.write)
            stream = task.stream
        taken = TakenConnection(
            transport,
            _info_here(task),
            timeouts=timeouts,
            limits=self._server.limits,
            drain=self.drain,
            stream=stream,
        )
        taken._on_tls = self._shared_status.tls_begins
        return taken

    def _after_arrival(self, arrived: TakenConnection, task: ConnectionTask) -> TakenConnection:
        """The connection for the handler, of a client with whom TLS is agreed on."""
        request = self._connection_over(arrived.shared, task)
        if arrived._tls is not None:
            request._speak_by(arrived._tls)
        return request

    async def arrive(self, task: ArrivalTask, request: TakenConnection) -> None:
        """Agree on TLS with a client, and tell the server how it went."""
        self._shared_status.begin(task.info.id, tls=True)
        result = Result(stream=request._stream)
        try:
            with trio.move_on_after(max(0, task.until - time.monotonic())):
                await begin_tls(request, self._contexts.of(task.as_of), task.ciphertext)
                self._channel.say(Message.ARRIVED)
                return
            result.outcome, result.reason = Outcome.TIMED_OUT.value, NO_HANDSHAKE_IN_TIME
        except Exception as error:  # noqa: BLE001  (the server is told)
            result.judge(error, request.info)
        self._let_go(request, result)

    async def end(self, request: TakenConnection) -> None:
        """End a connection in order that nobody is going to serve."""
        with trio.move_on_after(self._server.timeouts.linger), suppress(OSError):
            await request.end_output()
        self._let_go(request, Result(stream=request._stream))

    def _let_go(self, request: TakenConnection, result: Result) -> None:
        request.shared.is_over = True
        request.close()
        self._channel.say(Message.DONE, **result.as_facts())

    async def serve(
        self, task: ConnectionTask | DatagramTask, request: Connection | Datagram
    ) -> None:
        """Handle one request, and tell the server how it went."""
        seen = request.bytes_received, request.bytes_sent
        by_tls = isinstance(request, TakenConnection) and request._tls is not None
        self._shared_status.begin(task.info.id, *seen, tls=by_tls)
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
        if isinstance(request, TakenConnection) and not request.shared.is_over:
            state = request.state
            # A handler that has closed its connection works on.
            shown: State = "working" if state == "closed" else state
            self._shared_status.publish(request.bytes_received, request.bytes_sent, shown)


def _info_here(task: WorkerTask) -> RequestInfo:
    """The facts of the request by the clock of this loop, which has another zero."""
    return attrs.evolve(task.info, started=trio.current_time() - task.age)


@attrs.define(eq=False)
class _WorkerSideHooks:
    """The hooks and the events of one request: they note how it went, and decide nothing."""

    _server: Any
    _request: Connection | Datagram
    timeouts: Timeouts
    result: Result = attrs.field(factory=Result)
    propagate_errors: bool = False
    _LATE: ClassVar[str] = "never: it has arrived at the server"

    def task(self, client_address: Address) -> RequestTask:
        """The task that serves the request by these hooks."""
        course = Course(self, self, self._server._handling)
        return RequestTask(self._request, self._request, client_address, course)

    # Hooks ---------------------------------------------------------------------

    async def _introduce(self, request: Any) -> str:
        """The server has learnt who the client is."""
        return ""

    async def _secure(self, request: Any) -> None:
        """Do nothing: it has arrived."""

    async def _secure_here(self, request: Any) -> None:
        """Do nothing: it is not turned away."""

    async def _arrive(self, request: Any, client_address: Address) -> bool:
        """True: the request has arrived at the server."""
        return True

    async def shutdown_request(self, request: Any) -> None:
        """End the output of TLS, of which the server knows nothing. It shuts the rest down."""
        if isinstance(request, TakenConnection) and request._tls is not None:
            with trio.move_on_after(self.timeouts.linger), suppress(OSError):
                await request.end_output()

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

    def on_outcome(self, task: RequestTask) -> None:
        """Note the outcome, and in which state the connection is left."""
        result, request = self.result, self._request
        result.outcome, result.reason = task.outcome.value, shorten(task.reason)
        if isinstance(request, TakenConnection):
            result.stream = request._stream
            # For the peer that is the end of the output: the server only lingers and closes.
            result.stream.output_ended |= request._sender.closed
            request.shared.is_over = True

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
