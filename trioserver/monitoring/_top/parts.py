"""The parts of what a monitor tells: servers, their workers and requests, as values."""

from __future__ import annotations

from typing import TypeAlias

import attrs


class MonitorError(Exception):
    """A monitor cannot be asked: nobody is there, or it is none, or of another version.

    The message is one line, for whoever has typed the address.
    """


Key: TypeAlias = tuple[int, int | None, int]
"""Which request: the number of its server, the worker (None: no worker), and its id."""


@attrs.frozen(slots=False)
class Row:
    """One request.

    Attributes:
      key: which one.
      client: its address.
      listener: where it was accepted.
      mode: where its handler runs.
      state: what it is doing.
      age: seconds since the accept.
      left: seconds that it has left; ``inf`` if nothing ends it.
      received: bytes.
      sent: bytes.
    """

    key: Key
    client: str
    listener: str
    mode: str
    state: str
    age: float
    left: float
    received: int
    sent: int


@attrs.frozen
class WorkerLine:
    """One worker of a server: its process, its state and its counts."""

    pid: int
    generation: int
    state: str
    active: int
    accepted: int


@attrs.frozen
class ServerLine:
    """One server, without its requests.

    Attributes:
      name: its class.
      state: what it does.
      uptime: seconds since it was bound.
      listeners: their addresses.
      slots: requests that it serves at once; None if that is unknown.
      active: requests that it serves.
      accepted: requests so far.
      ended: of those.
      waiting: clients that wait for a slot.
      refused: clients that were turned away.
      hidden: requests that the monitor has not told of.
      workers: its processes.
    """

    name: str
    state: str
    uptime: float
    listeners: tuple[str, ...]
    slots: int | None
    active: int
    accepted: int
    ended: int
    waiting: int
    refused: int
    hidden: int
    workers: tuple[WorkerLine, ...]


@attrs.frozen
class Rate:
    """Requests of one server, in a second.

    Attributes:
      accepted: that began.
      ended: that ended.
    """

    accepted: float
    ended: float
