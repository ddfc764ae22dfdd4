"""One run of a server: its nurseries, its drain, its end.

All that changes while a server serves is here, in the run's `Door` (who is let
in) and in its `Ledger` (who is here). A run is made when the server is bound and
dropped when it is closed::

    serve
      requests nursery              owns every request, until the very end
        accept_until_drained
          listeners nursery           owns the accept loops, one a listener,
            accept_loop                 and service_actions
        drain_out                   when the accept loops have ended
          grace                       requests end by themselves
          cut                         the rest is cancelled, with a reason, and
                                        who still runs after cleanup is named

The rules that this file keeps:

* A slot is free before a client is accepted, and from the accept until the
  request's task owns the connection there is no checkpoint and no Ctrl-C.
* `begin_drain` is one step: when it returns, no listener accepts, what the
  kernel had accepted is in the waiting room, and every idle wait is ended.
* Whatever ends a run, a request is cancelled with a reason, has one outcome,
  and is closed before `serve` returns.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from ._accept import ReserveDescriptor, accept_loop, accept_now
from ._door import Door, DoorHooks
from ._errors import lone_errors
from ._events import (
    ListenerSnapshot,
    RequestRecord,
    ServerSnapshot,
    ShutdownReport,
    Statistics,
)
from ._ledger import Ledger
from ._observers import Audience, error_log, log_safely
from ._receiving import NEW_CONNECTION_GRACE, Drain
from ._request import Request, call_hook
from ._transport import Listener


class RunHooks(DoorHooks, Protocol):
    """What a run needs of its server."""

    observers: Sequence[object]

    async def service_actions(self) -> None: ...


@attrs.define(eq=False)
class Run:
    """What changes while a server serves.

    Attributes:
      listeners: where clients come from; closed ones stay in the list.
      drain: whether the drain has begun.
      door: who is let in.
      ledger: who is here.
      bound: whether it can be served.
      serving: whether `serve` or `handle_one` is at work.
      closing: whether the hook ``server_close`` is being called for it.
      closed_by_hand: whether somebody called ``server_close`` himself.
      stopped: set when `serve` or `handle_one` has returned.
      ended: set when the server is done with the run, and `report` is there.
      report: how it ended.
    """

    _server: RunHooks
    _overrides: Callable[[str], bool]
    listeners: list[Listener] = attrs.field(factory=list)
    drain: Drain = attrs.field(factory=Drain)
    door: Door = attrs.field(init=False)
    ledger: Ledger = attrs.field(init=False)
    bound: bool = False
    serving: bool = False
    closing: bool = False
    closed_by_hand: bool = False
    stopped: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    report: ShutdownReport | None = None
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)
    _bound_at: float = attrs.field(factory=trio.current_time)
    _reserve: ReserveDescriptor = attrs.field(factory=ReserveDescriptor)
    _requests: trio.Nursery | None = None
    _acceptors: trio.Nursery | None = None
    _everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _grace: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _ends_at_once: float | None = None
    _reason: str = ""

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(Audience.of(self._server.observers))
        verifies = self._overrides("verify_request")
        self.door = Door(self._server, self, self.ledger, self.drain, verifies, self._spawn)

    def is_bound(self) -> None:
        """Binding has succeeded: clients queue."""
        self.bound = True
        addresses = tuple(listener.address for listener in self.listeners)
        self.ledger.audience.tell("server_listening", addresses)

    # Serving ---------------------------------------------------------------

    @enable_ki_protection
    async def serve(self, poll_interval: float, started: Callable[[], object]) -> ShutdownReport:
        """Serve until drained; raise what ended it otherwise.

        Args:
          poll_interval: seconds between two calls of ``service_actions``.
          started: called once clients are let in.
        """
        self.serving, self.stopped = True, trio.Event()
        try:
            with self._everything, lone_errors():
                async with trio.open_nursery() as self._requests:
                    try:
                        await self._accept_until_drained(poll_interval, started)
                        await self._drain_out()
                    except BaseException as error:
                        await self._cut(_in_words(error))
                        raise
        finally:
            self.serving, self._requests = False, None
            report = self.close()
            self.stopped.set()
        return report

    @enable_ki_protection
    async def handle_one(self, patience: float) -> bool:
        """Serve one request, until it is closed; false if none came in ``patience`` seconds."""
        self.serving, self.stopped = True, trio.Event()
        self.door.accepts_left = 1
        try:
            with lone_errors():
                async with trio.open_nursery() as self._requests:
                    with trio.move_on_after(patience):
                        await self._accept_until_drained(math.inf, lambda: None)
                    if self.door.is_open():
                        # The last look: who came in the very tick, or was there all the time.
                        any(accept_now(listener, self.door) for listener in self.listeners)
                    await self.ledger.until_all_closed_or(self.drain)
                    if self.drain.began:
                        await self._drain_out()
        finally:
            self.serving, self._requests = False, None
            self.stopped.set()
        return not self.door.accepts_left

    async def _accept_until_drained(
        self, poll_interval: float, started: Callable[[], object]
    ) -> None:
        self._reserve.take()
        with lone_errors():
            async with trio.open_nursery() as self._acceptors:
                listeners, self._accepting = self._acceptors, self._acceptors.cancel_scope
                for listener in self.listeners:
                    listeners.start_soon(accept_loop, listener, self.door, self._reserve)
                if self._overrides("service_actions") and poll_interval < math.inf:
                    listeners.start_soon(self._act_every, poll_interval)
                started()
                if self._ends_at_once is not None:
                    self.begin_drain(self._ends_at_once)

    async def _act_every(self, seconds: float) -> None:
        while True:
            await call_hook(self._server.service_actions)
            await trio.sleep(seconds)

    # A request's life ------------------------------------------------------

    def _spawn(self, request: Request) -> None:
        """Start a request's task. Nothing waits in here, and nothing may fail."""
        requests = self._requests
        if requests is None:
            raise RuntimeError("a client was let in while nothing serves")
        self.ledger.opened(request)
        requests.start_soon(request.serve, name=f"{type(self._server).__name__} {request.info}")
        if not self.door.is_open():
            self._accepting.cancel(reason="no more requests are taken")

    def started(self, request: Request) -> None:
        """The request's task runs."""
        self.ledger.audience.tell("request_started", request.info)

    def settled(self, request: Request, record: RequestRecord) -> None:
        """The request's outcome is decided: slot back, one record, and only then it lingers."""
        if not self.drain.began and _is_cut_from_outside(request):
            self._begin_cut()
        self.ledger.settled(request, record)
        self.door.leave(request)
        if len(self.ledger.lingering) > self._server.limits.requests:
            self._end_oldest_linger()

    def closed(self, request: Request) -> None:
        """The request's connection is closed."""
        self.ledger.closed(request)

    def _end_oldest_linger(self) -> None:
        for request in self.ledger.lingering.values():
            if not request.connection.cancel_scope.cancel_called:
                request.cancel("more connections linger than there are slots (requests)")
                return

    # Draining --------------------------------------------------------------

    def shutdown(self, seconds: float) -> None:
        """Begin the drain, from whatever task or thread."""
        try:
            at_home = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            at_home = False
        if at_home:
            self.begin_drain(seconds)
        else:
            # When its trio.run has ended, there is nothing left to drain.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.begin_drain, seconds)

    @enable_ki_protection
    def begin_drain(self, seconds: float) -> None:
        """Stop accepting, take in what the kernel has, end the idle waits: in one step.

        Called again, the earlier deadline holds.
        """
        self._reason = self._reason or "shutdown() was called"
        if self._requests is None:
            earlier = math.inf if self._ends_at_once is None else self._ends_at_once
            self._ends_at_once = min(seconds, earlier)
            return
        self._grace.deadline = min(self._grace.deadline, trio.current_time() + seconds)
        if self.drain.began:
            self.ledger.grace_ends(self._grace.deadline)
            return
        self.drain.began = True
        self._accepting.cancel(reason="the server drains")
        for listener in self.listeners:
            if not listener.shared:
                self.door.take_in_queue(listener)
            listener.close()
        self._end_idle_waits()
        self.ledger.drain_began(seconds)
        self.door.start_waiting()

    def _end_idle_waits(self) -> None:
        for request in self.ledger.active.values():
            request.connection._receiver.end_idle_waits()

    async def _drain_out(self) -> None:
        """Wait for the requests as long as the grace lasts, then cut."""
        with self._grace:
            async with trio.open_nursery() as watch:
                watch.start_soon(self._end_waits_of_new)
                await self.ledger.until_all_closed()
                watch.cancel_scope.cancel(reason="all requests have ended")
        if self._grace.cancelled_caught:
            await self._cut("the grace is over")

    async def _end_waits_of_new(self) -> None:
        """End the idle waits of connections that were too new when the drain began."""
        until = trio.current_time() + NEW_CONNECTION_GRACE
        while (now := trio.current_time()) < until:
            active = self.ledger.active.values()
            times = (request.connection._receiver.new_until for request in active)
            await trio.sleep_until(min((time for time in times if time > now), default=until))
            self._end_idle_waits()

    # Cutting ---------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End the run at once; `serve` returns when everything is cleaned up."""
        self._reason = reason
        self._everything.cancel(reason=reason)

    def cancel_request(self, request_id: int, reason: str) -> bool:
        """Cancel one request; false if there is none of that id, or its outcome is decided."""
        request = self.ledger.active.get(request_id)
        if request is None:
            return False
        request.cancel(reason)
        return True

    def _begin_cut(self) -> None:
        """From now on, a request that ends is part of the report."""
        if not self.drain.began:
            self.drain.began = True
            self.ledger.drain_began(0.0)

    async def _cut(self, reason: str) -> None:
        """Cancel what is left, wait for it within bounds, and name what does not end."""
        self._reason = self._reason or reason
        self._begin_cut()
        self._accepting.cancel(reason=reason)
        for listener in self.listeners:
            listener.close()
        self.door.empty_waiting_room()
        for request in self.ledger.here():
            request.cancel(reason)
        seconds = self._server.timeouts.cleanup
        with trio.move_on_after(seconds, shield=True):
            await self.ledger.until_all_closed()
        for request in self.ledger.here():
            message = "%s has not ended %g s after it was cancelled (cleanup); waiting for it:\n%s"
            stack = _stack_of(request.task)
            log_safely(error_log, logging.ERROR, message, request.info, seconds, stack)

    def close(self) -> ShutdownReport:
        """Close what is left of the run, without waiting; twice is once."""
        for listener in self.listeners:
            listener.close()
        self._reserve.give_back()
        if self.report is None:
            self.report = self.ledger.report(self._reason or "the server was closed")
            if self.bound:
                self.ledger.audience.tell("server_closed", self.report)
        return self.report

    # Looking ---------------------------------------------------------------

    def statistics(self) -> Statistics:
        """The counts at this instant."""
        return self.ledger.statistics(waiting=len(self.door.waiting))

    def snapshot(self) -> ServerSnapshot:
        """The run at this instant."""
        state = "draining" if self.drain.began else "serving" if self.serving else "bound"
        return ServerSnapshot(
            name=type(self._server).__name__,
            state=state,
            uptime=trio.current_time() - self._bound_at,
            listeners=tuple(
                ListenerSnapshot(address=listener.address, accepting=state == "serving")
                for listener in self.listeners
            ),
            requests=tuple(request.snapshot() for request in self.ledger.here()),
            statistics=self.statistics(),
        )

    def owns_current_task(self) -> bool:
        """Whether the calling task is, or runs under, one of this run's own."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery in {self._requests, self._acceptors}:
                return True
            task = task.parent_nursery.parent_task
        return False


def _is_cut_from_outside(request: Request) -> bool:
    """Whether the request's task, which is calling, is cancelled by more than its own scope."""
    own = request.connection.cancel_scope
    return trio.current_effective_deadline() == -math.inf and not own.cancel_called


def _in_words(error: BaseException) -> str:
    if isinstance(error, trio.Cancelled):
        return error.reason or "serve_forever was cancelled"
    return f"the server failed: {type(error).__name__}"


def _stack_of(task: trio.lowlevel.Task | None) -> str:
    if task is None:
        return "(its task has not started)"
    return "".join(traceback.StackSummary.extract(task.iter_await_frames()).format())
