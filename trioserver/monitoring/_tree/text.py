"""Tasks as lines of text: each one's name, its scopes, and the lines of code in which it waits."""

from __future__ import annotations

import itertools
import linecache
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType

import trio

from ..._facts.address import printable
from .views import ScopeView, TaskView

_SHOWN_LINES = 3
"""Lines of a task's stack that are shown: the last ones."""

_SHOWN_ALIKE = 3
"""Tasks of one nursery that wait at the same place, and are shown; others are counted."""

_TRIO = str(Path(trio.__file__).parent) + os.sep
_OURS = str(Path(__file__).parents[2]) + os.sep


def text_of_tasks(tasks: Iterable[TaskView], now: float) -> str:
    """Tasks as lines, those below another indented, as far as the first one is not.

    The lines of Trio are left out, and those of this library where there are others.

    Args:
      tasks: each before those below it.
      now: when they were so, by the Trio clock, to tell how much time scopes have left.
    """
    lines: list[str] = []
    outermost = None
    for alike in _runs(tasks):
        outermost = alike[0].depth if outermost is None else outermost
        lines += _lines_of_several(alike, now, alike[0].depth - outermost)
    return "\n".join(lines)


def _runs(tasks: Iterable[TaskView]) -> Iterator[list[TaskView]]:
    """The tasks in their order; in one list those that follow each other and wait at one place."""
    for _, alike in itertools.groupby(tasks, _place):
        yield list(alike)


def _place(task: TaskView) -> tuple[object, ...]:
    cancelled = [scope.cancelled is not None for scope in task.scopes]
    return task.parent, task.nursery, task.stack, cancelled


def _lines_of_several(alike: list[TaskView], now: float, depth: int) -> Iterator[str]:
    shown = alike if len(alike) <= _SHOWN_ALIKE + 1 else alike[:_SHOWN_ALIKE]
    for task in shown:
        yield from _lines(task, now, depth)
    if len(shown) < len(alike):
        last = printable(alike[-1].name)
        more = len(alike) - len(shown)
        yield f"{'  ' * depth}({more} more like these, the last one is {last})"


def _lines(task: TaskView, now: float, depth: int) -> Iterator[str]:
    indent = "  " * depth
    yield f"{indent}{printable(task.name)}{_scopes_in_words(task.scopes, now)}"
    for code, number in shown_places(task.stack):
        place = f"{printable(code.co_filename)}:{number} in {printable(code.co_name)}"
        yield f"{indent}    {place}: {printable(_source(code, number))}"


def _source(code: CodeType, number: int) -> str:
    """A line of code; ``""`` if it cannot be read."""
    try:
        return linecache.getline(code.co_filename, number).strip()
    except ValueError:  # what can be the name of no file
        return ""


def shown_places(
    stack: tuple[tuple[CodeType, int], ...], most: int = _SHOWN_LINES
) -> tuple[tuple[CodeType, int], ...]:
    """Those calls of a stack that say what a task waits for, ``most`` of them, the last ones.

    What Trio does below says nothing; and what this library does only if there is no other.
    """
    places = [place for place in stack if not place[0].co_filename.startswith(_TRIO)]
    theirs = [place for place in places if not place[0].co_filename.startswith(_OURS)]
    return tuple(theirs[-most:] or places[-1:])


def _scopes_in_words(scopes: tuple[ScopeView, ...], now: float) -> str:
    """What is to be known of a task's scopes, in brackets; nothing of those that do nothing."""
    told = [words for scope in scopes if (words := scope_in_words(scope, now))]
    return f"  [{'; '.join(told)}]" if told else ""


def scope_in_words(scope: ScopeView, now: float) -> str:
    """A scope in a few words: ``shielded, 2.5 s left``; ``""`` if it does nothing."""
    told = ["shielded"] if scope.shield else []
    if scope.cancelled is not None:
        why = printable(scope.cancelled.reason) or scope.cancelled.source
        told.append(f"cancelled: {why}" if why else "cancelled")
    elif scope.deadline < math.inf:
        told.append(f"{scope.deadline - now:.1f} s left")
    return ", ".join(told)
