"""The listeners of a run: one owner, which all parts of the run look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from .._facts.address import Address
from .._sockets.transport import Listener


@attrs.define(eq=False)
class Listeners:
    """Where clients come from; closed ones stay, so that their addresses are known."""

    _all: tuple[Listener, ...] = ()

    def own(self, listeners: Sequence[Listener]) -> None:
        """Take over listeners, in the place of those that there are."""
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
        """Datagrams that were lost before anybody could take them, as far as listeners tell."""
        return sum(getattr(listener, "dropped", 0) for listener in self._all)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
