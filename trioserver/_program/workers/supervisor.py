"""The workers of a program: as many as are wanted, each at a seat, replaced when they end.

The rules this file keeps:

* A worker that ends is replaced, after pauses that grow if others end soon, too; see `Setbacks`.
* Every worker is a task, which ends when its process has been reaped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import ClassVar

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from ..._facts.chains import lone_errors
from ..._facts.observers import error_log, log_safely
from ..._modes.processes.protocol.errors import WorkerCrashed, WorkerStartError
from ..._modes.processes.server.ending import LONGEST_KILL, SOON, why_never_ready
from ..._modes.processes.server.setbacks import Setbacks
from ..._modes.processes.server.spawn import Spawned
from ..._servers.base import BaseServer
from ..notices import program_log
from .branch import Branch
from .hiring import Hiring
from .orders import ShowTasks
from .rolling_restart import RollingRestart
from .setup import Setup
from .starts import Starts
from .worker import Stage, Told, Worker

LONGEST_PAUSE = 1.0
"""Seconds before the next start, after however many that have failed: each that is missing is a
processor that does nothing."""

STABLE = 1.0
"""Seconds after which a worker that ends does not count as one that fails."""


@attrs.define(eq=False)
class Supervisor:
    """The workers of a program.

    Args:
      given: what workers make the servers of; see `setup.packed`.
      wanted: how many workers there are to be.
      grace: seconds that one has to end whose place another takes; None: each server's own.
      start_timeout: seconds that one has to get ready.
      total_requests: how many requests a server may have at once, in all workers together.

    Attributes:
      branches: the servers.
      workers: those there are, also those that start or drain, by process id.
      generation: how many restarts there were, and one.
    """

    LONGEST_END: ClassVar[float] = SOON + LONGEST_KILL
    """Seconds that a worker may take to end, beyond its grace and the time for cleaning up."""

    _servers: Sequence[BaseServer]
    _given: bytes
    wanted: int
    _grace: float | None
    _start_timeout: float
    _total_requests: int | None
    branches: Sequence[Branch] = attrs.field(init=False)
    workers: dict[int, Worker] = attrs.field(factory=dict)
    generation: int = 1
    _seats: list[Worker | None] = attrs.field(init=False)
    _hiring: Hiring = attrs.field(init=False)
    _setbacks: Setbacks = attrs.field(init=False)
    _starts: Starts = attrs.field(init=False)
    _first_starts: int = 0  # that have not ended
    _is_up: trio.Event = attrs.field(factory=trio.Event)
    _is_over: bool = False
    _restarts: RollingRestart = attrs.field(init=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.branches = [Branch(number, it, self) for number, it in enumerate(self._servers)]
        self._seats = [None] * self.wanted
        self._hiring = Hiring(self._given, self.branches, self.wanted, self._total_requests)
        self._setbacks = Setbacks(self._start_timeout, LONGEST_PAUSE)
        self._restarts = RollingRestart(self)
        self._starts = Starts(self._note_change)

    # The whole ------------------------------------------------------------------------

    async def serve(self, started: Callable[[], object]) -> None:
        """Have workers serve what the servers have bound, until all have drained.

        Args:
          started: called when all workers let clients in, or as many as could be started.

        Raises:
          WorkerStartError: there is none, and several in a row could not get ready.

        Cancelled, it has all requests cancelled, and returns when nothing is left.
        """
        with self._hiring.open(), lone_errors():
            async with trio.open_nursery() as self._nursery:
                self._first_starts = self.wanted
                for seat in range(self.wanted):
                    self._nursery.start_soon(partial(self._fill, seat, is_first=True))
                self._nursery.start_soon(self._say_when_up, started)
                try:
                    await self._until(lambda: self.is_closing and not self._is_at_work)
                    self._is_up.set()
                finally:
                    self._is_over = True
                    self._starts.cancel("the program ends")
                    for branch in self.branches:
                        branch.over.set()

    async def _say_when_up(self, started: Callable[[], object]) -> None:
        await self._is_up.wait()
        started()

    @property
    def is_serving(self) -> bool:
        """Whether one of them lets clients in."""
        return any(worker.stage is Stage.SERVING for worker in self.workers.values())

    @property
    def is_closing(self) -> bool:
        """Whether nobody is to be started any more."""
        return self._is_over or all(branch.drains for branch in self.branches)

    @property
    def _is_at_work(self) -> bool:
        return bool(self.workers or self._starts)

    def branch_drains(self) -> None:
        """Start nobody any more, if nothing is left to serve."""
        if self.is_closing:
            self._starts.cancel("the program drains")
        self._note_change()

    async def restart(self) -> str:
        """Replace all workers, one by one, once they are there; why not, or ``""``."""
        await self._is_up.wait()
        return await self._restarts.order()

    def show_tasks(self) -> None:
        """Have each worker log its tasks."""
        for worker in self.workers.values():
            worker.order(ShowTasks())

    # Seats --------------------------------------------------------------------------------

    async def _fill(self, seat: int, *, is_first: bool = False) -> None:
        """Have somebody at a seat, after pauses if others could not be started."""
        with self.a_start():
            while self._seats[seat] is None and not self.is_closing:
                await self._setbacks.pause()
                await self._until(lambda: bool(self._hiring.free))
                since = self._setbacks.number
                try:
                    worker = await self.hire(seat)
                except WorkerStartError as error:
                    if self._setbacks.start_failed(error, since, anybody=self.is_serving):
                        raise
                else:
                    self._setbacks.start_succeeded()
                    self.sit(seat, worker)
                finally:
                    self._first_starts -= is_first
                    is_first = False
                    self._note_change()
        if all(self._seats):
            self._setbacks.all_are_there()

    def at(self, seat: int) -> Worker | None:
        """Who sits there."""
        return self._seats[seat]

    def sit(self, seat: int, worker: Worker) -> None:
        """Have a worker at a seat; whoever of two there is older leaves."""
        there = self._seats[seat]
        if there is not None and there.generation > worker.generation:
            there, worker = worker, there
        self._seats[seat] = worker
        if there is not None:
            for branch in self.branches:
                branch.replace(there, self._grace)
        if worker.lacks_a_server:  # since just before it was seated
            self._leave_seat(worker)

    # One of them --------------------------------------------------------------------------

    async def hire(self, seat: int) -> Worker:
        """Start a worker, and wait until it lets clients in.

        Raises:
          WorkerStartError: it has not got so far, or has ended in that very moment.
        """
        worker: Worker = await self._nursery.start(self._employ, seat)
        if worker.pid not in self.workers:
            raise WorkerStartError(f"{worker} has ended as soon as it was ready")
        return worker

    @enable_ki_protection
    async def _employ(self, seat: int, *, task_status: trio.TaskStatus[Worker]) -> None:
        """The whole life of one worker; started when it lets clients in.

        Raises:
          WorkerStartError: it could not get ready.
        """
        place, worker, status = self._hiring.free.pop(), None, 0
        try:
            setup = self._hiring.setup(seat, place)
            with trio.move_on_after(self._start_timeout) as patience:

                def on_change(worker: Worker) -> None:
                    if worker.lacks_a_server:
                        self._leave_seat(worker)
                    elif patience.deadline != math.inf and worker.stage is not Stage.STARTING:
                        patience.deadline = math.inf
                        task_status.started(worker)
                    self._note_change()

                spawned = await self._hiring.start(setup, lambda: patience.cancel_called)
                worker = self._new_worker(spawned, setup)
                self.workers[worker.pid] = worker
                for branch, part in zip(self.branches, setup.parts, strict=True):
                    branch.catch_up(worker, part)
                status = await worker.live(on_change)
        finally:
            self._hiring.leave(place)
            if worker is not None:
                self._let_go(worker)
            self._note_change()
        if worker is None or worker.stage is Stage.STARTING:
            why = f"it was not ready after {self._start_timeout:g} s (start_timeout)"
            cause = None
            if worker is not None and not patience.cancelled_caught:
                why = why_never_ready(worker.why_not, status)
                cause = None if worker.why_not else WorkerCrashed(worker.pid, status)
            raise WorkerStartError(f"a worker could not get ready: {why}") from cause

    def _new_worker(self, spawned: Spawned, setup: Setup) -> Worker:
        told = {number: Told() for number, part in enumerate(setup.parts) if part.sockets}
        cleanup = max(branch.cleanup for branch in self.branches)
        return Worker(spawned, self.generation, cleanup, told)

    def _let_go(self, worker: Worker) -> None:
        del self.workers[worker.pid]
        for branch in self.branches:
            branch.has_ended_in(worker)
        self._leave_seat(worker)

    def _leave_seat(self, worker: Worker) -> None:
        """A worker, or a server in it, has ended by itself: another one comes in its place."""
        if worker not in self._seats or self.is_closing:
            return
        if not worker.why_not and (worker.lacks_a_server or worker.has_ended_in_order):
            message = "%s is replaced: a server was shut down there"
            log_safely(program_log, logging.INFO, message, worker)
        else:
            why = worker.why_not or "it has ended by itself"
            log_safely(error_log, logging.ERROR, "%s is replaced: %s", worker, why)
        for branch in self.branches:
            branch.replace(worker, self._grace)  # what it serves yet
        seat = self._seats.index(worker)
        self._seats[seat] = None
        if trio.current_time() - worker.since < STABLE:
            self._setbacks.one_more(self._setbacks.number)
        else:
            self._setbacks.over(self._setbacks.number)
        self._nursery.start_soon(self._fill, seat)

    # Waiting ------------------------------------------------------------------------------

    def a_start(self) -> AbstractContextManager[None]:
        """A block that is cancelled when nobody is to be started any more."""
        return self._starts.going_on()

    def _note_change(self) -> None:
        if self._first_starts <= 0 and self.is_serving:
            self._is_up.set()
        for branch in self.branches:
            branch.note_change()
        self._changed.unpark_all()

    async def until_there_is_a_place(self) -> None:
        """Wait until one more can be started, beside those that have to be replaced."""
        await self._until(lambda: not self._hiring.is_short_of_places)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.park()
