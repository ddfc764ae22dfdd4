"""One look at the servers for all viewers: taken when somebody watches, and not too often.

A look that costs much is taken less often, so that at most a twentieth of the time goes into it,
however many requests there are; and viewers that want the same share what was made of it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence

import attrs
import trio

import trioserver

from .._lints.linter import BLOCKED_LOOP, Linter
from .._text.finding import Finding
from .._tree.taking import task_tree
from .._tree.tree import TaskTree
from .query import Query
from .state import Look, state_of

SHARE = 1 / 20
"""Of the time, that may go into looking."""

MOST_QUERIES = 16
"""Different queries that are answered from one look; further ones get what is the oldest's."""

BLOCKS_ARE_SHOWN = 60.0
"""Seconds for which a blocked loop is told of: nobody can look while it lasts."""

MOST_BLOCKS = 20


@attrs.define(eq=False)
class Feed:
    """What viewers are shown, as it was a moment ago at most.

    Attributes:
      servers: whose.
      interval: the shortest number of seconds between two looks.
      control: whether viewers may give orders.
      linter: looks for what is wrong.
    """

    servers: Sequence[trioserver.BaseServer]
    interval: float
    control: bool
    linter: Linter
    _look: Look | None = None
    _made: dict[Query, bytes] = attrs.field(factory=dict)
    _cost: float = 0.0  # seconds of the last look, and of all that was made of it
    _late: float = 0.0  # seconds by which a viewer was shown a state too late, since the last look
    _blocks: deque[tuple[float, Finding]] = attrs.field(factory=lambda: deque(maxlen=MOST_BLOCKS))

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
            findings = [finding.as_json() for finding in self._findings(tree, snapshots)]
            self._look = Look(snapshots, tree, findings)
            self._made.clear()
            self._cost = time.perf_counter() - began
        return self._look

    def note_late(self, seconds: float) -> None:
        """Note that the loop has come too late to a viewer, so that it may have been blocked."""
        self._late = max(self._late, seconds)

    def _findings(
        self, tree: TaskTree, snapshots: Sequence[trioserver.ServerSnapshot]
    ) -> list[Finding]:
        found = self.linter.look(tree, snapshots, due=tree.at - self._late)
        self._late = 0.0
        self._blocks += [(tree.at, it) for it in found if it.lint == BLOCKED_LOOP]
        while self._blocks and self._blocks[0][0] < tree.at - BLOCKS_ARE_SHOWN:
            self._blocks.popleft()
        if any(it.task is not None for it in found):
            # Once more, in the same step, with where the tasks wait: messages have that, too.
            found = self.linter.look(task_tree(), snapshots)
        blocks = [_told_later(block, tree.at - at) for at, block in self._blocks]
        return [*blocks, *(it for it in found if it.lint != BLOCKED_LOOP)]

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


def _told_later(finding: Finding, seconds: float) -> Finding:
    if seconds < 1:
        return finding
    return attrs.evolve(finding, message=f"{seconds:.0f} s ago: {finding.message}")


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
        self._feed.note_late(trio.current_time() - self._last)
