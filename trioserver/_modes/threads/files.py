"""Buffered files over a lent socket, which note what they hold: it is part of a request.

And what they write is one write, in however many pieces it goes.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import Any

from .loan import Loan


class RawFile(socket.SocketIO):
    """What a buffered file reads from; notes how much that then holds."""

    def __init__(self, sock: socket.socket, loan: Loan) -> None:
        super().__init__(sock, "r")
        self._loan = loan

    def readinto(self, buffer: Any) -> int | None:
        got = super().readinto(buffer)
        self._loan.state.held += got or 0
        return got


class BufferedFile(io.BufferedReader):
    """A buffered file that notes how much of what it holds it hands out."""

    def __init__(self, raw: RawFile, size: int, loan: Loan) -> None:
        super().__init__(raw, size)
        self._loan = loan

    def read(self, size: int | None = -1, /) -> bytes:
        return self._handed_out(super().read(size))

    def read1(self, size: int = -1, /) -> bytes:
        return self._handed_out(super().read1(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._handed_out(super().readline(size))

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(buffer)
        self._loan.state.held -= got or 0
        return got

    def readinto1(self, buffer: Any, /) -> int:
        got = super().readinto1(buffer)
        self._loan.state.held -= got or 0
        return got

    def _handed_out(self, data: bytes) -> bytes:
        self._loan.state.held -= len(data or b"")
        return data


class BufferedOutput(io.BufferedWriter):
    """A buffered file whose writes are noted as one each."""

    def __init__(self, raw: socket.SocketIO, size: int, as_one_write: Callable[..., Any]) -> None:
        super().__init__(raw, size)
        self._as_one_write = as_one_write

    def write(self, data: Any, /) -> int:
        written: int = self._as_one_write(super().write, data)
        return written

    def flush(self) -> None:
        self._as_one_write(super().flush)
