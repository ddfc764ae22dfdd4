"""One run of a server: its nurseries, and what happens in which.

All that changes while a server serves is here, in the run's `Admission` (who is let in),
its `RequestNursery` (the tasks of requests), its `RequestRegistry` (who is here) and its
`Shutdown` (how it ends). A run is made when the server is bound and dropped when it is
closed; `phase` says what it is about meanwhile::

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

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._facts.chains import lone_errors
from .._facts.events import (
    ListenerSnapshot,
    ServerSnapshot,
    ShutdownReport,
    Statistics,
)
from .._facts.observers import Audience
from .._facts.verdict import cancellations
from .._requests.drain import Drain
from .accept import accept_loop, accept_now
from .admission import Admission, Takes
from .hooks import ServerHooks
from .listeners import Listeners
from .phase import CurrentPhase, Phase
from .registry import RequestRegistry
from .request_nursery import RequestNursery, why_it_ended
from .request_task import call_hook
from .shutdown import Shutdown
from .stop_request import StopRequest


@attrs.define(eq=False)
class Run:
    """What changes while a server serves.

    Attributes:
      phase: what it is about now.
      listeners: where clients come from.
      drain: whether the drain has begun.
      requests: the nursery that owns the requests, while it serves.
      admission: who is let in.
      registry: who is here.
      closed_by: who closes it: ``"hook"`` while `server_close` is called as the hook,
        ``"program"`` if somebody has called it.
      ended: set when the server is done with the run, and `report` is
        there; ``wait_closed`` waits for it.
      report: how it ended.
      resources: what handlers need around them while it serves; of worker processes their pool.
    """

    _server: ServerHooks
    _overrides: Callable[[str], bool]
    phase: CurrentPhase = attrs.field(factory=CurrentPhase)
    listeners: Listeners = attrs.field(factory=Listeners)
    drain: Drain = attrs.field(factory=Drain)
    requests: RequestNursery = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)
    registry: RequestRegistry = attrs.field(init=False)
    closed_by: Literal["hook", "program"] | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    report: ShutdownReport | None = None
    resources: object = None
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _bound_at: float = attrs.field(factory=trio.current_time)
    _ending: Shutdown = attrs.field(init=False)
    _everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _work_over: trio.Event | None = None
    _stop: StopRequest | None = None
    _is_announced: bool = False

    def __attrs_post_init__(self) -> None:
        self.requests = RequestNursery(type(self._server).__name__)
        audience = Audience.of(self._server.observers, self.requests.on_exit)
        self.registry = RequestRegistry(audience, self.listeners)
        self.admission = Admission(
            self._server,
            events=self.requests,
            registry=self.registry,
            drain=self.drain,
            overrides=self._overrides,
            spawn=self.requests.spawn,
        )
        self._ending = Shutdown(
            self._server, self.listeners, self.admission, self.registry, self.drain, self.phase
        )
        self.requests.connect(self.registry, self.admission, self._ending)

    # What is at work -------------------------------------------------------

    @property
    def is_at_work(self) -> bool:
        """Whether the binding, `serve` or `handle_one` is at work, in some task."""
        return self._work_over is not None

    @property
    def serving(self) -> bool:
        """Whether `serve` or `handle_one` is at work."""
        return self.is_at_work and self.phase.now is not Phase.BINDING

    async def until_work_is_over(self) -> None:
        """Wait until what is at work has ended. No checkpoint if nothing is."""
        if self._work_over is not None:
            await self._work_over.wait()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._work_over = over = trio.Event()
        try:
            yield
        finally:
            self._work_over = None
            over.set()

    @contextmanager
    def binding(self, stop: StopRequest | None) -> Iterator[None]:
        """Bind in the block; cut when the grace of a shutdown is over that comes before its end.

        There are no listeners then, and what is to serve ends at once.

        Args:
          stop: a shutdown that was asked for before; or None.
        """
        is_bound = False
        with self._at_work():
            with self._everything:
                if stop is not None:
                    self._bound_the_start(stop)
                yield
                is_bound = True
            if not is_bound:
                self.listeners.close()
                self.listeners.own([])
            self.phase.enter(Phase.BOUND)
            if is_bound:
                self._is_announced = True
                self.registry.audience.tell("server_listening", self.listeners.addresses)

    # Serving ---------------------------------------------------------------

    @enable_ki_protection
    async def serve(self, poll_interval: float, started: Callable[[], object]) -> ShutdownReport:
        """Serve until drained; raise what ended it otherwise.

        Args:
          poll_interval: seconds between two calls of ``service_actions``.
          started: called once clients are let in.
        """
        if self._stop is not None:
            self._ending.because(self._stop.reason)
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
                self._ending.stop_accepting(why_it_ended(error))
                await self._ending.cut(why_it_ended(error))
                raise

        is_ready = False

        def ready() -> None:
            nonlocal is_ready
            is_ready = True
            started()

        self.admission.takes = Takes.ALL
        try:
            await self._with_requests(until_drained)
            if not is_ready and self._stop is not None:
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
                self.requests.close()
                await self._ending.cut(why_it_ended(error))
                raise

        self.admission.takes = Takes.ONE
        if self._stop is not None:
            self._ending.stop_accepting(self._stop.reason)
            await trio.lowlevel.checkpoint()
            return False
        await self._with_requests(until_closed)
        # Cut by server_close, it has had its turn: no handle_timeout.
        return self.admission.is_done or self._everything.cancel_called

    @enable_ki_protection
    async def _with_requests(self, body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
        """Call ``body`` inside the nursery that owns the requests, and wait for them all."""
        self._everything = trio.CancelScope()
        with self._at_work():
            self.phase.enter(Phase.ACQUIRING)
            try:
                with self._everything, lone_errors():
                    if self._stop is not None:
                        now = trio.current_time()
                        self._everything.deadline = now + self._stop.left(now)
                    one = not self.admission.takes_all
                    async with (
                        self._server._resources(for_one_request=one) as self.resources,
                        trio.open_nursery() as requests,
                    ):
                        self._everything.deadline = math.inf
                        self.phase.enter(Phase.SERVING)
                        self.requests.open(requests)
                        try:
                            await body(requests)
                        finally:
                            self.requests.close()
            finally:
                self.requests.forget()
                self.resources = None
                if not self.drain.began:
                    self.phase.enter(Phase.BOUND)

    async def _run_accept_loops(self, started: Callable[[], object]) -> None:
        """Let clients in, as long as they are admitted."""
        self.admission.reserve.take()
        with lone_errors():
            async with trio.open_nursery() as loops:
                self._ending.accepting = loops.cancel_scope
                for listener in self.listeners:
                    loops.start_soon(accept_loop, listener, self.admission)
                started()
                if self._stop is not None:
                    self.begin_drain(self._stop.left(trio.current_time()))

    async def _act_every(self, seconds: float) -> None:
        # Not beside the accept loops: one that cannot be cancelled, in a
        # thread say, must not hold up the drain.
        with self._ending.acting:
            while True:
                try:
                    await call_hook(self._server.service_actions)
                except BaseException as error:
                    if not cancellations(error):
                        self._ending.fail(why_it_ended(error), culprit=None)
                    raise
                await trio.sleep(seconds)

    # Draining --------------------------------------------------------------

    def shutdown(self, seconds: float) -> None:
        """Begin the drain, from whatever task or thread."""
        self._at_home(self.begin_drain, seconds)

    @enable_ki_protection
    def begin_drain(self, seconds: float) -> None:
        """Stop accepting, take in what the kernel has, end the idle waits: in one step.

        Called again, the earlier deadline holds. Called while nothing serves,
        it is done as soon as something does.
        """
        stop = StopRequest(seconds)
        self._ending.because(stop.reason)
        if self.requests.is_open:
            # It calls get_request.
            self.requests.call_in_context(self._ending.begin, seconds)
        elif self.phase.now in {Phase.BINDING, Phase.ACQUIRING}:
            self._bound_the_start(stop)
        else:
            self._stop = stop.and_earlier(self._stop)

    def _bound_the_start(self, stop: StopRequest) -> None:
        """A shutdown comes before it serves: what it waits for has to come within the grace."""
        self._stop = stop.counted_from(trio.current_time()).and_earlier(self._stop)
        self._everything.deadline = self._stop.ends_at

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

    # Ending at once ----------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End what is at work; it returns when everything is cleaned up.

        Unlike a drain's, this reason replaces the one that was there: it is why the run ends.
        """
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
        self.phase.enter(Phase.CLOSED)
        self.listeners.close()
        self.admission.reserve.give_back()
        self.drain.wakeup.close()
        if self.report is None:
            self.report = self.registry.report(self._ending.reason or "the server was closed")
            if self._is_announced:
                self.registry.audience.tell("server_closed", self.report)
        return self.report

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
                ListenerSnapshot(address=address, accepting=state == "serving")
                for address in self.listeners.addresses
            ),
            requests=tuple(task.snapshot(now) for task in self.registry.here()),
            statistics=self.statistics(),
        )
