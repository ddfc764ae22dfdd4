"""A recording in the trace event format of Chrome, for Perfetto and its like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from .._tree.scopes import printable
from .events import RecordedEvent

_PROCESS = 1
_PROGRAM = 0
"""The lane of what is in no task."""


def chrome_trace(
    base: Iterable[RecordedEvent], events: Iterable[RecordedEvent], started: float, ended: float
) -> dict[str, Any]:
    """Tasks as lanes, scopes and lives as spans, all else as instants."""
    trace = _Trace(started)
    for event in base:
        trace.add(attrs.evolve(event, at=max(event.at, started)))
    for event in events:
        trace.add(event)
    trace.end(ended)
    return {"displayTimeUnit": "ms", "traceEvents": [*trace.lanes(), *trace.told]}


@attrs.define(eq=False)
class _Trace:
    started: float
    told: list[dict[str, Any]] = attrs.field(factory=list)
    _names: dict[int, str] = attrs.field(factory=dict)
    _open: dict[tuple[str, int], RecordedEvent] = attrs.field(factory=dict)  # what has not ended
    _flows: int = 0

    def add(self, event: RecordedEvent) -> None:
        match event.kind:
            case "task_started":
                self._names[event.task or 0] = printable(event.facts["name"])
                self._open["task", event.task or 0] = event
            case "scope_opened":
                self._open["scope", event.facts["scope"]] = event
            case "task_ended":
                self._end(("task", event.task or 0), event.at)
            case "scope_closed":
                self._end(("scope", event.facts["scope"]), event.at)
            case "scope_cancelled":
                self._instant(event, f"cancelled: {event.facts['reason'] or event.facts['source']}")
                self._arrow(event)
            case "task_moved" | "task_request" | "scope_changed":
                self._instant(event, event.kind)
            case "mark":
                self._instant(event, event.facts["text"])
            case _:
                self._instant(event, event.kind)

    def _end(self, key: tuple[str, int], at: float) -> None:
        if (began := self._open.pop(key, None)) is None:
            return
        name = began.facts["name"] if key[0] == "task" else f"scope {key[1]}"
        self._tell("X", name, began, dur=self._micros(at) - self._micros(began.at))

    def _instant(self, event: RecordedEvent, name: str) -> None:
        self._tell("i", name, event, s="g" if event.task is None else "t")

    def _arrow(self, event: RecordedEvent) -> None:
        if (by := event.facts["by_task"]) is None or by == event.task:
            return
        self._flows += 1
        from_there = attrs.evolve(event, task=by)
        self._tell("i", "cancels", from_there, s="t")
        self._tell("s", "cancel", from_there, id=self._flows)
        self._tell("f", "cancel", event, id=self._flows, bp="e")

    def _tell(self, phase: str, name: str, event: RecordedEvent, **more: Any) -> None:
        self.told.append(
            {
                "ph": phase,
                "name": printable(name),
                "cat": event.kind,
                "pid": _PROCESS,
                "tid": event.task or _PROGRAM,
                "ts": self._micros(event.at),
                "args": dict(event.facts),
                **more,
            }
        )

    def _micros(self, at: float) -> float:
        return round((at - self.started) * 1e6, 3)

    def lanes(self) -> Iterator[dict[str, Any]]:
        """What the lanes are called, in the order of their numbers."""
        for number, name in {_PROGRAM: "the program", **self._names}.items():
            whose = {"ph": "M", "pid": _PROCESS, "tid": number}
            yield {**whose, "name": "thread_name", "args": {"name": f"{name} ({number})"}}
            yield {**whose, "name": "thread_sort_index", "args": {"sort_index": number}}

    def end(self, ended: float) -> None:
        """What has not ended goes on to the end."""
        for key in list(self._open):
            self._end(key, ended)
