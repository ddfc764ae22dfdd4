"""A block of a test in which nothing may be wrong, as the lints see it.

It looks while the loop turns, as an instrument, and never wakes it: it has no task and no deadline
of its own, and a clock with autojump jumps as it would without.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

import trioserver

from ...monitoring import Finding, Linter, as_text, task_tree
from .clock import virtual_clock
from .server import RunningServer

_SHARE = 0.05
"""Of the time, that looking may take by a real clock. By a virtual one it takes none."""


class Findings(AssertionError):
    """Something is wrong with what ran in a block; says what.

    Attributes:
      findings: what was wrong, each as it was when it was seen first.
    """

    def __init__(self, message: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


@asynccontextmanager
async def no_findings(
    *servers: trioserver.BaseServer | RunningServer,
    every: float = 1.0,
    linter: Linter | None = None,
) -> AsyncIterator[Linter]:
    """Fail the test if a lint finds something in the block; gives the linter.

    It looks when nothing is left to be done for ``every`` seconds, each ``every`` seconds while
    there is, and at the end of the block; by the Trio clock. So it looks before and after each
    jump of a virtual clock, and never makes one. By a real clock, a loop that has nothing to do
    is not woken, so that something may be found only at the end of the block.

    Args:
      servers: whose requests are looked at, too.
      every: seconds between two looks.
      linter: None: one as it is by default.

    Raises:
      Findings: what was wrong, if the block raises nothing itself; else it is added to that as a
        note.
      TypeError: ``every`` is no number.
      ValueError: it is not a number of seconds above 0.
    """
    if isinstance(every, bool) or not isinstance(every, (int, float)):
        raise TypeError(f"every must be a number of seconds, not {every!r}")
    if not 0 < every < math.inf:
        raise ValueError(f"every must be a number of seconds above 0, not {every!r}")
    bare = [it.server if isinstance(it, RunningServer) else it for it in servers]
    watch = _Watch(bare, every, Linter() if linter is None else linter)
    trio.lowlevel.add_instrument(watch)
    try:
        yield watch.linter
        watch.look()
    except BaseException as error:
        if watch.found:
            error.add_note(watch.in_words())
        raise
    finally:
        trio.lowlevel.remove_instrument(watch)
    if watch.error is not None:
        raise watch.error
    if watch.found:
        raise Findings(watch.in_words(), tuple(watch.found.values()))


class _Watch(trio.abc.Instrument):
    """Looks before the loop waits for long, and after it has."""

    def __init__(
        self, servers: Sequence[trioserver.BaseServer], every: float, linter: Linter
    ) -> None:
        self.linter = linter
        self.found: dict[object, Finding] = {}
        self.error: Exception | None = None
        self._servers, self._every = servers, every
        self._is_virtual = virtual_clock() is not None
        self._looked_at = -math.inf
        self._rests_until = -math.inf  # by the real clock

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Look, if it is time: at a jump of the clock, before what it wakes has ended."""
        if trio.current_time() - self._looked_at >= self._every:
            self._look()

    def before_io_wait(self, timeout: float) -> None:
        """Look, if nothing is to be done for long."""
        left = trio.lowlevel.current_statistics()
        if not left.tasks_runnable and left.seconds_to_next_deadline >= self._every:
            self._look()

    def _look(self) -> None:
        if not self._is_virtual and time.perf_counter() < self._rests_until:
            return
        try:
            self.look()
        except Exception as error:  # noqa: BLE001  (raised at the end: Trio would drop it)
            self.error = self.error or error

    def look(self) -> None:
        """Look once, and keep what is new."""
        began = time.perf_counter()
        snapshots = [server.snapshot() for server in self._servers]
        for finding in self.linter.look(task_tree(), snapshots):
            key = (finding.lint, finding.server, finding.request, finding.task)
            self.found.setdefault(key, finding)
        self._looked_at, now = trio.current_time(), time.perf_counter()
        self._rests_until = now + (now - began) * (1 / _SHARE - 1)

    def in_words(self) -> str:
        """What was found, a line each."""
        return f"the lints have found:\n{as_text(tuple(self.found.values()))}"
