"""The slots of a server, and how many of them one client may hold.

A client that waits for a slot waits in the kernel: a slot is free before the accept, and
taken in the same step. It is given back when the request's outcome is decided, so the limit
is exact: there is never one request more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import attrs
from trio.lowlevel import ParkingLot

from .._facts.config import Limits

MOST_TURNED_AWAY = 256
"""Clients that are told at once that the server is full. More are reset: one that is slow to
arrive, or to listen, must not keep the next one from being told."""


@attrs.define(eq=False)
class Slots:
    """Counts slots, and lets tasks wait for a free one.

    Attributes:
      free: slots that nobody holds.
      suspended: whether there is room for nobody, for now.
      turning_away: clients that a ``when_full`` function tells so, or that arrive for that.
    """

    _limits: Limits
    _most: int
    free: int = attrs.field(init=False)
    suspended: bool = False
    turning_away: int = 0
    _by_client: Counter[Hashable] = attrs.field(factory=Counter)
    _changed: ParkingLot = attrs.field(factory=ParkingLot)

    def __attrs_post_init__(self) -> None:
        self.free = self._most

    def has_room(self) -> bool:
        """Whether one more client may be accepted, be it to turn it away."""
        return not self.suspended and (self.free > 0 or self._limits.when_full != "wait")

    def may_turn_away(self) -> bool:
        """Whether one more client may be told that there is no slot."""
        return self.turning_away < MOST_TURNED_AWAY

    async def wait_for_room(self) -> None:
        """Wait until one more client may be accepted. No checkpoint if it may be now."""
        while not self.has_room():
            await self._changed.park()

    def suspend(self) -> None:
        """Have no room until `resume`, whatever is free."""
        self.suspended = True

    def resume(self) -> None:
        """Have room again, and wake all tasks that wait for it."""
        self.suspended = False
        self._changed.unpark_all()

    def is_full_for(self, client: Hashable) -> bool:
        """Whether ``client`` holds as many slots as one client may."""
        return self._limits.per_client is not None and (
            self._by_client[client] >= self._limits.per_client
        )

    def take(self, client: Hashable = None) -> None:
        """Take a slot for ``client``. None is a client that is not counted."""
        self.free -= 1
        if client is not None:
            self.count(client)

    def count(self, client: Hashable) -> None:
        """Count one more slot for ``client``, which has it already."""
        self._by_client[client] += 1

    def give_back(self, client: Hashable = None) -> None:
        """Give a slot back, and wake all tasks that wait for one.

        It wakes all of them because the first may find no client on its listener,
        while another listener has one.
        """
        self.free += 1
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                # One entry for each client that is here, not for all that ever were.
                del self._by_client[client]
        if self._changed:
            self._changed.unpark_all()

    def turned_away(self) -> None:
        """Note that a client was told; it never had a slot."""
        self.turning_away -= 1
