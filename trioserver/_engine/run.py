"""One run of a server: its nurseries, and what happens in which.

All that changes while a server serves is here, in the run's `Admission` (who is let
in), its `RequestRegistry` (who is here) and its `Shutdown` (how it ends). A run is made
when the server is bound and dropped when it is closed::

    serve
      requests nursery              owns every request, until the very end, and
                                      service_actions, until the drain
        accept                      until the drain begins
          loops nursery               owns the accept loops, one a listener
        drain_out                   while requests are left
          grace                       they end by themselves
          cut                         the rest is cancelled, with a reason, and
                                        who still runs after cleanup is named

`handle_one` is the same for a single request: its end leaves the listeners open.

The rules that this file keeps:

* A slot is free before a client is accepted, and from the accept until the
  request's task owns the connection there is no checkpoint and no Ctrl-C.
* Whatever ends a run, a request that is cancelled is cancelled with a reason;
  every request has one outcome, and is closed before `serve` returns.

To follow one client through the files: `accept` waits for it, `admission` lets it
in, `request_task` serves it, `_requests/connection` is what it talks to,
`_facts/verdict` says whose fault its end was, `registry` writes that down, and
`shutdown` is how all of them end.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._facts.chains import lone_errors
from .._facts.events import (
    ListenerSnapshot,
    RequestRecord,
    ServerSnapshot,
    ShutdownReport,
    Statistics,
)
from .._facts.observers import Audience
from .._facts.verdict import cancellations, describe_error
from .._requests.drain import Drain
from .._sockets.transport import Listener
from .accept import accept_loop, accept_now
from .admission import Admission
from .hooks import ServerHooks
from .registry import RequestRegistry
from .request_task import RequestTask, call_hook
from .shutdown import Shutdown


@attrs.define(eq=False)
class Run:
    """What changes while a server serves.

    Attributes:
      listeners: where clients come from; closed ones stay in the list.
      drain: whether the drain has begun.
      admission: who is let in.
      registry: who is here.
      bound: whether it can be served.
      starting: whether it is being bound, or its resources are being acquired.
      serving: whether `serve` or `handle_one` is at work.
      closing: whether the hook ``server_close`` is being called for it.
      closed_by_hand: whether somebody called ``server_close`` himself.
      stopped: set when the binding, `serve` or `handle_one` at work has ended;
        who closes the server waits for it.
      ended: set when the server is done with the run, too, and `report` is
        there; ``wait_closed`` waits for it.
      report: how it ended.
      resources: what handlers need around them while it serves; of worker processes their pool.
    """

    _server: ServerHooks
    _overrides: Callable[[str], bool]
    listeners: list[Listener] = attrs.field(factory=list)
    drain: Drain = attrs.field(factory=Drain)
    admission: Admission = attrs.field(init=False)
    registry: RequestRegistry = attrs.field(init=False)
    bound: bool = False
    starting: bool = False
    serving: bool = False
    closing: bool = False
    closed_by_hand: bool = False
    stopped: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    report: ShutdownReport | None = None
    resources: object = None
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)
    _context: contextvars.Context = attrs.field(factory=contextvars.Context)
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _bound_at: float = attrs.field(factory=trio.current_time)
    _requests: trio.Nursery | None = None
    _takes_requests: bool = False
    _everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _ending: Shutdown = attrs.field(init=False)
    _drain_when_serving: float | None = None
    _grace_ends: float = math.inf
    _is_announced: bool = False

    def __attrs_post_init__(self) -> None:
        self.registry = RequestRegistry(
            Audience.of(self._server.observers, self.on_exit), self.listeners
        )
        self.admission = Admission(
            self._server,
            events=self,
            registry=self.registry,
            drain=self.drain,
            overrides=self._overrides,
            spawn=self._spawn,
        )
        self._ending = Shutdown(
            self._server, self.listeners, self.admission, self.registry, self.drain
        )

    @contextmanager
    def binding(self, grace: float | None) -> Iterator[None]:
        """Bind in the block; cut when the grace of a drain is over that comes before its end.

        There are no listeners then, and what is to serve ends at once.

        Args:
          grace: of a drain that was asked for before; or None.
        """
        self.starting, self.stopped = True, trio.Event()
        try:
            with self._everything:
                if grace is not None:
                    self._bound_start(grace)
                yield
                self._note_bound()
        finally:
            self.starting = False
            self.stopped.set()
        if not self.bound:
            self._close_listeners()
            self.listeners.clear()
            self.bound = True

    def _note_bound(self) -> None:
        """Binding has succeeded: clients queue."""
        self.bound = self._is_announced = True
        addresses = tuple(listener.address for listener in self.listeners)
        self.registry.audience.tell("server_listening", addresses)

    # Serving ---------------------------------------------------------------

    @enable_ki_protection
    async def serve(self, poll_interval: float, started: Callable[[], object]) -> ShutdownReport:
        """Serve until drained; raise what ended it otherwise.

        Args:
          poll_interval: seconds between two calls of ``service_actions``.
          started: called once clients are let in.
        """
        if not self.listeners:  # see `binding`
            await trio.lowlevel.checkpoint()
            started()
            return self.close()

        async def until_drained(requests: trio.Nursery) -> None:
            try:
                if self._overrides("service_actions"):
                    requests.start_soon(self._act_every, poll_interval)
                await self._run_accept_loops(ready)
                await self._ending.drain_out()
            except BaseException as error:
                self._ending.stop_accepting(_why(error))
                await self._ending.cut(_why(error))
                raise

        is_ready = False

        def ready() -> None:
            nonlocal is_ready
            is_ready = True
            started()

        self.admission.accepts_left = math.inf
        try:
            await self._with_requests(until_drained)
            if not is_ready and self._drain_when_serving is not None:
                ready()  # as ever after a shutdown(): the grace was over before it could be
        finally:
            report = self.close()
        return report

    @enable_ki_protection
    async def handle_one(self, patience: float) -> bool:
        """Serve one request, until it is closed; false if none came in ``patience`` seconds.

        The listeners stay open, also when this is cancelled.
        """

        async def until_closed(_: trio.Nursery) -> None:
            try:
                with trio.move_on_after(patience):
                    await self._run_accept_loops(lambda: None)
                # The last look: who came in the very tick, or was there all the time.
                for listener in self.listeners:
                    accept_now(listener, self.admission)
                await self.registry.until_all_closed_or(self.drain)
                if self.drain.began:
                    await self._ending.drain_out()
            except BaseException as error:
                # The listeners stay open, but a shutdown() is one of the next run now.
                self._takes_requests = False
                await self._ending.cut(_why(error))
                raise

        self.admission.accepts_left = 1
        if self._drain_when_serving is not None:
            self._ending.stop_accepting("shutdown() was called")
            await trio.lowlevel.checkpoint()
            return False
        await self._with_requests(until_closed)
        # Cut by server_close, it has had its turn: no handle_timeout.
        return self.admission.accepts_left < 1 or self._everything.cancel_called

    @enable_ki_protection
    async def _with_requests(self, body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
        """Call ``body`` inside the nursery that owns the requests, and wait for them all."""
        self.serving, self.stopped = True, trio.Event()
        self._everything = trio.CancelScope()
        self.starting = True
        try:
            with self._everything, lone_errors():
                if self._drain_when_serving is not None:
                    left = self._grace_left(self._drain_when_serving)
                    self._everything.deadline = trio.current_time() + left
                async with (
                    self._server._resources(
                        for_one_request=not self.admission.takes_all
                    ) as self.resources,
                    trio.open_nursery() as requests,
                ):
                    self._requests, self._takes_requests = requests, True
                    # Of now: what a hook, or the block, has set since the bind is there, too.
                    self._context = contextvars.copy_context()
                    self.starting, self._everything.deadline = False, math.inf
                    try:
                        await body(requests)
                    finally:
                        # The nursery is closed to new tasks one tick before it is over.
                        self._takes_requests = False
        finally:
            self.serving, self._requests, self.resources = False, None, None
            self.starting = False
            self.stopped.set()

    def _bound_start(self, seconds: float) -> None:
        """A drain came before it serves: what it waits for has to come within the grace."""
        self._grace_ends = min(self._grace_ends, trio.current_time() + seconds)
        self._everything.deadline = self._grace_ends

    def _grace_left(self, seconds: float) -> float:
        """Of a grace of so many seconds, what the start has left of it."""
        return max(0.0, min(seconds, self._grace_ends - trio.current_time()))

    async def _run_accept_loops(self, started: Callable[[], object]) -> None:
        """Let clients in, as long as they are admitted."""
        self.admission.reserve.take()
        with lone_errors():
            async with trio.open_nursery() as loops:
                self._ending.accepting = loops.cancel_scope
                for listener in self.listeners:
                    loops.start_soon(accept_loop, listener, self.admission)
                started()
                if self._drain_when_serving is not None:
                    self.begin_drain(self._grace_left(self._drain_when_serving))

    async def _act_every(self, seconds: float) -> None:
        # Not beside the accept loops: one that cannot be cancelled, in a
        # thread say, must not hold up the drain.
        with self._ending.acting:
            while True:
                try:
                    await call_hook(self._server.service_actions)
                except BaseException as error:
                    if not cancellations(error):
                        self._ending.fail(_why(error), culprit=None)
                    raise
                await trio.sleep(seconds)

    # A request's life ------------------------------------------------------

    def _spawn(self, task: RequestTask) -> None:
        """Start a request's task. Nothing waits in here, and nothing may fail."""
        requests = self._requests
        if requests is None or not self._takes_requests:
            raise RuntimeError("a client was let in while nothing serves")
        # In the server's context, as in a nursery: no request sees what another one, or
        # during a drain another task, has set.
        name = f"{type(self._server).__name__} {task.info}"
        self._context.copy().run(partial(requests.start_soon, task.serve, name=name))
        self.registry.opened(task)
        if self.admission.accepts_left < 1:
            self._ending.accepting.cancel(reason="handle_request has its request")

    def on_start(self, task: RequestTask) -> None:
        """The request's task runs."""
        self.registry.audience.tell("request_started", task.info)

    def on_fatal(self, task: RequestTask | None, reason: str) -> None:
        """What a request raises stops the server: nobody waits until it is closed."""
        if self.admission.takes_all:
            self._ending.fail(reason, culprit=task)
        else:
            self._takes_requests = False
            self.admission.accepts_left = 0
            self.admission.empty_waiting_room()

    def on_exit(self, error: BaseException) -> None:
        """An observer or a get_request has raised what stops the server.

        They are called from the midst of other things, which are not to be left
        half done, so a task of its own raises it. Where there is none yet, or
        none any more, nothing is half done.
        """
        if self._requests is None:
            raise error
        self.on_fatal(None, _why(error))
        self._requests.start_soon(_raise, error)

    def on_cancelled_from_outside(self) -> None:
        """The requests may notice it before the task of ``serve`` does."""
        if self.admission.takes_all:
            self._ending.begin_report()
            self.admission.empty_waiting_room()

    def on_outcome(self, task: RequestTask, record: RequestRecord) -> None:
        """Slot back, and one record; only then does the connection linger."""
        self.registry.settled(task, record)
        thread = task.request._left_behind
        if thread is None:
            self.admission.leave(task)
        else:
            thread.when_over(partial(self.admission.leave, task))
        self.registry.audience.tell("request_finished", record.info, record.outcome, record)
        self._ending.end_oldest_linger()

    def on_close(self, task: RequestTask) -> None:
        """The request's connection is closed."""
        self.registry.closed(task)

    # Draining --------------------------------------------------------------

    def shutdown(self, seconds: float) -> None:
        """Begin the drain, from whatever task or thread."""
        self._at_home(self.begin_drain, seconds)

    def _at_home(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in Trio's thread: now, if that is here."""
        try:
            at_home = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:  # a thread without Trio
            at_home = False
        if at_home:
            function(*arguments)
        else:
            # When its trio.run has ended, there is nothing left to end.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function, *arguments)

    @enable_ki_protection
    def begin_drain(self, seconds: float) -> None:
        """Stop accepting, take in what the kernel has, end the idle waits: in one step.

        Called again, the earlier deadline holds. Called while nothing serves,
        it is done as soon as something does.
        """
        self._ending.because("shutdown() was called")
        if not self._takes_requests:
            earlier = math.inf if self._drain_when_serving is None else self._drain_when_serving
            self._drain_when_serving = min(seconds, earlier)
            if self.starting:
                self._bound_start(seconds)
            return
        # get_request is called, by way of whoever has begun the drain: another request, say.
        self._context.copy().run(self._ending.begin, seconds)

    # Ending at once ----------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End what is at work; it returns when everything is cleaned up."""
        self._ending.reason = reason
        self._everything.cancel(reason=reason)

    def cancel_request(self, request_id: int, reason: str) -> bool:
        """Cancel one request; false if there is none of that id, or its outcome is decided."""
        if request_id not in self.registry.active:
            return False
        self._at_home(self._cancel_active, request_id, reason)
        return True

    def _cancel_active(self, request_id: int, reason: str) -> None:
        task = self.registry.active.get(request_id)
        if task is not None:
            task.cancel(reason)

    def close(self) -> ShutdownReport:
        """Close what is left of the run, without waiting; twice is once."""
        self._close_listeners()
        self.admission.reserve.give_back()
        self.drain.wakeup.close()
        if self.report is None:
            self.report = self.registry.report(self._ending.reason or "the server was closed")
            if self._is_announced:
                self.registry.audience.tell("server_closed", self.report)
        return self.report

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()

    # Looking ---------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The counts at this instant."""
        return self.registry.statistics(waiting=len(self.admission.waiting))

    def snapshot(self) -> ServerSnapshot:
        """The run at this instant; a handler in a thread may ask, too."""
        now = self._clock.current_time()
        state = "draining" if self.drain.began else "serving" if self.serving else "bound"
        return ServerSnapshot(
            name=type(self._server).__name__,
            state=state,
            uptime=now - self._bound_at,
            listeners=tuple(
                ListenerSnapshot(address=listener.address, accepting=state == "serving")
                for listener in self.listeners
            ),
            requests=tuple(task.snapshot(now) for task in self.registry.here()),
            statistics=self.statistics(),
        )

    def owns_current_task(self) -> bool:
        """Whether the calling task is, or runs under, a request or ``service_actions``."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is self._requests:
                return True
            task = task.parent_nursery.parent_task
        return False


async def _raise(error: BaseException) -> None:
    raise error


def _why(error: BaseException) -> str:
    if isinstance(error, trio.Cancelled):
        return error.reason or "serve_forever was cancelled"
    return f"the server failed: {describe_error(error)}"
