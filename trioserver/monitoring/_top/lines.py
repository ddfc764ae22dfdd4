"""Servers and requests as lines of text that fit into so many columns."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

from .._text.words import duration, size
from .cells import left, right
from .parts import Rate, Row, ServerLine, WorkerLine

_WIDTHS = {"id": 6, "mode": 4, "state": 9, "age": 6, "left": 11, "in": 7, "out": 7}
_CLIENT = (15, 48)
_WHERE = (8, 48)
"""At least, and at most."""

_AN_ADDRESS = 15
_ORDER = ("id", "client", "where", "mode", "state", "age", "left", "in", "out")
_LEFT_OUT = ("mode", "where", "out", "in", "left", "age", "state")
"""Which columns are left out where there is no room, the first one first."""

_MODES = {"thread": "thrd", "process": "proc"}
_BAR = 4
_FOR_A_FILE = 120
"""Columns of a picture that is not of a terminal."""


@functools.lru_cache(16)
def columns(width: int) -> tuple[tuple[str, int], ...]:
    """The columns of a table of requests, and how wide each is."""
    names = list(_ORDER)
    for name in _LEFT_OUT:
        if _taken(names) <= width:
            break
        names.remove(name)
    widths = {**_WIDTHS, "client": _CLIENT[0], "where": _WHERE[0]}
    rest = max(0, width - _taken(names))
    if "where" in names:  # what an IPv4 address takes, first
        widths["where"] += min(rest, _AN_ADDRESS - _WHERE[0])
        rest -= min(rest, _AN_ADDRESS - _WHERE[0])
    for_client = min(rest * 3 // 5 if "where" in names else rest, _CLIENT[1] - _CLIENT[0])
    widths["client"] += for_client
    widths["where"] += min(rest - for_client, _WHERE[1] - _AN_ADDRESS)
    return tuple((name, widths[name]) for name in names)


def _taken(names: Sequence[str]) -> int:
    """The least that columns take, with a space between each two."""
    least = {**_WIDTHS, "client": _CLIENT[0], "where": _WHERE[0]}
    return sum(least[name] for name in names) + len(names) - 1


_AT_THE_RIGHT = {"id", "age", "in", "out"}


def head(width: int, sort: str = "", *, reverse: bool = False) -> str:
    """The names of the columns; the one that the rows are sorted by is marked."""
    marks = {sort: "^" if reverse else "v"}
    cells = []
    for name, wide in columns(width):
        title = name.upper() + marks.get(name, "")
        cells.append(right(title, wide) if name in _AT_THE_RIGHT else left(title, wide))
    return left(" ".join(cells), width)


def row_line(row: Row, width: int) -> str:
    """One request."""
    cells = []
    for name, wide in columns(width):
        if name == "id":
            cells.append(right(str(row.key[2]), wide))
        elif name == "client":
            cells.append(left(row.client, wide))
        elif name == "where":
            cells.append(left(_end_of(where(row), wide), wide))
        elif name == "mode":
            cells.append(left(_MODES.get(row.mode, row.mode), wide))
        elif name == "state":
            cells.append(left(row.state, wide))
        elif name == "age":
            cells.append(right(short_time(row.age), wide))
        elif name == "left":
            cells.append(f"{bar(row)} {right(short_time(row.left), wide - _BAR - 1)}")
        else:
            number = row.received if name == "in" else row.sent
            cells.append(right(size(number).replace(" ", ""), wide))
    return left(" ".join(cells), width)


def where(row: Row) -> str:
    """What serves a request: a worker, or this listener."""
    return row.listener if row.key[1] is None else f"worker {row.key[1]}"


def _end_of(text: str, width: int) -> str:
    """The end of an address says more than its beginning."""
    return text if len(text) <= width else f"~{text[len(text) - width + 1 :]}"


def bar(row: Row) -> str:
    """How much of its time a request has left; dots if nothing ends it."""
    if row.left == math.inf:
        return "." * _BAR
    whole = max(row.age + row.left, 1e-9)
    full = math.ceil(_BAR * min(max(row.left / whole, 0.0), 1.0))
    return "=" * full + "-" * (_BAR - full)


def short_time(seconds: float) -> str:
    """A time in six columns: ``12.5s``, ``12m05s``, ``3h04m``, ``12d``; ``-``: it never comes."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 100:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d"


def server_line(server: ServerLine, rate: Rate | None = None) -> str:
    """One server, with what it does in a second."""
    slots = "" if server.slots is None else f"/{server.slots}"
    told = [
        server.name,
        server.state,
        f"up {duration(server.uptime)}",
        f"active {server.active}{slots}",
    ]
    if rate is not None:
        told.append(f"+{rate.accepted:.1f}/s -{rate.ended:.1f}/s")
    told.append(f"total {server.accepted}")
    numbers = (("waiting", server.waiting), ("turned away", server.refused))
    told += [f"{what} {number}" for what, number in numbers if number]
    told += [f"on {', '.join(server.listeners)}"] if server.listeners else []
    return "  ".join(told)


def worker_line(worker: WorkerLine) -> str:
    """One worker of a server."""
    return (
        f"  worker {worker.pid}  {worker.state}  generation {worker.generation}"
        f"  active {worker.active}  total {worker.accepted}"
    )


def lines_of(
    pid: int, servers: Sequence[ServerLine], rows: Sequence[Row], findings: Sequence[str]
) -> Iterator[str]:
    """All of it, for a file or a pipe."""
    yield f"process {pid}"
    for server in servers:
        yield server_line(server)
        yield from map(worker_line, server.workers)
    for finding in findings:
        yield f"! {finding}"
    yield head(_FOR_A_FILE)
    yield from (row_line(row, _FOR_A_FILE) for row in rows)
    if hidden := sum(server.hidden for server in servers):
        yield f"and {hidden} more"
