"""`BaseServer`: the fields, the hooks, and the methods for the caller.

A server is configuration and policy. All that changes while it serves is in its
`Run`, from bind to close; copies and pickles never have one.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, ClassVar, Self

import attrs
import trio

from .._engine.run import Run
from .._engine.serving import handle_one, serve
from .._facts.chains import lone_errors
from .._facts.config import Limits, Timeouts
from .._facts.events import Mode, RequestInfo, ShutdownReport
from .._facts.observers import valid_observers
from .._facts.validators import (
    as_tuple,
    check_seconds,
    instance_of,
    seconds,
    socket_options,
    true_or_false,
)
from .._requests.any_request import AnyRequest
from .._requests.connection import Connection
from .._requests.datagram import ReplyFunction
from .._requests.drain import Drain
from .handler_checks import check_callable, check_handler
from .handlers import Handler
from .listening import Listening


def _valid_handler(server: Any, _field: attrs.Attribute[Any], value: object) -> None:
    check_callable(value)
    if server is not None:
        server._check_handler(value)


def _valid_address(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if isinstance(server, BaseServer):
        server._check_address(field, value)


@attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
)
class BaseServer(Listening):
    """The base class of all servers; derive from one of the socket servers instead.

    Building a server does no I/O. Its fields can be assigned until it is bound. A method
    that may wait is ``async def``. One that only tells, asks or decides at once is plain,
    and so never a checkpoint.

    Args:
      server_address: where to listen, or bound sockets to use.
      RequestHandlerClass: a handler class, an async function, or any callable that is called
        with ``(request, client_address, server)`` and returns an awaitable. For datagrams
        also a plain function of the data, not the request, that returns the answer, or None.
      timeout: seconds that `handle_request` waits for a request; nothing else.
      timeouts: how long the server waits, for its clients and for itself.
      limits: how much it takes on at once.
      propagate_errors: have a handler's error stop the server, as plain Trio
        does, instead of going to `handle_error`.
      observers: objects that are told of every event; see `Observer`.
      socket_options: ``(level, name, value)``, set before bind.

    Raises:
      TypeError: a field has a value of the wrong type; it is named.
      ValueError: a field has a wrong value; it is named.
    """

    _server_address: Any = attrs.field(
        alias="server_address", kw_only=False, validator=_valid_address
    )
    RequestHandlerClass: Handler = attrs.field(kw_only=False, validator=_valid_handler)
    timeout: float | None = attrs.field(default=None, validator=seconds(zero=True, optional=True))
    timeouts: Timeouts = attrs.field(
        factory=Timeouts, validator=instance_of(Timeouts, "a trioserver.Timeouts")
    )
    limits: Limits = attrs.field(
        factory=Limits, validator=instance_of(Limits, "a trioserver.Limits")
    )
    propagate_errors: bool = attrs.field(default=False, validator=true_or_false)
    observers: Sequence[object] = attrs.field(
        default=(), converter=as_tuple, validator=valid_observers
    )
    socket_options: Sequence[tuple[int, int, int | bytes]] = attrs.field(
        default=(), converter=as_tuple, validator=socket_options
    )

    @property
    def server_address(self) -> Any:
        """The configured address; while the server is bound, that of its first listener."""
        if self._run is not None and self._run.listeners:
            return self._run.listeners.addresses[0]
        return self._server_address

    @server_address.setter
    def server_address(self, address: Any) -> None:
        self._server_address = address

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        """Raise an error that names ``field`` if the address is wrong."""

    # Where handlers run: the mix-ins say otherwise.

    _mode: ClassVar[Mode] = "task"
    _LATE: ClassVar[str] = "verify_request took too long (handshake)"
    _connection_class: ClassVar[type[Connection]] = Connection

    @classmethod
    def _check_handler(cls, handler: object) -> None:
        """Raise a `TypeError` for a handler that cannot run where this server runs handlers."""
        check_handler(handler, kind=getattr(cls, "socket_type", None))

    # For the caller ------------------------------------------------------------

    async def serve_forever(
        self,
        poll_interval: float = 0.5,
        *,
        task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED,
    ) -> ShutdownReport:
        """Serve until `shutdown` is called, or until cancelled.

        Outside of ``async with server:`` it binds first and closes last.

        Args:
          poll_interval: seconds between two calls of `service_actions`.
          task_status: for ``nursery.start``, which returns the server once it
            listens. Until then every error is raised there, bare.

        Returns:
          Which requests were drained or cancelled, and which clients were turned away.
          When it returns, nothing that the server made is left.

        Raises:
          OSError: it cannot listen; the address is in the message.
          RuntimeError: it is serving already.
          BaseException: what ended the server (a broken listener, ``SystemExit``
            from a handler, ...), without a group around it if it is alone.

        When it is cancelled, it cancels every request with the same reason. It waits for
        them for ``timeouts.cleanup`` seconds in silence, then logs those that have not
        ended, and still waits for them: nothing outlives the server.
        """
        check_seconds("poll_interval", poll_interval)
        if self._run is None:
            async with self as server:
                run = server._idle_run()
                return await self._serve(run, poll_interval, task_status)
        run = self._idle_run()
        try:
            return await self._serve(run, poll_interval, task_status)
        finally:
            run.ended.set()

    async def _serve(
        self, run: Run, poll_interval: float, task_status: trio.TaskStatus[Self]
    ) -> ShutdownReport:
        return await serve(run, poll_interval, lambda: task_status.started(self))

    @asynccontextmanager
    async def serving(self, grace: float | None = None) -> AsyncIterator[Self]:
        """Serve in the background of a block; drain at its end.

        Args:
          grace: seconds for the drain; None is ``timeouts.shutdown``.

        When the block raises or is cancelled, the server is cancelled, and that
        exception is raised, without a group around it.

        Raises:
          OSError: the server cannot listen.
          RuntimeError: it is serving already.
          BaseException: the server has failed; the block is cancelled, and this is what
            `serve_forever` has raised.
        """
        check_seconds("grace", grace, zero=True, optional=True)
        with lone_errors():
            async with trio.open_nursery() as nursery:
                await nursery.start(self.serve_forever)
                try:
                    yield self
                except BaseException:
                    if self._run is not None:
                        self._run.cancel("the block of serving() was left with an error")
                    raise
                self.shutdown(grace)

    async def handle_request(self) -> None:
        """Handle one request, completely: when this returns, it is closed.

        After ``timeout`` seconds without a request it calls `handle_timeout`.
        After `shutdown` it returns at once, without one. When `shutdown` comes
        while it is at work, clients that are queued then are served, too, as in every
        drain. When it is cancelled, either nothing was accepted, or the request is closed.

        Raises:
          RuntimeError: outside of ``async with server:``, while the server is
            serving already, or after it was shut down.
        """
        run = self._idle_run()
        patience = math.inf if self.timeout is None else self.timeout
        served = await handle_one(run, patience)
        if not served and not run.drain.began:
            await self.handle_timeout()

    def shutdown(self, grace: float | None = None) -> None:
        """Begin the drain, and return at once.

        It may be called from any task, handler or thread, but not from a bare signal
        handler: see `trioserver.run`. When it is called twice, the earlier deadline
        holds. When it is called before the first run, the next `serve_forever` reports
        ready and ends at once. After a run has ended it does nothing.

        A server that does not serve yet has the grace for what it waits for, its binding
        or its workers, which is cancelled when the grace is over. A server that was not
        bound by then has no sockets in its block, and ends at once there.

        Args:
          grace: seconds that requests in flight have to end by themselves,
            before they are cancelled; None is ``timeouts.shutdown``.
        """
        check_seconds("grace", grace, zero=True, optional=True)
        patience = self.timeouts.shutdown if grace is None else grace
        if self._run is None and self._report is None:
            self._stop_next_run(patience)
        # Looked up only now: another thread may have bound the server in between.
        run = self._run
        if run is not None:
            run.shutdown(patience)

    async def wait_closed(self) -> ShutdownReport:
        """Wait for the end of the run, or return the report of the last one.

        Raises:
          RuntimeError: there was no run; or called by a request of this server,
            which would wait for itself.
        """
        run = self._run
        if run is not None:
            self._refuse_own_tasks(run, "wait for")
            await run.ended.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self._report is None and run is not None:
            self._report = run.report
        if self._report is None:
            raise RuntimeError(f"this {type(self).__name__} has not been run")
        return self._report

    def cancel_request(self, request_id: int, reason: str) -> bool:
        """Cancel one request, with a reason for its record; false if none of that id is active.

        It may be called from any task, handler or thread.
        """
        return self._run is not None and self._run.cancel_request(request_id, reason)

    # Inside ----------------------------------------------------------------------

    def _request_over(self, transport: Any, info: RequestInfo, drain: Drain) -> AnyRequest:
        """Make what a request owns, over what a listener has accepted."""
        return self._connection_class(
            transport, info, timeouts=self.timeouts, limits=self.limits, drain=drain
        )

    def _reply_function(self) -> ReplyFunction | None:
        """The handler, if it is a plain function that answers datagrams."""
        return None

    def _resources(self, *, for_one_request: bool) -> AbstractAsyncContextManager[object]:
        """A block of what handlers need, entered before clients are let in, left after the last."""
        return nullcontext()

    def _has_arrival(self) -> bool:
        """Whether clients have an arrival, so whether that does anything."""
        return self._has_introduction() or self._overrides("verify_request")

    def _most_requests(self) -> int:
        """How many requests may be served at once."""
        return self.limits.requests

    def _waiting_room(self) -> int:
        """How many clients that have to wait for a slot a drain takes in."""
        return self.limits.requests
