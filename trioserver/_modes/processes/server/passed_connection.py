"""A connection that a worker process has: the server's side of it."""

from __future__ import annotations

import time
from typing import Any, Literal, cast

import attrs
import trio

from ...._facts.address import Address
from ...._requests.stream_state import StreamState
from ...._sockets.making import kind_of
from ...._sockets.stream_sockets import SocketTransport
from ...threads.lent_connection import LentConnection
from ...threads.loan import Loan
from ..protocol.task import ArrivalTask, ConnectionTask
from .job import Job
from .worker_process import Worker


class PassedConnection(LentConnection):
    """A `Connection` whose descriptor can be passed on to a worker process."""

    _worker: Worker | None = None
    _job: Job | None = None

    def _give_to(self, worker: Worker, job: Job) -> None:
        """Note that a worker has it from now on, as ``job``."""
        self._worker, self._job = worker, job
        if self._receiver.drain.began:
            worker.drain()

    def _task(
        self, client_address: Address, *, ends_idle: bool, ends_output: bool
    ) -> ConnectionTask:
        """Lend the socket, and describe the connection to a worker.

        Args:
          client_address: as the handler is to get it.
          ends_idle: whether a drain may end waits between requests.
          ends_output: whether the worker ends the output when the handler has returned.

        Raises:
          trio.ClosedResourceError: a hook has closed it.
          RuntimeError: see `_lend`.
        """
        loan = self._loan if self._is_held else self._lend_to_worker()
        assert loan is not None  # noqa: S101  (for the type)
        terms, sock = loan.terms, cast("SocketTransport", self._wire).socket
        return ConnectionTask(
            info=self.info,
            age=trio.current_time() - self.info.started,
            client_address=client_address,
            kind=kind_of(sock),
            stream=self._stream,
            idle=terms.idle,
            write=terms.write,
            ends_idle=ends_idle,
            ends_output=ends_output,
            new_until=terms.new_until,
        )

    def _arrival_task(self, ciphertext: bytes, as_of: float) -> ArrivalTask:
        """Lend the socket, and describe the connection to a worker, which agrees on TLS.

        Raises as `_task` does.
        """
        terms, now = self._lend_to_worker().terms, trio.current_time()
        return ArrivalTask(
            info=self.info,
            age=now - self.info.started,
            kind=kind_of(cast("SocketTransport", self._wire).socket),
            ciphertext=ciphertext,
            as_of=as_of,
            until=time.monotonic() + trio.current_effective_deadline() - now,
            new_until=terms.new_until,
        )

    def _lend_to_worker(self) -> Loan:
        if self._sender.closed:
            raise trio.ClosedResourceError("the connection was closed by this side")
        return self._lend(ends_idle=False)  # a worker is told of the drain by its line

    @property
    def _is_held(self) -> bool:
        """Whether TLS is agreed on in a worker, which has the connection, and no handler yet."""
        return self._job is not None and self._job.arrived

    @property
    def _must_linger(self) -> bool:
        return not self._is_held and super()._must_linger

    def close(self) -> None:
        """As `Connection.close`; a worker that has it, and no handler for it, says goodbye."""
        self._let_go()
        super().close()

    def reset(self) -> None:
        """As `Connection.reset`."""
        self._let_go()
        super().reset()

    def _let_go(self) -> None:
        if self._is_held and self._worker is not None:
            self._worker.forget()
            self._come_back()

    def _come_back(self) -> None:
        """Go on with the state in which the worker has left it, as no worker has it any more."""
        job, self._job, self._worker = self._job, None, None
        self._take_back()
        if job is not None and job.begun and not job.arrived:
            self._go_on_with(_left_by(job, self._stream))

    # While a worker has it -------------------------------------------------------

    def _facts(self) -> tuple[int, int, Any] | None:
        return None if self._worker is None else self._worker.facts(self.info.id)

    @property
    def bytes_received(self) -> int:
        """Bytes that were read so far."""
        facts = self._facts()
        return super().bytes_received if facts is None else facts[0]

    @property
    def bytes_sent(self) -> int:
        """Bytes that were written so far."""
        facts = self._facts()
        return super().bytes_sent if facts is None else facts[1]

    @property
    def state(self) -> Literal["working", "reading", "idle", "writing", "closed"]:
        """What the connection is doing now; ``idle`` is a wait between two requests."""
        facts = self._facts()
        return super().state if facts is None else facts[2]

    def _end_idle_waits(self) -> None:
        if self._worker is None:
            super()._end_idle_waits()
        else:
            self._worker.drain()


def _left_by(job: Job, before: StreamState) -> StreamState:
    """The state in which a worker that has begun with a connection has left it."""
    stream = _of_the_dead(job, before) if job.result is None else job.result.stream
    if job.by_tls and not stream.output_ended and stream.broken is None:
        # In clear nothing may follow, and whoever has the TLS has not ended it.
        if stream.detached:
            stream.output_ended = True  # for the server: the handler goes on by itself
        else:
            stream.broken = trio.BrokenResourceError, "TLS: only its worker could go on with it"
    return stream


def _of_the_dead(job: Job, before: StreamState) -> StreamState:
    """The same of a worker that has ended without a word."""
    broken = before.broken
    if job.was_writing:  # half a reply must not look like a whole one
        broken = trio.BrokenResourceError, "its worker was ended in a send"
    return attrs.evolve(
        before, received=job.received, sent=job.sent, pending=bytearray(), broken=broken
    )
