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
from typing import TYPE_CHECKING, cast

import trio

if TYPE_CHECKING:  # at run time it brings pytest, where that is installed
    from trio.testing import MockClock

BETWEEN_TWO_TASKS = 0.05
"""Real seconds that the kernel has to carry something from one task to another."""


def jumping_clock() -> MockClock | None:
    """The clock of this run, if it goes ahead by itself."""
    if (watch := _WATCH.get()) is not None:
        return watch.clock  # which may stand still just now
    clock = virtual_clock()
    return clock if clock is not None and clock.autojump_threshold < math.inf else None


def virtual_clock() -> MockClock | None:
    """The clock of this run, if it is a virtual one."""
    testing = sys.modules.get("trio.testing")  # who has such a clock has imported it
    clock = trio.lowlevel.current_clock()
    is_one = testing is not None and isinstance(clock, testing.MockClock)
    return cast("MockClock", clock) if is_one else None


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
    if (watch := _WATCH.get()) is None:
        _WATCH.set(watch := _Watch(clock))
        trio.lowlevel.add_instrument(watch)
    server = (busy, kernel)
    watch.servers.append(server)
    try:
        yield
    finally:
        watch.servers.remove(server)
        if not watch.servers:
            _WATCH.set(None)
            trio.lowlevel.remove_instrument(watch)
            clock.autojump_threshold = watch.before


class _Watch(trio.abc.Instrument):
    """Sets how soon the clock may jump, after every step; one for all servers of a run."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.before = self._set = clock.autojump_threshold
        self.servers: list[tuple[Callable[[], bool], bool]] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.clock.autojump_threshold != self._set:
            self.before = self.clock.autojump_threshold  # the test has changed it
        threshold = self.before
        if trio.testing.active_thread_count() or any(busy() for busy, _ in self.servers):
            threshold = math.inf
        elif any(kernel for _, kernel in self.servers):
            threshold = max(threshold, BETWEEN_TWO_TASKS)
        if self.clock.autojump_threshold != threshold:
            self.clock.autojump_threshold = threshold
        self._set = threshold


_WATCH: trio.lowlevel.RunVar[_Watch | None] = trio.lowlevel.RunVar("clock_that_waits", None)
