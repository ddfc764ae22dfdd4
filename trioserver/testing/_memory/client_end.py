"""A client's end of a connection in memory: to its client, it is as a socket would be.

What it raises is what `trio.SocketStream` raises, and not what a server's handler meets, so
that a client which passes in memory does not fail on a real network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from trio.lowlevel import checkpoint

import trioserver

PORTION = 65_536
"""Bytes that a client receives at most, unless it says how many."""


def portion_of(max_bytes: object) -> int:
    """How many bytes to receive at most, as Trio's streams are told.

    Raises:
      TypeError, ValueError: ``max_bytes`` is neither None nor a number of at least 1.
    """
    portion = PORTION if max_bytes is None else max_bytes
    if not isinstance(portion, int):
        raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
    if portion < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
    return portion


class ClientEnd(trioserver.Connection):
    """A stream over a client's transport, without time-outs."""

    def __init__(self, transport: trioserver.Transport, server_address: Any) -> None:
        info = trioserver.RequestInfo(
            id=0,
            client_address=transport.local_address,
            server_address=server_address,
            started=trio.current_time(),
            started_at=time.time(),
        )
        patient = trioserver.Timeouts(idle=math.inf, line=math.inf, write=math.inf)
        super().__init__(transport, info, timeouts=patient, limits=trioserver.Limits())
        self._beneath = transport
        self._has_ended = False
        self._busy: set[str] = set()
        self._received = self._sent = 0

    @property
    def bytes_received(self) -> int:
        """Bytes that have come from the server so far."""
        return self._received

    @property
    def bytes_sent(self) -> int:
        """Bytes that the network took so far."""
        return self._sent

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.SocketStream.receive_some`."""
        portion = portion_of(max_bytes)
        with self._alone("receiving"):
            await checkpoint()
            with _as_on_a_socket():
                while (data := self._beneath.receive_now(portion)) is None:
                    await self._beneath.wait_readable()
        self._received += len(data)
        return data

    recv = receive_some

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.SocketStream.send_all`."""
        left = memoryview(data).cast("B")
        with self._alone("sending"):
            await checkpoint()
            self._check_sendable()
            with _as_on_a_socket():
                while left:
                    if sent := self._beneath.send_now(left):
                        left = left[sent:]
                        self._sent += sent
                    else:
                        await self._beneath.wait_writable()

    sendall = send_all

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.SocketStream.wait_send_all_might_not_block`."""
        with self._alone("sending"):
            await checkpoint()
            self._check_sendable()
            await self._beneath.wait_writable()

    async def send_eof(self) -> None:
        """As `trio.SocketStream.send_eof`."""
        with self._alone("sending"):
            await checkpoint()
            if self._has_ended and self.state != "closed":
                return
            self._check_sendable()
            with _as_on_a_socket():
                self._beneath.send_eof()
            self._has_ended = True

    def _check_sendable(self) -> None:
        if self._has_ended or self.state == "closed":
            raise trio.ClosedResourceError("this end was closed, or has ended its output")

    @contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        if doing in self._busy:
            raise trio.BusyResourceError(f"another task is {doing} here")
        self._busy.add(doing)
        try:
            yield
        finally:
            self._busy.discard(doing)


@contextmanager
def _as_on_a_socket() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
