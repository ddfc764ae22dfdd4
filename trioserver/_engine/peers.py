"""Others that accept from the same listening sockets: the workers of a program.

Whoever looks first has the next client, and that is commonly the same one again: of 400
connections that came 3 ms apart, four workers of plain Trio got 186, 131, 82 and 1. So whoever
holds well more than somebody else waits for a moment, and lets that one look first.

The rules this file keeps:

* Nobody waits for somebody who does not come: as soon as a pause passes in which none of the
  others has accepted anybody, the client is taken. So a worker that hangs costs one pause.
* What is shared are numbers of which each has one writer, read without a lock: they are as right
  as a look at another process can be, and no more is needed.
"""

from __future__ import annotations

from collections.abc import Hashable

import attrs
import trio

from .._facts.config import Limits
from .slots import Slots

PAUSE = 0.002
"""Seconds for the others to accept somebody. It takes a tenth of that, unless they are at work."""

MOST_PAUSES = 5
"""Pauses in a row, while others do accept. A client waits for 10 ms at most."""

SLACK = 2
"""Clients that one may hold more than another, so that few of them cost nobody a pause."""

SLACK_SHARE = 8
"""The same, as the part of what that one holds: an eighth, of which a mean is well kept."""

ABSENT = 1 << 62
"""The number of somebody who is not there: never the smallest."""


@attrs.define(eq=False)
class Peers:
    """One of those who share the sockets of one server, and its look at the others.

    Args:
      held: how many clients each of them holds, by its place; or `ABSENT`.
      accepted: how many each of them has accepted so far.
      place: this one's.
    """

    _held: memoryview
    _accepted: memoryview
    _place: int
    _is_there: bool = False

    def come(self, held: int) -> None:
        """Be one of them from now on, who holds so many."""
        self._is_there = True
        self._held[self._place] = held

    def leave(self) -> None:
        """Be none of them any more: nobody leaves clients to this one."""
        self._is_there = False
        self._held[self._place] = ABSENT

    def accepted_one(self) -> None:
        """Note that this one has accepted one more."""
        self._accepted[self._place] += 1

    def holds(self, held: int) -> None:
        """Note how many this one holds now."""
        if self._is_there:
            self._held[self._place] = held

    async def give_way(self) -> None:
        """Let others accept who hold less, if they do. No checkpoint where that is not needed."""
        for _ in range(MOST_PAUSES):
            if not self._is_ahead():
                return
            before = self._accepted_by_others()
            await trio.sleep(PAUSE)
            if self._accepted_by_others() == before:
                return

    def _is_ahead(self) -> bool:
        least = min(self._held)
        return self._held[self._place] > least + max(SLACK, least // SLACK_SHARE)

    def _accepted_by_others(self) -> int:
        return sum(self._accepted) - self._accepted[self._place]


@attrs.define(eq=False)
class SharedSlots(Slots):
    """Slots whose use the peers see.

    Args:
      peers: those.
    """

    _peers: Peers = attrs.field(kw_only=True)

    def take(self, client: Hashable = None) -> None:
        """Take a slot for ``client``."""
        Slots.take(self, client)
        self._peers.accepted_one()
        self._peers.holds(self._most - self.free)

    def give_back(self, client: Hashable = None) -> None:
        """Give a slot back, and wake all tasks that wait for one."""
        Slots.give_back(self, client)
        self._peers.holds(self._most - self.free)

    def suspend(self) -> None:
        """Have no room until `resume`, so that nobody leaves clients to this one."""
        Slots.suspend(self)
        self._peers.leave()

    def resume(self) -> None:
        """Have room again."""
        Slots.resume(self)
        self._peers.come(self._most - self.free)


def slots_of(limits: Limits, most: int, peers: Peers | None) -> Slots:
    """The slots of a run, which may have peers."""
    if peers is None:
        return Slots(limits, most)
    return SharedSlots(limits, most, peers=peers)
