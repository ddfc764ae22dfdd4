"""What a handler in a thread gets as its connection: a blocking socket that tells what it does.

It is a `socket.socket` for the descriptor that the server has, too, and that the
server closes. Every operation is tried at once, and waits only where it would block:
so a wait can end for more than one reason, and the server's time-outs are not the
kernel's, which would reach everybody who has the descriptor.

The rules this file keeps:

* No operation waits in the kernel, whatever the descriptor's mode. That is what the
  handler thinks it is from the moment in which it asks for the number.
* Closing ends the output and no more: the number is not free before the server has
  closed it. Who detaches gets the number, and the server another one.
* An error is the peer's only if the handler has not ended its output itself.
"""

from __future__ import annotations

import errno
import io
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self, TypeVar

import trio

from ..._facts.errors import IdleTimeout, PeerGone, WriteTimeout
from ..._facts.verdict import left_handle, peers_doing
from ..._sockets.descriptors import identity_of, is_lost, lost
from ..._sockets.making import (
    NOT_WAITING,
    RESET_ON_CLOSE,
    SENDING,
    Kind,
    kind_of,
    object_of,
    socket_of,
    twin_of,
)
from .loan import SocketUse, wait_for_room

T = TypeVar("T")

# Plain ints: with socket's enums, the arithmetic took longer than the system call.
_ALL = int(getattr(socket, "MSG_WAITALL", 0))
_PEEK = int(socket.MSG_PEEK)


class Accounting(socket.socket):
    """The operations of a socket, which keep account of a `SocketUse`."""

    __slots__ = ()

    # To try in vain costs a thread two turns of the interpreter.
    _tries_always = False
    _use: SocketUse

    # Receiving ---------------------------------------------------------------

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`."""
        if flags & _ALL:
            buffer = bytearray(size)
            return bytes(buffer[: self.recv_into(buffer, size, flags)])
        if self._use.stream.pending:
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
        if self._use.stream.pending:
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
        if self._use.stream.pending:
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
        use = self._use
        use.answered = False
        data = bytes(use.stream.pending[:size])
        if not flags & _PEEK:
            del use.stream.pending[:size]
        return data

    def _receive(
        self, function: Callable[..., T], wanted: int, flags: int, *arguments: Any
    ) -> T | None:
        """What ``function`` receives; None if a drain comes before a request, or the end."""
        use = self._use
        use.reading = True
        try:
            got = self._receive_in_time(function, flags, arguments)
        except OSError as error:
            raise self._failed(error, reading=True) from None
        finally:
            use.reading = False
        size = _size_of(got)
        if size:
            use.was_read(size, peeked=bool(flags & _PEEK))
        elif wanted and not use.stream.ended_idle:
            use.stream.at_eof = True
        return got

    def _receive_in_time(
        self, function: Callable[..., T], flags: int, arguments: tuple[Any, ...]
    ) -> T | None:
        use = self._use
        deadline = None
        # Who has just answered will likely have to wait. The rest is likely there.
        tries_first = self._tries_always or not (
            use.stream.received and use.answered and self._waits()
        )
        while not use.interrupted:  # else it would be fed with what is still queued
            if use.peer_was_quiet and use.drain_ends_read():
                use.stream.ended_idle = True
                break
            if tries_first or deadline is not None or flags & NOT_WAITING:
                try:
                    return function(*arguments)
                except BlockingIOError:
                    if flags & NOT_WAITING or not self._waits():
                        raise
            if deadline is None:
                patience = use.idle if use.timeout is None else use.timeout
                deadline = time.monotonic() + patience
            if not use.wait_for_input(super().fileno(), deadline):
                use.stream.ended_idle = True
                break
        return None

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
        use, own = self._use, self._use.timeout
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
                if sent and not use.stream.output_ended:
                    use.stream.broken = trio.BrokenResourceError, "an earlier send was cut short"
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
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def _write(
        self,
        function: Callable[..., int],
        flags: int,
        *arguments: Any,
        deadline: float | None = None,
    ) -> int:
        use = self._use
        use.writing = True
        use.will_write(super().fileno())
        try:
            sent = self._write_in_time(function, flags, arguments, deadline)
        except OSError as error:
            raise self._failed(error, reading=False) from None
        finally:
            use.writing = False
        use.was_written(sent)
        return sent

    def _write_in_time(
        self,
        function: Callable[..., int],
        flags: int,
        arguments: tuple[Any, ...],
        deadline: float | None,
    ) -> int:
        use = self._use
        while True:
            try:
                return function(*arguments)
            except BlockingIOError:
                if flags & NOT_WAITING or not self._waits():
                    raise
            if deadline is None:
                patience = use.write if use.timeout is None else use.timeout
                deadline = time.monotonic() + patience
            if not wait_for_room(super().fileno(), deadline):
                raise TimeoutError

    def _waits(self) -> bool:
        """Whether an operation that would block waits, as far as the handler has asked for it."""
        use = self._use
        if use.timeout is None and use.shown:
            return os.get_blocking(super().fileno())  # it may have been set there
        return use.timeout != 0

    # Errors ------------------------------------------------------------------

    def _failed(self, error: OSError, *, reading: bool) -> OSError:
        """The exception for an operation that met ``error``."""
        use = self._use
        if isinstance(error, TimeoutError) and error.errno is None:
            return self._too_late(reading=reading)
        ours = super().fileno() == -1 or (use.stream.output_ended and not reading)
        if not ours and (isinstance(error, ConnectionError) or error.errno == errno.ETIMEDOUT):
            use.stream.broken = PeerGone, f"the peer is gone: {error.strerror or error}"
            use.blame_peer(error, PeerGone)
        return error

    def _too_late(self, *, reading: bool) -> OSError:
        use = self._use
        if use.timeout is not None:  # the handler's own
            error = TimeoutError("timed out")
            use.blame_peer(error, IdleTimeout if reading else WriteTimeout)
            return error
        if reading:
            return IdleTimeout(f"no byte from the peer for {use.idle:g} s (idle)", info=use.info)
        message = f"the peer took no byte for {use.write:g} s (write)"
        use.stream.broken = WriteTimeout, message
        return WriteTimeout(message, info=use.info)

    def call(self, function: Callable[[], T], *, may_close_number: bool = False) -> T:
        """Call ``function``; what the peer has done to this socket is raised as `RequestEnded`.

        Unless something else went wrong before: then that, which nobody would hear of.

        Args:
          may_close_number: whether the descriptor is all its own, so that it may close
            the number behind this object's back.
        """
        try:
            result = function()
        except OSError as error:
            self._let_go_if_lost(may_close_number=may_close_number)
            ended, first = self._use.as_ended(error), left_handle(error)
            try:
                if first is not None and self._is_peers(error) and not self._is_peers(first):
                    raise first
                if ended is None:
                    raise
                raise ended from error
            finally:
                del ended, first  # no cycles
        except BaseException:
            self._let_go_if_lost(may_close_number=may_close_number)
            raise
        if self._let_go_if_lost(may_close_number=may_close_number):
            raise lost()
        return result

    def _let_go_if_lost(self, *, may_close_number: bool) -> bool:
        """Have nobody use a number any more that may be anybody's; whether it is such a one."""
        if may_close_number or not self.is_lost():
            return False
        self.end()
        return True

    def _is_peers(self, error: BaseException) -> bool:
        return peers_doing(self._use.as_ended(error) or error, self._use.info) is not None

    # Files -------------------------------------------------------------------

    def makefile(self, mode: Any = "r", buffering: Any = None, **text: Any) -> Any:
        """As `socket.socket.makefile`."""
        if mode not in {"rb", "br"} or buffering == 0:
            return super().makefile(mode, buffering, **text)
        self._io_refs += 1  # type: ignore[attr-defined]
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        return _Reader(_Raw(self, "r"), size, self._use)

    # Time-outs ---------------------------------------------------------------

    def gettimeout(self) -> float | None:
        """As `socket.socket.gettimeout`."""
        return self._use.timeout

    def settimeout(self, value: float | None) -> None:
        """As `socket.socket.settimeout`: in the place of ``Timeouts.idle`` and ``write``."""
        if value is not None:
            value += 0.0  # float() would take text
            if abs(value) > threading.TIMEOUT_MAX:
                raise OverflowError("timestamp out of range")
            if not value >= 0:
                raise ValueError("Timeout value out of range")
        if super().fileno() == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._use.timeout = value
        if self._use.shown:
            self._show()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  (as in socket)
        """As `socket.socket.setblocking`."""
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        """As `socket.socket.getblocking`."""
        return self._use.timeout != 0

    timeout = property(gettimeout)

    def setsockopt(self, level: int, name: int, *value: Any) -> None:
        """As `socket.socket.setsockopt`."""
        super().setsockopt(level, name, *value)
        if level == socket.SOL_SOCKET and name in _TIMEOUTS:
            # Nobody waits in the kernel, so it is kept here.
            seconds = _seconds_of(super().getsockopt(level, name, 16)) or math.inf
            setattr(self._use, _TIMEOUTS[name], seconds)

    # The descriptor ------------------------------------------------------------

    def fileno(self) -> int:
        """As `socket.socket.fileno`."""
        if not self._use.shown:
            self._show()
        return super().fileno()

    def _show(self) -> None:
        """Have the descriptor's mode be what the handler thinks it is."""
        number = super().fileno()
        if number != -1 and sys.platform != "win32":  # which cannot tell programs a number
            if not self._use.shown:
                self._use.shown, self._use.identity = True, identity_of(number)
                self._use.stream.may_have_sent = True
            os.set_blocking(number, self._use.timeout is None)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket for the same connection, with a descriptor of its own."""
        twin = twin_of(self)
        twin.settimeout(self.gettimeout())
        return twin

    def shutdown(self, how: int, /) -> None:
        """As `socket.socket.shutdown`."""
        if how != socket.SHUT_RD:
            self._use.stream.output_ended = True
        super().shutdown(how)

    def detach(self) -> int:
        """As `socket.socket.detach`: the caller has the descriptor, the server another one."""
        number = self.fileno()
        if number != -1:
            self._use.hand_over()
            super().detach()
        return number

    def is_lost(self) -> bool:
        """Whether the handler has closed the descriptor by its number: it may be anybody's now."""
        return is_lost(super().fileno(), self._use.identity)

    def end(self) -> None:
        """Nothing can be done any more, whoever still has files made of it."""
        number = super().detach()
        if number != -1:
            self._use.number = number

    def end_for_good(self) -> None:
        """End the connection, too: the server has left the descriptor to this socket."""
        self.end()
        number, self._use.number = self._use.number, -1
        if number == -1 or is_lost(number, self._use.identity):
            return
        with socket_of(kind_of(self), number) as last:
            if self._use.stream.broken is not None and self._use.stream.sent:
                with suppress(OSError):  # half a reply must not look like a whole one
                    last.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    def _real_close(self, *_arguments: Any) -> None:
        """What `socket.socket.close` does when no files are left that were made of it."""
        if not self._use.stream.output_ended and not self.is_lost():
            with suppress(OSError):  # the server still has it, so the peer would not be told
                self.shutdown(socket.SHUT_WR)
        self.end()


class BlockingSocket(Accounting):
    """A blocking socket for a descriptor of the server's."""

    __slots__ = ("_use",)

    _use: SocketUse

    @classmethod
    def over(cls, sock: socket.socket, use: SocketUse) -> Self:
        """One for the descriptor of ``sock``, which stays its owner's."""
        return cls.of(kind_of(sock), sock.fileno(), use)

    @classmethod
    def of(cls, kind: Kind, number: int, use: SocketUse) -> Self:
        """One for a descriptor of this family, type and protocol."""
        ours = object_of(cls, kind, number)
        ours._use = use
        return ours


_TIMEOUTS = {socket.SO_RCVTIMEO: "idle", socket.SO_SNDTIMEO: "write"}


def kernels_time_outs(sock: socket.socket) -> dict[str, float]:
    """``SO_RCVTIMEO`` and ``SO_SNDTIMEO`` as far as they are set, by their names in a `SocketUse`.

    A connection has those of its listener. They are what it would wait in the kernel.
    """
    found = {
        name: _seconds_of(sock.getsockopt(socket.SOL_SOCKET, option, 16))
        for option, name in _TIMEOUTS.items()
    }
    return {name: seconds for name, seconds in found.items() if seconds}


def _seconds_of(value: bytes) -> float:
    """What the system calls a time-out: seconds and microseconds, or (Windows) milliseconds."""
    if len(value) < 8:
        return int.from_bytes(value, sys.byteorder) / 1000
    seconds, microseconds = struct.unpack("ll", value)
    return float(seconds + microseconds / 1_000_000)


def _size_of(got: object) -> int:
    """Bytes of what a receive has returned."""
    if got is None:
        return 0
    return got if isinstance(got, int) else len(got[0] if isinstance(got, tuple) else got)  # type: ignore[arg-type]


class _Raw(socket.SocketIO):
    """What a file reads from; notes what the file then holds."""

    def readinto(self, buffer: Any) -> int | None:
        got = super().readinto(buffer)
        self._sock._use.held += got or 0  # type: ignore[attr-defined]
        return got


class _Reader(io.BufferedReader):
    """A buffered file that notes what it hands out: what it holds is part of a request."""

    def __init__(self, raw: _Raw, size: int, use: SocketUse) -> None:
        super().__init__(raw, size)
        self._use = use

    def read(self, size: int | None = -1, /) -> bytes:
        return self._handed_out(super().read(size))

    def read1(self, size: int = -1, /) -> bytes:
        return self._handed_out(super().read1(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._handed_out(super().readline(size))

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(buffer)
        self._use.held -= got or 0
        return got

    def readinto1(self, buffer: Any, /) -> int:
        got = super().readinto1(buffer)
        self._use.held -= got or 0
        return got

    def _handed_out(self, data: bytes) -> bytes:
        self._use.held -= len(data or b"")
        return data
