"""A blocking socket of a connection by TLS: an `ssl.SSLSocket`, as far as a handler can tell.

TLS is that of the connection itself, which Trio's side has begun and goes on with afterwards:
see `TLSRecords`, whose reasons against OpenSSL over the kernel's socket hold in threads, too.

The rules that this file keeps:

* Nothing goes out in clear. Where an `ssl.SSLSocket` falls back to plain text (after its
  ``shutdown``, and its ``unwrap``), this one does not.
* Threads of a handler, of which one reads while another writes, take turns, whatever they ask.
  Nobody waits for the peer meanwhile.
* When this socket has ended, no thread uses the records any more: they are Trio's again.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any, ClassVar, NoReturn

from ..._facts.cpython import dress_as_tls_socket
from ..._facts.errors import Draining, HandshakeFailed, IdleTimeout, PeerGone
from ..._sockets.making import NOT_WAITING, SENDING
from ..._sockets.tls_errors import NO_HANDSHAKE_IN_TIME, TLSError
from ..._sockets.tls_records import TLSRecords
from ..._sockets.tls_transport import TLSOperations
from ..._sockets.transport import Data, UncleanEnd
from .accounting import Accounting
from .loan import Loan, LoanState

_SSL: Any = ssl.SSLSocket


class _WantRead(ssl.SSLWantReadError, BlockingIOError):
    """As `ssl` says it of a socket that does not wait, and as all others do."""


class _WantWrite(ssl.SSLWantWriteError, BlockingIOError):
    """The same of a send."""


class _Wire:
    """What TLS needs of a transport beneath it: a socket's own operations."""

    def __init__(self, sock: socket.socket, state: LoanState, records: TLSRecords) -> None:
        self._socket, self._state, self._records = sock, state, records

    def receive_now(self, max_bytes: int) -> bytes | None:
        if self._state.shown:  # who waits for the descriptor is to see that there is more
            max_bytes = min(max_bytes, self._records.missing)
        try:
            return socket.socket.recv(self._socket, max_bytes, NOT_WAITING)
        except BlockingIOError:
            return None

    def send_now(self, data: Data) -> int:
        try:
            return socket.socket.send(self._socket, data, SENDING)
        except BlockingIOError:
            return 0

    def send_eof(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_WR)


class Ciphering(ssl.SSLSocket):
    """The operations of a socket by TLS, each tried once: `BlockingIOError` if it would wait."""

    _loan: Loan
    _tls: TLSOperations[_Wire]
    _turn: threading.Lock
    _promised: bytes

    def cipher_by(self, records: TLSRecords) -> None:
        """Have all go by TLS from now on."""
        self._tls = TLSOperations(_Wire(self, self._loan.state, records), records)
        self._turn, self._promised = threading.Lock(), b""
        dress_as_tls_socket(self, records.tls)

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        _check_flags("recv", flags & ~NOT_WAITING)
        try:
            with self._turn:
                self._check_open()
                if self._tls.holds_output:  # an end that did not wait for room
                    with suppress(OSError):
                        self._tls.send_now(b"")
                data = self._tls.receive_now(size) if size else b""
        except UncleanEnd as error:
            if self._loan.stream.received and self._loan.is_between_requests():
                return b""
            raise _aborted(error) from error
        except TLSError as error:
            raise _aborted(error) from error
        if data is not None:
            return data
        if self._tls.records.is_mid_record:
            self._loan.state.answered = False  # half a record may be half a request
        raise _WantRead(errno.EAGAIN, os.strerror(errno.EAGAIN))

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
                sent = self._send_now(view)
                blocks = not sent and len(view) > 0
        except TLSError as error:
            raise _aborted(error) from error
        if blocks:
            raise _WantWrite(errno.EAGAIN, os.strerror(errno.EAGAIN))
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
            if how != socket.SHUT_RD:
                self._tls.send_eof()
        if how != socket.SHUT_WR:
            socket.socket.shutdown(self, how)

    def detach(self) -> int:
        with self._turn:  # whoever is in the middle of something is done with it
            return socket.socket.detach(self)

    def _check_open(self) -> None:
        """Have nothing be done with records that are somebody else's by now. In one's turn."""
        if socket.socket.fileno(self) == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class TLSAccounting(Accounting, Ciphering):  # type: ignore[misc]  # they are on top of each other
    """The operations of a socket by TLS, which wait, and keep account of a `Loan`."""

    # What was deciphered is seen by nobody who waits for the descriptor.
    _tries_always: ClassVar[bool] = True

    def _has_input(self) -> bool:
        with self._turn:
            is_there = self._tls.records.has_input
        return is_there or super()._has_input()

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As `ssl.SSLSocket.recv`."""
        return super().recv(buflen, flags)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As `ssl.SSLSocket.read`."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len)

    def write(self, data: Any) -> int:
        """As `ssl.SSLSocket.write`."""
        return self.send(data)

    def pending(self) -> int:
        """As `ssl.SSLSocket.pending`: all that was received, and that nobody waits for."""
        ahead = 0
        with self._turn, suppress(TLSError):  # which a read tells of
            if self._number() != -1:
                ahead = self._tls.records.read_ahead()
        return len(self._loan.stream.pending) + ahead

    def shutdown(self, how: int, /) -> None:
        """As `ssl.SSLSocket.shutdown`, and in no case in clear: the end is a close_notify.

        It waits for room as a write does, if the end does not go at once.
        """
        super().shutdown(how)
        if how != socket.SHUT_RD:
            with suppress(BlockingIOError):  # it goes with the next read, or at last
                self._write(self._send_end, 0)

    def _send_end(self) -> int:
        with self._turn:
            self._check_open()
            self._tls.send_now(b"")
            if self._tls.holds_output:
                raise _WantWrite(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 0

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  (as in ssl)
        """Do nothing: the handshake is over."""

    def unwrap(self) -> NoReturn:
        """Refuse: nothing goes in clear after TLS has begun."""
        raise ValueError("TLS lasts as long as the connection: shutdown(SHUT_WR) ends the output")

    # What `ssl` refuses, with its words.
    dup, recvmsg, recvmsg_into = _SSL.dup, _SSL.recvmsg, _SSL.recvmsg_into
    sendmsg, sendto = _SSL.sendmsg, _SSL.sendto

    def shake_hands(self) -> None:
        """Agree on TLS, within the time for it.

        A drain ends the wait for a client that has never said anything.

        Raises:
          Draining: it has.
          HandshakeFailed, PeerGone, IdleTimeout: as of `Connection.start_tls`.
          BrokenPipeError: the request was cancelled.
        """
        records = self._tls.records
        try:
            self._shake_hands_in_time()
        except BaseException:
            # Nothing goes in either direction any more, and that is nobody's fault.
            records.give_up()
            self._loan.stream.output_ended = True
            raise

    def _shake_hands_in_time(self) -> None:
        loan = self._loan
        info, stream = loan.terms.info, loan.stream
        if stream.received:
            loan.state.answered = False  # a request has begun
        try:
            self._shake_hands(time.monotonic() + loan.terms.handshake)
        except TLSError as error:
            with suppress(OSError):
                socket.socket.shutdown(self, socket.SHUT_WR)
            raise HandshakeFailed(str(error), info=info) from error
        except UncleanEnd as error:
            stream.broken = PeerGone, str(error)
            raise PeerGone(str(error), info=info) from error
        except TimeoutError:
            stream.broken = IdleTimeout, NO_HANDSHAKE_IN_TIME
            raise IdleTimeout(NO_HANDSHAKE_IN_TIME, info=info) from None
        except OSError as error:
            raise self._blame(error, reading=True) from None

    def say_goodbye(self, seconds: float) -> None:
        """End the output in order, if it has not ended; the client has ``seconds`` to take it."""
        loan, stream = self._loan, self._loan.stream
        if stream.broken or stream.detached or self._number() == -1:
            return
        deadline = time.monotonic() + seconds
        with suppress(OSError):
            if not stream.output_ended:
                super().shutdown(socket.SHUT_WR)
            while True:
                try:
                    self._send_end()
                    return
                except BlockingIOError:
                    loan.wait_for_room(self._number(), deadline)

    def _shake_hands(self, deadline: float) -> None:
        loan = self._loan
        while not self._shake_hands_now():
            if loan.interrupted:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            if self._tls.holds_output:
                loan.wait_for_room(self._number(), deadline)
            elif not loan.wait_for_input(self._number(), deadline):
                loan.stream.ended_idle = True
                raise Draining("the server drains and TLS has not begun", info=loan.terms.info)

    def _shake_hands_now(self) -> bool:
        with self._turn:
            self._check_open()
            return self._tls.shake_hands_now()


def _check_flags(function: str, flags: int) -> None:
    if flags:
        raise ValueError(f"flags are not allowed by TLS, and {function} got {flags}")


def _aborted(error: OSError) -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, str(error))
