"""What a handler in a thread gets as its connection: a blocking socket that tells what it does.

It is a `socket.socket` in every way. Beside that it keeps account of its use,
which the server looks at from its own thread: how many bytes went where, and
what the handler waits for. A wait for a request that has not begun is a wait
for the drain, too, and whichever comes first, the thread sees itself: nobody
else could tell whether a request had begun by the time that he ended the wait.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import attrs

from ._config import LARGEST_INT
from ._errors import IdleTimeout, PeerGone, RequestEnded, WriteTimeout
from ._events import RequestInfo
from ._receiving import Bell, Drain, cut

T = TypeVar("T")

_NOT_WAITING: int = getattr(socket, "MSG_DONTWAIT", 0)


@attrs.define(eq=False)
class SocketUse:
    """What a handler's thread does with its socket, for another thread to look at.

    Each attribute is written by one side alone, and a stale value does no harm.

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
      broken: why nothing can be sent any more, as far as that has been met.
      cut_short: whether a write has failed of which a part may have been sent.
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
    broken: str | None = None
    cut_short: bool = False

    def waits_idle(self) -> bool:
        """Whether a read waits for the first byte of a request."""
        return self.reading and self.answered and not self.pending

    def request_may_come_until(self) -> float:
        """Until when, by `time.monotonic`, such a wait may go on; ``inf`` while nothing drains."""
        if not self.drain.began:
            return math.inf
        return -math.inf if self.received else self.new_until

    def blame_peer(self, error: OSError, kind: type[RequestEnded]) -> None:
        """Note on ``error`` that the peer is behind it."""
        vars(error)["_means"] = kind, self.info

    def as_ended(self, error: OSError) -> RequestEnded | None:
        """``error`` in the server's words, if it is what the peer has done to the socket."""
        kind: type[RequestEnded] | None
        kind, info = vars(error).get("_means", (None, None))
        if kind is None or info is not self.info:
            return None
        return kind(f"{_IN_WORDS[kind]}: {error.strerror or error}", info=info)


_IN_WORDS: dict[type[RequestEnded], str] = {
    PeerGone: "the peer is gone",
    IdleTimeout: "the peer was silent for too long",
    WriteTimeout: "the peer took nothing for too long",
}


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

    def _real_close(self, *arguments: Any) -> None:
        """What `socket.socket.close` does when no files are left that were made of it."""
        with suppress(OSError):
            # It has a twin, so the peer would not be told.
            self.shutdown(socket.SHUT_WR)
        super()._real_close(*arguments)  # type: ignore[misc]

    # Receiving ---------------------------------------------------------------

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`."""
        if self._use.pending:
            return self._from_pending(size, flags)
        data = self._receive(super().recv, size, flags, size, flags)
        if data is None:
            return b""
        self._was_read(len(data), size, flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        with memoryview(buffer).cast("B") as view:
            size = nbytes or len(view)
            if self._use.pending:
                data = self._from_pending(min(size, len(view)), flags)
                view[: len(data)] = data
                return len(data)
        got = self._receive(super().recv_into, size, flags, buffer, nbytes, flags)
        if got is None:
            return 0
        self._was_read(got, size, flags)
        return got

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As `socket.socket.recvfrom`, of a connection: nobody's address."""
        return self.recv(size, flags), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As `socket.socket.recvfrom_into`, of a connection: nobody's address."""
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, size: int, space: int = 0, flags: int = 0, /) -> tuple[bytes, Any, int, Any]:
        """As `socket.socket.recvmsg`."""
        if self._use.pending:
            return self._from_pending(size, flags), [], 0, None
        got = self._receive(super().recvmsg, size, flags, size, space, flags)
        if got is None:
            return b"", [], 0, None
        self._was_read(len(got[0]), size, flags)
        return got

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
        return bytes(use.pending[:size]) if flags & socket.MSG_PEEK else cut(use.pending, size)

    def _receive(
        self, function: Callable[..., T], wanted: int, flags: int, *arguments: Any
    ) -> T | None:
        """What ``function`` receives; None if a drain comes before a request."""
        use = self._use
        use.reading = True
        try:
            if wanted and use.ends_idle and use.waits_idle() and not self._request_comes(flags):
                use.ended_idle = True
                return None
            return function(*arguments)
        except OSError as error:
            raise self._failed(error, flags, reading=True) from None
        finally:
            use.reading = False

    def _request_comes(self, flags: int) -> bool:
        """Wait for input or its end; false if a drain comes first and neither is there."""
        use, patience = self._use, self.gettimeout()
        if patience is None:
            patience = use.idle if self._blocks() else 0
        if not patience or flags & _NOT_WAITING or self.fileno() == -1:
            return True  # or it does not wait
        deadline = time.monotonic() + patience
        while True:
            until = use.request_may_come_until()
            bell = use.drain.bell if until == math.inf else None
            if _has_input(self, bell, min(until, deadline) - time.monotonic()):
                return True
            if use.request_may_come_until() <= time.monotonic():
                return False
            if deadline <= time.monotonic():
                raise BlockingIOError if self.gettimeout() is None else TimeoutError("timed out")

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
        """As `socket.socket.sendfile`, by `send`: the kernel's way knows no time-out."""
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def _write(
        self, function: Any, what: Any, *arguments: Any, size: int | None = None, flags: int = 0
    ) -> int:
        use = self._use
        use.writing = True
        try:
            sent = function(what, *arguments)
        except OSError as error:
            use.cut_short = use.cut_short or size is not None
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
            if flags & _NOT_WAITING or not self._blocks():
                return error  # as was asked for
            if reading:
                message = f"no byte from the peer for {use.idle:g} s (idle)"
                return IdleTimeout(message, info=use.info)
            use.broken = f"the peer took no byte for {use.write:g} s (write)"
            return WriteTimeout(use.broken, info=use.info)
        if self.fileno() == -1:
            return error
        if isinstance(error, ConnectionError) or error.errno == errno.ETIMEDOUT:
            use.broken = f"the peer is gone: {error.strerror or error}"
            use.blame_peer(error, PeerGone)
        elif isinstance(error, TimeoutError):  # the handler's own
            use.blame_peer(error, IdleTimeout if reading else WriteTimeout)
        return error

    def _blocks(self) -> bool:
        return self.gettimeout() is None and os.get_blocking(self.fileno())


def _has_input(sock: socket.socket, bell: Bell | None, seconds: float) -> bool:
    """Wait for input, or its end; false when the time is up, or the bell rings, without."""
    bells = () if bell is None or bell.fileno() == -1 else (bell,)
    longest = None if seconds == math.inf else min(max(0.0, seconds), LARGEST_INT / 1000)
    if sys.platform == "win32":
        readable, _, _ = select.select([sock, *bells], [], [], longest)
        return sock in readable
    poll = select.poll()
    for one in (sock, *bells):
        poll.register(one.fileno(), select.POLLIN)
    events = poll.poll(None if longest is None else math.ceil(longest * 1000))
    return any(number == sock.fileno() for number, _ in events)


def _set_kernel_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Bound a blocking operation; a timeout that the handler sets itself overrules it."""
    if seconds == math.inf:
        return
    if sys.platform == "win32":
        value: bytes | int = min(max(1, round(seconds * 1000)), LARGEST_INT)
    else:
        # struct timeval; zeros would mean "for ever".
        microseconds = max(1, round(min(seconds, LARGEST_INT) * 1_000_000))
        value = struct.pack("ll", *divmod(microseconds, 1_000_000))
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, option, value)
