"""Starts the processes of workers: one at a time, in threads, and within bounds.

What takes its time is the fork server: it imports what the program wants, and somebody
may have stopped it. One that does not answer in time is ended: `multiprocessing` starts
another one for the next worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio

from ...._facts.observers import error_log, log_safely
from ..protocol.errors import ForkServerGone, WorkerStartError
from .ending import SOON

if TYPE_CHECKING:  # it brings multiprocessing
    from .spawn import Spawn, Spawned


@attrs.define(eq=False)
class Starter:
    """Starts processes for one pool.

    Args:
      method: ``"forkserver"`` or ``"spawn"``.
      preload: what the fork server imports.
      spawn: starts one by such a method, in a thread; see the function of that name.
      patience: seconds that a start has for its end when nobody waits for it any more.
    """

    _method: str
    _preload: tuple[str, ...]
    _spawn: Callable[[str], Any]
    _patience: float
    # multiprocessing is not made for two starts at once.
    _turns: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1))

    @property
    def suspects(self) -> str:
        """What it may be that takes so long, for a message."""
        if self._method != "forkserver":
            return ""
        return f"; what the fork server imports is {', '.join(self._preload)}"

    async def start(self, is_late: Callable[[], bool]) -> Any:
        """Start a worker process, by a fresh interpreter if the fork server has gone.

        Args:
          is_late: whether a cancellation means that it has taken too long.

        Raises:
          WorkerStartError: it could not be started.

        Cancelled, it may return one all the same.
        """
        try:
            return await self._start(self._method, is_late)
        except ForkServerGone as error:
            # So that the worker says what is wrong with the imports; or serves.
            message = "%s; a worker process is spawned instead%s"
            log_safely(error_log, logging.WARNING, message, error, self.suspects)
            return await self._start("spawn", is_late)

    async def _start(self, method: str, is_late: Callable[[], bool]) -> Any:
        # Not before: whoever has no workers does without multiprocessing.
        from .spawn import Spawn  # noqa: PLC0415

        start = Spawn(partial(self._spawn, method))
        turn = _Turn(self._turns)
        try:
            spawned = await trio.to_thread.run_sync(
                start.run,
                limiter=cast("trio.CapacityLimiter", turn),  # its two methods are all that counts
                abandon_on_cancel=True,
            )
        except WorkerStartError:
            raise
        except Exception as error:  # of the system's, of multiprocessing, of somebody's pickle
            raise WorkerStartError(f"a worker process could not be started: {error}") from error
        except trio.Cancelled:
            patience = 0 if is_late() else max(self._patience, SOON)
            fork_server = method == "forkserver"
            spawned = await self._last_moment_of(start, turn, patience, fork_server=fork_server)
            if spawned is None:
                raise
        return spawned

    async def _last_moment_of(
        self, start: Spawn, turn: _Turn, seconds: float, *, fork_server: bool
    ) -> Spawned | None:
        """A start is cancelled: what comes of it, if that is not long in coming."""
        from .fork_server import end_fork_server  # noqa: PLC0415

        if turn.came and not await turn.over_within(seconds):
            if fork_server and end_fork_server():
                message = "the fork server has not started a worker in time, and is ended%s"
                log_safely(error_log, logging.ERROR, message, self.suspects)
            if not await turn.over_within(SOON):
                message = "the start of a worker process does not end; left behind"
                log_safely(error_log, logging.ERROR, message)
        return start.give_up()


@attrs.define(eq=False)
class _Turn:
    """A thread's turn: a limiter, which Trio tells of its end also if nobody waits for it."""

    _limiter: trio.CapacityLimiter
    came: bool = False
    _over: trio.Event = attrs.field(factory=trio.Event)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self.came = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
        self._over.set()

    async def over_within(self, seconds: float) -> bool:
        """Whether it is, after so many seconds at most, whoever is cancelled."""
        with trio.move_on_after(seconds, shield=True):
            await self._over.wait()
        return self._over.is_set()
