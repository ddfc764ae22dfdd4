"""A server and its requests at one instant, as values."""

from __future__ import annotations

import attrs

from .address import Address
from .events import RequestInfo, Statistics


@attrs.frozen(kw_only=True)
class RequestSnapshot:
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
    """

    info: RequestInfo
    state: str
    age: float
    time_left: float
    bytes_received: int
    bytes_sent: int


@attrs.frozen(kw_only=True)
class ListenerSnapshot:
    """One listener at one instant: its address, and whether it accepts."""

    address: Address
    accepting: bool


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
    """

    name: str
    state: str
    uptime: float
    listeners: tuple[ListenerSnapshot, ...]
    requests: tuple[RequestSnapshot, ...]
    statistics: Statistics
    workers: tuple[WorkerSnapshot, ...] = ()
