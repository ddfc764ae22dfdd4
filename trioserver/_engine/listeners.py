"""The listeners of a run, in one object that all parts of the run look at."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import attrs

from .._facts.address import Address, describe
from .._sockets.transport import HandsOver, Listener


@attrs.define(eq=False)
class Listeners:
    """Where clients come from. Closed listeners stay, so that their addresses are known.

    Attributes:
      are_given_away: whether their queues are somebody else's now.
    """

    _all: tuple[Listener, ...] = ()
    are_given_away: bool = False

    def own(self, listeners: Sequence[Listener]) -> None:
        """Own these listeners from now on, instead of those that it had."""
        self._all = tuple(listeners)

    def close(self) -> None:
        """Close all of them. Twice is once."""
        for listener in self._all:
            listener.close()

    def duplicates(self) -> tuple[socket.socket, ...]:
        """One more socket for each queue; the caller's.

        Raises:
          RuntimeError: a listener has no socket that could be given to anybody.
          OSError: there is no descriptor left; none is kept.
        """
        made: list[socket.socket] = []
        try:
            for listener in self._all:
                if not isinstance(listener, HandsOver):
                    where = describe(listener.address)
                    raise RuntimeError(  # noqa: TRY004  (of what is asked for, not of an argument)
                        f"the listener at {where} has no socket to hand over"
                    )
                made.append(listener.duplicate())
        except BaseException:
            for sock in made:
                sock.close()
            raise
        return tuple(made)

    def leave(self) -> None:
        """Close all of them, and leave their queues to those who have the `duplicates`."""
        for listener in self._all:
            if isinstance(listener, HandsOver):
                listener.leave()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of all listeners, also of closed ones."""
        return tuple(listener.address for listener in self._all)

    @property
    def dropped(self) -> int:
        """How many datagrams were lost before the server took them, as far as listeners know."""
        return sum(getattr(listener, "dropped", 0) for listener in self._all)

    def queued(self) -> list[int | None]:
        """How many clients wait to be accepted, at each; None where nobody knows."""
        return [getattr(listener, "queued", None) for listener in self._all]

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
