"""Time-outs of idle connections: one task for all of a server, and no cancel scope in each.

A cancel scope around a wait costs as much as the wait, and 700 bytes of each idle connection. So
the waits for input of a server, which all have about the same time-out, are in a queue: those of
the same number of seconds end in the order in which they began. To begin and to end one is to
put it in and to take it out, whatever else is there. One task sleeps until the first one is due,
as of when it fell asleep, and looks again.

Who is due is woken where it waits, in its transport (`Transport.wake_reader`), and judges by
itself what that means. What a task is cancelled for comes first, as it does with a scope.

Without that task, in a worker process say, there are no alarms, and a wait has its scope. When it
has ended before a wait, which is in a shielded scope then, that one begins anew with a scope.
"""

from __future__ import annotations

import math
from typing import Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

MOST_EMPTY_QUEUES = 16
"""Time-outs of which there is no wait, but that are kept in mind."""


class Alarm(Protocol):
    """A wait in the queue.

    Attributes:
      seconds: its time-out.
      deadline: when that is over, by the Trio clock.
    """

    seconds: float
    deadline: float

    def ring(self) -> None:
        """End it: its time is up."""

    def wake(self) -> None:
        """Have it wait by other means: there are no alarms any more."""


@attrs.define(eq=False)
class Alarms:
    """The waits of a server that have a time-out."""

    _queues: dict[float, dict[Alarm, None]] = attrs.field(factory=dict)
    _sleep: trio.CancelScope | None = None

    def set(self, alarm: Alarm) -> None:
        """Have it ring at its deadline."""
        queue = self._queues.get(alarm.seconds)
        if queue is None:
            queue = self._queues[alarm.seconds] = {}
        if not queue and self._sleep is not None and alarm.deadline < self._sleep.deadline:
            self._sleep.deadline = alarm.deadline
        queue[alarm] = None

    def clear(self, alarm: Alarm) -> None:
        """Have it not ring. Twice is once."""
        queue = self._queues.get(alarm.seconds, {})
        queue.pop(alarm, None)
        if not queue and len(self._queues) > MOST_EMPTY_QUEUES:
            self._queues.pop(alarm.seconds, None)

    @enable_ki_protection
    async def ring(self) -> None:
        """Ring each one when it is due, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._next_deadline()) as self._sleep:
                await trio.sleep_forever()
            self._ring_those_due(trio.current_time())

    def _next_deadline(self) -> float:
        firsts = (next(iter(queue)).deadline for queue in self._queues.values() if queue)
        return min(firsts, default=math.inf)

    def _ring_those_due(self, now: float) -> None:
        for queue in self._queues.values():
            while queue and (first := next(iter(queue))).deadline <= now:
                del queue[first]
                first.ring()

    def wake_all(self) -> None:
        """Have nobody wait for an alarm any more."""
        for queue in self._queues.values():
            for alarm in list(queue):
                alarm.wake()
