"""How a server is bound and closed, and what can be seen of it meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from socket import socket as KernelSocket  # noqa: N812  (the class has a property of that name)
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self, cast

import trio

from .._engine.deputy import Deputy
from .._engine.hooks import ServerHooks
from .._engine.phase import Phase
from .._engine.run import Run
from .._engine.stop_request import StopRequest
from .._facts.bounded import Bounded
from .._facts.events import (
    RequestInfo,
    Statistics,
)
from .._facts.observers import log_lost
from .._facts.snapshots import (
    ServerSnapshot,
)
from .._sockets.credentials import Credentials
from .._sockets.datagram_listener import DatagramListener
from .._sockets.stream_sockets import SocketListener
from .._sockets.transport import Listener
from .hooks import DefaultHooks


class Lifecycle(DefaultHooks):
    """The block of a server, which is bound when it is entered and closed when it is left.

    A run is made on the way in and dropped on the way out, whatever happens in between.
    """

    access_level: ClassVar[int] = logging.INFO
    """At which level ``trioserver.access`` is told of requests; for a subclass to assign."""

    async def __aenter__(self) -> Self:
        if self._run is not None:
            raise RuntimeError(f"this {type(self).__name__} is bound already: one run at a time")
        self._report = None
        run = self._run = Run(cast("ServerHooks", self), self._overrides)
        try:
            stop, self._stop = self._stop, None
            with run.binding(stop):
                run.credentials = self._credentials()
                run.listeners.own(await self.server_bind())
                if not run.listeners:
                    raise ValueError(f"{type(self).__name__}.server_bind returned no listeners")
                await self.server_activate()
        except BaseException:
            self._drop(run)
            self._report = run.report = None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run = self._run
        if run is None:
            return
        try:
            await self._end(run, by_force=error is not None)
            if run.closed_by == "program":
                await run.ended.wait()
        finally:
            try:
                if run.closed_by != "program":
                    run.closed_by = "hook"
                    await self._close_within_bounds(after=error)
            finally:
                self._drop(run)

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(f"a {type(self).__name__} needs `async with`, not `with`")

        def __exit__(self, *exception: object) -> None:
            """Never reached; without it Python's own error would come first."""

    async def server_close(self) -> None:
        """End a run in progress as leaving the block does, and close.

        An override is called once in each run, as the last hook, and is shielded for at
        most ``timeouts.cleanup`` seconds.

        Raises:
          RuntimeError: a request of this server has called it, and would wait for itself.
        """
        run = self._run
        if run is None:
            return
        if run.closed_by == "hook":
            run.close()  # this is the hook; its caller does the rest
            return
        self._refuse_own_tasks(run, "close")
        run.closed_by = "program"
        try:
            await self._end(run)
        finally:
            self._drop(run)

    async def _end(self, run: Run, *, by_force: bool = False) -> None:
        """End a run that another task works on, with a drain or a cut, and wait for its end."""
        if not run.work.is_going_on:
            return
        try:
            if not by_force:
                run.shutdown(self.timeouts.shutdown)
                await run.work.wait_over()
        finally:
            if run.work.is_going_on:
                run.cancel("the server is being closed")
                # It waits as a nursery waits for its children: they are cancelled, logged
                # if they do not end, and may not outlive this.
                with trio.CancelScope(shield=True):
                    await run.work.wait_over()

    async def _close_within_bounds(self, *, after: BaseException | None) -> None:
        name = type(self).__name__
        try:
            with Bounded(self.timeouts.cleanup, f"{name}.server_close"):
                await self.server_close()
        except BaseException as second:
            message = "%s.server_close raised instead of what had ended the server"
            log_lost(after, second, message, name)
            raise
        finally:
            del after  # no cycles

    def _drop(self, run: Run) -> None:
        self._report = run.close()
        if self._run is run:
            self._run = self._stop = None
        run.ended.set()

    def _note_why(self, reason: str) -> None:
        """Have the report say why the run ends that is going to; the first reason holds."""
        if self._run is not None:
            self._run.ending.because(reason)

    def _stop_next_run(self, grace: float) -> None:
        """Have the next run end at once; its start has at most ``grace`` seconds."""
        self._stop = StopRequest(grace).and_earlier(self._stop)

    @contextmanager
    def _served_by(self, deputy: Deputy) -> Iterator[None]:
        """Have somebody else serve in the block what is bound here, and tell of it later."""
        run = self._idle_run()
        with run.work.going_on():
            run.phase.enter(Phase.ACQUIRING)
            run.phase.enter(Phase.SERVING)
            run.deputy = deputy
            if run.admission.slots.suspended:
                deputy.suspend()
            if run.stop is not None:
                run.begin_drain(run.stop.left(trio.current_time()))
            try:
                yield
            finally:
                run.ending.begin_report()

    # Looking ---------------------------------------------------------------------

    def fileno(self) -> int:
        """The file descriptor of the first listening socket.

        Raises:
          RuntimeError: the server is not bound, or not to a socket.
        """
        sock = self.socket
        if sock is None:
            raise RuntimeError(f"this {type(self).__name__} is not bound to a socket")
        return sock.fileno()

    @property
    def socket(self) -> KernelSocket | None:
        """The first listening socket, to read and set its options; None while unbound."""
        return next(iter(self.sockets), None)

    @property
    def sockets(self) -> tuple[KernelSocket, ...]:
        """All listening sockets, IPv4 first; none while unbound."""
        listeners = () if self._run is None else self._run.listeners
        kernels = (SocketListener, DatagramListener)
        return tuple(one.socket for one in listeners if isinstance(one, kernels))

    @property
    def _state(self) -> str:
        """What it is doing, in the words of `ServerSnapshot`."""
        return "unbound" if self._run is None else self._run.state

    @property
    def draining(self) -> bool:
        """Whether the server has stopped accepting, and waits for its requests to end."""
        return self._run is not None and self._run.drain.began

    @property
    def requests(self) -> tuple[RequestInfo, ...]:
        """The requests that hold a slot now, oldest first."""
        active = [] if self._run is None else self._run.registry.in_slots()
        return tuple(request.info for request in active)

    def statistics(self) -> Statistics:
        """The counts of the run; of the last one while unbound."""
        if self._run is not None:
            return self._run.statistics()
        return Statistics() if self._report is None else self._report.statistics

    def snapshot(self) -> ServerSnapshot:
        """The server and everything under it at this instant."""
        if self._run is not None:
            return self._run.snapshot()
        return ServerSnapshot(
            name=type(self).__name__,
            state="unbound",
            uptime=0.0,
            listeners=(),
            requests=(),
            statistics=self.statistics(),
        )

    def _credentials(self) -> Credentials | None:
        """What the server shows its clients in a TLS handshake; None where there is none."""
        return None

    # For those that come after ---------------------------------------------------

    def _idle_run(self) -> Run:
        """The run, if it can be served now; a `RuntimeError` says why if it cannot."""
        run = self._bound_run()
        if run.work.is_going_on:
            doing = "serving" if run.serving else "being bound"
            raise RuntimeError(f"this {type(self).__name__} is {doing} already: one run at a time")
        if run.drain.began:
            raise RuntimeError(f"this {type(self).__name__} was shut down: bind it again first")
        return run

    def _keep(self, listeners: Sequence[Listener]) -> Sequence[Listener]:
        """Have the run own the listeners, even when an override fails before it returns them."""
        if self._run is not None:
            self._run.listeners.own(listeners)
        return listeners

    def _overrides(self, hook: str) -> bool:
        """Whether a hook is a program's own, so that it has to be called."""
        return getattr(getattr(self, hook), "__func__", None) is not vars(DefaultHooks)[hook]

    def _refuse_own_tasks(self, run: Run, verb: str) -> None:
        if run.requests.owns_current_task():
            raise RuntimeError(
                f"a task of a server cannot {verb} it: it would wait for itself;"
                " shutdown() does not wait"
            )
