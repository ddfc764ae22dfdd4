"""Where the tasks of a run are: each under its parent, and where it waits."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import TypeAlias

import trio

import trioserver

TaskPlace: TypeAlias = tuple[int, str, list[tuple[CodeType, int]]]
"""A task: how deep it is in the tree, its name, and the lines of its stack."""

_FRAMES = 3
"""Lines of a task's stack that are shown: the last ones."""

_TRIO, _OURS = (str(Path(file).parent) + os.sep for file in (trio.__file__, trioserver.__file__))


def task_tree() -> str:
    """All tasks of this run, each under its parent, and where each of them waits."""
    return as_text(task_places())


def task_places() -> list[TaskPlace]:
    """The same to keep: lines are not looked up, and nothing of the tasks is held."""
    root = trio.lowlevel.current_root_task()
    return [(depth, task.name, _stack_of(task)) for depth, task in branch_of(root)]


def branch_of(
    task: trio.lowlevel.Task | None, depth: int = 0
) -> Iterator[tuple[int, trio.lowlevel.Task]]:
    """A task, and all below it, each with how deep it is."""
    if task is None:
        return
    yield depth, task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from branch_of(child, depth + 1)


def _stack_of(task: trio.lowlevel.Task) -> list[tuple[CodeType, int]]:
    try:
        return [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    except AttributeError:  # it has ended this very moment, which Trio 0.31 does not expect
        return []


def as_text(places: list[TaskPlace]) -> str:
    """A tree, of lines."""
    return "\n".join(line for place in places for line in _lines(*place))


def _lines(depth: int, name: str, stack: list[tuple[CodeType, int]]) -> Iterator[str]:
    indent = "  " * depth
    yield f"{indent}{name}"
    # What Trio does below says nothing; and what this library does only if there is no other.
    places = [place for place in stack if not place[0].co_filename.startswith(_TRIO)]
    theirs = [place for place in places if not place[0].co_filename.startswith(_OURS)]
    for code, number in theirs[-_FRAMES:] or places[-1:]:
        line = linecache.getline(code.co_filename, number).strip()
        yield f"{indent}    {code.co_filename}:{number} in {code.co_name}: {line}"
