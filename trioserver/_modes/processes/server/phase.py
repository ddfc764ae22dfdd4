"""The phases of a worker as its server sees it, and which may follow which.

::

    STARTING -> IDLE <-> BUSY
                 |  ^      |
                 v  |      v
               LEAVING -> ENDING -> GONE        from each phase: ENDING
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a worker is there for, and whether it will have another request."""

    STARTING = "it is not ready for a request yet"
    IDLE = "it is ready, and has none"
    BUSY = "it has a request, or is about to"
    LEAVING = "it has its last request, or has had it, and another one is to take its place"
    ENDING = "it has no request any more, and is to end"
    GONE = "it has ended, or is given up"

    @property
    def stays(self) -> bool:
        """Whether it will have another request than the one that it has."""
        return self in {Phase.STARTING, Phase.IDLE, Phase.BUSY}

    def to(self, following: Phase) -> Phase:
        """Check that ``following`` may follow this phase, and return it.

        Raises:
          RuntimeError: it may not; a fault of the library.
        """
        if following not in _FOLLOWING[self]:
            raise RuntimeError(f"a worker does not go from {self.name} to {following.name}")
        return following


_FOLLOWING = {
    Phase.STARTING: {Phase.IDLE, Phase.ENDING},
    Phase.IDLE: {Phase.BUSY, Phase.LEAVING, Phase.ENDING},
    # IDLE: done; or the request was cancelled before the worker had it.
    Phase.BUSY: {Phase.IDLE, Phase.ENDING},
    # IDLE: none could be started in its place, so it stays.
    Phase.LEAVING: {Phase.IDLE, Phase.ENDING},
    Phase.ENDING: {Phase.GONE},
    Phase.GONE: set(),
}
