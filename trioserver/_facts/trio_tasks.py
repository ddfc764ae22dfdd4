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


def cancellation_of(scope: trio.CancelScope) -> tuple[str, str, str]:
    """Why a scope was cancelled: the reason, the source, and the task that has called `cancel`.

    Each is ``""`` where there is none, or Trio does not tell.
    """
    why: Any = getattr(scope, "_cancel_reason", None)
    found = (getattr(why, name, None) for name in ("reason", "source", "source_task"))
    reason, source, by = (value or "" for value in found)
    return reason, source, by
