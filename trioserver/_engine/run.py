"""One run of a server: what changes while it is bound, from bind to close.

It has an `Admission` (which clients are let in), a `RequestNursery` (the tasks of
requests), a `RequestRegistry` (which requests are open) and a `Shutdown` (how it ends). A
run is made when the server is bound and dropped when it is closed. `phase` says what it is
doing meanwhile, and the file `serving` has the functions that serve it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._facts.events import (
    ShutdownReport,
    Statistics,
)
from .._facts.observers import Audience, LoggingObserver
from .._facts.snapshots import (
    ListenerSnapshot,
    ServerSnapshot,
)
from .._requests.datagram import ReplyFunction
from .._requests.drain import Drain
from .._sockets.credentials import Credentials
from .acceptor import Acceptor
from .admission import Admission
from .answering import Answerer
from .deputy import Deputy
from .home_thread import HomeThread
from .hooks import REQUEST_HOOKS, ServerHooks
from .listeners import Listeners
from .phase import CurrentPhase, Phase
from .registry import RequestRegistry
from .request_nursery import RequestNursery
from .shutdown import Shutdown
from .stop_request import StopRequest
from .work import Work


@attrs.define(eq=False)
class Run:
    """What changes while a server serves.

    Attributes:
      server: the server whose run it is.
      overrides: tells whether a hook is a program's own.
      phase: what it is doing now.
      listeners: where clients come from.
      drain: whether the drain has begun.
      requests: the nursery that owns the requests, while it serves.
      admission: lets clients in.
      registry: knows the requests that are open.
      work: the binding, `serve` or `handle_one`, while one of them works on it.
      closed_by: what closes it: ``"hook"`` while `server_close` is called as the hook,
        ``"program"`` if the program has called it.
      ended: set when the server is done with the run, and `report` is
        there; ``wait_closed`` waits for it.
      report: how it ended.
      resources: what handlers need around them while it serves; of worker processes their pool.
      ending: how it ends.
      everything: the scope around what is at work.
      stop: a shutdown that came before anything served.
      credentials: for the TLS of new connections; None without TLS.
      home: the thread in which it is served.
      deputy: who serves in its stead; None: it does so itself.
      reply_function: the plain function that answers datagrams; looked for once, as telling
        what a function is takes longer than most of them do.
    """

    server: ServerHooks
    overrides: Callable[[str], bool]
    phase: CurrentPhase = attrs.field(factory=CurrentPhase)
    listeners: Listeners = attrs.field(factory=Listeners)
    drain: Drain = attrs.field(factory=Drain)
    requests: RequestNursery = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)
    registry: RequestRegistry = attrs.field(init=False)
    work: Work = attrs.field(factory=Work)
    closed_by: Literal["hook", "program"] | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    report: ShutdownReport | None = None
    resources: object = None
    ending: Shutdown = attrs.field(init=False)
    everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    stop: StopRequest | None = None
    credentials: Credentials | None = None
    home: HomeThread = attrs.field(factory=HomeThread)
    deputy: Deputy | None = None
    reply_function: ReplyFunction | None = attrs.field(init=False)
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _bound_at: float = attrs.field(factory=trio.current_time)
    _is_announced: bool = False

    def __attrs_post_init__(self) -> None:
        self.reply_function = self.server._reply_function()
        self.requests = RequestNursery(type(self.server).__name__)
        server = self.server
        log = LoggingObserver(server.access_level, server._is_in_worker)
        audience = Audience.of(server.observers, log, self.requests.on_exit)
        self.registry = RequestRegistry(audience, self.listeners)
        acceptor = Acceptor(self.server, self.requests, self.registry, self.drain, self.overrides)
        self.admission = Admission(
            self.server,
            events=self.requests,
            registry=self.registry,
            drain=self.drain,
            acceptor=acceptor,
            answerer=self._answerer(acceptor),
            spawn=self.requests.spawn,
        )
        self.ending = Shutdown(
            self.server, self.listeners, self.admission, self.registry, self.drain, self.phase
        )
        self.requests.connect(self.registry, self.admission, self.ending)

    def _answerer(self, acceptor: Acceptor) -> Answerer | None:
        """What answers by a plain function, if there is one, and nothing else has a say."""
        server, hooks = self.server, (*REQUEST_HOOKS, "get_request")
        function = self.reply_function
        is_counted = server.limits.per_client is not None
        if function is None or is_counted or any(map(self.overrides, hooks)):
            return None
        call = self.requests.call_in_context
        return Answerer(function, server, self.registry, acceptor, call)

    @property
    def serving(self) -> bool:
        """Whether `serve` or `handle_one` is at work."""
        return self.work.is_going_on and self.phase.now is not Phase.BINDING

    @contextmanager
    def binding(self, stop: StopRequest | None) -> Iterator[None]:
        """Bind in the block, which is cut when the grace of an early shutdown is over.

        There are no listeners then, and `serve` ends at once.

        Args:
          stop: a shutdown that was asked for before; or None.
        """
        is_bound = False
        with self.work.going_on():
            with self.everything:
                if stop is not None:
                    self.bound_the_start(stop)
                yield
                is_bound = True
            if not is_bound:
                self.listeners.close()
                self.listeners.own([])
            self.phase.enter(Phase.BOUND)
            if is_bound:
                self._is_announced = True
                self.registry.audience.tell("server_listening", self.listeners.addresses)

    # Draining --------------------------------------------------------------

    def shutdown(self, seconds: float) -> None:
        """Begin the drain, from any task or thread."""
        self.home.call(self.begin_drain, seconds)

    @enable_ki_protection
    def begin_drain(self, seconds: float) -> None:
        """Stop accepting, take in what the kernel has, end the idle waits: in one step.

        When it is called again, the earlier deadline holds. When it is called while
        nothing serves, the drain begins as soon as something does.
        """
        stop = StopRequest(seconds)
        self.ending.because(stop.reason)
        if self.deputy is not None:
            self.ending.begin_report(seconds)
            self.deputy.drain(seconds)
        elif self.requests.is_open:
            # It calls get_request, a hook.
            self.requests.call_in_context(self.ending.begin, seconds)
        elif self.phase.now in {Phase.BINDING, Phase.ACQUIRING}:
            self.bound_the_start(stop)
        else:
            self.stop = stop.and_earlier(self.stop)

    def bound_the_start(self, stop: StopRequest) -> None:
        """Cancel the start when the grace of a shutdown is over before it serves."""
        self.stop = stop.counted_from(trio.current_time()).and_earlier(self.stop)
        self.everything.deadline = self.stop.ends_at

    @enable_ki_protection
    def hand_over(self, seconds: float) -> tuple[socket.socket, ...]:
        """Begin the drain, and return the listening sockets, which stay open with their queues.

        Raises:
          RuntimeError: it does not listen any more, or on something else than sockets.
          OSError: there is no descriptor left; nothing has changed.
        """
        if self.drain.began or self.listeners.are_given_away:
            name = type(self.server).__name__
            raise RuntimeError(f"this {name} has stopped accepting: nothing is left to hand over")
        sockets = self.listeners.duplicates()
        self.give_away(seconds)
        return sockets

    @enable_ki_protection
    def give_away(self, seconds: float) -> None:
        """Begin the drain, and leave the queues to somebody else, who has the sockets, too."""
        self.listeners.are_given_away = True
        self.begin_drain(seconds)
        self.listeners.leave()  # after the loops that waited for them were cancelled

    # Suspending ----------------------------------------------------------------

    def suspend(self) -> None:
        """Accept nobody until `resume`. Who is there goes on, and who comes waits in the queue."""
        self.admission.slots.suspend()
        if self.deputy is not None:
            self.deputy.suspend()

    def resume(self) -> None:
        """Accept again."""
        self.admission.slots.resume()
        if self.deputy is not None:
            self.deputy.resume()

    @property
    def state(self) -> str:
        """What it is doing, in the words of `ServerSnapshot`."""
        if self.drain.began:
            return "draining"
        serves = self.phase.now is Phase.SERVING if self.deputy is None else self.deputy.is_serving
        if not serves:
            return "bound"
        return "suspended" if self.admission.slots.suspended else "serving"

    # Ending at once ----------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """Cancel what works on the run, which returns when everything is cleaned up.

        Of all other reasons the first one holds (see `Shutdown.because`). This one replaces
        it: whatever had begun, the cancellation is why the run ends.
        """
        self.ending.reason = reason
        self.everything.cancel(reason=reason)
        if self.deputy is not None:
            self.deputy.drain(0.0)

    def cancel_request(self, request_id: int, reason: str) -> bool:
        """Cancel one request; false if there is none of that id, or its outcome is decided."""
        if request_id not in self.registry.active:
            return False
        self.home.call(self.requests.cancel, request_id, reason)
        return True

    def close(self) -> ShutdownReport:
        """Close what is left of the run, without waiting; twice is once."""
        self.phase.enter(Phase.CLOSED)
        self.listeners.close()
        self.admission.reserve.give_back()
        self.drain.wakeup.close()
        if self.report is None:
            reason = self.ending.reason or "the server was closed"
            self.report = (self.deputy or self.registry).report(reason)
            if self._is_announced:
                self.registry.audience.tell("server_closed", self.report)
        return self.report

    # Looking ---------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The counts at this instant."""
        if self.deputy is not None:
            return self.deputy.statistics()
        return self.registry.statistics(waiting=len(self.admission.waiting))

    def snapshot(self) -> ServerSnapshot:
        """The run at this instant. A handler in a thread may call this, too."""
        now = self._clock.current_time()
        state = self.state
        return ServerSnapshot(
            name=type(self.server).__name__,
            state=state,
            uptime=now - self._bound_at,
            listeners=tuple(
                ListenerSnapshot(address=address, accepting=state == "serving", queued=queued)
                for address, queued in zip(
                    self.listeners.addresses, self.listeners.queued(), strict=True
                )
            ),
            requests=tuple([task.snapshot(now) for task in self.registry.here()]),
            statistics=self.statistics(),
            slots=self.server._most_requests(),
            free_slots=self.admission.slots.free if self.deputy is None else None,
            workers=() if self.deputy is None else self.deputy.snapshots(),
        )
