"""Workers that cannot be started: when to try again, who is told, and when it is hopeless.

As with a shortage at an accept: pauses that grow, one record at the beginning and one
at the end, and whoever is there goes on. Without a worker there is nobody to go on:
then it is hopeless after a number of failures in a row, and if something is merely
short, after some time.
"""

from __future__ import annotations

import errno
import logging
import math
import signal

import attrs
import trio

from ...._facts.backoff import Backoff
from ...._facts.observers import error_log, log_safely
from ..protocol.errors import WorkerCrashed, WorkerStartError

FAILURES = 5
"""Starts in a row that may fail when there is no worker; several at a time are one."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before the next start after one that failed; doubles each time."""

_SHORTAGES = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS)
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether this says that descriptors, processes, threads or memory are short."""
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES
    if isinstance(error, WorkerCrashed):
        return error.status == -signal.SIGKILL  # Linux has that happen when memory is short
    # What Python says of a thread that the system does not start.
    return isinstance(error, MemoryError) or str(error) == "can't start new thread"


@attrs.define(eq=False)
class Setbacks:
    """The starts of one pool that fail, and workers that end without having had a request.

    Args:
      patience: seconds that a shortage may last when there is no worker.
      longest: seconds of a pause at most.

    Attributes:
      number: of all so far; those that were started together are one.
      last: whether the last start that has ended has failed.
    """

    _patience: float
    _longest: float = attrs.field(factory=lambda: LONGEST_PAUSE)
    number: int = 0
    last: bool = False
    _backoff: Backoff = attrs.field(init=False)
    _not_before: float = -math.inf
    # Of starts that failed since as many were there as should be, for the records.
    _failures: int = 0
    _began: float = 0.0
    # Of these, since there was a worker.
    _hopeless: int = 0
    _hopeless_since: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._backoff = Backoff(FIRST_PAUSE, self._longest)

    async def pause(self) -> None:
        """Wait until it is time to try again."""
        while trio.current_time() < self._not_before:  # noqa: ASYNC110  (it may become later)
            await trio.sleep_until(self._not_before)

    def one_more(self, since: int) -> bool:
        """Pause for longer; false if somebody has noted one since there were ``since``."""
        if self.number != since:
            return False
        self.number += 1
        self._not_before = trio.current_time() + self._backoff.grow()
        return True

    def start_failed(self, error: WorkerStartError, since: int, *, anybody: bool) -> bool:
        """Count one more start that failed.

        Args:
          error: why.
          since: `number` when it began.
          anybody: whether there is a worker that can go on.

        Returns:
          Whether there is no hope.
        """
        now = trio.current_time()
        if not self._failures:
            self._began = now
            log_safely(error_log, logging.ERROR, "cannot start workers, pausing: %s", error)
        self._failures += 1
        self.last = True
        counts = self.one_more(since)
        if anybody:
            self._hopeless = 0
            return False
        if not self._hopeless:
            self._hopeless_since = now
        self._hopeless += counts
        waits = is_shortage(error.__cause__) and now - self._hopeless_since < self._patience
        return self._hopeless >= FAILURES and not waits

    def start_succeeded(self) -> None:
        """Forget the failed starts: a worker is ready."""
        self.last = False
        self._hopeless = 0

    def all_are_there(self) -> None:
        """No start is missing any more."""
        if self._failures and not self.last:
            seconds = trio.current_time() - self._began
            message = "starting workers again, after %d failures in %.3f s"
            log_safely(error_log, logging.WARNING, message, self._failures, seconds)
            self._failures = 0

    def over(self, since: int) -> None:
        """A worker has served that was started when there were ``since``: no more pauses."""
        if self.number == since:
            self._backoff.reset()
