"""The workers of a server: as many as are needed, within bounds, and all ended at its end.

The rules this file keeps:

* A slot is taken before a client is accepted, and there are as many slots as there
  may be workers: whoever is let in waits for a worker at most as long as one takes to
  start.
* A worker that ends is replaced before anybody needs it. One that cannot start is
  tried again after a pause that doubles; after a number of failures in a row the
  server fails, with the worker's own traceback.
* Every worker is a task in the pool's nursery, which ends when it has been reaped.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._errors import lone_errors
from .._observers import error_log, log_safely
from .crew import A_MOMENT, Worker
from .errors import WorkerStartError

if TYPE_CHECKING:  # it brings multiprocessing
    from .launch import Launch, Launched

FAILURES = 5
"""Starts in a row that may fail before the server does; several at a time are one."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before the next start after one that failed; doubles each time."""

LONGEST_KILL = 5.0
"""Seconds that the system has to end a process that was killed."""


@attrs.frozen(kw_only=True)
class PoolConfig:
    """How many workers, and how they are started; see `trioserver.ProcessMixIn`."""

    at_least: int
    at_most: int
    idle: float
    max_requests: int | None
    max_requests_jitter: int
    start_method: str
    preload: tuple[str, ...]
    start_timeout: float
    patience: float


@attrs.define(eq=False)
class Pool:
    """The workers of one run of a server.

    Args:
      config: how many, and how.
      contract: what each of them is told, packed.
      fail: ends the server with an error.
    """

    _config: PoolConfig
    _contract: bytes
    _fail: Callable[[BaseException], object]
    _workers: dict[int, Worker] = attrs.field(factory=dict)
    _idle: list[Worker] = attrs.field(factory=list)
    _waiting: deque[_Waiter] = attrs.field(factory=deque)
    _starting: int = 0
    _failures: int = 0  # in a row; those of workers that were started together are one
    _failed_starts: int = 0  # of these
    _closing: bool = False
    _nursery: trio.Nursery | None = None
    # multiprocessing is not made for two starts at once.
    _starts: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))

    # The whole -----------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have workers in the block, the first ones before it begins; end them after it.

        Raises:
          WorkerStartError: one of the first could not get ready.
        """
        with lone_errors():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._start_first()
                    nursery.start_soon(self._shrink)
                    yield
                finally:
                    self._closing = True
                    nursery.cancel_scope.cancel(reason="the server has no requests any more")

    async def _start_first(self) -> None:
        self._starting = self._config.at_least  # nobody replaces one that cannot start
        with lone_errors():
            async with trio.open_nursery() as starts:
                for _ in range(self._config.at_least):
                    starts.start_soon(self._hire)
        self._starting = 0
        self._replace()

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return sorted(self._workers)

    # For a request -------------------------------------------------------------

    async def take(self) -> Worker:
        """A worker that is ready, and nobody else's until it says `Say.DONE`."""
        if self._idle:
            return self._given(self._idle.pop())  # the last that was busy, so that others can go
        waiter = _Waiter()
        self._waiting.append(waiter)
        self._replace()
        try:
            await waiter.served.wait()
        except BaseException:
            if waiter.worker is not None:
                self._is_free(waiter.worker)  # it comes back as it went
            else:
                self._waiting.remove(waiter)
            raise
        return cast("Worker", waiter.worker)

    def _is_free(self, worker: Worker) -> None:
        """A worker is ready for a request."""
        if worker.leaves:
            worker.dismiss()
        elif self._waiting:
            waiter = self._waiting.popleft()
            waiter.worker = self._given(worker)
            waiter.served.set()
        else:
            worker.idle_since = trio.current_time()
            self._idle.append(worker)

    def _given(self, worker: Worker) -> Worker:
        """A worker, whose replacement is on its way if this is its last request."""
        if worker.served + 1 >= worker.most_requests:
            worker.leaves = True
            self._replace()
        return worker

    # Workers come and go ---------------------------------------------------------

    def _replace(self) -> None:
        """Start as many as are missing; who is on its last request is not counted."""
        if self._closing or self._nursery is None:
            return
        config = self._config
        staying = [worker for worker in self._workers.values() if not worker.leaves]
        busy = sum(worker.ready for worker in staying) - len(self._idle)
        wanted = min(max(config.at_least, busy + len(self._waiting)), config.at_most)
        for _ in range(wanted - len(staying) - self._starting):
            self._starting += 1
            self._nursery.start_soon(self._hire_again)

    async def _hire_again(self) -> None:
        """Start one in the place of another, after a pause if others could not."""
        try:
            if self._failures:
                doublings = min(self._failures - 1, 100)  # more make no float
                await trio.sleep(min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE))
            before = self._failures
            try:
                await self._hire()
            except WorkerStartError as error:
                if not self._closing:
                    self._has_failed(error, before)
        finally:
            self._starting -= 1
        self._replace()

    def _has_failed(self, error: WorkerStartError, before: int) -> None:
        counts = self._count_failure(before)
        self._failed_starts += counts
        if counts and self._failed_starts == FAILURES:
            self._fail(error)
        else:
            log_safely(error_log, logging.ERROR, "%s", error)

    def _count_failure(self, before: int) -> bool:
        """One more, unless there was one since there were ``before``; whether it counts."""
        counts = self._failures == before
        self._failures += counts
        return counts

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
        failures = self._failures
        worker = await self._launch()
        self._workers[worker.pid] = worker
        seconds = self._config.start_timeout
        with trio.move_on_after(seconds) as patience:

            def can_have_a_request(worker: Worker) -> None:
                self._failed_starts = 0
                if worker.served:
                    self._failures = 0
                else:
                    patience.deadline = math.inf
                    task_status.started()
                self._is_free(worker)

            has_hung_up = False
            try:
                await worker.listen(can_have_a_request)
                has_hung_up = True
            finally:
                status = await self._let_go(worker, failures, has_hung_up=has_hung_up)
        if not worker.ready:
            why = worker.why_not or f"it ended with exit status {status}, and did not say why"
            if status == 1 and not worker.why_not:
                why += ' (what starts a server belongs under `if __name__ == "__main__":`)'
            if patience.cancelled_caught:
                why = f"it was not ready after {seconds:g} s (start_timeout)"
            raise WorkerStartError(f"a worker process could not get ready: {why}")

    async def _launch(self) -> Worker:
        """Start the process, in a thread: to wait for a fork server takes its time."""
        # Not before: whoever has no workers does without multiprocessing.
        from .launch import Launch, launch  # noqa: PLC0415

        config = self._config
        start = Launch(partial(launch, config.start_method, config.preload, self._contract))
        turn = _Turn(self._starts)
        try:
            launched = await trio.to_thread.run_sync(
                start.run,
                limiter=cast("trio.CapacityLimiter", turn),  # its two methods are all that counts
                abandon_on_cancel=True,
            )
        except WorkerStartError:
            raise
        except (OSError, EOFError, RuntimeError) as error:  # the last one: of threads
            raise WorkerStartError(f"a worker process could not be started: {error}") from error
        except trio.Cancelled:
            launched = await self._last_moment_of(start, turn)
            if launched is None:
                raise
            # Who listens to it next is cancelled, too, and ends it.
        most = math.inf
        if config.max_requests is not None:
            most = config.max_requests + random.randint(0, config.max_requests_jitter)  # noqa: S311
        return Worker(cast("Launched", launched), most_requests=most)

    async def _last_moment_of(self, start: Launch, turn: _Turn) -> Launched | None:
        """A start is cancelled: what comes of it, if that is not long in coming."""
        seconds = max(self._config.patience, A_MOMENT)
        if turn.came:
            with trio.move_on_after(seconds, shield=True) as bound:
                await turn.over.wait()
            if bound.cancelled_caught:
                message = "the start of a worker process has not ended %g s after it was cancelled"
                log_safely(error_log, logging.ERROR, message + "; left behind", seconds)
        return start.give_up()

    async def _let_go(self, worker: Worker, since: int, *, has_hung_up: bool) -> int:
        """A worker has hung up, or is to end: see to it that it does."""
        by_itself = has_hung_up and worker.ready and not worker.leaves and worker.job is None
        worker.leaves = True
        if worker in self._idle:
            self._idle.remove(worker)
        seconds = self._config.patience if self._closing else A_MOMENT
        if not worker.ready and not has_hung_up:
            seconds = 0  # it hangs in its start, and has nothing to finish
        with trio.move_on_after(seconds + LONGEST_KILL, shield=True) as bound:
            status = await worker.end(seconds)
        if bound.cancelled_caught:
            status = worker.give_up()
            log_safely(error_log, logging.ERROR, "%s does not end, though it was killed", worker)
        del self._workers[worker.pid]
        if by_itself:
            message = "%s has ended by itself with exit status %s, and is replaced"
            log_safely(error_log, logging.WARNING, message, worker, status)
            if not worker.served:
                self._count_failure(since)  # so that a pause comes before the next one
        self._replace()
        return status

    async def _shrink(self) -> None:
        """Let those go that have been idle for long, and are more than there have to be."""
        config = self._config
        while config.idle < math.inf:
            now = trio.current_time()
            while self._idle and self._is_spare() and self._idle[0].idle_since + config.idle <= now:
                worker = self._idle.pop(0)
                worker.leaves = True
                worker.dismiss()
            oldest = self._idle[0].idle_since if self._idle and self._is_spare() else now
            await trio.sleep_until(oldest + config.idle)

    def _is_spare(self) -> bool:
        staying = sum(not worker.leaves for worker in self._workers.values())
        return staying > self._config.at_least


@attrs.define(eq=False)
class _Turn:
    """A thread's turn: a limiter, which Trio tells of its end also if nobody waits for it."""

    _limiter: trio.CapacityLimiter
    came: bool = False
    over: trio.Event = attrs.field(factory=trio.Event)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self.came = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
        self.over.set()


@attrs.define(eq=False)
class _Waiter:
    """A request that waits for a worker."""

    served: trio.Event = attrs.field(factory=trio.Event)
    worker: Worker | None = None
