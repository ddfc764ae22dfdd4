"""What a thread does at this moment, as seen from another thread: the stack, and whose task it is.

That thread goes on meanwhile, so all of this is read with care: what has changed under the eyes
of the reader is left out, and nothing raises.
"""

from __future__ import annotations

import contextlib
import traceback
from sys import _current_frames  # a documented one, for all its underscore
from types import FrameType
from typing import Any

import attrs
import trio

from trioserver import RequestInfo, current_request

from .._tree.taking import tasks_below

_DEBUGGERS = {"bdb", "pdb", "pydevd", "debugpy"}
"""The modules of debuggers: who stops at a breakpoint blocks the loop, and knows it."""

_ATTEMPTS = 3
"""Looks at a tree of tasks that changes meanwhile. That of a blocked loop does not."""


@attrs.frozen
class Holder:
    """What holds a loop.

    Attributes:
      task: the name of the task; ``""`` if it is none.
      request: the request that the task works for.
      stack: the calls, as a traceback shows them; ``""`` if there is nothing to see.
      is_debugged: whether a debugger has stopped it.
    """

    task: str = ""
    request: RequestInfo | None = None
    stack: str = ""
    is_debugged: bool = False


def holder_of(thread: int, root: trio.lowlevel.Task | None) -> Holder:
    """What a thread does, in which Trio runs.

    Args:
      thread: the number of the thread, as of `threading.get_ident`.
      root: the root of the tasks that run in it.
    """
    innermost = _current_frames().get(thread)
    if innermost is None:
        return Holder()
    frames = [frame for frame, _ in traceback.walk_stack(innermost)]
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    task = _task_in(frames, root)
    # What is outside of the task is Trio, and what has started that.
    own = len(frames) if task is None else frames.index(_frame_of(task)) + 1
    summary = traceback.StackSummary.extract((it, it.f_lineno) for it in frames[:own])
    summary.reverse()
    stack, is_debugged = "".join(summary.format()), bool(modules & _DEBUGGERS)
    if task is None:
        return Holder(stack=stack, is_debugged=is_debugged)
    # A copy, since that thread is in the context itself.
    return Holder(task.name, task.context.copy().run(current_request), stack, is_debugged)


def _task_in(frames: list[FrameType], root: trio.lowlevel.Task | None) -> trio.lowlevel.Task | None:
    """The task that runs in these frames; None if none does, or the tree does not hold still."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(Exception):  # its sets change while they are read
            return next((it for it in tasks_below(root) if _frame_of(it) in frames), None)
    return None


def _frame_of(task: trio.lowlevel.Task) -> Any:
    return getattr(task.coro, "cr_frame", None)
