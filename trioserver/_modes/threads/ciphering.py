"""TLS of a socket in a thread, by the records of its connection: each operation tried once.

The rules that this file keeps:

* Threads of a handler, of which one reads while another writes, take turns, whatever they ask.
  Nobody waits for the peer meanwhile.
* When this socket has ended, no thread uses the records any more: they are Trio's again.
* Nothing is received beyond the record that has begun, so that whoever waits for the descriptor
  sees that there is more.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from contextlib import suppress
from typing import Any

from ..._facts.cpython import dress_as_tls_socket, is_owned
from ..._sockets.making import NOT_WAITING, SENDING
from ..._sockets.tls_errors import TLSError
from ..._sockets.tls_records import TLSRecords
from ..._sockets.tls_transport import TLSOperations
from ..._sockets.transport import Data, UncleanEnd
from .loan import Loan
from .waiting import WouldBlock


class WantRead(WouldBlock, ssl.SSLWantReadError):
    """As `ssl` says it of a socket that does not wait, and as all others do."""


class WantWrite(WouldBlock, ssl.SSLWantWriteError):
    """The same of a send."""


class _Wire:
    """What TLS needs of a transport beneath it: a socket's own operations.

    Attributes:
      is_empty: whether there was nothing to receive the last time.
      sent: bytes that the socket took so far.
    """

    def __init__(self, sock: socket.socket, records: TLSRecords) -> None:
        self._socket, self._records = sock, records
        self.is_empty, self.sent = False, 0

    def receive_now(self, max_bytes: int) -> bytes | None:
        # Not beyond a record, as OpenSSL itself does not: who waits for the descriptor is to
        # see that there is more.
        portion = min(max_bytes, self._records.missing)
        try:
            data = socket.socket.recv(self._socket, portion, NOT_WAITING)
        except BlockingIOError:
            self.is_empty = True
            return None
        self.is_empty = False
        return data

    def send_now(self, data: Data) -> int:
        try:
            sent = socket.socket.send(self._socket, data, SENDING)
        except BlockingIOError:
            return 0
        self.sent += sent
        return sent

    def send_eof(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_WR)


class Ciphering(ssl.SSLSocket):
    """The operations of a socket by TLS, each tried once: `BlockingIOError` if it would wait."""

    _loan: Loan
    _tls: TLSOperations[_Wire]
    _lock: threading.RLock
    _promised: bytes
    _input_ended: bool = False

    def cipher_by(self, records: TLSRecords) -> None:
        """Have all go by TLS from now on."""
        self._tls = TLSOperations(_Wire(self, records), records)
        self._lock, self._promised = threading.RLock(), b""
        dress_as_tls_socket(self, records.tls)

    @property
    def _turn(self) -> Any:
        """A block for one thread at a time; not for a signal handler that has interrupted it."""
        # A lock of C's: `with` takes it and leaves it without a moment in between for a signal.
        if is_owned(self._lock):
            raise RuntimeError("a signal handler uses a TLS connection in the middle of its use")
        return self._lock

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        _check_flags("recv", flags & ~NOT_WAITING)
        data, moved = None, False
        try:
            while data is None:
                with self._turn:
                    self._check_open()
                    if self._tls.records.held:  # an end, perhaps, that did not wait for room
                        with suppress(OSError):
                            self._tls.flush_now()
                    data = self._tls.receive_now(size) if size else b""
                    if self._tls.beneath.is_empty:
                        break
                    moved = True
        except (UncleanEnd, TLSError) as error:
            if self._input_ended:  # by this side
                return b""
            is_end = isinstance(error, UncleanEnd)
            if is_end and self._loan.stream.received and self._loan.is_between_requests():
                return b""
            raise _aborted(error) from error
        if data is not None:
            return data
        if self._tls.records.is_mid_record:
            self._loan.state.answered = False  # half a record may be half a request
        raise WantRead(has_moved=moved)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        with memoryview(buffer).cast("B") as view:
            data = Ciphering.recv(self, min(nbytes or len(view), len(view)), flags)
            view[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        _check_flags("send", flags & ~SENDING)
        try:
            with self._turn, memoryview(data).cast("B") as view:
                self._check_open()
                before = self._tls.beneath.sent
                sent = self._send_now(view)
                moved = self._tls.beneath.sent > before
                blocks = not sent and len(view) > 0
        except TLSError as error:
            raise _aborted(error) from error
        if blocks:
            raise WantWrite(has_moved=moved)
        return sent

    def _send_now(self, view: memoryview) -> int:
        promised = self._promised
        if view[: len(promised)] != promised:  # OpenSSL demands it, too: a part is on its way
            raise OSError(errno.EINVAL, "a send that would block must be tried again as it was")
        sent = self._tls.send_now(view)
        self._promised = bytes(view[sent : sent + self._tls.records.owed])
        return sent

    def shutdown(self, how: int) -> None:
        with self._turn:
            self._check_open()
            if how != socket.SHUT_WR:
                self._input_ended = True
            if how != socket.SHUT_RD and self._loan.stream.broken is None:
                self._tls.send_eof()  # and never after half a reply
        if how != socket.SHUT_WR:
            socket.socket.shutdown(self, socket.SHUT_RD)  # the output ends when all has gone

    def detach(self) -> int:
        with self._turn:  # whoever is in the middle of something is done with it
            return socket.socket.detach(self)

    def _check_open(self) -> None:
        """Have nothing be done with records that are somebody else's by now. In one's turn."""
        if socket.socket.fileno(self) == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _check_flags(function: str, flags: int) -> None:
    if flags:
        raise ValueError(f"flags are not allowed by TLS, and {function} got {flags}")


def _aborted(error: OSError) -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, str(error))
