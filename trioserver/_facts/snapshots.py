"""A server and its requests at one instant, as values, and as values of JSON.

In JSON an address is a text, as people write it; a time that never comes is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs

from .address import Address, describe
from .events import RequestInfo, Statistics
from .json_values import finite

SNAPSHOT_VERSION = 1
"""Of the form that `ServerSnapshot.as_json` has; it changes when a field changes or goes."""


class RequestSnapshot(NamedTuple):  # thousands are made at once, while all tasks wait
    """One request at one instant.

    Attributes:
      info: which request.
      state: ``arriving``, ``working``, ``reading``, ``writing``, ``idle`` or
        ``closing``.
      age: seconds since the accept.
      time_left: seconds until ``Timeouts.request`` (or the handler's own
        deadline) ends it; ``inf`` if nothing does.
      bytes_received: so far.
      bytes_sent: so far.
      task: the number of its task, as in `trioserver.monitoring.task_tree`; None if that is
        in another process, or has not begun.
    """

    info: RequestInfo
    state: str
    age: float
    time_left: float
    bytes_received: int
    bytes_sent: int
    task: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON."""
        info = self.info
        return {
            "id": info.id,
            "client": describe(info.client_address),
            "listener": describe(info.server_address),
            "mode": info.mode,
            "started_at": info.started_at,
            "state": self.state,
            "age": self.age,
            "time_left": finite(self.time_left),
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "task": self.task,
        }


@attrs.frozen(kw_only=True)
class ListenerSnapshot:
    """One listener at one instant.

    Attributes:
      address: where it listens.
      accepting: whether it accepts.
      queued: clients that the kernel keeps until they are accepted; None where nobody tells,
        as of other systems than Linux, and of other sockets than TCP's.
    """

    address: Address
    accepting: bool
    queued: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return {
            "address": describe(self.address),
            "accepting": self.accepting,
            "queued": self.queued,
        }


@attrs.frozen(kw_only=True)
class WorkerSnapshot:
    """One worker process of a server's program, as it was when it last told; see `run`.

    Attributes:
      pid: its process id.
      generation: counts from 1; one more after each rolling restart.
      state: ``starting``, ``serving``, ``suspended`` or ``draining``.
      age: seconds since it told; about one at most, unless it is kept from telling.
      requests: what it serves, oldest first; of more than 256 those. Their ids are its own.
      statistics: its counts, of this server.
    """

    pid: int
    generation: int
    state: str
    age: float
    requests: tuple[RequestSnapshot, ...]
    statistics: Statistics

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return {
            "pid": self.pid,
            "generation": self.generation,
            "state": self.state,
            "age": self.age,
            "requests": [request.as_json() for request in self.requests],
            "statistics": _counts_as_json(self.statistics),
        }


@attrs.frozen(kw_only=True)
class ServerSnapshot:
    """A server and everything under it at one instant.

    Attributes:
      name: the class of the server.
      state: ``unbound``, ``bound``, ``serving``, ``suspended`` or ``draining``.
      uptime: seconds since it was bound.
      listeners: where it listens.
      requests: what it serves, oldest first.
      statistics: its counts; those of its workers together, if workers serve it.
      workers: the worker processes that serve it (``run(server, workers=4)``).
      slots: how many requests it serves at once; each of its workers, if workers serve it.
      free_slots: how many of them nobody has; None if workers serve it, or it is unbound.
    """

    name: str
    state: str
    uptime: float
    listeners: tuple[ListenerSnapshot, ...]
    requests: tuple[RequestSnapshot, ...]
    statistics: Statistics
    workers: tuple[WorkerSnapshot, ...] = ()
    slots: int | None = None
    free_slots: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON, which `json.dumps` takes; see ``SNAPSHOT_SCHEMA``."""
        return {
            "schema": "trioserver.snapshot",
            "version": SNAPSHOT_VERSION,
            "name": self.name,
            "state": self.state,
            "uptime": self.uptime,
            "slots": self.slots,
            "free_slots": self.free_slots,
            "listeners": [listener.as_json() for listener in self.listeners],
            "requests": [request.as_json() for request in self.requests],
            "workers": [worker.as_json() for worker in self.workers],
            "statistics": _counts_as_json(self.statistics),
        }


def _counts_as_json(counts: Statistics) -> dict[str, Any]:
    values: Mapping[str, Any] = attrs.asdict(counts, recurse=False)
    return {**values, "outcomes": {it.value: number for it, number in counts.outcomes.items()}}
