"""A guard by the wall clock: what hangs is ended, and shown where it hangs.

A virtual clock cannot do that: where nobody's time goes on, it stands still, too.
"""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from sys import _current_frames  # a documented one, for all its underscore

import trio

from ...monitoring import task_tree
from .shields import lift_shields

A_LAST_MOMENT = 5.0
"""Real seconds that what hangs has to end when it is cancelled."""


class Hung(AssertionError):
    """A test took too long by the wall clock; says where every task was."""


@asynccontextmanager
async def wall_clock_guard(seconds: float) -> AsyncIterator[None]:
    """Cancel the block when it takes longer than so many real seconds, whatever the clock says.

    Args:
      seconds: of real time; ``inf``: no guard.

    Raises:
      TypeError: that is no number.
      ValueError: it is not greater than 0.
      Hung: it took longer. The message has the tree of all tasks at that time.

    What has shielded itself is ended all the same, five seconds later. When not even
    Trio's loop goes on, because a handler blocks it say, the stacks of all threads are
    written to stderr (of pytest, see its ``-s``): nothing can end such a block.
    """
    check_real_seconds("the guard", seconds)
    if seconds == math.inf:
        yield
        return
    guard = _Guard(seconds)
    thread = threading.Thread(target=guard.watch, name="wall clock guard", daemon=True)
    thread.start()
    try:
        with guard.scope:
            yield
    finally:
        guard.is_over.set()
        thread.join()
    if guard.scope.cancelled_caught:
        took = f"it took more than {seconds:g} real seconds"
        # Without a context: all that can be there is what this has cancelled.
        raise Hung(f"{took}; the tasks were here:\n{guard.tree}") from None


class _Guard:
    """Watches one block, of the task that makes it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._token = trio.lowlevel.current_trio_token()
        self._task = trio.lowlevel.current_task()
        self.scope = trio.CancelScope()
        self.is_over = threading.Event()
        self.tree = ""

    def watch(self) -> None:
        """Wait, and do what has to be done; in a thread of its own."""
        if self.is_over.wait(min(self._seconds, threading.TIMEOUT_MAX)):
            return
        self._soon(self._cancel)
        if self.is_over.wait(A_LAST_MOMENT):
            return
        if self.tree:
            self._soon(self._lift_shields)
        else:
            stacks = ("".join(traceback.format_stack(it)) for it in _current_frames().values())
            print("Trio's loop is blocked:", *stacks, sep="\n", file=sys.stderr)  # noqa: T201

    def _cancel(self) -> None:
        if not self.is_over.is_set():
            self.tree = str(task_tree())
            self.scope.cancel(reason=f"it took more than {self._seconds:g} real seconds")

    def _lift_shields(self) -> None:
        if not self.is_over.is_set():
            lift_shields(self._task, self.scope)

    def _soon(self, function: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)


def check_real_seconds(name: str, value: object) -> None:
    """Refuse what is no number of seconds above 0; ``inf`` is one.

    Raises:
      TypeError: it is no number.
      ValueError: it is another number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0 seconds, not {value!r}")
