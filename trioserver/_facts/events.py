"""What happens to requests, as values: infos, outcomes, records, counts, reports.

Everything here is frozen. What changes while a request lives is on its
connection, and in `trioserver.BaseServer.snapshot`, taken when asked for: see `snapshots`.
"""

from __future__ import annotations

import contextvars
import enum
from collections import Counter
from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

from .address import Address, describe
from .proxy import ProxyInfo

Mode: TypeAlias = Literal["task", "thread", "process"]
"""Where a handler runs."""


class Outcome(enum.StrEnum):
    """How a request ended. Every request has exactly one."""

    __hash__ = str.__hash__  # as it is equal to a string; and not in Python, at each request

    COMPLETED = "completed"
    """The handler returned. One that swallowed its cancellation did so, too."""
    FAILED = "failed"
    """The handler, or a hook, raised an error of its own."""
    TIMED_OUT = "timed_out"
    """One of `Timeouts` ran out; the record's reason says which."""
    DISCONNECTED = "disconnected"
    """The peer went away before its request was done."""
    REFUSED = "refused"
    """A limit or ``verify_request`` turned the client away."""
    DRAINED = "drained"
    """The server drained while the connection was between two requests."""
    CANCELLED = "cancelled"
    """The grace was over, or somebody cancelled it; the reason says who."""
    KILLED = "killed"
    """It was cancelled, or took too long, and so its worker process was killed."""
    ABANDONED = "abandoned"
    """It was cancelled, or took too long, and its thread has not ended since."""


LEFT_IN_SILENCE = "the peer left without a byte"
"""Why most arrivals fail: somebody looks whether the port is open, again and again."""


def _same_as_client(info: RequestInfo) -> Address:
    return info.client_address


@attrs.frozen(kw_only=True, weakref_slot=False)  # 16 bytes less, of each idle connection
class RequestInfo:
    """The facts of a request that never change.

    Attributes:
      id: counts up from 1 in each run of a server.
      client_address: the client's address, as kept from the accept, or as a proxy has told it.
      server_address: the address of the listener that accepted it; of a
        datagram to a wildcard address, the very one it was sent to.
      mode: where its handler runs.
      started: when it was accepted, by the Trio clock.
      started_at: the same by the system's clock, as of `time.time`.
      peer_address: who is at the other end of the socket: the client, or a proxy.
      proxy: what the proxy has said in a PROXY header; None without one.
    """

    id: int
    client_address: Address
    server_address: Address
    mode: Mode = "task"
    started: float
    started_at: float
    peer_address: Address = attrs.field(
        default=attrs.Factory(_same_as_client, takes_self=True), repr=False
    )
    proxy: ProxyInfo | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"request {self.id} from {describe(self.client_address)}"


def same_request(one: object, other: RequestInfo) -> bool:
    """Whether ``one`` is an info of the same request: an arrival may learn who the client is.

    Ids count from 1 in each run, so the times tell two servers of one program apart.
    """
    return one is other or (
        isinstance(one, RequestInfo)
        and one.id == other.id
        and one.started == other.started
        and one.started_at == other.started_at
        and one.server_address == other.server_address
    )


_current_request: contextvars.ContextVar[RequestInfo | None] = contextvars.ContextVar(
    "trioserver.current_request", default=None
)
enter_request = _current_request.set


def current_request() -> RequestInfo | None:
    """The request that the calling code works for, or None outside of requests.

    Child tasks and ``trio.to_thread`` inherit it, as they do every context
    variable.
    """
    return _current_request.get()


def request_of(context: contextvars.Context) -> RequestInfo | None:
    """The request that a task works for whose context this is, or None."""
    return context.get(_current_request)


@attrs.frozen(kw_only=True)
class RequestRecord:
    """How one request went, from accept to outcome.

    Attributes:
      info: which request.
      outcome: how it ended.
      reason: why, in words: which time-out, which limit, who cancelled; ``""``
        when it completed.
      duration: seconds from accept to outcome.
      bytes_received: what the handler was offered to read.
      bytes_sent: what the transport took.
    """

    info: RequestInfo
    outcome: Outcome
    reason: str
    duration: float
    bytes_received: int
    bytes_sent: int

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.info} {self.outcome}{why} after {self.duration:.3f} s,"
            f" {self.bytes_received} bytes in, {self.bytes_sent} bytes out"
        )


@attrs.frozen(kw_only=True)
class Statistics:
    """Counts of one run of a server, from bind to now.

    Attributes:
      accepted: connections, or datagrams, that became requests.
      active: requests that hold a slot now.
      waiting: clients accepted when the drain began and not yet started.
      lingering: connections past their outcome, not yet closed.
      refused: clients turned away before they became requests.
      unaccepted: clients turned away because the server drained.
      accept_errors: errors that an accept met, of all tiers; each datagram
        that was too large is one.
      arrivals_failed: those of the accepted ones whose arrival failed, so that nobody
        has served them: ``verify_request`` has refused them, raised, or took too long.
      dropped: datagrams that the kernel dropped unreceived, because they came
        faster than they were taken; only Linux tells, and for UDP.
      outcomes: how many requests ended how.
      bytes_received: over all ended requests.
      bytes_sent: over all ended requests.
    """

    accepted: int = 0
    active: int = 0
    waiting: int = 0
    lingering: int = 0
    refused: int = 0
    unaccepted: int = 0
    accept_errors: int = 0
    arrivals_failed: int = 0
    dropped: int = 0
    outcomes: Mapping[Outcome, int] = attrs.field(factory=lambda: dict.fromkeys(Outcome, 0))
    bytes_received: int = 0
    bytes_sent: int = 0


@attrs.frozen(kw_only=True)
class ShutdownReport:
    """Who was drained, who was cut, and how long it took.

    Attributes:
      reason: what ended the run.
      grace: seconds that requests in flight were given.
      duration: seconds from the beginning of the drain to its end.
      requests: a record for every request that had not ended when the drain
        began, in the order in which they ended.
      unaccepted: addresses of the clients that were turned away unserved.
      statistics: the final counts of the whole run.
    """

    reason: str
    grace: float
    duration: float
    requests: tuple[RequestRecord, ...]
    unaccepted: tuple[Address, ...]
    statistics: Statistics

    def ended(self, outcome: Outcome) -> tuple[RequestRecord, ...]:
        """The records of the requests that ended so."""
        return tuple(record for record in self.requests if record.outcome is outcome)

    @property
    def completed(self) -> tuple[RequestRecord, ...]:
        """The requests that were in flight and could finish."""
        return self.ended(Outcome.COMPLETED)

    @property
    def drained(self) -> tuple[RequestRecord, ...]:
        """The connections that were ended between two requests."""
        return self.ended(Outcome.DRAINED)

    @property
    def cancelled(self) -> tuple[RequestRecord, ...]:
        """The requests that were cut."""
        return self.ended(Outcome.CANCELLED)

    @property
    def killed(self) -> tuple[RequestRecord, ...]:
        """The requests that were cut by killing their worker processes."""
        return self.ended(Outcome.KILLED)

    @property
    def abandoned(self) -> tuple[RequestRecord, ...]:
        """The requests that were cut, and whose threads went on."""
        return self.ended(Outcome.ABANDONED)

    @property
    def clean(self) -> bool:
        """Whether nobody was cut and nobody was turned away."""
        cut = self.cancelled or self.killed or self.abandoned
        return not cut and not self.unaccepted

    @property
    def summary(self) -> str:
        """The report in one line, with what ended the run, how long it took, how many ended how."""
        counts = Counter(record.outcome for record in self.requests)
        parts = [f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]]
        parts.append(f"{len(self.unaccepted)} unaccepted")
        return (
            f"{self.reason}: ended in {self.duration:.3f} s of {self.grace:g} s grace,"
            f" {', '.join(parts)}"
        )

    def __str__(self) -> str:
        lines = [self.summary]
        lines += [f"  {record}" for record in self.requests]
        lines += [f"  client {describe(address)} unaccepted" for address in self.unaccepted]
        return "\n".join(lines)
