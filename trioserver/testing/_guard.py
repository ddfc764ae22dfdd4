"""A guard by the wall clock: what hangs is ended, and shown where it hangs.

A virtual clock cannot do that: where nobody's time goes on, it stands still, too.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

import trioserver

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
      Hung: it took longer. The message has the tree of all tasks at that time.

    When not even Trio's loop goes on, because a handler blocks it say, the stacks of
    all threads are written to stderr: nothing can end such a block from outside.
    """
    if seconds == float("inf"):
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
        if is_over.wait(seconds):
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


def task_tree() -> str:
    """All tasks of this run, each under its parent, and where each of them waits."""
    root = trio.lowlevel.current_root_task()
    return "" if root is None else "\n".join(_branch(root, ""))


def _branch(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}{task.name}"
    stack = traceback.StackSummary.extract(task.iter_await_frames())
    theirs = [frame for frame in stack if not _is_ours(frame.filename)]
    for frame in theirs[-3:] or stack[-1:]:
        yield f"{indent}    {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _branch(child, indent + "  ")


_OURS = tuple(str(Path(file).parent) + os.sep for file in (trio.__file__, trioserver.__file__))


def _is_ours(file: str) -> bool:
    """Whether it is code of Trio or of this library, and not of who uses them."""
    return file.startswith(_OURS)
