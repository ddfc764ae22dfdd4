"""What there is at one instant, as events bring it about; and the tree of tasks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from .._tree.tree import TaskTree
from .._tree.views import Cancellation, ScopeView, TaskView
from .events import RecordedEvent
from .values import request_from, request_key, time_from


@attrs.define(eq=False)
class _Task:
    began: RecordedEvent
    scopes: list[int] = attrs.field(factory=list)  # outermost first


@attrs.define(eq=False)
class _Scope:
    opened: RecordedEvent
    cancelled: RecordedEvent | None = None


@attrs.define(eq=False)
class State:
    """The tasks, scopes and requests of an instant; `apply` goes on to the next one."""

    _tasks: dict[int | None, _Task] = attrs.field(factory=dict)
    _scopes: dict[int, _Scope] = attrs.field(factory=dict)
    _requests: dict[str, RecordedEvent] = attrs.field(factory=dict)

    def apply(self, events: Iterable[RecordedEvent]) -> State:
        """Have these happen, and return itself; what changes nothing of a state is passed over."""
        for event in events:
            change = _CHANGES.get(event.kind)
            if change is not None:
                change(self, event)
        return self

    def events(self) -> Iterator[RecordedEvent]:
        """Events that bring this state about, from nothing."""
        for task in self._tasks.values():
            yield task.began
        for scope in self._scopes.values():
            yield scope.opened
            if scope.cancelled is not None:
                yield scope.cancelled
        yield from self._requests.values()

    # What events do ---------------------------------------------------------------

    def _task_started(self, event: RecordedEvent) -> None:
        self._tasks[event.task] = _Task(event)

    def _task_changed(self, event: RecordedEvent) -> None:
        if (task := self._tasks.get(event.task)) is not None:
            task.began = _with(task.began, event)

    def _task_ended(self, event: RecordedEvent) -> None:
        task = self._tasks.pop(event.task, None)
        for scope in () if task is None else task.scopes:
            self._scopes.pop(scope, None)

    def _scope_opened(self, event: RecordedEvent) -> None:
        if (task := self._tasks.get(event.task)) is not None:
            task.scopes.append(event.facts["scope"])
            self._scopes[event.facts["scope"]] = _Scope(event)

    def _scope_changed(self, event: RecordedEvent) -> None:
        if (scope := self._scopes.get(event.facts["scope"])) is not None:
            scope.opened = _with(scope.opened, event)

    def _scope_cancelled(self, event: RecordedEvent) -> None:
        if (scope := self._scopes.get(event.facts["scope"])) is not None:
            scope.cancelled = event

    def _scope_closed(self, event: RecordedEvent) -> None:
        number = event.facts["scope"]
        if self._scopes.pop(number, None) is not None:
            self._tasks[event.task].scopes.remove(number)

    def _request_started(self, event: RecordedEvent) -> None:
        self._requests[request_key(event.facts["request"])] = event

    def _request_finished(self, event: RecordedEvent) -> None:
        self._requests.pop(request_key(event.facts["request"]), None)

    # The tree -----------------------------------------------------------------------

    def tree(self, at: float) -> TaskTree:
        """The tasks that there are, as `task_tree` has them."""
        children: dict[Any, list[tuple[int, int]]] = {}
        for number, task in self._tasks.items():
            if number is not None:
                nursery = task.began.facts["nursery"]
                place = (-1 if nursery is None else nursery, number)
                children.setdefault(task.began.facts["parent"], []).append(place)
        found = []
        # By hand, and not by calling itself: a tree may be deeper than Python's stack.
        ahead = [(number, 0) for _, number in sorted(children.get(None, ()), reverse=True)]
        while ahead:
            number, depth = ahead.pop()
            found.append(self._view_of(number, depth))
            below = sorted(children.get(number, ()), reverse=True)
            ahead += [(child, depth + 1) for _, child in below]
        return TaskTree(at, tuple(found))

    def _view_of(self, number: int, depth: int) -> TaskView:
        task = self._tasks[number]
        facts = task.began.facts
        return TaskView(
            id=number,
            parent=facts["parent"],
            nursery=facts["nursery"],
            depth=depth,
            name=facts["name"],
            scopes=tuple(_scope_view(self._scopes[scope]) for scope in task.scopes),
            request=request_from(facts["request"]),
        )


def _with(event: RecordedEvent, later: RecordedEvent) -> RecordedEvent:
    """An event, with the facts of a later one."""
    return attrs.evolve(event, facts={**event.facts, **later.facts})


def _scope_view(scope: _Scope) -> ScopeView:
    facts, cancelled = scope.opened.facts, scope.cancelled
    return ScopeView(
        deadline=time_from(facts["deadline"]),
        shield=facts["shield"],
        nursery=facts["nursery"],
        cancelled=None
        if cancelled is None
        else Cancellation(*(cancelled.facts[name] for name in ("reason", "source", "by"))),
    )


_CHANGES: dict[str, Callable[[State, RecordedEvent], None]] = {
    "task_started": State._task_started,
    "task_moved": State._task_changed,
    "task_request": State._task_changed,
    "task_ended": State._task_ended,
    "scope_opened": State._scope_opened,
    "scope_changed": State._scope_changed,
    "scope_cancelled": State._scope_cancelled,
    "scope_closed": State._scope_closed,
    "request_started": State._request_started,
    "request_finished": State._request_finished,
}
"""What each kind of event does; others change nothing that a tree shows."""
