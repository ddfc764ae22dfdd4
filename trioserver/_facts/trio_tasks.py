"""What Trio tells nobody publicly of its tasks: their numbers, and the scopes that they are in.

Everything that looks at other tasks asks here, and nowhere else. Each thing is left out where Trio
has it no more: a view then shows less, and nothing fails.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import trio


def task_number(task: trio.lowlevel.Task) -> int:
    """A number that no other task of this process has or will have.

    Where Trio does not count its tasks, the address of its object, which a later one may have.
    """
    number: int | None = getattr(task, "_counter", None)
    return id(task) if number is None else number


def numbered(tasks: Iterable[trio.lowlevel.Task]) -> list[tuple[int, trio.lowlevel.Task]]:
    """Tasks with their numbers, all at once, in the order of their start."""
    found: list[tuple[int, trio.lowlevel.Task]]
    try:
        found = [(task._counter, task) for task in tasks]  # type: ignore[attr-defined,unused-ignore]
    except AttributeError:  # another Trio than those that are known
        found = [(id(task), task) for task in tasks]
    found.sort(key=_number)
    return found


_number = operator.itemgetter(0)


def own_scopes(task: trio.lowlevel.Task) -> list[tuple[trio.CancelScope, float, bool, bool]]:
    """The scopes that a task has entered itself and not left, its nurseries' too, outermost first.

    Each with its deadline, whether it shields, and whether it is cancelled. That is looked at
    without what `trio.CancelScope.cancel_called` does beside: it cancels a scope whose deadline
    has passed, and looks at the clock each time. Where Trio does not tell, those of its nurseries.
    """
    nursery: Any = task.parent_nursery
    found: list[tuple[trio.CancelScope, float, bool, bool]] = []
    try:
        status: Any = task._cancel_status  # type: ignore[attr-defined,unused-ignore]
        outside: Any = None if nursery is None else nursery._cancel_status
        while status is not outside:
            scope = status._scope
            found.append((scope, scope._deadline, scope._shield, scope._cancel_called))
            status = status._parent
    except AttributeError:  # another Trio than those that are known
        scopes = [nursery.cancel_scope for nursery in task.child_nurseries]
        return [(scope, scope.deadline, scope.shield, scope.cancel_called) for scope in scopes]
    found.reverse()
    return found


def is_cancelled(scope: trio.CancelScope) -> bool:
    """Whether a scope is cancelled, looked at as `own_scopes` does."""
    called = getattr(scope, "_cancel_called", None)
    return scope.cancel_called if called is None else bool(called)


def cancellation_of(scope: trio.CancelScope) -> tuple[str, str, str]:
    """Why a scope was cancelled: the reason, the source, and the task that has called `cancel`.

    Each is ``""`` where there is none, or Trio does not tell.
    """
    why: Any = getattr(scope, "_cancel_reason", None)
    found = (getattr(why, name, None) for name in ("reason", "source", "source_task"))
    reason, source, by = (value or "" for value in found)
    return reason, source, by


def innermost(task: trio.lowlevel.Task) -> object:
    """What stands for the innermost scope that a task is in; another object for another scope.

    Where Trio does not tell, it is another one each time.
    """
    return getattr(task, "_cancel_status", None) or object()


def values_of(scope: trio.CancelScope) -> tuple[float, bool, bool]:
    """What can change of a scope that is entered: the deadline, the shield, if it is cancelled."""
    return scope.deadline, scope.shield, is_cancelled(scope)


def is_as_before(
    task: trio.lowlevel.Task,
    innermost: object,
    nursery: trio.Nursery | None,
    scopes: list[trio.CancelScope],
    values: list[tuple[float, bool, bool]],
) -> bool:
    """Whether nothing of a task is new: its innermost scope, its nursery, the scopes' values.

    Asked after each step of each task, so by private names alone, in a third of a microsecond.
    Where Trio does not have them any more, everything may be new.
    """
    it: Any = task
    try:
        if it._cancel_status is not innermost or it._parent_nursery is not nursery:
            return False
        scope: Any
        for scope, (deadline, shield, cancelled) in zip(scopes, values):  # noqa: B905  (is dearer)
            if (
                scope._cancel_called is not cancelled
                or scope._deadline != deadline
                or scope._shield is not shield
            ):
                return False
    except AttributeError:  # another Trio than those that are known
        return False
    return True
