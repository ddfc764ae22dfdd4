"""What Trio tells nobody publicly of its tasks: their numbers, and the scopes that they are in.

Everything that looks at other tasks asks here, and nowhere else. Each thing is left out where Trio
has it no more: a view then shows less, and nothing fails.
"""

from __future__ import annotations

from typing import Any

import trio


def task_number(task: trio.lowlevel.Task) -> int:
    """A number that no other task of this process has or will have.

    Where Trio does not count its tasks, the address of its object, which a later one may have.
    """
    number = getattr(task, "_counter", None)
    return number if isinstance(number, int) else id(task)


def own_scopes(task: trio.lowlevel.Task) -> list[trio.CancelScope]:
    """The scopes that a task has entered itself and not left, its nurseries' too, outermost first.

    Where Trio does not tell, those of its nurseries.
    """
    nursery: Any = task.parent_nursery
    found: list[trio.CancelScope] = []
    try:
        status: Any = task._cancel_status  # type: ignore[attr-defined,unused-ignore]
        outside: Any = None if nursery is None else nursery._cancel_status
        while status is not outside:
            found.append(status._scope)
            status = status._parent
    except AttributeError:  # another Trio than those that are known
        return [nursery.cancel_scope for nursery in task.child_nurseries]
    found.reverse()
    return found


def is_cancelled(scope: trio.CancelScope) -> bool:
    """Whether a scope is cancelled, without what `trio.CancelScope.cancel_called` does beside.

    That one cancels a scope whose deadline has passed, and looks at the clock each time.
    """
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

    While it is the same one, the task has neither entered nor left a scope. A new object each
    time where Trio does not tell.
    """
    return getattr(task, "_cancel_status", None) or object()


def values_of(scopes: list[trio.CancelScope]) -> list[tuple[float, bool, bool]]:
    """What can change of scopes that are entered: the deadline, the shield, if it is cancelled."""
    return [(scope.deadline, scope.shield, is_cancelled(scope)) for scope in scopes]
