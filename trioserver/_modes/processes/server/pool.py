"""The workers of a server: as many as are needed, within bounds, and all ended at its end.

The rules this file keeps:

* A slot is free before a client is accepted, and there are as many slots as there
  may be workers: whoever is let in waits for a worker at most as long as one takes to
  start.
* A worker that ends is replaced before anybody needs it, and one that has had its
  number of requests does not go before that. When none can be started, those that
  are there go on; see `Setbacks`.
* Every worker is a task in the pool's nursery, which ends when it has been reaped.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from ...._facts.chains import lone_errors
from ...._facts.observers import error_log, log_safely
from ..protocol.errors import WorkerStartError
from .ending import SOON
from .job import Job
from .phase import Phase
from .pool_config import PoolConfig
from .pool_starter import starter_of
from .setbacks import Setbacks
from .starter import Starter
from .stopped_workers import end_stopped
from .worker_process import Worker


@attrs.define(eq=False)
class Pool:
    """The workers of one run of a server.

    Args:
      config: how many, and how.
      setup: what each of them is told, packed.
      fail: ends the server with an error.
    """

    _config: PoolConfig
    _setup: bytes
    _fail: Callable[[BaseException], object]
    _workers: dict[int, Worker] = attrs.field(factory=dict)
    _idle: list[Worker] = attrs.field(factory=list)
    _waiting: deque[_Waiter] = attrs.field(factory=deque)
    _retired: list[Worker] = attrs.field(factory=list)  # until others are there
    _starting: int = 0
    _setbacks: Setbacks = attrs.field(init=False)
    _starter: Starter = attrs.field(init=False)
    _closing: bool = False
    _nursery: trio.Nursery | None = None

    def __attrs_post_init__(self) -> None:
        self._setbacks = Setbacks(self._config.start_timeout)
        self._starter = starter_of(self._config, self._setup)

    # The whole -----------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have workers in the block, the first ones before it begins; end them after it.

        Raises:
          WorkerStartError: none of the first could get ready.
        """
        with lone_errors():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._start_first()
                    nursery.start_soon(self._shrink)
                    nursery.start_soon(end_stopped, self._workers, self._config.stopped)
                    yield
                finally:
                    self._closing = True
                    nursery.cancel_scope.cancel(reason="the server has no requests any more")

    async def _start_first(self) -> None:
        self._starting = self._config.at_least  # nobody replaces one that cannot start
        errors: list[WorkerStartError] = []

        async def start() -> None:
            try:
                await self._hire()
            except WorkerStartError as error:
                errors.append(error)

        with lone_errors():
            async with trio.open_nursery() as starts:
                for _ in range(self._config.at_least):
                    starts.start_soon(start)
        self._starting = 0
        if errors and not self._workers:
            raise errors[0]
        for error in errors:
            self._setbacks.start_failed(error, 0, anybody=True)
        self._replace()

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return sorted(self._workers)

    # For a request -------------------------------------------------------------

    async def take(self) -> Worker:
        """A worker that is ready, and nobody else's until it says `Message.DONE`."""
        if self._idle:
            return self._given(self._idle.pop())  # the last that was busy, so that others can go
        waiter = _Waiter()
        self._waiting.append(waiter)
        self._replace()
        try:
            await waiter.served.wait()
        except BaseException:
            if waiter.worker is not None:
                self._take_up(waiter.worker)  # it comes back as it went
            else:
                self._waiting.remove(waiter)
            raise
        return cast("Worker", waiter.worker)

    def _take_up(self, worker: Worker) -> None:
        """A worker is ready for a request."""
        if worker.phase in {Phase.ENDING, Phase.GONE}:
            return
        if worker.phase is Phase.LEAVING and not self._setbacks.last:
            if self._starting:
                self._retired.append(worker)
            else:
                worker.dismiss()
            return
        worker.phase = worker.phase.to(Phase.IDLE)  # a leaving one, too, if none could replace it
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.worker = self._given(worker)
            waiter.served.set()
        else:
            worker.idle_since = trio.current_time()
            self._idle.append(worker)

    def _given(self, worker: Worker) -> Worker:
        """Mark a worker as busy; if this is its last request, start its replacement."""
        is_last = worker.served + 1 >= worker.most_requests
        worker.phase = worker.phase.to(Phase.LEAVING if is_last else Phase.BUSY)
        if is_last:
            self._replace()
        return worker

    # Workers come and go ---------------------------------------------------------

    def _replace(self) -> None:
        """Start as many workers as are missing; one on its last request does not count."""
        if self._closing or self._nursery is None:
            return
        config = self._config
        busy = sum(worker.phase is Phase.BUSY for worker in self._workers.values())
        wanted = min(max(config.at_least, busy + len(self._waiting)), config.at_most)
        for _ in range(wanted - self._staying() - self._starting):
            self._starting += 1
            self._nursery.start_soon(self._hire_again)

    async def _hire_again(self) -> None:
        """Start one in the place of another, after a pause if others could not."""
        try:
            await self._setbacks.pause()
            since = self._setbacks.number
            try:
                await self._hire()
            except WorkerStartError as error:
                anybody = any(worker.was_ready for worker in self._workers.values())
                noted = not self._closing
                if noted and self._setbacks.start_failed(error, since, anybody=anybody):
                    self._fail(error)
        finally:
            self._starting -= 1
        self._let_retired_go()
        self._replace()
        if not self._starting:
            self._setbacks.all_are_there()

    def _let_retired_go(self) -> None:
        """Others have come in their place; or none could, and they go on."""
        if self._setbacks.last or not self._starting:
            retired, self._retired = self._retired, []
            for worker in retired:
                self._take_up(worker)

    async def _hire(self) -> None:
        """Start a worker, and wait until it is ready."""
        if self._nursery is not None:
            await self._nursery.start(self._employ)

    @enable_ki_protection
    async def _employ(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The whole life of one worker; started when it is ready.

        Protected from Ctrl-C, which would otherwise strike between its start and its
        end and leave it there.
        """
        since, seconds = self._setbacks.number, self._config.start_timeout
        worker: Worker | None = None
        with trio.move_on_after(seconds) as patience:

            def can_have_a_request(worker: Worker) -> None:
                if worker.served:
                    self._setbacks.over(since)
                else:
                    self._setbacks.start_succeeded()
                    patience.deadline = math.inf
                    task_status.started()
                self._take_up(worker)

            spawned = await self._starter.start(lambda: patience.cancel_called)
            worker = Worker(spawned, most_requests=self._config.most_requests())
            self._workers[worker.pid] = worker
            has_hung_up = False
            try:
                await worker.listen(can_have_a_request)
                has_hung_up = True
            finally:
                status = await self._let_go(worker, since, has_hung_up=has_hung_up)
        if worker is None:
            why = f"it was not there after {seconds:g} s (start_timeout){self._starter.suspects}"
        elif worker.was_ready:
            return
        elif patience.cancelled_caught:
            why = f"it was not ready after {seconds:g} s (start_timeout)"
        else:
            why = worker.why_never_ready(status)
        raise WorkerStartError(f"a worker process could not get ready: {why}")

    async def _let_go(self, worker: Worker, since: int, *, has_hung_up: bool) -> int:
        """A worker has hung up, or is to end: see to it that it does."""
        job, goes = worker.job, worker.phase is Phase.LEAVING
        worker.phase = worker.phase.to(Phase.ENDING)
        for workers in (self._idle, self._retired):
            if worker in workers:
                workers.remove(worker)
        seconds = self._config.patience if self._closing else SOON
        if not worker.was_ready and not has_hung_up:
            seconds = 0  # it hangs in its start, and has nothing to finish
        status = await worker.end(seconds)
        del self._workers[worker.pid]
        if has_hung_up and worker.was_ready and not worker.was_killed:
            self._note_unexpected_end(worker, job, status, since, goes=goes)
        self._replace()
        return status

    def _note_unexpected_end(
        self, worker: Worker, job: Job | None, status: int, since: int, *, goes: bool
    ) -> None:
        """A worker has ended by itself: say so, unless it was its time, or its request tells."""
        if job is None and not goes:
            message = "%s has ended by itself with exit status %s, and is replaced"
            log_safely(error_log, logging.WARNING, message, worker, status)
            if not worker.served:
                self._setbacks.one_more(since)  # so that a pause comes before the next one
        elif job is not None and not job.begun:
            message = "%s has ended with exit status %s before it had begun with %s%s"
            why = worker.why_not and f": {worker.why_not}"
            log_safely(error_log, logging.WARNING, message, worker, status, job.task.info, why)

    async def _shrink(self) -> None:
        """Let those go that have been idle for long, and are more than there have to be."""
        config = self._config
        while config.idle < math.inf:
            now = trio.current_time()
            while self._idle and self._is_spare() and self._idle[0].idle_since + config.idle <= now:
                worker = self._idle.pop(0)
                worker.phase = worker.phase.to(Phase.LEAVING)
                worker.dismiss()
            oldest = self._idle[0].idle_since if self._idle and self._is_spare() else now
            await trio.sleep_until(oldest + config.idle)

    def _is_spare(self) -> bool:
        return self._staying() > self._config.at_least

    def _staying(self) -> int:
        """How many workers will have another request than the one they have."""
        return sum(worker.phase.stays for worker in self._workers.values())


@attrs.define(eq=False)
class _Waiter:
    """A request that waits for a worker."""

    served: trio.Event = attrs.field(factory=trio.Event)
    worker: Worker | None = None
