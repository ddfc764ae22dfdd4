"""What viewers ask for beside the states: one request in detail, and orders, if allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trioserver

from .._text.servers import request_in_words
from .._tree.taking import task_tree
from .query import BadQuery
from .state import request_of

ORDERS = ("cancel", "suspend", "resume", "drain")


def detail_of(servers: Sequence[trioserver.BaseServer], facts: object) -> dict[str, Any]:
    """One request, with its tasks, and where each of them waits.

    Args:
      servers: those that are watched.
      facts: an object with ``server``, its number from 0, ``request``, the id, and ``worker``,
        the process that serves it, if a worker does.

    Raises:
      BadQuery: there is no such server, or something else was sent.
    """
    server = _server(servers, facts)
    number = _whole_number(facts, "request")
    found = request_of(servers[server].snapshot(), number, _worker(facts))
    answer: dict[str, Any] = {"type": "request", "server": server, "request": None, "tasks": []}
    if found is None:
        return {**answer, "text": f"there is no request {number}: it has ended, or never was"}
    answer["request"] = found.as_json()
    if found.task is None:
        said = "it is served by another process, which logs its tasks at SIGUSR1"
        return {**answer, "text": f"{request_in_words(found)}\n{said}"}
    whole = task_tree()
    below = type(whole)(whole.at, whole.below(found.task))
    return {**answer, "tasks": below.as_json()["tasks"], "text": str(below)}


def obey(
    servers: Sequence[trioserver.BaseServer], facts: object, *, allowed: bool
) -> dict[str, Any]:
    """Do what a viewer orders; what has come of it.

    Args:
      servers: those that are watched.
      facts: an object with ``do``, one of `ORDERS`, ``server`` and, to cancel, ``request``.
      allowed: whether viewers may give orders at all.

    Raises:
      BadQuery: they may not, or something else was sent.
    """
    if not allowed:
        raise BadQuery("this monitor only shows; Monitor(..., allow_control=True) obeys, too")
    what = facts.get("do") if isinstance(facts, Mapping) else None
    if what not in ORDERS:
        raise BadQuery(f"do must be one of {', '.join(ORDERS)}, not {what!r}")
    number = _server(servers, facts)
    server, name = servers[number], type(servers[number]).__name__
    if what == "cancel":
        request = _whole_number(facts, "request")
        if _worker(facts) is not None:
            raise BadQuery("requests of workers cannot be cancelled from here")
        if not server.cancel_request(request, "a viewer of the monitor has cancelled it"):
            raise BadQuery(f"{name} has no request {request} that could be cancelled here")
        return _done(f"request {request} of {name} is cancelled")
    orders: dict[str, tuple[Callable[[], object], str]] = {
        "suspend": (server.suspend, "accepts nobody until it is resumed"),
        "resume": (server.resume, "accepts again"),
        "drain": (server.shutdown, "drains"),
    }
    act, said = orders[what]
    try:
        act()
    except RuntimeError as error:
        raise BadQuery(f"{name}: {error}") from error
    return _done(f"{name} {said}")


def _done(message: str) -> dict[str, Any]:
    return {"type": "done", "message": message}


def _server(servers: Sequence[trioserver.BaseServer], facts: object) -> int:
    number = _whole_number(facts, "server")
    if number >= len(servers):
        raise BadQuery(f"server must be from 0 to {len(servers) - 1}, not {number}")
    return number


def _worker(facts: object) -> int | None:
    """The worker whose request is meant; None: the program's own."""
    is_named = isinstance(facts, Mapping) and facts.get("worker") is not None
    return _whole_number(facts, "worker") if is_named else None


def _whole_number(facts: object, name: str) -> int:
    value = facts.get(name) if isinstance(facts, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadQuery(f"{name} must be a whole number of at least 0, not {value!r}")
    return value
