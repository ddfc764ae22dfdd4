"""The methods of a socket that tells what it does.

Each is the one of `socket.socket`, by way of `Waiting`, and keeps account of what it did.
"""

from __future__ import annotations

import errno
import io
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import trio

from ..._sockets.making import NOT_WAITING, SENDING
from .files import BufferedFile, BufferedOutput, RawFile
from .kernel_time_outs import OPTIONS, time_out_of
from .shared_descriptor import SharedDescriptor
from .waiting import PEEK

T = TypeVar("T")

# A plain int, as `PEEK` is.
_ALL = int(getattr(socket, "MSG_WAITALL", 0))


class Accounting(SharedDescriptor):
    """The operations of a socket, which keep account of a `Loan`."""

    __slots__ = ()

    # Receiving ---------------------------------------------------------------

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`."""
        if flags & _ALL:
            buffer = bytearray(size)
            return bytes(buffer[: self.recv_into(buffer, size, flags)])
        if self._loan.stream.pending:
            return self._from_pending(size, flags)
        data = self._receive(super().recv, size, flags, size, flags | NOT_WAITING)
        return b"" if data is None else data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        with memoryview(buffer).cast("B") as view:
            size = nbytes or len(view)
            if not flags & _ALL:
                return self._into(view, size, flags)
            flags &= ~_ALL
            done = 0
            while done < size and (got := self._into(view[done:], size - done, flags)):
                done += got
            return done

    def _into(self, view: memoryview, size: int, flags: int) -> int:
        if self._loan.stream.pending:
            data = self._from_pending(min(size, len(view)), flags)
            view[: len(data)] = data
            return len(data)
        into = super().recv_into
        return self._receive(into, size, flags, view, size, flags | NOT_WAITING) or 0

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As `socket.socket.recvfrom`, of a connection: nobody's address."""
        return self.recv(size, flags), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As `socket.socket.recvfrom_into`, of a connection: nobody's address."""
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, size: int, space: int = 0, flags: int = 0, /) -> tuple[bytes, Any, int, Any]:
        """As `socket.socket.recvmsg`."""
        if self._loan.stream.pending:
            return self._from_pending(size, flags), [], 0, None
        message = super().recvmsg
        got = self._receive(message, size, flags, size, space, flags | NOT_WAITING)
        return (b"", [], 0, None) if got is None else got

    def recvmsg_into(
        self, buffers: Iterable[Any], space: int = 0, flags: int = 0, /
    ) -> tuple[int, Any, int, Any]:
        """As `socket.socket.recvmsg_into`."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        data, *rest = self.recvmsg(sum(map(len, views)), space, flags)
        left = data
        for view in views:
            portion, left = left[: len(view)], left[len(view) :]
            view[: len(portion)] = portion
        return len(data), *rest

    def _from_pending(self, size: int, flags: int) -> bytes:
        pending = self._loan.stream.pending
        self._loan.state.answered = False
        data = bytes(pending[:size])
        if not flags & PEEK:
            del pending[:size]
        return data

    # Sending -----------------------------------------------------------------

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As `socket.socket.send`."""
        return self._write(super().send, flags, data, flags | SENDING)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """As `socket.socket.sendto`, of a connection: it goes to its other end."""
        if len(flags_and_address) not in {1, 2}:
            raise TypeError("sendto takes (data, address) or (data, flags, address)")
        *given, address = flags_and_address
        flags = sum(given)
        return self._write(super().sendto, flags, data, flags | SENDING, address)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As `socket.socket.sendall`."""
        self.as_one_write(self._send_pieces, data, flags)

    def _send_pieces(self, data: Any, flags: int) -> None:
        stream, own = self._loan.stream, self._loan.state.timeout
        # A time-out that the handler has set is for the whole.
        deadline = None if own is None else time.monotonic() + own
        with memoryview(data).cast("B") as view:
            sent, size = 0, len(view)
            try:
                while True:
                    sent += self._write(
                        super().send, flags, view[sent:], flags | SENDING, deadline=deadline
                    )
                    if sent == size:
                        break
            except BaseException:
                if sent and not stream.output_ended:
                    stream.broken = trio.BrokenResourceError, "an earlier send was cut short"
                raise

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """As `socket.socket.sendmsg`."""
        where = () if address is None else (address,)
        rest = (ancdata, flags | SENDING, *where)
        return self._write(super().sendmsg, flags, list(buffers), *rest)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `socket.socket.sendfile`, by `send`: the kernel's way knows no time-out."""
        return self.as_one_write(self.send_in_portions, file, offset, count)

    def as_one_write(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what sends in pieces: a client that has not got all of them has half a reply."""
        state = self._loan.state
        state.in_pieces = True
        try:
            return function(*arguments)
        finally:
            state.in_pieces = False

    # Files -------------------------------------------------------------------

    def makefile(self, mode: Any = "r", buffering: Any = None, **text: Any) -> Any:
        """As `socket.socket.makefile`."""
        if mode not in {"rb", "br", "wb", "bw"} or buffering == 0:
            self._loan.state.hides_input |= mode not in {"w", "wb", "bw"} and buffering != 0
            file = super().makefile(mode, buffering, **text)
            self._loan.state.note_file(file)
            return file
        self.keep_open()
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if "w" in mode:
            output = BufferedOutput(socket.SocketIO(self, "w"), size, self.as_one_write)
            self._loan.state.note_file(output)
            return output
        return BufferedFile(RawFile(self, self._loan), size, self._loan)

    # Time-outs ---------------------------------------------------------------

    def gettimeout(self) -> float | None:
        """As `socket.socket.gettimeout`."""
        return self._loan.state.timeout

    def settimeout(self, value: float | None) -> None:
        """As `socket.socket.settimeout`: in the place of ``Timeouts.idle`` and ``write``."""
        if value is not None:
            value += 0.0  # float() would take text
            if abs(value) > threading.TIMEOUT_MAX:
                raise OverflowError("timestamp out of range")
            if not value >= 0:
                raise ValueError("Timeout value out of range")
        if self._number() == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._loan.state.timeout = value
        if self._loan.state.shown:
            self._show()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  (as in socket)
        """As `socket.socket.setblocking`."""
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        """As `socket.socket.getblocking`."""
        return self._loan.state.timeout != 0

    timeout = property(gettimeout)

    def setsockopt(self, level: int, name: int, *value: Any) -> None:
        """As `socket.socket.setsockopt`."""
        super().setsockopt(level, name, *value)
        if level == socket.SOL_SOCKET and name in OPTIONS:
            setattr(self._loan.state, OPTIONS[name], time_out_of(self, name) or math.inf)
