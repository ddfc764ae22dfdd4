"""What a view looks like on a terminal of this size: lines, each with a style; a pure function."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from .cells import cut, left, wrapped
from .lines import head, row_line, server_line, worker_line
from .state import MonitorState
from .view import View

Line: TypeAlias = tuple[str, str]
"""A text, and its style: a name of `terminal.STYLES`."""

_KEYS = "q quit  s/S sort  / filter  enter detail  p pause  c cancel  ? help"
_HELP = """
up, down, k, j      select a request
page up, page down  the same, a screen at a time
home, end           the first, the last

enter               one request, and where its tasks wait; esc: back
/                   type a text that shown requests have somewhere; esc or enter: done
esc                 show all of them again
s                   sort by the next column
S                   sort the other way round
p                   keep this picture, or go on
c                   cancel the selected request, if the monitor allows it
q                   quit

LEFT is the part of its time that a request has left; dots: it may take for ever.
""".splitlines()


def picture(view: View, width: int, height: int, where: str = "") -> list[Line]:
    """As many lines as the terminal has, none wider than it is.

    It tells the view how many rows have room, so that paging knows.

    Args:
      view: what is looked at.
      width: columns.
      height: lines.
      where: what is watched, for the title.
    """
    above = [_title(view, where), *_servers(view, max(1, height // 3))]
    below = [*_log(view, height // 4), *_findings(view, width, max(1, height // 4)), _footer(view)]
    room = max(0, height - len(above) - len(below))
    lines = above + _middle(view, width, room) + below
    if len(lines) > height:  # a terminal of a few lines: its title, and what can be typed
        lines = [*lines[: max(0, height - 1)], below[-1]][:height]
    return [(left(text, width), style) for text, style in lines]


def _title(view: View, where: str) -> Line:
    told = ["trioserver top"]
    if view.lost:
        told.append(f"STALE: {view.lost}")
    if view.paused:
        told.append("PAUSED")
    told.append(where)
    if view.shown is not None:
        clock = time.strftime("%H:%M:%S", time.localtime(view.shown.time))
        told += [f"process {view.shown.pid}", clock]
        if view.shown.dropped:
            told.append(f"dropped {view.shown.dropped}")
    return "  ".join(filter(None, told)), "alarm" if view.lost else "title"


def _servers(view: View, most: int) -> Iterator[Line]:
    state = view.shown
    if state is None:
        return
    lines = list(_each_server(view, state))
    shown = lines if len(lines) <= most else lines[: most - 1]
    yield from shown
    if len(shown) < len(lines):
        yield f"and {len(lines) - len(shown)} more servers and workers", "dim"


def _each_server(view: View, state: MonitorState) -> Iterator[Line]:
    for number, server in enumerate(state.servers):
        rate = view.rates[number] if number < len(view.rates) else None
        yield server_line(server, rate), "plain" if server.state == "serving" else "warning"
        for worker in server.workers:
            yield worker_line(worker), "plain" if worker.state == "serving" else "warning"


def _middle(view: View, width: int, room: int) -> list[Line]:
    """The table, or what stands in its place."""
    if view.mode == "help":
        lines: Sequence[Line] = [(line, "plain") for line in _HELP]
    elif view.mode == "detail" or (view.mode == "ask" and view.detail):
        view.table.fit(room - 1)
        lines = [(line, "plain") for line in view.detail[view.scrolled :] or ["..."]]
    else:
        lines = list(_table(view, width, room))
    return [*lines[:room], *[("", "plain")] * (room - len(lines))]


def _table(view: View, width: int, room: int) -> Iterator[Line]:
    table = view.table
    table.fit(room - 1)
    yield head(width, table.sort, reverse=table.reverse), "head"
    chosen = table.row
    for row in table.visible:
        yield row_line(row, width), "selected" if row is chosen else _style_of(row.state)
    if not table.rows and view.shown is not None:
        yield "no requests" if not table.only else f"no request has {table.only!r}", "dim"


def _style_of(state: str) -> str:
    return {"idle": "dim", "closing": "warning", "arriving": "good"}.get(state, "plain")


def _log(view: View, most: int) -> list[Line]:
    """The last lines that the program has logged."""
    return [] if view.log is None or most < 1 else [(it, "dim") for it in view.log[-most:]]


def _findings(view: View, width: int, most: int) -> Iterator[Line]:
    """All of them whole, if there is room for that; else the first ones, a line each."""
    findings = view.shown.findings if view.shown is not None else ()
    whole = [line for finding in findings for line in wrapped(f"! {finding}", width)]
    if len(whole) <= most:
        yield from ((line, "warning") for line in whole)
        return
    shown = findings if len(findings) <= most else findings[: most - 1]
    yield from ((f"! {finding}", "warning") for finding in shown)
    if len(shown) < len(findings):
        yield f"! {len(findings) - len(shown)} more findings", "warning"


def _footer(view: View) -> Line:
    if view.mode == "ask":
        return view.question, "alarm"
    if view.mode == "filter":
        return f"filter: {view.table.only}_", "title"
    if view.mode == "help":
        return "any key: back", "title"
    if view.message:
        return view.message, "warning"
    if view.mode == "detail":
        return "esc back  up/down scroll  c cancel", "title"
    return "  ".join([_KEYS, *_about_rows(view)]), "title"


def _about_rows(view: View) -> Iterator[str]:
    """Which rows these are, of how many."""
    table = view.table
    if table.only:
        yield f"[filter: {cut(table.only, 20)}]"
    if table.rows:
        yield f"{table.index + 1} of {len(table.rows)}"
    if hidden := sum(server.hidden for server in view.shown.servers) if view.shown else 0:
        yield f"and {hidden} not told of"
