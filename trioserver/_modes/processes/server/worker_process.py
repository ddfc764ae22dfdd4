"""One worker as its server sees it: what it says, which request it has, how it ends.

The rules this file keeps:

* Whatever a worker does (crash, hang, talk nonsense), it ends, is reaped, and its
  request is told how.
* A worker has one request at a time, so a crash is one request's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from ..protocol.frames import (
    FrameError,
    Message,
    address_from_json,
    decode_facts,
)
from ..protocol.log import log_here
from ..protocol.replies import as_answer
from ..protocol.result import Result
from ..protocol.task import ArrivalTask, ConnectionTask, DatagramTask, pack_task
from .ending import end_process, hear_all, why_never_ready
from .job import Job
from .line import Line
from .phase import Phase

if TYPE_CHECKING:  # it brings multiprocessing
    from .pool_process import PoolProcess

_FRAMES = {
    ArrivalTask: Message.ARRIVAL,
    ConnectionTask: Message.CONNECTION,
    DatagramTask: Message.DATAGRAM,
}


@attrs.define(eq=False)
class Worker:
    """One worker process, as the server sees it.

    Attributes:
      job: the request that it works on.
      most_requests: how many requests it may have in its life.
      served: how many it has had.
      phase: where in its life it is.
      was_ready: whether it has been ready for a first request.
      why_not: the traceback of the error that kept it from getting ready.
      idle_since: when, by the Trio clock, its last request ended.
      stopped_since: when, by the Trio clock, it was first seen stopped by a signal.
      was_killed: whether the server has killed it.
    """

    _spawned: PoolProcess
    most_requests: float = math.inf
    phase: Phase = Phase.STARTING
    job: Job | None = None
    served: int = 0
    was_ready: bool = False
    why_not: str = ""
    idle_since: float = 0.0
    stopped_since: float | None = None
    was_killed: bool = False
    _drains: bool = False
    _line: Line = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._line = Line(self._spawned.control)

    def __repr__(self) -> str:
        return f"worker process {self.pid}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._spawned.pid

    # What the server says ----------------------------------------------------

    async def begin(self, job: Job, descriptor: int | None) -> None:
        """Give it a request; nothing else is waited for than that it is on its way.

        Raises:
          OSError: the system does not pass the descriptor.
        """
        if self.phase is Phase.GONE:
            job.finish()  # it was given away in the very moment in which it ended
            return
        self.job = job
        self.served += 1
        await self._line.send(_FRAMES[type(job.task)], pack_task(job.task), descriptor)

    async def go_on(self, job: Job) -> None:
        """Have it serve the connection that has arrived there; see `begin`."""
        arrival, self.job = self.job, job
        if self.phase is Phase.GONE:
            self.job = None
            job.begun, job.status = True, 0 if arrival is None else arrival.status
            job.by_tls = True
            job.finish()
        else:
            await self._line.send(Message.GO_ON, pack_task(job.task), None)

    def forget(self) -> None:
        """Have it end the connection that has arrived there, as nobody is going to serve it."""
        self._line.send_now(Message.FORGET)

    def answer(self, error: Exception | None) -> None:
        """Tell it how the sending of its datagram went."""
        self._line.send_now(Message.SENT, as_answer(error))

    def drain(self) -> None:
        """Tell it that the server drains. Twice is once."""
        if not self._drains:
            self._drains = True
            with suppress(ValueError):  # its memory is released: it has ended
                self._spawned.shared_status.drain_begins()
            # For those that wait; the shared status is for those that ask.
            self._line.send_now(Message.DRAIN)

    def dismiss(self) -> None:
        """Hang up: it ends when it has nothing more to do."""
        self._line.hang_up()

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self.was_killed = True
        if self.phase is not Phase.GONE:
            self._spawned.kill()

    # What it says --------------------------------------------------------------

    async def listen(self, on_change: Callable[[Worker], object]) -> None:
        """Listen until it hangs up, or has ended.

        Args:
          on_change: called when it is ready for a request.
        """

        def hear(kind: Message, body: bytes) -> None:
            self._hear(kind, body, on_change)

        if not await hear_all(self._line, self._spawned.sentinel, hear, who=self):
            self.kill()

    def _hear(self, kind: Message, body: bytes, on_change: Callable[[Worker], object]) -> None:
        facts, payload = decode_facts(body)
        job = self.job
        if kind is Message.LOG:
            log_here(facts, None if job is None else job.task.info)
        elif kind is Message.READY and not self.was_ready:
            self.was_ready = True
            on_change(self)
        elif kind is Message.NOT_READY and not (self.was_ready and self.has_begun):
            self.why_not = str(facts.get("why"))
        elif kind is Message.REPLY and job is not None:
            if job.replies is None:
                raise FrameError("a datagram, for a connection")
            job.replies.put(payload, address_from_json(facts.get("to")))
        elif kind is Message.ARRIVED and job is not None and isinstance(job.task, ArrivalTask):
            job.arrived = job.begun = True
            job.finish()
        elif kind is Message.DONE and job is not None:
            job.result, job.begun, self.job = Result.from_facts(facts), True, None
            job.by_tls = self._speaks_tls()
            job.finish()
            on_change(self)
        else:
            raise FrameError(f"{kind.name} out of turn")

    # Its end -------------------------------------------------------------------

    async def end(self, seconds: float) -> int:
        """End it, one way or the other, and give everything back that it had.

        Args:
          seconds: how long it may take by itself; then it is killed, and if
            that does not end it either, it is left behind.

        Returns:
          Its exit status.

        A cancellation does not shorten it.
        """
        parts = (self._spawned, self._line, seconds)
        status = await end_process(*parts, who=self, has_ended=self._forget_job)
        self._note_exit(status)
        return status

    def _forget_job(self) -> None:
        if self.job is not None:
            self.note(self.job)
        self.phase = self.phase.to(Phase.GONE)

    def _note_exit(self, status: int) -> None:
        job, self.job = self.job, None
        if job is not None:
            job.status = status
            job.finish()

    def why_never_ready(self, status: int) -> str:
        """Why it has ended with this exit status and was never ready, as far as it is known."""
        return why_never_ready(self.why_not, status)

    # Looking -------------------------------------------------------------------

    def facts(self, request_id: int) -> tuple[int, int, Any] | None:
        """Bytes received and sent, and the state; None before the worker has begun."""
        shared_status = self._spawned.shared_status
        try:
            if shared_status.request != request_id:
                return None
            return shared_status.received, shared_status.sent, shared_status.state
        except ValueError:  # its memory is released, perhaps at this very moment, by a thread
            return None

    def _speaks_tls(self) -> bool:
        try:
            return self._spawned.shared_status.speaks_tls
        except ValueError:  # as above
            return False

    @property
    def has_begun(self) -> bool:
        """Whether it has begun with the request that it has; true, too, if it has none."""
        return self.job is None or self.facts(self.job.task.info.id) is not None

    def note(self, job: Job) -> None:
        """Note in ``job`` how far it has come with it, if it has begun."""
        facts = self.facts(job.task.info.id)
        if facts is not None:
            job.begun, job.by_tls = True, self._speaks_tls()
            job.received, job.sent, state = facts
            job.was_writing = state == "writing"
