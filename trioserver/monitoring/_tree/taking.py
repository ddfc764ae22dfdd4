"""Taking the tree of tasks of a Trio program: in one step, so that all of it is of one instant."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from types import CodeType
from typing import TypeAlias

import trio

from ..._facts.events import request_of
from ..._facts.trio_tasks import cancellation_of, numbered, own_scopes, task_number
from .tree import TaskTree
from .views import Cancellation, ScopeView, TaskView


def task_tree(*, root: trio.lowlevel.Task | None = None, stacks: bool = True) -> TaskTree:
    """All tasks of this Trio program, of any program; plain, to be called in Trio's thread.

    Args:
      root: the task to begin with, whose depth is 0 then; None: that of the whole program.
      stacks: whether to tell where each task waits, which takes three times as long. On one
        core of a small machine 5 000 tasks take about 10 ms without, and 40 ms with it.

    Raises:
      RuntimeError: no Trio program runs in this thread.
      TypeError: ``root`` is no task.
    """
    now = trio.current_time()
    if root is not None and not isinstance(root, trio.lowlevel.Task):
        raise TypeError(f"root must be a task of Trio, or None, not {root!r}")
    root = root or trio.lowlevel.current_root_task()
    if root is None:  # the program is about to begin
        return TaskTree(now, ())
    return TaskTree(now, tuple(_views(root, stacks=stacks)))


# What is below is run for each of thousands of tasks, while all of them wait: it asks for each
# thing once, makes no call that it can do without, and calls what a named tuple's own `__new__`
# calls, which is written in Python. See tests/bench/views.py.
_new = tuple.__new__
_PLAIN = ScopeView()
"""A scope that does nothing: one object for all of them."""


def _views(root: trio.lowlevel.Task, *, stacks: bool) -> list[TaskView]:
    """A task and all below it, as values."""
    found = []
    # By hand, and not by calling itself: a tree may be deeper than Python's stack.
    ahead: list[_Place] = [(task_number(root), root, *_above(root), 0)]
    while ahead:
        number, task, parent, which, depth = ahead.pop()
        nurseries, scopes = task.child_nurseries, []
        for scope, deadline, shield, called in own_scopes(task):
            if deadline == inf and not (called or shield or nurseries):
                scopes.append(_PLAIN)
                continue
            nursery = _number_of(scope, nurseries) if nurseries else None
            why = Cancellation(*cancellation_of(scope)) if called else None
            scopes.append(_new(ScopeView, (deadline, shield, nursery, why)))
        stack = _stack_of(task) if stacks else ()
        request = request_of(task.context)
        facts = (number, parent, which, depth, task.name, tuple(scopes), request, stack)
        found.append(_new(TaskView, facts))
        if nurseries:
            ahead += _children(number, nurseries, depth + 1)
    return found


def _children(number: int, nurseries: list[trio.Nursery], depth: int) -> list[_Place]:
    """The tasks in the nurseries of a task, the one that is to come first at the end."""
    found: list[_Place] = []
    for which in reversed(range(len(nurseries))):
        inside = numbered(nurseries[which].child_tasks)
        found += [(mine, child, number, which, depth) for mine, child in reversed(inside)]
    return found


def _number_of(scope: trio.CancelScope, nurseries: list[trio.Nursery]) -> int | None:
    """Which of the nurseries it is whose scope this is, if it is one's."""
    scopes = [nursery.cancel_scope for nursery in nurseries]
    return scopes.index(scope) if scope in scopes else None


def _above(task: trio.lowlevel.Task) -> tuple[int | None, int | None]:
    """The parent of a task, and in which of its nurseries the task is."""
    if task.parent_nursery is None:
        return None, None
    parent = task.parent_nursery.parent_task
    return task_number(parent), parent.child_nurseries.index(task.parent_nursery)


_Place: TypeAlias = tuple[int, trio.lowlevel.Task, int | None, int | None, int]
"""A task, by its number, and where it is: the parent, which of its nurseries, and the depth."""


def _stack_of(task: trio.lowlevel.Task) -> tuple[tuple[CodeType, int], ...]:
    try:
        return tuple([(frame.f_code, line) for frame, line in task.iter_await_frames()])
    except AttributeError:  # it has ended this very moment, which Trio 0.31 does not expect
        return ()


def tasks_below(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """A task, and all tasks below it: each before those below it; none of None."""
    ahead = [] if task is None else [task]
    while ahead:
        yield (one := ahead.pop())
        for nursery in one.child_nurseries:
            ahead += [child for _, child in reversed(numbered(nursery.child_tasks))]
