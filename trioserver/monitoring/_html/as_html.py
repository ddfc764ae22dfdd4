"""Anything that is seen, as one document of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

import trioserver

from .._text.servers import counts_in_words
from .._text.words import describe, duration, printable, size
from .._tree.text import scope_in_words, shown_places
from .._tree.tree import TaskTree
from .._tree.views import TaskView
from .style import STYLE

Seen = TaskTree | trioserver.ServerSnapshot


def as_html(it: Seen | Sequence[Seen], *, title: str = "trioserver") -> str:
    """A tree of tasks, a server, or several of these, as a document of HTML.

    It has no script, asks nobody for anything, and can be kept as a file. What clients and programs
    have named is text in it, with its control characters escaped.

    Args:
      it: what `task_tree` or `trioserver.BaseServer.snapshot` has returned, or a list of those.
      title: of the document.

    Raises:
      TypeError: it is something else.
    """
    several = list(it) if isinstance(it, (list, tuple)) else [it]
    body = "\n".join(part for one in several for part in _parts(one))
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n{body}\n</body></html>\n"
    )


def _parts(it: object) -> Iterator[str]:
    if isinstance(it, TaskTree):
        yield "<h2>Tasks</h2>"
        yield from _tasks(it)
    elif isinstance(it, trioserver.ServerSnapshot):
        yield from _server(it)
    else:
        raise TypeError(f"a TaskTree or a ServerSnapshot was expected, not {it!r}")


def _text(text: str) -> str:
    return escape(printable(text))


# Tasks ------------------------------------------------------------------------------


def _tasks(tree: TaskTree) -> Iterator[str]:
    """Nested lists: each task is an item, with those below it in a list of its own."""
    depth = -1
    base = tree.tasks[0].depth if tree.tasks else 0
    for task in tree.tasks:
        level = task.depth - base
        if level > depth:
            yield "<ul>" * (level - depth)
        else:
            yield "</li>" + "</ul></li>" * (depth - level)
        depth = level
        yield f"<li>{''.join(_task(task, tree.at))}"
    if depth >= 0:
        yield "</li></ul>" * (depth + 1)


def _task(task: TaskView, now: float) -> Iterator[str]:
    yield f"<b>{_text(task.name)}</b>"
    for scope in task.scopes:
        if words := scope_in_words(scope, now):
            kind = "bad" if scope.cancelled else "quiet"
            yield f' <span class="badge {kind}">{escape(words)}</span>'
    for code, line in shown_places(task.stack):
        place = f"{code.co_filename}:{line} in {code.co_name}"
        yield f"<br><code>{_text(place)}</code>"


# Servers ----------------------------------------------------------------------------


def _server(it: trioserver.ServerSnapshot) -> Iterator[str]:
    yield f'<h2>{_text(it.name)} <span class="badge">{escape(it.state)}</span></h2>'
    yield f"<p>up {duration(it.uptime)}, {escape(counts_in_words(it.statistics))}</p>"
    for listener in it.listeners:
        state = "accepting" if listener.accepting else "not accepting"
        queued = f", {listener.queued} in the queue" if listener.queued else ""
        yield f"<p>{escape(describe(listener.address))} <i>{state}{queued}</i></p>"
    yield from _requests(it.requests, "Requests")
    for worker in it.workers:
        yield from _requests(worker.requests, f"Worker {worker.pid}, {worker.state}")


_COLUMNS = ("id", "client", "listener", "mode", "state", "age", "left", "in", "out")


def _requests(requests: Sequence[trioserver.RequestSnapshot], title: str) -> Iterator[str]:
    yield f"<details open><summary>{escape(title)}: {len(requests)}</summary>"
    if requests:
        heads = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
        yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>'
        yield from (_row(_cells(request)) for request in requests)
        yield "</tbody></table></div>"
    yield "</details>"


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _cells(it: trioserver.RequestSnapshot) -> Iterator[str]:
    info = it.info
    yield str(info.id)
    yield escape(describe(info.client_address))
    yield escape(describe(info.server_address))
    yield escape(info.mode)
    yield f'<span class="badge">{escape(it.state)}</span>'
    yield f"{it.age:.1f} s"
    yield _bar(it.age, it.time_left)
    yield size(it.bytes_received)
    yield size(it.bytes_sent)


def _bar(age: float, left: float) -> str:
    """How much of its time a request has left."""
    if not math.isfinite(left):
        return "no deadline"
    whole = max(age + left, 1e-9)
    share = max(0.0, min(1.0, left / whole))
    return f'<meter min="0" max="1" value="{share:.3f}"></meter> {left:.1f} s'
