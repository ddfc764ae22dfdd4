"""The tree of tasks: each under its parent, and where it waits."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import attrs
import trio

_SHOWN_LINES = 3
"""Lines of a task's stack that are shown: the last ones."""

_TRIO = str(Path(trio.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[1]) + os.sep


@attrs.frozen
class TaskView:
    """One task, as it was at an instant.

    Attributes:
      depth: how many tasks it is below the root.
      name: what it is called.
      stack: where it waits: the code and the line of each call, the outermost one
        first. Nothing of the task itself is held.
    """

    depth: int
    name: str
    stack: tuple[tuple[CodeType, int], ...]


@attrs.frozen
class TaskTree:
    """The tasks of a Trio program, as they were at an instant.

    Attributes:
      tasks: each task before those below it.
    """

    tasks: tuple[TaskView, ...]

    def __str__(self) -> str:
        return as_text(self)


def task_tree() -> TaskTree:
    """All tasks of this Trio program; plain, to be called in Trio's thread.

    Raises:
      RuntimeError: no Trio program runs in this thread.
    """
    root = trio.lowlevel.current_root_task()
    return TaskTree(
        tuple(TaskView(depth, task.name, _stack_of(task)) for depth, task in _walk(root))
    )


def tasks_below(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """A task, and all tasks below it: each before those below it; none of None."""
    return (each for _, each in _walk(task))


def _walk(
    task: trio.lowlevel.Task | None, depth: int = 0
) -> Iterator[tuple[int, trio.lowlevel.Task]]:
    """A task and all below it, each with how deep it is."""
    if task is None:
        return
    yield depth, task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _walk(child, depth + 1)


def _stack_of(task: trio.lowlevel.Task) -> tuple[tuple[CodeType, int], ...]:
    try:
        return tuple((frame.f_code, line) for frame, line in task.iter_await_frames())
    except AttributeError:  # it has ended this very moment, which Trio 0.31 does not expect
        return ()


def as_text(tree: TaskTree) -> str:
    """A tree as lines: each task's name, and the lines of its own code in which it waits.

    The lines of Trio are left out, and those of this library where there are others.
    """
    return "\n".join(line for task in tree.tasks for line in _lines(task))


def _lines(task: TaskView) -> Iterator[str]:
    indent = "  " * task.depth
    yield f"{indent}{task.name}"
    # What Trio does below says nothing; and what this library does only if there is no other.
    places = [place for place in task.stack if not place[0].co_filename.startswith(_TRIO)]
    theirs = [place for place in places if not place[0].co_filename.startswith(_OURS)]
    for code, number in theirs[-_SHOWN_LINES:] or places[-1:]:
        line = linecache.getline(code.co_filename, number).strip()
        yield f"{indent}    {code.co_filename}:{number} in {code.co_name}: {line}"
