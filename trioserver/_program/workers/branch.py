"""One server of a program as its workers serve it together: the deputy of its run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import trio

from ..._engine.run import Run
from ..._facts.address import describe
from ..._facts.events import ShutdownReport, Statistics
from ..._facts.snapshots import WorkerSnapshot
from ..._facts.sums import report_of, sum_of, without_end
from ..._servers.base import BaseServer
from ..._sockets.sharing import others_hold
from ..places import KernelListener
from .orders import Drain, Order, Queue, Reload, Resume, Suspend
from .setup import Part
from .worker import Worker


class Staff(Protocol):
    """Those who work for a branch."""

    @property
    def workers(self) -> Mapping[int, Worker]:
        """All of them, by process id."""

    @property
    def is_serving(self) -> bool:
        """Whether one of them lets clients in."""

    def branch_drains(self) -> None:
        """A branch has begun its drain."""


@attrs.define(eq=False)
class Branch:
    """One server of a program, as its workers serve it.

    Attributes:
      number: which one.
      server: the server itself, which has bound the sockets.
      is_suspended: whether it accepts nobody for now.
      drains: whether its drain has begun.
      over: set when nobody serves it any more.
    """

    number: int
    server: BaseServer
    _staff: Staff
    is_suspended: bool = False
    drains: bool = False
    over: trio.Event = attrs.field(factory=trio.Event)
    _ends_at: float = math.inf
    _queue_then: Queue = Queue.STAYS
    # Of workers that have gone:
    _reports: list[ShutdownReport] = attrs.field(factory=list)
    _counts: Statistics = attrs.field(factory=Statistics)

    @property
    def listeners(self) -> Iterable[KernelListener]:
        """What it has bound, or had."""
        run = self.server._bound_run()
        return [one for one in run.listeners if isinstance(one, KernelListener)]

    def check(self) -> None:
        """Refuse a server whose listeners cannot be passed to workers.

        Raises:
          RuntimeError: one is no socket.
        """
        for listener in self.server._bound_run().listeners:
            if not isinstance(listener, KernelListener):
                raise RuntimeError(  # noqa: TRY004  (of what was made, not of an argument)
                    f"the listener of {type(self.server).__name__} at {describe(listener.address)}"
                    " is no socket, so no worker can accept from it"
                )

    @property
    def cleanup(self) -> float:
        """Seconds that requests have to end when they are cancelled."""
        return self.server.timeouts.cleanup

    # As its deputy ------------------------------------------------------------------------

    @property
    def is_serving(self) -> bool:
        """Whether clients are let in."""
        return self._staff.is_serving

    def drain(self, seconds: float) -> None:
        """Have all workers drain it, and close the sockets here. The earliest end holds."""
        run = self.server._bound_run()
        if not self.drains:
            self.drains, self._queue_then = True, self._queue(run)
        self._ends_at = min(self._ends_at, trio.current_time() + seconds)
        if not run.listeners.are_given_away:
            run.listeners.close()  # first, so that one of the workers is the last to have them
        for worker in self._workers():
            worker.drain(self._order_to_drain(seconds))
        self._staff.branch_drains()

    def _order_to_drain(self, seconds: float) -> Drain:
        reason = self.server._bound_run().ending.reason
        return Drain(self.number, seconds, self._queue_then, reason)

    def suspend(self) -> None:
        """Accept nobody until `resume`."""
        self.is_suspended = True
        self._tell(Suspend(self.number))

    def resume(self) -> None:
        """Accept again."""
        self.is_suspended = False
        self._tell(Resume(self.number))

    def reload(self) -> None:
        """Have each worker make the server's TLS context anew."""
        self._tell(Reload(self.number))

    def statistics(self) -> Statistics:
        """The counts of all workers, those that have gone included, as they were told last."""
        now = [worker.told[self.number].statistics for worker in self._workers()]
        return sum_of([*now, self._counts, *(one.statistics for one in self._reports)])

    def snapshots(self) -> tuple[WorkerSnapshot, ...]:
        """Each worker, as it was when it last told."""
        return tuple(worker.snapshot(self.number) for worker in self._workers())

    def report(self, reason: str) -> ShutdownReport:
        """How it has ended, by those that have told so, be it that their processes go on."""
        there = [worker.told[self.number].report for worker in self._workers()]
        told = [*self._reports, *(one for one in there if one is not None)]
        return report_of(reason, told, [self._counts])

    # For its workers ------------------------------------------------------------------------

    def replace(self, worker: Worker, grace: float | None) -> None:
        """Have a worker drain it, since another one has come in its place.

        Args:
          worker: it.
          grace: seconds; None: the server's own.
        """
        run = self.server._bound_run()
        if self.number in worker.told and not run.drain.began:
            seconds = self.server.timeouts.shutdown if grace is None else grace
            reason = "another worker has come in the place of this one"
            worker.drain(Drain(self.number, seconds, Queue.STAYS, reason))

    def catch_up(self, worker: Worker, was: Part) -> None:
        """Tell a worker what has changed since it was told when it starts."""
        if self.number not in worker.told:
            return
        if self.drains:
            left = max(0.0, self._ends_at - trio.current_time())
            worker.drain(self._order_to_drain(left))
        elif self.is_suspended != was.is_suspended:
            worker.order(Suspend(self.number) if self.is_suspended else Resume(self.number))

    def note_change(self) -> None:
        """Look whether anybody serves it yet."""
        if self.drains and all(it.told[self.number].report for it in self._workers()):
            self.over.set()

    def has_ended_in(self, worker: Worker) -> None:
        """Note what a worker has told that has ended."""
        told = worker.told.get(self.number)
        if told is None:
            return
        if told.report is not None and self.drains:
            self._reports.append(told.report)
            return
        counts = without_end(told.statistics) if told.report is None else told.report.statistics
        self._counts = sum_of([self._counts, counts])

    def _queue(self, run: Run) -> Queue:
        """What becomes of who is queued, as only this process can tell."""
        if run.listeners.are_given_away:
            return Queue.STAYS
        if any(one.is_kept for one in self.listeners):
            return Queue.EVERYBODY_TAKES
        ours = self._staff.workers.keys()
        shared = any(
            one.was_given and one.fileno() != -1 and others_hold(one.socket, apart_from=ours)
            for one in self.listeners
        )
        return Queue.STAYS if shared else Queue.LAST_TAKES

    def _tell(self, order: Order) -> None:
        for worker in self._workers():
            worker.order(order)

    def _workers(self) -> Iterable[Worker]:
        return [it for it in self._staff.workers.values() if self.number in it.told]
