"""The socket of a synchronous handler in a worker, whose use the server can look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...._sockets.tls_records import TLSRecords
from ...threads.blocking_socket import BlockingSocket, BlockingTLSSocket
from ..protocol.status import (
    IDLE,
    READING,
    RECEIVED,
    SENT,
    STATE,
    TLS,
    WORKING,
    WRITING,
    SharedStatus,
)

T = TypeVar("T")


class SeenSocket(BlockingSocket):
    """A blocking socket whose use the server can look at."""

    _cells: memoryview
    _afterwards: int

    def show_on(self, shared_status: SharedStatus) -> None:
        """Tell ``shared_status`` of every operation from now on."""
        self._cells, self._afterwards = shared_status.cells, WORKING

    def _speak_by(self, records: TLSRecords) -> None:
        self._cells[TLS] = 1  # the server is not to send anything in clear from now on
        super()._speak_by(records)

    def end(self) -> int:
        """As `BlockingSocket.end`. A thread that still waits in it tells nothing any more."""
        self._cells = _UNSEEN  # those that it had are of the next request by then
        return super().end()

    def as_one_write(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same, seen: its worker may be killed between two pieces."""
        self._afterwards = WRITING
        try:
            return super().as_one_write(function, *arguments)
        finally:
            self._cells[STATE] = self._afterwards = WORKING

    def _receive(self, *arguments: Any) -> Any:
        loan = self._loan
        if self._afterwards != WRITING:  # else another thread is in the middle of a write
            self._cells[STATE] = IDLE if loan.is_between_requests() else READING
        try:
            return super()._receive(*arguments)
        finally:
            cells = self._cells  # by now perhaps others
            cells[RECEIVED] = loan.stream.received
            cells[STATE] = self._afterwards

    def _write(self, *arguments: Any, **options: Any) -> int:
        self._cells[STATE] = WRITING
        try:
            return super()._write(*arguments, **options)
        finally:
            cells = self._cells
            cells[SENT] = self._loan.stream.sent
            cells[STATE] = self._afterwards


class SeenTLSSocket(SeenSocket, BlockingTLSSocket):  # type: ignore[misc]
    """The same by TLS."""


SeenSocket._by_tls = SeenTLSSocket

_UNSEEN = SharedStatus(-1).cells
SeenSocket._cells = _UNSEEN
