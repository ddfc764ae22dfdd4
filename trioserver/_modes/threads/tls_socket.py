"""A blocking socket of a connection by TLS: an `ssl.SSLSocket`, as far as a handler can tell.

TLS is that of the connection itself, which Trio's side has begun and goes on with afterwards:
see `TLSRecords`, whose reasons against OpenSSL over the kernel's socket hold in threads, too.

The rules that this file keeps:

* Nothing goes out in clear. Where an `ssl.SSLSocket` falls back to plain text (after its
  ``shutdown``, and its ``unwrap``), this one does not.
* What is done at once is in `Ciphering`; here is what waits for it, within bounds.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, NoReturn

import trio

from ..._facts.errors import Draining, HandshakeFailed, IdleTimeout, PeerGone
from ..._sockets.tls_errors import NO_HANDSHAKE_IN_TIME, TLSError
from ..._sockets.transport import UncleanEnd
from .accounting import Accounting
from .ciphering import Ciphering, WantWrite

_SSL: Any = ssl.SSLSocket
_CUT = trio.BrokenResourceError, "an earlier send was cut short"


class TLSAccounting(Accounting, Ciphering):  # type: ignore[misc]  # they are on top of each other
    """The operations of a socket by TLS, which wait, and keep account of a `Loan`."""

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
        with self._turn:
            ahead = 0 if self._number() == -1 else self._tls.pending_now()
        return len(self._loan.stream.pending) + ahead

    def _write(self, *arguments: Any, **options: Any) -> int:
        stream = self._loan.stream
        try:
            sent = super()._write(*arguments, **options)
        except BlockingIOError:
            raise  # it may be tried again
        except BaseException:
            if self._tls.holds_output and not (stream.broken or stream.output_ended):
                stream.broken = _CUT
            raise
        if stream.broken is _CUT:  # it was tried again
            stream.broken = None
        return sent

    def shutdown(self, how: int, /) -> None:
        """As `ssl.SSLSocket.shutdown`, and in no case in clear: the end is a close_notify.

        It waits for room as a write does, if the end does not go at once.
        """
        super().shutdown(how)
        if how != socket.SHUT_RD and self._loan.stream.broken is None:
            with suppress(BlockingIOError):  # it goes with the next read, or at last
                self._write(self._send_end, 0)

    def _send_end(self) -> int:
        with self._turn:
            self._check_open()
            if not self._tls.flush_now():
                raise WantWrite
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
            raise HandshakeFailed(str(error), info=info) from error.__cause__ or error
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
