"""Buffered files over a lent socket, which note what they hold: it is part of a request."""

from __future__ import annotations

import io
import socket
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
