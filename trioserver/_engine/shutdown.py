"""How a run ends: the drain, the grace, the cut.

There are two ways. `Shutdown.begin` is the orderly one: no more clients are let in,
open requests may finish as long as the grace lasts (`Shutdown.drain_out`), and the rest
is cut. `Shutdown.stop_accepting` with `Shutdown.cut` is the other one, after a
cancellation or a failure. Both end in the same report.

The rules that this file keeps:

* `Shutdown.begin` is one step: when it returns, no listener accepts, what the
  kernel had accepted is in the waiting room, and every idle wait is ended.
* A request that is cancelled is cancelled with a reason, and closed before the
  cut is over, however long that takes. A request that makes it last is named.
"""

from __future__ import annotations

import logging

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._facts.chains import lone_errors
from .._facts.observers import access_log, error_log, log_safely
from .._requests.drain import NEW_CONNECTION_GRACE, Drain
from .._sockets.binding import seal
from ..monitoring._tree.taking import task_tree
from .admission import Admission
from .hooks import ServerHooks
from .listeners import Listeners
from .phase import CurrentPhase, Phase
from .registry import RequestRegistry
from .request_task import RequestTask

GRACE_IS_OVER = "the grace is over"

MOST_TOLD_OF = 10
"""Requests whose tasks are logged when they are cut: what has kept those has kept the others."""


@attrs.define(eq=False)
class Shutdown:
    """The end of a run, from its first moment on.

    Attributes:
      reason: why, for the report.
      accepting: the scope that the accept loops run in.
      acting: the scope that ``service_actions`` runs in.
    """

    _server: ServerHooks
    _listeners: Listeners
    _admission: Admission
    _registry: RequestRegistry
    _drain: Drain
    _phase: CurrentPhase
    reason: str = ""
    accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    acting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _grace: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _why_cut: str = GRACE_IS_OVER

    def because(self, reason: str) -> None:
        """Note why the run ends; the first reason holds."""
        self.reason = self.reason or reason

    # The orderly end ---------------------------------------------------------

    @enable_ki_protection
    def begin(self, seconds: float) -> None:
        """Stop accepting, take in what the kernel has, end the idle waits: in one step.

        When it is called again, the earlier deadline holds.
        """
        self._grace.deadline = min(self._grace.deadline, trio.current_time() + seconds)
        if self._drain.began:
            self._registry.grace_ends(self._grace.deadline)
            return
        # First, because get_request is called below, and may come back here.
        self._phase.enter(Phase.DRAINING)
        self._drain.began = True
        # Before the listeners are closed: the loops that wait for them are
        # then cancelled, instead of finding them closed.
        self._cancel_loops("the server drains")
        if not self._listeners.are_given_away:
            for listener in self._listeners:
                if not listener.shared:  # else what is queued is for the others, too
                    seal(listener)
                    self._admission.take_in_queue(listener)
                listener.close()
        self._end_idle_waits()
        self._registry.drain_began(seconds)
        self._admission.start_waiting()

    def _end_idle_waits(self) -> None:
        for task in self._registry.active.values():
            task.request._end_idle_waits()

    async def drain_out(self) -> None:
        """Wait for the requests as long as the grace lasts, then cut."""
        with self._grace, lone_errors():
            async with trio.open_nursery() as watch:
                watch.start_soon(self._end_waits_of_new)
                await self._registry.until_all_closed()
                watch.cancel_scope.cancel(reason="all requests have ended")
        if self._grace.cancelled_caught:
            self._tell_of_cut()
            await self.cut(self._why_cut)

    def _tell_of_cut(self) -> None:
        """Log where the requests wait that are about to be cancelled, since their grace is over.

        On the log of what becomes of requests: it is no error. Who has asked for an end at once
        has given them none, and knows.
        """
        seconds, cut, level = self._registry.grace, self._registry.here(), self._server.access_level
        is_news = seconds and cut and self._why_cut == GRACE_IS_OVER
        if not is_news or not access_log.isEnabledFor(level):
            return
        shown = [_whereabouts(task) for task in cut[:MOST_TOLD_OF]]
        if len(cut) > len(shown):
            shown.append(f"and {len(cut) - len(shown)} more")
        message = "the grace of %g s is over, and %d requests are cancelled, which are here:\n%s"
        log_safely(access_log, level, message, seconds, len(cut), "\n".join(shown))

    async def _end_waits_of_new(self) -> None:
        """End the idle waits of connections that were too new when the drain began."""
        until = trio.current_time() + NEW_CONNECTION_GRACE
        while (now := trio.current_time()) < until:
            active = self._registry.active.values()
            times = (task.request._new_until for task in active)
            await trio.sleep_until(min((time for time in times if time > now), default=until))
            self._end_idle_waits()

    # The end at once -----------------------------------------------------------

    def stop_accepting(self, reason: str) -> None:
        """Close the listeners, whatever clients are queued on them. The requests go on."""
        self.because(reason)
        self.begin_report()
        self._cancel_loops(reason)
        self._listeners.close()

    def fail(self, reason: str, culprit: RequestTask | None) -> None:
        """Cancel all requests but the one that raised what goes on up, with a reason.

        What it raises would cancel them, too, but with no reason except Trio's own.
        """
        self.stop_accepting(reason)
        self._why_cut = reason
        self._grace.cancel(reason=reason)
        for task in self._registry.here():
            if task is not culprit:
                task.cancel(reason)

    def begin_report(self, seconds: float = 0.0) -> None:
        """From now on, a request that ends is part of the report."""
        if not self._drain.began:
            self._phase.enter(Phase.DRAINING)
            self._drain.began = True
            self._registry.drain_began(seconds)

    async def cut(self, reason: str) -> None:
        """Cancel the requests, wait for them within bounds, and name those that do not end."""
        self._phase.enter(Phase.CUTTING)
        self._admission.empty_waiting_room()
        for task in self._registry.here():
            task.cancel(reason)
        seconds = self._server.timeouts.cleanup
        with trio.move_on_after(seconds, shield=True):
            await self._registry.until_all_closed()
        # With a cleanup of 0 seconds, they still have one turn of the loop to end.
        await trio.lowlevel.cancel_shielded_checkpoint()
        for task in self._registry.here():
            if task.request._left_behind or task.request._awaits_thread:
                continue  # told of where the thread is waited for: whose wait may end after this
            message = "%s has not ended %g s after it was cancelled (cleanup); waiting for it:\n%s"
            where = _whereabouts(task)
            log_safely(error_log, logging.ERROR, message, task.info, seconds, where)

    # Both ------------------------------------------------------------------------

    def _cancel_loops(self, reason: str) -> None:
        self.accepting.cancel(reason=reason)
        self.acting.cancel(reason=reason)

    def end_oldest_linger(self) -> None:
        """Close the connection that has lingered longest, if more linger than there are slots."""
        if len(self._registry.lingering) <= self._server.limits.requests:
            return
        *older, _newest = self._registry.lingering.values()
        for task in older:
            if not task.request.cancel_scope.cancel_called:
                task.cancel("more connections linger than there are slots (requests)")
                return


def _whereabouts(task: RequestTask) -> str:
    """The tasks of a request, and where each of them waits."""
    if task.trio_task is None:
        return f"{task.info} (its task has not started)"
    return str(task_tree(root=task.trio_task))
