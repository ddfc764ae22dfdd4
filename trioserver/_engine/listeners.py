"""The listeners of a run, in one object that all parts of the run look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from .._facts.address import Address
from .._sockets.transport import Listener


@attrs.define(eq=False)
class Listeners:
    """Where clients come from. Closed listeners stay, so that their addresses are known."""

    _all: tuple[Listener, ...] = ()

    def own(self, listeners: Sequence[Listener]) -> None:
        """Own these listeners from now on, instead of those that it had."""
        self._all = tuple(listeners)

    def close(self) -> None:
        """Close all of them. Twice is once."""
        for listener in self._all:
            listener.close()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of all listeners, also of closed ones."""
        return tuple(listener.address for listener in self._all)

    @property
    def dropped(self) -> int:
        """How many datagrams were lost before the server took them, as far as listeners know."""
        return sum(getattr(listener, "dropped", 0) for listener in self._all)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
