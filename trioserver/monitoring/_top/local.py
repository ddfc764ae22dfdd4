"""What the servers of this very program are like, for a screen that is shown by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

import trioserver

from .._tree.taking import task_tree
from .._tree.tree import TaskTree
from .feed import Message
from .state import STATE_VERSION, state_of
from .view import View

MOST = 256
"""Requests of each server, or worker, that are shown: the oldest."""


@attrs.define
class Local:
    """A `Source` that is this program."""

    _servers: Sequence[trioserver.BaseServer]
    _interval: float

    async def follow(self, view: View, changed: Callable[[], None]) -> None:
        """Have the view show what the servers are like."""
        while True:
            for message in view.update(state_of(self._state())):
                self.order(message, view)
            changed()
            await trio.sleep(self._interval)

    def order(self, message: Message, view: View) -> None:
        """Do it."""
        if "show" in message:
            view.take_detail(self._request(message["show"]))
        elif "control" in message:
            view.message = self._cancel(message["control"])

    def _state(self) -> Message:
        return {
            "type": "state",
            "version": STATE_VERSION,
            "at": trio.current_time(),
            "time": time.time(),
            "pid": os.getpid(),
            "control": True,
            "dropped": 0,
            "servers": [_as_json(server.snapshot()) for server in self._servers],
            "findings": [],
        }

    def _request(self, which: Message) -> Message:
        snapshot = self._servers[which["server"]].snapshot()
        requests = snapshot.requests
        if "worker" in which:
            of = [worker for worker in snapshot.workers if worker.pid == which["worker"]]
            requests = of[0].requests if of else ()
        found = next((one for one in requests if one.info.id == which["request"]), None)
        told: dict[str, Any] = {"server": which["server"], "request": None, "text": ""}
        if found is not None:
            told["request"] = found.as_json()
            if found.task is not None:
                tree = task_tree()
                told["text"] = str(TaskTree(tree.at, tree.below(found.task)))
        return told

    def _cancel(self, which: Message) -> str:
        if "worker" in which:
            return "nothing was done: a worker serves it"
        number = which["request"]
        if self._servers[which["server"]].cancel_request(number, reason="cancelled by hand"):
            return f"request {number} is cancelled"
        return f"request {number} has ended"


def _as_json(snapshot: trioserver.ServerSnapshot) -> dict[str, Any]:
    """A snapshot as values of JSON, with at most so many requests of each process."""
    hidden = max(0, len(snapshot.requests) - MOST)
    hidden += sum(max(0, len(worker.requests) - MOST) for worker in snapshot.workers)
    workers = tuple(attrs.evolve(it, requests=it.requests[:MOST]) for it in snapshot.workers)
    shown = attrs.evolve(snapshot, requests=snapshot.requests[:MOST], workers=workers)
    return {**shown.as_json(), "hidden": hidden}
