"""What a recorder has noted, as a value: it can be kept, sent, and replayed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from .._tree.tree import TaskTree
from .chrome import chrome_trace
from .events import PlainEvent, RecordedEvent, event_of
from .state import State

RECORDING_VERSION = 1
"""Of the form that `Recording.as_json` has; it changes when a field changes or goes."""

_SCHEMA = "trioserver.recording"


@attrs.frozen(kw_only=True)
class Recording:
    """What has happened in a Trio program, up to an instant.

    Attributes:
      events: what has happened, the oldest first; at most as many as the recorder's limit.
      base: what there was before the first of them, as events that bring it about: what those
        that were dropped have left.
      dropped: how many events there were between the beginning and the first one in ``events``.
      started: when the recording began, by the Trio clock.
      exact_from: from when on the tree of each instant is known: ``started``, or the time of the
        last event that was dropped.
      ended: when it was taken, by the Trio clock.
    """

    events: tuple[RecordedEvent, ...]
    base: tuple[RecordedEvent, ...] = ()
    dropped: int = 0
    started: float
    exact_from: float
    ended: float

    def tree(self, at: float | None = None) -> TaskTree:
        """The tasks as they were at an instant, after all that has happened in it.

        It is what `task_tree` returned then, but for the numbers of tasks, which are those of the
        recording, and where each task waited. The task that called ``cancel()`` is told without
        its address; requests, without the system's time and what a proxy has said.

        Args:
          at: by the Trio clock; None: when the recording ended.

        Raises:
          ValueError: it is before ``exact_from``, or after ``ended``.
        """
        at = self.ended if at is None else at
        if not self.exact_from <= at <= self.ended:
            span = f"from {self.exact_from} to {self.ended}"
            raise ValueError(f"the trees of this recording are known {span}, not at {at!r}")
        state = State().apply(self.base)
        return state.apply(event for event in self.events if event.at <= at).tree(at)

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON, as `json.dumps` takes them."""
        return {
            "schema": _SCHEMA,
            "version": RECORDING_VERSION,
            "started": self.started,
            "exact_from": self.exact_from,
            "ended": self.ended,
            "dropped": self.dropped,
            "base": [event.as_json() for event in self.base],
            "events": [event.as_json() for event in self.events],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recording:
        """The recording that `as_json` has told.

        Raises:
          ValueError: it is none, or of another version; the message says what is wrong.
        """
        is_object = isinstance(value, Mapping)
        told = (value.get("schema"), value.get("version")) if is_object else value
        if told != (_SCHEMA, RECORDING_VERSION):
            raise ValueError(
                f"{_SCHEMA!r} of version {RECORDING_VERSION} is expected, not {told!r:.99}"
            )
        try:
            return cls(
                events=tuple(map(event_of, value["events"])),
                base=tuple(map(event_of, value["base"])),
                dropped=int(value["dropped"]),
                started=float(value["started"]),
                exact_from=float(value["exact_from"]),
                ended=float(value["ended"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a recording lacks something: {error!r}") from error

    def as_chrome_trace(self) -> dict[str, Any]:
        """The same in the trace event format of Chrome, which Perfetto opens; values of JSON.

        A lane for each task, in which its scopes lie; requests, marks and cancellations as
        instants, those by another task with an arrow from it. Times are microseconds since
        ``started``.
        """
        return chrome_trace(self.base, self.events, self.started, self.ended)


def recording_of(events: Iterable[PlainEvent], **facts: Any) -> Recording:
    """The recording that has these events, and all else as `Recording` has it."""
    return Recording(events=tuple(RecordedEvent(*event) for event in events), **facts)


def json_of(recording: Recording) -> Iterator[str]:
    """The text of its JSON, event by event: all at once would keep all other threads waiting."""
    told = recording.as_json()
    lists = {name: told.pop(name) for name in ("base", "events")}
    yield json.dumps(told, separators=(",", ":"))[:-1]
    for name, events in lists.items():
        yield f',"{name}":['
        for number, event in enumerate(events):
            yield ("," if number else "") + json.dumps(event, separators=(",", ":"))
        yield "]"
    yield "}"
