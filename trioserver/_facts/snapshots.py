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
class ServerSnapshot:
    """A server and everything under it at one instant.

    Attributes:
      name: the class of the server.
      state: ``unbound``, ``bound``, ``serving``, ``suspended`` or ``draining``.
      uptime: seconds since it was bound.
      listeners: where it listens.
      requests: what it serves, oldest first.
      statistics: its counts.
    """

    name: str
    state: str
    uptime: float
    listeners: tuple[ListenerSnapshot, ...]
    requests: tuple[RequestSnapshot, ...]
    statistics: Statistics
