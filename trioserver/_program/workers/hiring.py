"""How the process of a worker is started, and what it gets: sockets, and a place to be seen at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from ..._facts.address import given_sockets
from ..._modes.processes.protocol.frames import pack
from ..._modes.processes.protocol.log import levels
from ..._modes.processes.server.spawn import Recipe, Spawned, spawn
from ..._modes.processes.server.starter import Starter
from ..._sockets.inherited import inheritance
from . import inside
from .branch import Branch
from .scoreboard import Scoreboard, new_scoreboard
from .setup import Part, Setup

GENERATIONS = 4
"""How many generations of workers there may be at once: one serves, and others drain yet."""


@attrs.define(eq=False)
class Hiring:
    """Starts workers.

    Args:
      given: what they make the servers of; see `setup.packed`.
      branches: the servers.
      wanted: how many workers there are to be.
      total_requests: how many requests a server may have at once, in all workers together;
        None: each worker as many as the server says.

    Attributes:
      free: places that nobody has.
    """

    _given: bytes
    _branches: Sequence[Branch]
    _wanted: int
    _total_requests: int | None
    free: list[int] = attrs.field(init=False)
    _board: int = -1
    _scores: Scoreboard = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.free = list(range(self._places))

    @property
    def _places(self) -> int:
        return GENERATIONS * self._wanted

    @contextmanager
    def open(self) -> Iterator[None]:
        """Have a scoreboard in the block."""
        self._board = new_scoreboard(len(self._branches), self._places)
        try:
            self._scores = Scoreboard(self._board, len(self._branches), self._places)
            yield
        finally:
            os.close(self._board)

    @property
    def is_short_of_places(self) -> bool:
        """Whether those that are left are for workers that have to be replaced."""
        return len(self.free) <= self._wanted

    def leave(self, place: int) -> None:
        """Note that nobody is at a place any more."""
        self._scores.clear(place)
        self.free.append(place)

    def setup(self, seat: int, place: int) -> Setup:
        """What a worker is told that is going to have this seat, and this place."""
        return Setup(
            given=self._given,
            parts=[self._part(branch, seat) for branch in self._branches],
            levels=levels(),
            place=place,
            places=self._places,
        )

    def _part(self, branch: Branch, seat: int) -> Part:
        sockets = _numbers(branch)
        requests = None
        if self._total_requests is not None:
            requests = share_of(self._total_requests, seat, self._wanted)
        return Part(
            name=type(branch.server).__name__,
            sockets=len(sockets),
            has_sockets=bool(given_sockets(branch.server._server_address)),
            inherited=[name for it in sockets if (name := inheritance.taken.get(it)) is not None],
            requests=requests,
            is_suspended=branch.is_suspended,
        )

    async def start(self, setup: Setup, is_late: Callable[[], bool]) -> Spawned:
        """Start a worker's process.

        Args:
          setup: what it is told.
          is_late: whether a cancellation means that it has taken too long.

        Raises:
          WorkerStartError: it could not be started.
        """
        sockets = [number for branch in self._branches for number in _numbers(branch)]
        lent = _Lent([self._board, *sockets], pack(setup))
        try:
            spawned: Spawned = await Starter("spawn", (), lent.spawn, 0.0).start(is_late)
        finally:
            lent.give_up()
        return spawned


class _Lent:
    """Descriptors of its own for a start, in whose thread the originals may be closed already."""

    def __init__(self, numbers: Iterable[int], setup: bytes) -> None:
        self._setup = setup
        self._lock = threading.Lock()
        self._is_used = False
        self._numbers: list[int] = []
        with ExitStack() as made:
            for number in numbers:
                self._numbers.append(os.dup(number))
                made.callback(os.close, self._numbers[-1])
            self._stack = made.pop_all()

    def spawn(self, method: str) -> Spawned:
        """Start the worker, in a thread; they are closed then."""
        with self._lock:
            self._is_used = True
        # It may have workers of its own, those of process mode, so it is not daemonic.
        recipe = Recipe(inside.main, self._setup, self._numbers, is_daemonic=False)
        with self._stack:
            return spawn(method, recipe)

    def give_up(self) -> None:
        """Close them, unless a thread has them."""
        with self._lock:
            if not self._is_used:
                self._stack.close()


def share_of(total: int, seat: int, seats: int) -> int:
    """What one of several has of a total; all together have all of it."""
    share, rest = divmod(total, seats)
    return share + (seat < rest)


def _numbers(branch: Branch) -> Sequence[int]:
    """The descriptors of a branch's sockets; none any more if it drains."""
    return [] if branch.drains else [one.fileno() for one in branch.listeners]
