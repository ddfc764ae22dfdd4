"""The last events, of which there are never more than a limit."""

from __future__ import annotations

from collections import deque

import attrs

from .events import Facts, PlainEvent, RecordedEvent
from .state import State


@attrs.define(eq=False)
class Ring:
    """Holds the last events. An older one is dropped, and what it has changed is kept.

    Attributes:
      limit: how many events it holds.
      dropped: how many it holds no more.
      base: what there was before the first event that it holds.
      base_at: when the last one of those was that it holds no more; None if it holds all.
    """

    limit: int
    dropped: int = 0
    base: State = attrs.field(factory=State)
    base_at: float | None = None
    # Plain tuples, which are made in a third of the time: most are never looked at.
    _events: deque[PlainEvent] = attrs.field(factory=deque)

    def note(self, at: float, kind: str, task: int | None, facts: Facts) -> None:
        """Hold one more event, and drop the oldest one if there are too many."""
        self._events.append((at, kind, task, facts))
        if len(self._events) > self.limit:
            oldest = RecordedEvent(*self._events.popleft())
            self.base.apply([oldest])
            self.base_at = oldest.at
            self.dropped += 1

    def events(self) -> list[PlainEvent]:
        """All that it holds, the oldest first."""
        return list(self._events)
