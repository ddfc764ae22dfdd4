"""What somebody looks at, and what each key does: plain values, no terminal and no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from .detail import lines_of_request
from .feed import Message
from .parts import Key, Rate
from .rates import rates_between
from .selection import Selection
from .state import MonitorState

LONGEST_FILTER = 100

_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}

WATCH: Message = {"watch": {}}
"""That the monitor should tell of something else: whoever sends it fills it; see `View.watch`."""


@attrs.define
class View:
    """What is looked at, and how.

    Attributes:
      shown: what the program is like; None until that is known.
      rates: of its servers.
      lost: why there is nothing newer; ``""`` if there is.
      mode: ``table``, ``filter`` (it is typed), ``detail``, ``ask`` (y or n) or ``help``.
      table: the requests.
      paused: whether what is new is kept back.
      detail: the lines that tell of one request.
      scrolled: the first of these that is seen.
      message: what has come of the last order.
      question: what is to be answered with y or n.
      log: the last lines that the program has logged, if it is this one; else None.
      ended: whether nobody wants to look any more.
    """

    shown: MonitorState | None = None
    rates: Sequence[Rate | None] = ()
    lost: str = ""
    mode: str = "table"
    table: Selection = attrs.field(factory=Selection)
    paused: bool = False
    detail: Sequence[str] = ()
    scrolled: int = 0
    message: str = ""
    question: str = ""
    log: Sequence[str] | None = None
    ended: bool = False
    _newest: MonitorState | None = None
    _of: Key | None = None
    _order: Message | None = None

    # What is heard --------------------------------------------------------------------

    def update(self, state: MonitorState) -> list[Message]:
        """The program is like this now; what the monitor has to be asked in turn."""
        self.lost = ""
        rates, self._newest = rates_between(self._newest, state), state
        if not self.paused or self.shown is None:
            self.rates = rates
            self._show(state)
        return self._ask_for_detail()

    def lose(self, why: str) -> None:
        """Nothing more is heard; what is shown gets old."""
        self.lost = why

    def take_detail(self, message: Message) -> None:
        """The monitor has told of one request."""
        if self._of is not None and message.get("server") == self._of[0]:
            self.detail = lines_of_request(message)

    def _show(self, state: MonitorState) -> None:
        self.shown = state
        self.table.take(state.rows)

    # What is typed --------------------------------------------------------------------

    def press(self, key: str) -> list[Message]:
        """A key was pressed; what the monitor has to be told."""
        does = {
            "table": self._press_in_table,
            "filter": self._press_in_filter,
            "detail": self._press_in_detail,
            "ask": self._press_at_question,
            "help": self._press_in_help,
        }
        self.message = ""
        return does[self.mode](key)

    def _press_in_table(self, key: str) -> list[Message]:
        far = len(self.table.rows)
        steps = {**self._steps(), "home": -far, "end": far}
        if key in steps:
            self.table.move(steps[key])
        elif key == "q":
            self.ended = True
        elif key in {"?", "/"}:
            self.mode = "help" if key == "?" else "filter"
        elif key == "p":
            self._pause()
        elif key in {"s", "S", "esc"}:
            return self._choose(key)
        elif key == "enter":
            return self._enter()
        elif key == "c":
            self._ask_to_cancel()
        return []

    def _steps(self) -> Mapping[str, int]:
        return {**_STEPS, "page up": -self.table.page, "page down": self.table.page}

    def _choose(self, key: str) -> list[Message]:
        """Other rows, or in another order."""
        if key == "s":
            self.table.sort_by_the_next()
        elif key == "S":
            self.table.turn_around()
        elif not self.table.only:
            return []
        else:
            self.table.filter_by("")
        return [WATCH]

    def _pause(self) -> None:
        self.paused = not self.paused
        if not self.paused and self._newest is not None:
            self._show(self._newest)

    def _enter(self) -> list[Message]:
        row = self.table.row
        if row is None:
            return []
        self.table.move(0)  # it stays selected, even if it was only the first
        self.mode, self._of, self.detail, self.scrolled = "detail", row.key, (), 0
        return self._ask_for_detail()

    def _press_in_filter(self, key: str) -> list[Message]:
        typed = self.table.only
        if key in {"esc", "enter"}:
            self.mode = "table"
            return []
        if key != "backspace" and (len(key) > 1 or len(typed) >= LONGEST_FILTER):
            return []
        self.table.filter_by(typed[:-1] if key == "backspace" else typed + key)
        return [WATCH]

    def _press_in_detail(self, key: str) -> list[Message]:
        steps = self._steps()
        if key in {"esc", "q"}:
            self.mode, self._of = "table", None
        elif key in steps:
            last = max(0, len(self.detail) - 1)
            self.scrolled = max(0, min(self.scrolled + steps[key], last))
        elif key == "c":
            self._ask_to_cancel()
        return []

    def _press_at_question(self, key: str) -> list[Message]:
        order, self._order = self._order, None
        self.mode = "table" if self._of is None else "detail"
        if key == "y" and order is not None:
            return [order]
        self.message = "nothing was done"
        return []

    def _press_in_help(self, key: str) -> list[Message]:
        self.mode = "table"
        return []

    # What the monitor is told ---------------------------------------------------------

    def watch(self, interval: float, most: int) -> Message:
        """What it is to tell of."""
        sort = f"-{self.table.sort}" if self.table.reverse else self.table.sort
        more = {"sort": sort, "filter": self.table.only}
        return {"watch": {"interval": interval, "most": most, **more}}

    def _ask_for_detail(self) -> list[Message]:
        return [] if self._of is None else [{"show": _names_of(self._of)}]

    def _ask_to_cancel(self) -> None:
        row = self.table.row
        key = self._of or (row and row.key)
        if not key:
            return
        if self.shown is None or not self.shown.control:
            self.message = "the monitor lets nobody cancel: it was started without control"
            return
        self._order = {"control": {"do": "cancel", **_names_of(key)}}
        self.question = f"Cancel request {key[2]}? y/n"
        self.mode = "ask"


def _names_of(key: Key) -> Mapping[str, int]:
    server, worker, number = key
    names = {"server": server, "request": number}
    return names if worker is None else {**names, "worker": worker}
