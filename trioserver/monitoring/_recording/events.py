"""One thing that has happened, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

Facts: TypeAlias = Mapping[str, Any]
"""What is known of an event: values of JSON, by name."""

PlainEvent: TypeAlias = tuple[float, str, int | None, Facts]
"""What a `RecordedEvent` has, in its order."""

KINDS = {
    "task_started": "a task is there: parent, nursery, name, request",
    "task_moved": "a task is in another nursery, after task_status.started(): parent, nursery",
    "task_request": "a task works for another request than before: request",
    "task_ended": "a task is over",
    "scope_opened": "a task has entered a scope: scope, deadline, shield, nursery",
    "scope_changed": "a scope has another deadline, or shield: scope, deadline, shield",
    "scope_cancelled": "a scope is cancelled: scope, reason, source, by, by_task",
    "scope_closed": "a task has left a scope: scope",
    "listening": "a server listens: addresses",
    "request_started": "a request is served: request",
    "request_finished": "a request has its outcome: request, outcome, reason, duration",
    "arrival_failed": "a request has ended before it was served: request, outcome, reason",
    "request_refused": "a client was turned away: client, reason",
    "accept_failed": "an accept has failed: listener, error",
    "draining": "a server drains: grace",
    "closed": "a server's run is over: report",
    "blocked": "the loop has not turned: seconds, where",
    "mark": "a note of the program's own: text",
}
"""What an event can be, and the facts that each has."""


@attrs.frozen
class RecordedEvent:
    """One thing that has happened in a Trio program.

    Times are those of the Trio clock. Tasks and scopes have numbers of the recording's own, from
    1 in the order in which it has seen them; a number never means another one.

    Attributes:
      at: when it was noted: for a scope, at the end of the step in which it was entered.
      kind: what it is: ``task_started``, ``task_moved``, ``task_request``, ``task_ended``;
        ``scope_opened``, ``scope_changed``, ``scope_cancelled``, ``scope_closed``;
        ``listening``, ``request_started``, ``request_finished``, ``arrival_failed``,
        ``request_refused``, ``accept_failed``, ``draining``, ``closed``; ``blocked``;
        or ``mark``.
      task: the number of the task that it is about, or in which it was; None if no task is known.
      facts: what else is known, as values of JSON: of a task ``parent``, ``nursery`` and ``name``;
        of a scope its number (``scope``), ``deadline`` (None if there is none), ``shield`` and
        ``nursery``; of a cancellation ``reason``, ``source``, ``by`` and the number of that task
        (``by_task``); of a request ``request``, ``outcome`` and ``reason``.
    """

    at: float
    kind: str
    task: int | None = None
    facts: Facts = attrs.field(factory=dict)

    def as_json(self) -> list[Any]:
        """The same as a list of values of JSON."""
        return [self.at, self.kind, self.task, dict(self.facts)]


def event_of(value: object) -> RecordedEvent:
    """An event, as `RecordedEvent.as_json` has told it.

    Raises:
      ValueError: it is none; the message says what is wrong.
    """
    match value:
        case [int() | float() as at, str() as kind, int() | None as task, dict() as facts]:
            if kind not in KINDS:
                raise ValueError(
                    f"{kind!r} is no kind of event; expected one of {', '.join(KINDS)}"
                )
            return RecordedEvent(float(at), kind, task, facts)
    raise ValueError(f"an event is [time, kind, task, facts], not {value!r:.200}")
