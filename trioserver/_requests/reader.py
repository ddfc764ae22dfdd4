"""``rfile``: a connection, or a datagram, read like a file.

The rules this file keeps:

* What a read returns depends on the bytes alone, never on how they were cut
  into segments on their way.
* A read takes its bytes when it has all of them: one that is cancelled, times
  out or hits a limit has taken nothing.
"""

from __future__ import annotations

import io
import math
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import trio

from .._facts.config import LARGEST_PORTION
from .._facts.errors import Draining, IncompleteRead, LimitExceeded
from .files import File, ReadableAndWritable
from .schedule_points import before_buffer


class RequestReader(File):
    """What a handler reads from: ``self.rfile``.

    Reads with an explicit size mean what `io.BufferedIOBase` says. Without one,
    ``Limits.line`` and ``Limits.read`` apply; a read that exceeds them raises
    `LimitExceeded`, and the bytes stay in the buffer. Every read can also raise
    what `Connection.receive_some` does. A line or delimited read that is not
    complete ``Timeouts.line`` seconds after its first byte raises `IdleTimeout`.
    """

    __slots__ = ("_receiver",)

    def __init__(self, connection: ReadableAndWritable) -> None:
        super().__init__(connection)
        self._receiver = connection._receiver

    def readable(self) -> bool:
        """True, as of any file for reading."""
        return True

    def writable(self) -> bool:
        """False, as of any file for reading."""
        return False

    def at_eof(self) -> bool:
        """Whether the peer has ended its input and all of it was read."""
        return self._receiver.at_eof and not self._receiver.buffer

    async def more(self) -> bool:
        """Wait between two requests for the next one to begin.

        Returns:
          True when a byte of it is there; False at the end of input, or when
          the server drains.
        """
        receiver = self._receiver
        if receiver.buffer:
            await self._begin()
            if receiver.buffer:
                return True
        try:
            return await receiver.fill(between_requests=True)
        except Draining:
            return False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        """The next line; the loop ends when the peer's input does, or when the server drains."""
        receiver = self._receiver
        if receiver.buffer:
            return self._next_line()
        return receiver.next_line(self._connection.limits.line, self)

    async def _next_line(self) -> bytes:
        receiver = self._receiver
        await before_buffer()
        line = receiver.take_line(self._connection.limits.line)
        return await self._rest_of_line() if line is None else line

    async def _rest_of_line(self) -> bytes:
        """A line that has begun, and whose end is not buffered, or too far away."""
        return self._receiver.take(await self._end_of_line())

    async def read(self, size: int | None = -1) -> bytes:
        """Read ``size`` bytes, fewer only at the end of input.

        Without a size, read to the end of input, at most ``Limits.read``.
        """
        if size is None or size < 0:
            return await self._read_all()
        await self._fill_to(size)
        return self._receiver.take(size)

    async def read1(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes (64 KiB without one) with at most one receive.

        Returns ``b""`` only at the end of input, or for a ``size`` of 0.
        """
        if size < 0:
            size = LARGEST_PORTION
        await self._fill_to(min(size, 1))
        return self._receiver.take(size)

    async def readinto(self, target: bytearray | memoryview) -> int:
        """Read into ``target`` until it is full or the input ends; how many bytes that was."""
        with _writable(target) as view:
            data = await self.read(len(view))
            view[: len(data)] = data
        return len(data)

    async def readinto1(self, target: bytearray | memoryview) -> int:
        """Read into ``target`` with at most one receive; how many bytes that was."""
        with _writable(target) as view:
            data = await self.read1(len(view))
            view[: len(data)] = data
        return len(data)

    async def readexactly(self, size: int) -> bytes:
        """Read exactly ``size`` bytes.

        Raises:
          IncompleteRead: the input ended before; it has what there was.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, but is {size}")
        data = await self.read(size)
        if len(data) < size:
            raise IncompleteRead(
                f"the input ended after {len(data)} of {size} bytes",
                partial=data,
                info=self._connection.info,
            )
        return data

    async def readline(self, size: int | None = -1) -> bytes:
        r"""Read one line with its ``b"\n"``, which only the last line of the input may lack.

        With a size, at most that many bytes of it; without one, a line longer
        than ``Limits.line`` raises `LimitExceeded`. At the end of input,
        ``b""``.
        """
        await before_buffer()
        if size is not None and size >= 0:
            self._receiver.check()
            end = await self._find(b"\n", within=size, enough=size)
            return self._receiver.take(size if end is None else end)
        line = self._receiver.take_line(self._connection.limits.line)
        return await self._rest_of_line() if line is None else line

    async def _end_of_line(self, start: int = 0) -> int:
        """Where the line ends that begins at ``start``; there, if the input has ended."""
        limit, buffer = self._connection.limits.line, self._receiver.buffer
        end = await self._find(b"\n", start=start, within=limit, enough=limit + 1)
        if end is not None:
            return end
        if len(buffer) - start > limit:
            raise self._exceeded("a line", limit, "line")
        return len(buffer)

    async def readuntil(self, delimiter: bytes, *, limit: int | None = None) -> bytes:
        """Read up to and including ``delimiter``.

        Args:
          delimiter: at least one byte.
          limit: bytes that the result may have; ``Limits.line`` without one.

        Raises:
          IncompleteRead: the input ended before; it has what there was.
          LimitExceeded: it did not come in time; nothing was taken.
        """
        if not delimiter:
            raise ValueError("delimiter must be at least one byte, not b''")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 byte, not {limit}")
        most = self._connection.limits.line if limit is None else limit
        await self._begin()
        end = await self._find(delimiter, within=most, enough=most + 1)
        if end is not None:
            return self._receiver.take(end)
        if len(self._receiver.buffer) > most:
            raise self._exceeded(f"the input before {delimiter!r}", most, "line")
        partial = self._receiver.take(most)
        raise IncompleteRead(
            f"the input ended before {delimiter!r}", partial=partial, info=self._connection.info
        )

    async def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read lines to the end of input, or until they have ``hint`` bytes together.

        Without a hint, ``Limits.read`` bounds all of them together.
        """
        if hint is None or hint <= 0:
            return io.BytesIO(await self._read_all()).readlines()
        start, end = -1, 0
        while start < end < hint:
            await self._begin()
            start, end = end, await self._end_of_line(end)
        return io.BytesIO(self._receiver.take(end)).readlines()

    async def peek(self, size: int = 0) -> bytes:
        """What is buffered, without taking it, after at most one receive.

        Args:
          size: ignored, as in `io.BufferedReader.peek`.
        """
        await self._fill_to(1)
        return bytes(self._receiver.buffer)

    async def _begin(self) -> None:
        """Be the cancellation point of a read, and raise what stands against it."""
        await before_buffer()
        self._receiver.check()

    async def _read_all(self) -> bytes:
        limit = self._connection.limits.read
        await self._fill_to(limit + 1)
        if len(self._receiver.buffer) > limit:
            raise self._exceeded("the input", limit, "read")
        return self._receiver.take(limit)

    async def _fill_to(self, size: int) -> None:
        """Fill the buffer to at least ``size`` bytes, or to the end of input."""
        await self._begin()
        while len(self._receiver.buffer) < size:
            if not await self._receiver.fill():
                return

    async def _find(
        self, delimiter: bytes, *, within: int, enough: int, start: int = 0
    ) -> int | None:
        """The end of the first ``delimiter`` in the next ``within`` bytes, from ``start`` on.

        None when they do not hold one: then ``enough`` bytes are buffered, or
        the input has ended.
        """
        receiver, buffer = self._receiver, self._receiver.buffer
        searched, deadline = start, math.inf
        while True:
            at = buffer.find(delimiter, searched, start + within)
            if at >= 0:
                return at + len(delimiter)
            if len(buffer) >= start + enough:
                return None
            searched = max(start, len(buffer) - len(delimiter) + 1)
            if len(buffer) > start and deadline == math.inf:
                deadline = trio.current_time() + self._connection.timeouts.line
            if not await receiver.fill(deadline=deadline):
                return None

    def _exceeded(self, what: str, limit: int, field: str) -> LimitExceeded:
        return LimitExceeded(
            f"{what} is longer than {limit} bytes ({field})", info=self._connection.info
        )


def _writable(target: bytearray | memoryview) -> memoryview:
    """A view of bytes to read into; refused before anything is read."""
    view = memoryview(target).cast("B")
    if view.readonly:
        raise TypeError(f"cannot read into {type(target).__name__}: it is read-only")
    return view
