"""One look at the servers for all viewers: taken when somebody watches, and not too often.

A look that costs much is taken less often, so that at most a twentieth of the time goes into it,
however many requests there are; and viewers that want the same share what was made of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import trio

import trioserver

from .._text.finding import Finding
from .._tree.taking import task_tree
from .._tree.tree import TaskTree
from .query import Query
from .state import Look, state_of

SHARE = 1 / 20
"""Of the time, that may go into looking."""

MOST_QUERIES = 16
"""Different queries that are answered from one look; further ones get what is the oldest's."""

Lints: TypeAlias = Callable[[TaskTree, Sequence[trioserver.ServerSnapshot]], Sequence[Finding]]
"""Looks for what is odd."""


@attrs.define(eq=False)
class Feed:
    """What viewers are shown, as it was a moment ago at most.

    Attributes:
      servers: whose.
      interval: the shortest number of seconds between two looks.
      control: whether viewers may give orders.
      lints: looks for what is odd.
    """

    servers: Sequence[trioserver.BaseServer]
    interval: float
    control: bool
    lints: Lints
    _look: Look | None = None
    _made: dict[Query, bytes] = attrs.field(factory=dict)
    _cost: float = 0.0  # seconds of the last look, and of all that was made of it

    @property
    def pause(self) -> float:
        """Seconds between two looks, now."""
        return max(self.interval, self._cost / SHARE)

    def look(self) -> Look:
        """The servers, as they are now or were less than `pause` ago."""
        if self._look is None or trio.current_time() - self._look.tree.at >= self.pause * 0.9:
            began = time.perf_counter()
            snapshots = [server.snapshot() for server in self.servers]
            tree = task_tree(stacks=False)
            findings = [finding.as_json() for finding in self.lints(tree, snapshots)]
            self._look = Look(snapshots, tree, findings)
            self._made.clear()
            self._cost = time.perf_counter() - began
        return self._look

    def state(self, query: Query) -> bytes:
        """What a viewer with such a query is shown: an object of JSON, but for its last brace."""
        look = self.look()
        if query not in self._made:
            if len(self._made) >= MOST_QUERIES:
                return next(iter(self._made.values()))
            began = time.perf_counter()
            facts = state_of(look, query, control=self.control)
            self._made[query] = json.dumps(facts, separators=(",", ":")).encode()[:-1]
            self._cost += time.perf_counter() - began
        return self._made[query]


def with_dropped(state: bytes, dropped: int) -> bytes:
    """A state for one viewer, which has missed so many."""
    return b'%b,"dropped":%d}' % (state, dropped)


@attrs.define(eq=False)
class Beat:
    """When a viewer is to be shown the next state, and how many it has missed so far."""

    _feed: Feed
    dropped: int = 0
    _last: float = attrs.field(factory=trio.current_time)

    async def next(self, query: Query) -> None:
        """Wait until it is time."""
        pause = max(query.interval, self._feed.pause)
        missed = int((trio.current_time() - self._last) / pause) if pause else 0
        if missed:
            self.dropped += missed
            self._last = trio.current_time()
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep_until(self._last + pause)
        self._last += pause
