"""What viewers are shown: the servers and their tasks at one instant, as values of JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

import trioserver

from .._text.servers import request_in_words
from .._tree.tree import TaskTree
from .query import Query

VERSION = 1
"""Of the protocol, and of the form of a state."""

MOST_TASKS = 500
"""Tasks that a state lists."""

_KEYS: dict[str, Callable[[trioserver.RequestSnapshot], Any]] = {
    "age": lambda it: -it.age,
    "left": lambda it: it.time_left,
    "in": lambda it: -it.bytes_received,
    "out": lambda it: -it.bytes_sent,
    "id": lambda it: it.info.id,
    "state": lambda it: it.state,
    "client": lambda it: str(it.info.client_address),
}


@attrs.frozen
class Look:
    """One look at the servers.

    Attributes:
      snapshots: the servers, in their order.
      tree: the tasks of this process, without where they wait.
      findings: what is odd about them, as values of JSON.
      time: when, by the system's clock, as of `time.time`.
    """

    snapshots: Sequence[trioserver.ServerSnapshot]
    tree: TaskTree
    findings: Sequence[dict[str, Any]] = ()
    time: float = attrs.field(factory=time.time)


def state_of(look: Look, query: Query, *, control: bool) -> dict[str, Any]:
    """What a viewer with such a query is shown.

    Args:
      look: at the servers.
      query: what the viewer wants.
      control: whether it may give orders.
    """
    tasks = look.tree.tasks
    shown = attrs.evolve(look.tree, tasks=tasks[:MOST_TASKS])
    return {
        "type": "state",
        "version": VERSION,
        "at": look.tree.at,
        "time": look.time,
        "pid": os.getpid(),
        "interval": query.interval,
        "control": control,
        "servers": [_server(snapshot, query) for snapshot in look.snapshots],
        "tasks": {**shown.as_json(), "hidden": len(tasks) - len(shown.tasks)},
        "findings": list(look.findings),
    }


def _server(snapshot: trioserver.ServerSnapshot, query: Query) -> dict[str, Any]:
    requests, hidden = _chosen(snapshot.requests, query)
    workers = [_chosen(worker.requests, query) for worker in snapshot.workers]
    shown = attrs.evolve(
        snapshot,
        requests=requests,
        workers=tuple(
            attrs.evolve(worker, requests=chosen)
            for worker, (chosen, _) in zip(snapshot.workers, workers, strict=True)
        ),
    )
    facts = {**shown.as_json(), "hidden": hidden}
    facts["workers"] = [
        {**worker, "hidden": left_out}
        for worker, (_, left_out) in zip(facts["workers"], workers, strict=True)
    ]
    return facts


def _chosen(
    requests: Sequence[trioserver.RequestSnapshot], query: Query
) -> tuple[tuple[trioserver.RequestSnapshot, ...], int]:
    """The requests that are listed, and how many are not."""
    found = requests
    if query.filter:
        found = [it for it in requests if query.filter in request_in_words(it).casefold()]
    if query.sort != "age":  # the oldest come first anyway
        key = _KEYS[query.sort.removeprefix("-")]
        found = sorted(found, key=key, reverse=query.sort.startswith("-"))
    chosen = tuple(found[: query.most])
    return chosen, len(requests) - len(chosen)


def request_of(
    snapshot: trioserver.ServerSnapshot, number: int, worker: int | None
) -> trioserver.RequestSnapshot | None:
    """One request of a server; None if it has ended.

    Args:
      snapshot: the server.
      number: the id of the request, which each worker counts for itself.
      worker: the process id of the worker that serves it; None: it is served here.
    """
    of_workers = {it.pid: it.requests for it in snapshot.workers}
    requests = snapshot.requests if worker is None else of_workers.get(worker, ())
    return next((it for it in requests if it.info.id == number), None)
