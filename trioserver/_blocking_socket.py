"""What a handler in a thread gets as its connection: a blocking socket that tells what it does.

It is a `socket.socket` in every way. Beside that it keeps account of its use,
which the server looks at from its own thread: how many bytes went where, and
whether the handler waits for a request that has not begun. That is how a
drain can end such waits and no others.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import attrs

from ._errors import IdleTimeout, PeerGone, RequestEnded, WriteTimeout
from ._events import RequestInfo
from ._receiving import Drain, cut


@attrs.define(eq=False)
class SocketUse:
    """What a handler's thread does with its socket, for another thread to look at.

    Each attribute is written by one side alone, and a stale value does no harm:
    a drain looks again, and so does the socket before it waits.

    Attributes:
      info: the facts of the request.
      drain: whether the server drains.
      new_until: until when, by `time.monotonic`, a drain waits for a first byte.
      ends_idle: whether a drain may end a wait between two requests.
      idle: seconds that a read waits for a byte, for messages.
      write: seconds that a write waits for room, for messages.
      pending: input that was received before the handler got its socket.
      received: bytes read so far.
      sent: bytes written so far.
      reading: whether a read waits.
      writing: whether a write waits.
      answered: whether nothing was read since the last write.
      at_eof: whether a read has met the end of input.
      ended_idle: whether the drain has ended a wait.
      fault: the last error of the socket, which is the peer's doing.
    """

    info: RequestInfo
    drain: Drain
    new_until: float = -math.inf
    ends_idle: bool = True
    idle: float = math.inf
    write: float = math.inf
    pending: bytearray = attrs.field(factory=bytearray)
    received: int = 0
    sent: int = 0
    reading: bool = False
    writing: bool = False
    answered: bool = True
    at_eof: bool = False
    ended_idle: bool = False
    fault: OSError | None = None

    def waits_idle(self) -> bool:
        """Whether a read waits for the first byte of a request."""
        return self.reading and self.answered and not self.pending

    def may_end(self) -> bool:
        """Whether a drain may end that wait now."""
        return self.ends_idle and (self.received > 0 or time.monotonic() >= self.new_until)

    def end_idle_wait(self, sock: socket.socket) -> None:
        """End the wait for the first byte of a request, if there is one: for a drain.

        The handler sees the end of input, and can still write. A request that
        arrives in this very moment is read first, so it is not lost.
        """
        if self.waits_idle() and self.may_end() and not self.ended_idle:
            self.ended_idle = True
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD)

    def as_ended(self, error: OSError) -> RequestEnded | None:
        """``error`` in the server's words, if it is what the peer has done to the socket."""
        if error is not self.fault:
            return None
        if isinstance(error, TimeoutError):
            return IdleTimeout(f"the peer was silent for too long: {error}", info=self.info)
        return PeerGone(f"the peer is gone: {error.strerror or error}", info=self.info)


class BlockingSocket(socket.socket):
    """A blocking socket that keeps account of its `SocketUse`."""

    __slots__ = ("_use",)

    _use: SocketUse

    @classmethod
    def sharing(cls, sock: socket.socket, use: SocketUse) -> BlockingSocket:
        """One for the connection of ``sock``, with a descriptor of its own.

        So it can be closed at any time, by whoever is the last to use it, and
        never meets a number that has been given to somebody else.
        """
        twin = cls.twin_of(sock)
        twin.keep_account(use)
        return twin

    @classmethod
    def twin_of(cls, sock: socket.socket) -> BlockingSocket:
        """The same, before anybody uses it."""
        return cls(sock.family, sock.type, sock.proto, fileno=socket.dup(sock.fileno()))

    def keep_account(self, use: SocketUse) -> None:
        """Begin to; every operation needs it."""
        self._use = use
        # The twins share one mode, and the Trio side has made it non-blocking.
        self.settimeout(None)
        _set_kernel_timeout(self, socket.SO_RCVTIMEO, use.idle)
        _set_kernel_timeout(self, socket.SO_SNDTIMEO, use.write)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket for the same connection."""
        return socket.socket(self.family, self.type, self.proto, fileno=socket.dup(self.fileno()))

    def end(self) -> None:
        """Close, whoever still has files made of it."""
        number = self.detach()
        if number != -1:
            socket.close(number)

    def as_ended(self, error: OSError) -> RequestEnded | None:
        """``error`` in the server's words, if it is what the peer has done to this socket."""
        return self._use.as_ended(error)

    # Receiving ---------------------------------------------------------------

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`."""
        use = self._use
        if use.pending:
            return self._from_pending(size, flags)
        self._begin_read()
        try:
            data = super().recv(size, flags)
        except OSError as error:
            raise self._failed(error, flags, reading=True) from None
        finally:
            use.reading = False
        self._was_read(len(data), size, flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        use = self._use
        if use.pending:
            view = memoryview(buffer).cast("B")
            data = self._from_pending(nbytes or len(view), flags)
            view[: len(data)] = data
            return len(data)
        self._begin_read()
        try:
            size = super().recv_into(buffer, nbytes, flags)
        except OSError as error:
            raise self._failed(error, flags, reading=True) from None
        finally:
            use.reading = False
        self._was_read(size, nbytes or len(buffer), flags)
        return size

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As `socket.socket.recvfrom`, of a connection: nobody's address."""
        return self.recv(size, flags), None

    def _from_pending(self, size: int, flags: int) -> bytes:
        pending = self._use.pending
        return bytes(pending[:size]) if flags & socket.MSG_PEEK else cut(pending, size)

    def _begin_read(self) -> None:
        use = self._use
        use.reading = True
        # After it says that it waits: a drain that begins now sees it, or is seen.
        if use.drain.began:
            use.end_idle_wait(self)

    def _was_read(self, size: int, wanted: int, flags: int) -> None:
        use = self._use
        if size:
            use.answered = False
            if not flags & socket.MSG_PEEK:
                use.received += size
        elif wanted:
            use.at_eof = True

    # Sending -----------------------------------------------------------------

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As `socket.socket.send`."""
        return self._write(super().send, data, flags, flags=flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As `socket.socket.sendall`."""
        self._write(super().sendall, data, flags, flags=flags, size=memoryview(data).nbytes)

    def sendmsg(self, buffers: Iterable[Any], *arguments: Any) -> int:
        """As `socket.socket.sendmsg`."""
        return self._write(super().sendmsg, buffers, *arguments)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `socket.socket.sendfile`."""
        return self._write(super().sendfile, file, offset, count)

    def _write(
        self, function: Any, what: Any, *arguments: Any, size: int | None = None, flags: int = 0
    ) -> int:
        use = self._use
        use.writing = True
        try:
            sent = function(what, *arguments)
        except OSError as error:
            raise self._failed(error, flags, reading=False) from None
        finally:
            use.writing = False
        sent = sent if size is None else size
        use.sent += sent
        use.answered = True
        return int(sent)

    # Errors ------------------------------------------------------------------

    def _failed(self, error: OSError, flags: int, *, reading: bool) -> OSError:
        """The exception for an operation that met ``error``."""
        use = self._use
        if isinstance(error, BlockingIOError):
            if flags & getattr(socket, "MSG_DONTWAIT", 0) or not self._blocks():
                return error  # as was asked for
            if reading:
                message = f"no byte from the peer for {use.idle:g} s (idle)"
                return IdleTimeout(message, info=use.info)
            return WriteTimeout(f"the peer took no byte for {use.write:g} s (write)", info=use.info)
        if self.fileno() != -1 and isinstance(error, (ConnectionError, TimeoutError)):
            use.fault = error
        return error

    def _blocks(self) -> bool:
        return self.gettimeout() is None and os.get_blocking(self.fileno())


def _set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Bound a blocking operation; a timeout that the handler sets itself overrules it."""
    if seconds == math.inf:
        return
    if sys.platform == "win32":
        value: bytes | int = max(1, round(seconds * 1000))
    else:
        whole = int(seconds)
        # struct timeval; zeros would mean "for ever".
        value = struct.pack("ll", whole, max(round((seconds - whole) * 1e6), 0 if whole else 1))
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, option, value)
