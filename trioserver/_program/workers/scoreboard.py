"""How many clients each worker holds: numbers in memory that all of them share."""

from __future__ import annotations

import mmap
import os

from ..._engine.peers import Peers
from ..._modes.processes.protocol.files import new_file

_BYTES = 8
"""Of one number."""


class Scoreboard:
    """For each server two rows of numbers, with a place for each worker that there may be at once.

    What they mean is told by `Peers`.
    """

    def __init__(self, number: int, servers: int, places: int) -> None:
        """Map the file with the descriptor ``number``, which can be closed then.

        Args:
          number: of a file of `new_scoreboard`, for as many servers and places.
          servers: how many servers there are.
          places: how many workers there may be at once.
        """
        self._places, self._servers = places, servers
        self._numbers = memoryview(mmap.mmap(number, _size(servers, places))).cast("q")

    def peers(self, server: int, place: int) -> Peers:
        """How one worker sees the others, of one server."""
        return Peers(self._row(2 * server), self._row(2 * server + 1), place)

    def clear(self, place: int) -> None:
        """Note that nobody is at this place."""
        for server in range(self._servers):
            self.peers(server, place).leave()

    def _row(self, number: int) -> memoryview:
        return self._numbers[number * self._places : (number + 1) * self._places]


def new_scoreboard(servers: int, places: int) -> int:
    """The descriptor of a file for a `Scoreboard` without anybody."""
    number = new_file()
    os.ftruncate(number, _size(servers, places))
    board = Scoreboard(number, servers, places)
    for place in range(places):
        board.clear(place)
    return number


def _size(servers: int, places: int) -> int:
    return 2 * servers * places * _BYTES
