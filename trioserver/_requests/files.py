"""What ``rfile`` and ``wfile`` share: a connection, or a datagram, seen as a file."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from .._facts.config import Limits, Timeouts
from .._facts.events import RequestInfo
from .._sockets.transport import Data
from .receiving import Reader


class Input(Protocol):
    """What a reader reads from; see `Receiver`."""

    buffer: bytearray

    @property
    def at_eof(self) -> bool: ...
    def check(self) -> None: ...
    def take(self, size: int) -> bytes: ...
    def take_line(self, most: int) -> bytes | None: ...
    async def next_line(self, most: int, reader: Reader) -> bytes: ...
    async def fill(self, *, between_requests: bool = False, deadline: float = ...) -> bool: ...


class Output(Protocol):
    """What a writer writes to; see `Sender`."""

    buffer: bytearray | bytes

    def check(self) -> None: ...
    def keep(self, data: Data) -> None: ...
    def send_at_once(self, data: Data) -> Awaitable[None] | None: ...
    async def flush(self) -> None: ...


class ReadableAndWritable(Protocol):
    """What the files need of a connection, or of a datagram."""

    timeouts: Timeouts
    limits: Limits

    @property
    def info(self) -> RequestInfo: ...
    @property
    def state(self) -> str: ...
    @property
    def _receiver(self) -> Input: ...
    @property
    def _sender(self) -> Output: ...
    def fileno(self) -> int: ...


class File:
    """What ``rfile`` and ``wfile`` have in common."""

    __slots__ = ("_connection",)  # as below, 80 bytes less of each idle connection

    def __init__(self, connection: ReadableAndWritable) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        """Whether the connection was closed by this side."""
        return self._connection.state == "closed"

    def fileno(self) -> int:
        """The connection's file descriptor; -1 once closed, and where there is none."""
        return self._connection.fileno()
