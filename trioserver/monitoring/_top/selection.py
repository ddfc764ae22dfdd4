"""A table of requests: sorted, filtered, one of them selected, and as many seen as have room."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from .parts import Key, Row

SORTS: Mapping[str, tuple[Callable[[Row], Any], bool]] = {
    "age": (operator.attrgetter("age"), True),
    "left": (operator.attrgetter("left"), False),
    "in": (operator.attrgetter("received"), True),
    "out": (operator.attrgetter("sent"), True),
    "client": (operator.attrgetter("client"), False),
    "state": (operator.attrgetter("state"), False),
    "id": (lambda row: row.key[2], False),
}
"""What rows are sorted by, and whether the greatest one comes first."""


@attrs.define
class Selection:
    """Rows in their order, and which of them is selected.

    Attributes:
      sort: what they are sorted by, a name of ``SORTS``.
      reverse: whether the other way round.
      only: a text that shown rows have somewhere.
      rows: all of them that are left.
      index: where the selected one is.
      page: rows that have room on the screen.
      key: which one is selected; None as long as nobody has moved, which is the first one.
    """

    sort: str = "age"
    reverse: bool = False
    only: str = ""
    rows: Sequence[Row] = ()
    index: int = 0
    page: int = 10
    key: Key | None = None
    _all: Sequence[Row] = ()
    _first: int = 0

    @property
    def visible(self) -> Sequence[Row]:
        """The rows that have room."""
        return self.rows[self._first : self._first + self.page]

    @property
    def row(self) -> Row | None:
        """The selected one; None if there is no row."""
        return self.rows[self.index] if self.rows else None

    def take(self, rows: Sequence[Row]) -> None:
        """These are the rows now."""
        self._all = rows
        self._arrange()

    def sort_by_the_next(self) -> None:
        """Sort them by something else."""
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + 1) % len(names)]
        self.reverse = False
        self._arrange()

    def turn_around(self) -> None:
        """Sort them the other way round."""
        self.reverse = not self.reverse
        self._arrange()

    def filter_by(self, text: str) -> None:
        """Leave only those that have this somewhere; capitals or not is all the same."""
        self.only = text
        self._arrange()

    def fit(self, page: int) -> None:
        """So many have room."""
        self.page = max(1, page)
        self._scroll()

    def move(self, steps: int) -> None:
        """Select the row that is so many below."""
        self._go_to(self.index + steps)
        if self.rows:
            self.key = self.rows[self.index].key

    def _arrange(self) -> None:
        """Sort and filter; what is selected stays so, wherever it is now.

        One that is gone stays selected, too, in case it comes back, and another has its place.
        """
        wanted = self.only.casefold()
        rows = [row for row in self._all if wanted in _text_of(row)] if wanted else self._all
        key, is_falling = SORTS[self.sort]
        self.rows = sorted(rows, key=key, reverse=is_falling != self.reverse)
        places = (place for place, row in enumerate(self.rows) if row.key == self.key)
        self._go_to(next(places, self.index if self.key is not None else 0))

    def _go_to(self, index: int) -> None:
        self.index = max(0, min(index, len(self.rows) - 1))
        self._scroll()

    def _scroll(self) -> None:
        """Have the selected one among those that are seen, and no room left below the last."""
        first = max(self._first, self.index - self.page + 1)
        self._first = max(0, min(first, self.index, len(self.rows) - self.page))


def _text_of(row: Row) -> str:
    """What a filter looks at."""
    worker = "" if row.key[1] is None else f"worker {row.key[1]}"
    parts = (str(row.key[2]), row.client, row.listener, worker, row.mode, row.state)
    return " ".join(parts).casefold()
