"""The rule for virtual clocks: they jump only over waits that they know of.

A clock with autojump goes ahead when every task waits. A thread, a worker process or
bytes in the kernel are no tasks: the clock jumps while they are at work, and a time-out
of half a minute strikes after a tenth of a second of theirs. That is never right, so
here the clock stands still as long as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:  # at run time it brings pytest, where that is installed
    from trio.testing import MockClock

BETWEEN_TWO_TASKS = 0.05
"""Real seconds that the kernel has to carry something from one task to another."""


def jumping_clock() -> MockClock | None:
    """The clock of this run, if it goes ahead by itself."""
    testing = sys.modules.get("trio.testing")  # who has such a clock has imported it
    clock = trio.lowlevel.current_clock()
    if testing is None or not isinstance(clock, testing.MockClock):
        return None
    return clock if clock.autojump_threshold < math.inf else None


@contextmanager
def clock_that_waits(busy: Callable[[], bool], *, kernel: bool) -> Iterator[None]:
    """Have the clock not jump in the block while threads work, or ``busy()`` says so.

    Args:
      busy: asked after every step of a task; must be quick.
      kernel: whether bytes go through it; they get a moment to arrive.
    """
    clock = jumping_clock()
    if clock is None:
        yield
        return
    before = clock.autojump_threshold
    watch = _Watch(clock, max(before, BETWEEN_TWO_TASKS) if kernel else before, busy)
    trio.lowlevel.add_instrument(watch)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(watch)
        clock.autojump_threshold = before


class _Watch(trio.abc.Instrument):
    """Sets how soon the clock may jump, after every step."""

    def __init__(self, clock: MockClock, threshold: float, busy: Callable[[], bool]) -> None:
        self._clock = clock
        self._threshold = threshold
        self._busy = busy

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        threads = trio.testing.active_thread_count()
        threshold = math.inf if threads or self._busy() else self._threshold
        if self._clock.autojump_threshold != threshold:
            self._clock.autojump_threshold = threshold
