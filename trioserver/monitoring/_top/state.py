"""What a monitor tells of its program, as values; all text in them is fit to be shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from .._text.words import printable
from .lines import lines_of
from .parts import MonitorError, Row, ServerLine, WorkerLine

STATE_VERSION = 1
"""Of the form of what a monitor tells, as far as this can read it."""

_GREATEST = 1e15
"""What is greater makes no sense, and is too great for some of what shows it."""


@attrs.frozen
class MonitorState:
    """A program and its servers at one instant, as its monitor has told; ``str()`` shows it.

    Beside what is below, ``servers`` has a line for each server, and ``rows`` one for each request
    of all of them, in which names are fit to be shown.

    Attributes:
      at: when, by the program's Trio clock.
      time: the same by the system's clock, as of `time.time`.
      pid: the program's process.
      control: whether the monitor lets who asks cancel requests.
      dropped: what was not told, since too much had to be.
      findings: what is odd, a line each.
    """

    at: float
    time: float
    pid: int
    control: bool
    dropped: int
    servers: tuple[ServerLine, ...]
    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    _message: Mapping[str, Any] = attrs.field(repr=False, eq=False)

    def as_json(self) -> Mapping[str, Any]:
        """What the monitor has told, as values of JSON."""
        return self._message

    def __str__(self) -> str:
        lines = lines_of(self.pid, self.servers, self.rows, self.findings)
        return "\n".join(line.rstrip() for line in lines)


def state_of(message: Mapping[str, Any]) -> MonitorState:
    """What a message of a monitor tells.

    Raises:
      MonitorError: it is of another version, or something in it is not what it should be.
    """
    if message.get("type") != "state":
        raise MonitorError(f"a state was expected, not {_in_short(message.get('type'))}")
    if message.get("version") != STATE_VERSION:
        version = _in_short(message.get("version"))
        raise MonitorError(
            f"the monitor speaks version {version}, and this trioserver only {STATE_VERSION}"
        )
    try:
        servers = message["servers"]
        return MonitorState(
            _number(message["at"]),
            _number(message["time"]),
            _count(message["pid"]),
            bool(message["control"]),
            _count(message["dropped"]),
            tuple(map(_server, servers)),
            tuple(_rows(servers)),
            tuple(map(_finding, message["findings"])),
            message,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise MonitorError(f"what the monitor tells makes no sense: {_in_short(problem)}") from None


def _number(told: Any) -> float:
    """A number that can be shown as a time, be it one on a clock."""
    number = float(told)
    if not abs(number) < _GREATEST:
        raise ValueError(f"a number is {number}")
    return number


def _count(told: Any) -> int:
    number = int(told)
    if not 0 <= number < _GREATEST:
        raise ValueError(f"a count is {_in_short(number)}")
    return number


def _in_short(it: object) -> str:
    return printable(str(it), 100)


def _server(told: Mapping[str, Any]) -> ServerLine:
    counts = told["statistics"]
    return ServerLine(
        printable(str(told["name"])),
        printable(str(told["state"])),
        _number(told["uptime"]),
        tuple(printable(str(listener["address"])) for listener in told["listeners"]),
        None if told.get("slots") is None else _count(told["slots"]),
        _count(counts["active"]),
        _count(counts["accepted"]),
        sum(map(_count, counts["outcomes"].values())),
        _count(counts["waiting"]),
        _count(counts["refused"]),
        _count(told.get("hidden", 0)),
        tuple(map(_worker, told["workers"])),
    )


def _worker(told: Mapping[str, Any]) -> WorkerLine:
    counts = told["statistics"]
    return WorkerLine(
        _count(told["pid"]),
        _count(told["generation"]),
        printable(str(told["state"])),
        _count(counts["active"]),
        _count(counts["accepted"]),
    )


def _rows(servers: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for number, server in enumerate(servers):
        yield from (_row(number, None, request) for request in server["requests"])
        for worker in server["workers"]:
            pid = _count(worker["pid"])
            yield from (_row(number, pid, request) for request in worker["requests"])


def _row(server: int, worker: int | None, told: Mapping[str, Any]) -> Row:
    left = told["time_left"]
    return Row(
        (server, worker, _count(told["id"])),
        printable(str(told["client"])),
        printable(str(told["listener"])),
        printable(str(told["mode"])),
        printable(str(told["state"])),
        _number(told["age"]),
        math.inf if left is None else _number(left),
        _count(told["bytes_received"]),
        _count(told["bytes_sent"]),
    )


def _finding(told: Mapping[str, Any]) -> str:
    return f"{printable(str(told['lint']))}: {printable(str(told['message']))}"
