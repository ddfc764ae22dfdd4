"""A rolling restart: all workers are replaced, one by one, by some that run the code as it is now.

The new one lets clients in before the old one stops, so there are never fewer than are wanted. The
first that does not get ready ends the restart, and the old ones stay.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Protocol

import attrs
import trio

from ..._facts.observers import error_log, log_safely
from ..._modes.processes.protocol.errors import WorkerStartError
from ..notices import program_log
from .worker import Worker


class Seats(Protocol):
    """Where workers sit, and who has them come and go."""

    wanted: int
    generation: int

    @property
    def is_closing(self) -> bool:
        """Whether nobody is to be started any more."""

    def a_start(self) -> AbstractContextManager[None]:
        """A block that is cancelled when nobody is to be started any more."""

    def at(self, seat: int) -> Worker | None:
        """Who sits there."""

    async def hire(self, seat: int) -> Worker:
        """Start a worker, and wait until it lets clients in."""

    def sit(self, seat: int, worker: Worker) -> None:
        """Have a worker at a seat; who was there leaves."""

    async def until_there_is_a_place(self) -> None:
        """Wait until one more can be started, beside those that have to be replaced."""


@attrs.define(eq=False)
class RollingRestart:
    """The restarts of one program, of which there is one at a time."""

    _seats: Seats
    _is_ordered: bool = False
    _is_over: trio.Event | None = None  # of those that are going on
    _why_not: str = ""

    async def order(self) -> str:
        """Replace all workers; why that was given up, or ``""``.

        Of orders that come meanwhile, one more restart comes, and all of them wait for it.
        """
        self._is_ordered = True
        if self._is_over is not None:
            await self._is_over.wait()
            return self._why_not
        self._is_over, self._why_not = trio.Event(), ""
        try:
            with self._seats.a_start():
                while self._is_ordered and not self._seats.is_closing:
                    self._is_ordered = False
                    self._why_not = await self._renew_all()
        finally:
            self._is_over.set()
            self._is_over = None
        return self._why_not

    async def _renew_all(self) -> str:
        seats = self._seats
        seats.generation += 1
        message = "SIGHUP: %d workers are replaced, one by one"
        log_safely(program_log, logging.INFO, message, seats.wanted)
        for seat in range(seats.wanted):
            await seats.until_there_is_a_place()
            there = seats.at(seat)
            if there is not None and there.generation == seats.generation:
                continue  # one that has ended meanwhile was replaced already
            try:
                worker = await seats.hire(seat)
            except WorkerStartError as error:
                message = "the rolling restart ends, and the old workers stay: %s"
                log_safely(error_log, logging.ERROR, message, error)
                return "a new worker did not get ready"
            seats.sit(seat, worker)
        message = "all %d workers were replaced (generation %d)"
        log_safely(program_log, logging.INFO, message, seats.wanted, seats.generation)
        return ""
