"""One worker as its program sees it: what it says, what it is told, how it ends.

Whatever a worker does (crash, hang, talk nonsense), it ends and is reaped, and what was told of
its requests is kept.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ..._engine.request_nursery import why_it_ended
from ..._facts.address import Address
from ..._facts.chains import lone_errors
from ..._facts.events import RequestRecord, ShutdownReport, Statistics
from ..._facts.observers import error_log, log_safely
from ..._facts.snapshots import RequestSnapshot, WorkerSnapshot
from ..._facts.verdict import cancellations
from ..._modes.processes.protocol.frames import (
    FrameError,
    Message,
    decode_facts,
    pack,
)
from ..._modes.processes.protocol.log import log_here
from ..._modes.processes.server.ending import SOON, end_process, hear_all
from ..._modes.processes.server.line import Line
from . import wire
from .orders import Cancel, Drain, Order

if TYPE_CHECKING:  # it brings multiprocessing
    from ..._modes.processes.server.spawn import Spawned


MOST_RECORDS = 1 << 20
"""Of requests that were served when a drain began, and clients that were not: no worker has as
many descriptors. One that makes them up must not fill the program's memory."""


class Stage(enum.Enum):
    """Where in its life a worker is."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "draining"


@attrs.define(eq=False)
class Told:
    """What a worker has told of one of its servers."""

    at: float = -math.inf
    state: str = "starting"
    requests: Sequence[RequestSnapshot] = ()
    statistics: Statistics = attrs.field(factory=Statistics)
    records: list[RequestRecord] = attrs.field(factory=list)
    unaccepted: list[Address] = attrs.field(factory=list)
    report: ShutdownReport | None = None


@attrs.define(eq=False)
class Worker:
    """One worker process, as its program sees it.

    Attributes:
      generation: how many restarts there were before it, and one.
      cleanup: seconds that it has to end when everything there is cancelled.
      stage: where in its life it is.
      why_not: the traceback of the error that kept it from getting ready, or has ended it.
      since: when, by the Trio clock, it was ready.
    """

    _spawned: Spawned
    generation: int
    cleanup: float
    told: Mapping[int, Told]
    stage: Stage = Stage.STARTING
    why_not: str = ""
    since: float = math.inf
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _bound: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _ends: dict[int, float] = attrs.field(factory=dict)
    _line: Line = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._line = Line(self._spawned.control)

    def __repr__(self) -> str:
        return f"worker {self.pid}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._spawned.pid

    # What it is told ------------------------------------------------------------------

    def order(self, order: Order) -> None:
        """Tell it to do something, as soon as it can."""
        self._line.post(Message.ORDER, pack(order))

    def drain(self, order: Drain) -> None:
        """Have it drain one of its servers; the earliest end holds. It leaves with the last one."""
        self.order(order)
        ends_at = trio.current_time() + order.seconds
        self._ends[order.server] = min(ends_at, self._ends.get(order.server, math.inf))
        self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self.stage is not Stage.STARTING and self._ends.keys() >= self.told.keys():
            self.stage = Stage.LEAVING
            self._bound.deadline = max(self._ends.values()) + self.cleanup + SOON

    # Its life --------------------------------------------------------------------------

    async def live(self, on_change: Callable[[Worker], object]) -> int:
        """Hear it until it has ended, within bounds; its exit status.

        Args:
          on_change: called when it lets clients in, and when one of its servers has ended.

        Cancelled, it has the worker's requests cancelled, and hears how they have ended.
        """
        seconds = 0.0
        try:
            with self._bound:
                await self._hear_all(on_change)
                seconds = SOON
            if self._bound.cancelled_caught:
                message = "%s has not ended %g s after its grace, and is killed"
                log_safely(error_log, logging.ERROR, message, self, self.cleanup + SOON)
        except BaseException as error:
            cancelled = cancellations(error)
            if cancelled and self.stage is not Stage.STARTING:
                self.order(Cancel(why_it_ended(cancelled[0])))
                with trio.move_on_after(self.cleanup + SOON, shield=True):
                    await self._hear_all(on_change)
                    seconds = SOON
            raise
        finally:
            status = await end_process(
                self._spawned, self._line, seconds, who=self, has_ended=lambda: None
            )
        return status

    async def _hear_all(self, on_change: Callable[[Worker], object]) -> None:
        def hear(kind: Message, body: bytes) -> None:
            self._hear(kind, decode_facts(body)[0], on_change)

        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._line.send_posted)
                if not await hear_all(self._line, self._spawned.sentinel, hear, who=self):
                    self._spawned.kill()
                nursery.cancel_scope.cancel(reason="the worker says nothing more")

    def _hear(
        self, kind: Message, facts: dict[str, Any], on_change: Callable[[Worker], object]
    ) -> None:
        if kind is Message.LOG:
            log_here(facts)
        elif kind in {Message.NOT_READY, Message.FAILED}:
            self.why_not = str(facts.get("why"))
        elif kind is Message.READY and self.stage is Stage.STARTING:
            self.stage, self.since = Stage.SERVING, trio.current_time()
            self._leave_if_told()
            on_change(self)
        elif kind in _OF_A_SERVER and (told := self._told_of(facts)) is not None:
            _OF_A_SERVER[kind](told, facts, trio.current_time())
            if kind is Message.ENDED:
                on_change(self)
        else:
            raise FrameError(f"{kind.name} out of turn")

    def _told_of(self, facts: Mapping[str, Any]) -> Told | None:
        number = facts.get("server")
        return self.told.get(number) if isinstance(number, int) else None

    @property
    def lacks_a_server(self) -> bool:
        """Whether one of its servers has ended that it was not told to drain."""
        ended = {number for number, told in self.told.items() if told.report is not None}
        return self.stage is Stage.SERVING and not ended <= self._ends.keys()

    @property
    def has_ended_in_order(self) -> bool:
        """Whether it has told of the end of all its servers."""
        return all(told.report is not None for told in self.told.values())

    # Looking ---------------------------------------------------------------------------

    def snapshot(self, server: int) -> WorkerSnapshot:
        """How it was when it last told. A handler in a thread may ask, too."""
        told = self.told[server]
        state = told.state if self.stage is Stage.SERVING else self.stage.value
        return WorkerSnapshot(
            pid=self.pid,
            generation=self.generation,
            state=state,
            age=max(0.0, self._clock.current_time() - told.at),
            requests=tuple(told.requests),
            statistics=told.statistics,
        )


def _news(told: Told, facts: Mapping[str, Any], now: float) -> None:
    told.state, told.requests, told.statistics = wire.snapshot_from(facts, now)
    told.at = now


def _records(told: Told, facts: Mapping[str, Any], now: float) -> None:
    records, unaccepted = wire.rest_from(facts, now)
    if len(told.records) + len(told.unaccepted) > MOST_RECORDS:
        raise FrameError(f"more than {MOST_RECORDS} records")
    told.records += records
    told.unaccepted += unaccepted


def _end(told: Told, facts: Mapping[str, Any], _now: float) -> None:
    told.report = wire.report_from(facts, told.records, told.unaccepted)
    told.statistics, told.requests = told.report.statistics, ()


_OF_A_SERVER: Mapping[Message, Callable[[Told, Mapping[str, Any], float], None]] = {
    Message.TOLD: _news,
    Message.RECORDS: _records,
    Message.ENDED: _end,
}
