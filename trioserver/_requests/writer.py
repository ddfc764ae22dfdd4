"""``wfile``: a connection, or the reply to a datagram, written like a file.

The rule this file keeps: a write takes all of its data, or raises.
"""

from __future__ import annotations

from collections.abc import Iterable

from trio.lowlevel import checkpoint_if_cancelled

from .._facts.config import LARGEST_PORTION
from .._sockets.transport import Data
from .files import File, ReadableAndWritable
from .schedule_points import after_write, before_buffer


class RequestWriter(File):
    """What a handler writes to: ``self.wfile``.

    Unbuffered unless the handler's ``wbufsize`` says otherwise. A buffered one
    flushes itself when the buffer is full, before a read that reaches the
    transport, and when the handler is done.

    Every operation of it and of ``rfile`` is a cancellation point. Of any two in a row that
    reach the transport at least one lets other tasks run, and of any sixteen that do not.
    `Connection.send_all` does each time.
    """

    __slots__ = ("_sender", "_size")

    def __init__(self, connection: ReadableAndWritable, size: int) -> None:
        super().__init__(connection)
        self._sender = connection._sender
        self._size = LARGEST_PORTION if size < 0 else size

    def readable(self) -> bool:
        """False, as of any file for writing."""
        return False

    def writable(self) -> bool:
        """True, as of any file for writing."""
        return True

    async def write(self, data: Data) -> int:
        """Write all of ``data``, or raise what `Connection.send_all` does; its size in bytes.

        A write that is cancelled half-way has sent an unknown part, and the
        connection can only be closed.
        """
        sender, most = self._sender, self._size
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        if not most:
            await checkpoint_if_cancelled()
            rest = sender.send_at_once(data) or after_write()
            if rest is not None:
                await rest
            return size
        await before_buffer()
        if len(sender.buffer) >= most:
            # A flush that was cancelled left it full: no more goes in before it is out.
            await sender.flush()
        sender.keep(data)
        if len(sender.buffer) >= most:
            await sender.flush()
        return size

    async def writelines(self, lines: Iterable[Data]) -> None:
        """Write all lines, as one write; raises what `write` does."""
        await self.write(b"".join(lines))

    async def flush(self) -> None:
        """Send what is buffered; raises what `Connection.send_all` does.

        Cancelled while it waits, it has sent an unknown part.
        """
        await before_buffer()
        await self._sender.flush()
