"""A guard by the wall clock: what hangs is ended, and shown where it hangs.

A virtual clock cannot do that: where nobody's time goes on, it stands still, too.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from ._options import check_real_seconds
from ._tasks import task_tree

A_BLOCKED_LOOP = 5.0
"""Real seconds that Trio has to hear of it, before all threads are shown."""


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

    When not even Trio's loop goes on, because a handler blocks it say, the stacks of
    all threads are written to stderr: nothing can end such a block from outside.
    """
    check_real_seconds("the guard", seconds)
    if seconds == math.inf:
        yield
        return
    token, scope, is_over = (
        trio.lowlevel.current_trio_token(),
        trio.CancelScope(),
        threading.Event(),
    )
    trees: list[str] = []

    def hangs() -> None:
        if not is_over.is_set():
            trees.append(task_tree())
            scope.cancel(reason=f"it took more than {seconds:g} real seconds")

    def watch() -> None:
        if is_over.wait(min(seconds, threading.TIMEOUT_MAX)):
            return
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(hangs)
        if not is_over.wait(A_BLOCKED_LOOP) and not trees:
            print("Trio's loop is blocked:", file=sys.stderr)  # noqa: T201
            faulthandler.dump_traceback()

    thread = threading.Thread(target=watch, name="wall clock guard", daemon=True)
    thread.start()
    try:
        with scope:
            yield
    finally:
        is_over.set()
        thread.join()
    if scope.cancelled_caught:
        raise Hung(f"it took more than {seconds:g} real seconds; the tasks were here:\n{trees[0]}")
