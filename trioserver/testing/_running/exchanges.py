"""What the clients of a server under test have said, and how each was answered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
import trio
from trio.lowlevel import ParkingLot

import trioserver

from .._memory.listener import ListenerWrapper
from .._memory.pipe import MemoryTransport, Transcript

A_SECOND = 1.0
"""Seconds, by the Trio clock, that requests have to end after the test, or to come in it."""


@attrs.define(eq=False)
class Exchange:
    """One request of a server under test.

    Attributes:
      info: the facts of it: its id, the addresses, when it began.
      record: how it ended; None while it goes on.
      error: what its handler, or a hook, has raised; None if nothing was.
    """

    info: trioserver.RequestInfo
    record: trioserver.RequestRecord | None = None
    error: BaseException | None = None
    _transcript: Transcript | None = None

    def __str__(self) -> str:
        return str(self.info if self.record is None else self.record)

    @property
    def outcome(self) -> trioserver.Outcome | None:
        """How it ended; None while it goes on."""
        return None if self.record is None else self.record.outcome

    @property
    def received(self) -> bytes:
        """What the server has read. Of a stream in memory only."""
        return bytes(self._notes().received)

    @property
    def sent(self) -> bytes:
        """What the server has written. Of a stream in memory only."""
        return bytes(self._notes().sent)

    def _notes(self) -> Transcript:
        if self._transcript is None:
            raise RuntimeError("the bytes of an exchange are noted for streams in memory only")
        return self._transcript


class Recorder(trioserver.Observer):
    """Notes the exchanges of one server.

    Attributes:
      exchanges: all of them, in the order in which their tasks began.
      open: those that go on, by id.
      errors: what was raised in them, and not taken yet.
    """

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.open: dict[int, Exchange] = {}
        self.errors: list[Exception] = []
        self._changed = ParkingLot()
        self._is_over = False
        self._transcripts: dict[int, Transcript] = {}
        self._arrival_errors: dict[int, BaseException] = {}

    def request_started(self, info: trioserver.RequestInfo) -> None:
        """Add an exchange."""
        transcript = self._transcripts.pop(info.id, None)
        exchange = self.open[info.id] = Exchange(info, transcript=transcript)
        self.exchanges.append(exchange)
        self._changed.unpark_all()

    def arrival_failed(
        self, info: trioserver.RequestInfo, record: trioserver.RequestRecord
    ) -> None:
        """Add an exchange that is over: nobody has served it."""
        self.request_started(info)
        self.open[info.id].error = self._arrival_errors.pop(info.id, None)
        self.request_finished(info, record.outcome, record)

    def request_finished(
        self,
        info: trioserver.RequestInfo,
        outcome: trioserver.Outcome,
        record: trioserver.RequestRecord,
    ) -> None:
        """Note how the exchange ended."""
        self.open.pop(info.id).record = record
        self._changed.unpark_all()

    def server_closed(self, report: trioserver.ShutdownReport) -> None:
        """Wake those who wait for requests that will not come."""
        self._is_over = True
        self._changed.unpark_all()

    def note_error(self) -> None:
        """Note what is being handled: a handler or a hook has raised it."""
        error, info = sys.exception(), trioserver.current_request()
        if isinstance(error, Exception):
            self.errors.append(error)
            if info is not None and info.id in self.open:
                self.open[info.id].error = error
            elif info is not None:  # it is still arriving
                self._arrival_errors[info.id] = error
            self._changed.unpark_all()

    def check(self) -> None:
        """Raise the errors, and take them by that."""
        errors, self.errors[:] = list(self.errors), []
        if errors:
            raise ExceptionGroup("handlers have failed", errors)

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until something holds that changes with the exchanges. A checkpoint in any case.

        Returns:
          Whether it holds; False if the server has ended without that.
        """
        await trio.lowlevel.checkpoint()
        while not condition():
            if self._is_over:
                return False
            await self._changed.park()
        return True

    def noting(self, listener: trioserver.Listener) -> trioserver.Listener:
        """``listener``, of whose connections in memory the bytes are noted."""
        return _NotingListener(listener, self._transcripts)


class _NotingListener(ListenerWrapper):
    def __init__(self, listener: trioserver.Listener, transcripts: dict[int, Transcript]) -> None:
        super().__init__(listener)
        self._transcripts = transcripts
        self._accepted = 0

    def accept_now(self) -> Any:
        accepted = self.beneath.accept_now()
        if accepted is not None:
            transport, _ = accepted
            self._accepted += 1  # as a server with one listener counts its requests
            if isinstance(transport, MemoryTransport):
                self._transcripts[self._accepted] = transport.transcript = Transcript()
        return accepted
