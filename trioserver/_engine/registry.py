"""The requests of a run: which are open, what was counted, told and reported.

Every change of a request's state passes through here once. So there is one record for
each request, and the counts agree with the records.
"""

from __future__ import annotations

from collections import Counter

import attrs
import trio
from trio.lowlevel import ParkingLot

from .._facts.address import Address
from .._facts.events import Outcome, RequestInfo, RequestRecord, ShutdownReport, Statistics
from .._facts.observers import Audience
from .._requests.drain import Drain
from .listeners import Listeners
from .request_task import RequestTask


@attrs.define(eq=False)
class RequestRegistry:
    """What a run knows of its requests.

    Attributes:
      audience: the observers, who are told.
      listeners: the listeners, which count datagrams that were lost.
      active: requests whose outcome is open, by id, oldest first.
      closing: requests whose outcome is decided and whose connection is not
        yet closed, by id, oldest first.
      lingering: those of them that wait for their peer to close.
    """

    audience: Audience
    listeners: Listeners
    active: dict[int, RequestTask] = attrs.field(factory=dict)
    closing: dict[int, RequestTask] = attrs.field(factory=dict)
    lingering: dict[int, RequestTask] = attrs.field(factory=dict)
    _changed: ParkingLot = attrs.field(factory=ParkingLot)
    _accepted: int = 0
    _refused: int = 0
    _accept_errors: int = 0
    _arrivals_failed: int = 0
    _outcomes: Counter[Outcome] = attrs.field(factory=Counter)
    _bytes_received: int = 0
    _bytes_sent: int = 0
    _drain_began: float | None = None
    _grace: float = 0.0
    _records: list[RequestRecord] = attrs.field(factory=list)
    _unaccepted: list[Address] = attrs.field(factory=list)

    # Requests --------------------------------------------------------------

    def opened(self, task: RequestTask) -> None:
        """Note that the request's task was started."""
        self._accepted += 1
        self.active[task.info.id] = task

    def settled(self, task: RequestTask) -> None:
        """Note that the request's outcome is decided, and count it."""
        number, request = task.info.id, task.request
        del self.active[number]
        self.closing[number] = task
        if not task.has_arrived:
            self._arrivals_failed += 1
        if task.lingers:
            self.lingering[number] = task
        self._outcomes[task.outcome] += 1
        self._bytes_received += request.bytes_received
        self._bytes_sent += request.bytes_sent
        if self._drain_began is not None:
            self._records.append(task.record)

    def tell_of_end(self, task: RequestTask) -> None:
        """Tell observers: of a request that has arrived, they have heard that it began."""
        event = "request_finished" if task.has_arrived else "arrival_failed"
        if not self.audience.hears(event):
            return
        if task.has_arrived:
            self.audience.tell(event, task.info, task.outcome, task.record)
        else:
            self.audience.tell(event, task.info, task.record)

    def answered(self, info: RequestInfo, received: int, sent: int) -> None:
        """Note a request that has begun and ended in one step, without a task."""
        self._accepted += 1
        self._outcomes[Outcome.COMPLETED] += 1
        self._bytes_received += received
        self._bytes_sent += sent
        is_reported = self._drain_began is not None
        if not is_reported and not self.audience.hears("request_finished"):
            return
        record = RequestRecord(
            info=info,
            outcome=Outcome.COMPLETED,
            reason="",
            duration=trio.current_time() - info.started,
            bytes_received=received,
            bytes_sent=sent,
        )
        if is_reported:
            self._records.append(record)
        self.audience.tell("request_finished", info, record.outcome, record)

    def closed(self, task: RequestTask) -> None:
        """Note that the request's connection is closed: nothing of it is left."""
        del self.closing[task.info.id]
        if task.lingers:
            del self.lingering[task.info.id]
        if self._changed:
            self._changed.unpark_all()

    def in_slots(self) -> list[RequestTask]:
        """The requests that hold a slot, oldest first."""
        # A copy first: a handler in a thread may call this.
        return [task for task in list(self.active.values()) if task.rejection is None]

    def here(self) -> list[RequestTask]:
        """The requests whose connection is open, oldest first."""
        if not self.closing:  # as nearly always; with thousands, a tenth of a snapshot's time
            return list(self.active.values())
        return sorted(
            [*self.closing.values(), *self.active.values()], key=lambda task: task.info.id
        )

    async def until_all_closed(self) -> None:
        """Wait until every connection is closed. No checkpoint if none is open."""
        while self.active or self.closing:
            await self._changed.park()

    async def until_all_closed_or(self, drain: Drain) -> None:
        """Wait until every connection is closed, or the drain has begun."""
        while (self.active or self.closing) and not drain.began:
            await self._changed.park()

    # Clients that never became requests -------------------------------------

    def refused(self, client_address: Address, reason: str) -> None:
        """Note that a limit or ``get_request`` has turned a client away."""
        self._refused += 1
        self.audience.tell("request_refused", client_address, reason)

    def unaccepted(self, client_address: Address) -> None:
        """Note that the drain has turned a client away."""
        self._unaccepted.append(client_address)
        self.audience.tell("request_refused", client_address, "the server drains")

    def accept_failed(self, server_address: Address, error: OSError) -> None:
        """Note that an accept has failed."""
        self._accept_errors += 1
        self.audience.tell("accept_failed", server_address, error)

    # The end ---------------------------------------------------------------

    @property
    def grace(self) -> float:
        """Seconds that requests have, or had, after the drain began."""
        return self._grace

    def drain_began(self, grace: float) -> None:
        """Note when the drain began: requests that end from now on are in the report."""
        self._drain_began, self._grace = trio.current_time(), grace
        self._changed.unpark_all()
        self.audience.tell("draining", grace)

    def grace_ends(self, deadline: float) -> None:
        """Note that the grace ends earlier, at ``deadline`` by the Trio clock."""
        if self._drain_began is not None:
            self._grace = min(self._grace, deadline - self._drain_began)

    def statistics(self, waiting: int) -> Statistics:
        """The counts at this instant."""
        return Statistics(
            accepted=self._accepted,
            active=len(self.in_slots()),
            waiting=waiting,
            lingering=len(self.closing),
            refused=self._refused,
            unaccepted=len(self._unaccepted),
            accept_errors=self._accept_errors,
            arrivals_failed=self._arrivals_failed,
            dropped=self.listeners.dropped,
            outcomes={outcome: self._outcomes[outcome] for outcome in Outcome},
            bytes_received=self._bytes_received,
            bytes_sent=self._bytes_sent,
        )

    def report(self, reason: str) -> ShutdownReport:
        """Make the report of how the run ended."""
        now = trio.current_time()
        return ShutdownReport(
            reason=reason,
            grace=self._grace,
            duration=0.0 if self._drain_began is None else now - self._drain_began,
            requests=tuple(self._records),
            unaccepted=tuple(self._unaccepted),
            statistics=self.statistics(waiting=0),
        )
