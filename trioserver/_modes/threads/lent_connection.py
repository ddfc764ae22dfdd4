"""A connection whose socket is lent to a handler that does not run in Trio.

While it is lent, the borrower writes the connection's state, and a drain wakes it from its
waits between requests. Afterwards the connection is whole again: the server lingers and closes
as ever. Unless the borrower could not be made to give the socket back: then the descriptor is
the borrower's, which closes it.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Literal

import trio

from ..._requests.connection import Connection
from ..._sockets.descriptors import is_lost, lost
from ..._sockets.making import twin_of
from ..._sockets.stream_sockets import SocketTransport
from ..._sockets.tls_transport import TLSTransport
from .kernel_time_outs import time_outs_of
from .loan import Loan, LoanState, LoanTerms

# The borrower may detach the descriptor in the very moment in which it is left to it.
_detach_lock = threading.Lock()


class LentConnection(Connection):
    """A `Connection` that can lend its socket to a thread."""

    _loan: Loan | None = None

    def _lend(self, *, ends_idle: bool, state: LoanState | None = None) -> Loan:
        """Lend the socket: from now on, the borrower alone reads, writes and counts.

        Args:
          ends_idle: whether a drain may end the borrower's waits between requests.
          state: what the borrower has set on its socket already; None: nothing.

        Raises:
          RuntimeError: the connection is over something else than a kernel socket.
        """
        if not isinstance(self._wire, SocketTransport):
            raise RuntimeError(  # noqa: TRY004  (it is the server that is put together wrong)
                "a handler outside of Trio needs a kernel socket, and this connection is over"
                f" a {type(self._wire).__name__}"
            )
        receiver, sender = self._receiver, self._sender
        if ends_idle and not receiver.drain.began:
            receiver.drain.wakeup.open()
        bounds = {"idle": receiver.timeout, "write": sender.timeout}
        bounds["handshake"] = self.timeouts.handshake
        bounds |= time_outs_of(self._wire.socket)
        terms = LoanTerms(
            info=self.info,
            drain=receiver.drain,
            new_until=time.monotonic() + receiver.new_until - trio.current_time(),
            ends_idle=ends_idle,
            hand_over=self._hand_over,
            **bounds,
        )
        records = None
        if self._tls is not None:
            records, _ = self._tls.records, self.tls  # asked for now: then they are the borrower's
        loan = self._loan = Loan(terms, self._stream, state or LoanState(), records=records)
        # Others who would read or write meanwhile are told so: they would take what is the
        # borrower's.
        receiver.busy = sender.busy = True
        return loan

    def _hand_over(self, loan: Loan) -> None:
        """Go on with another descriptor, as the borrower takes this one over. In its thread."""
        transport = self._wire
        if self._loan is not loan or not isinstance(transport, SocketTransport):
            return  # it has been left to the borrower
        with _detach_lock:
            before = transport.socket
            if before.fileno() == -1:
                return
            if self._is_lost():
                raise lost()
            transport.socket, transport.identity = twin_of(before), None
            before.detach()
            loan.note_detached()
        if loan.interrupted:  # perhaps the other one, which was not there any more
            self._shut_down(socket.SHUT_RDWR)

    def _take_back(self) -> None:
        """End the loan, as the borrower has ended. Twice is once."""
        loan, transport = self._end_loan(), self._wire
        if loan is None or not isinstance(transport, SocketTransport) or transport.is_lost():
            return
        with suppress(OSError):
            _do_not_wait_in_close(transport.socket)

    def _give_away(self) -> None:
        """End the loan of a borrower that goes on: it keeps the descriptor, and closes it."""
        if self._stream.broken is None:
            self._shut_down(socket.SHUT_RDWR)
        loan = self._end_loan()
        if loan is not None:  # the borrower goes on writing the state that it has
            self._go_on_with(loan.stream.copy())
        with _detach_lock:
            if loan is not None and loan.stream.detached:
                self._wire.close()  # this one is ours
            elif isinstance(self._wire, SocketTransport):
                self._wire.give_away()

    def _end_loan(self) -> Loan | None:
        loan, self._loan = self._loan, None
        if loan is None:
            return None
        receiver, sender = self._receiver, self._sender
        receiver.busy = sender.busy = False
        loan.wakeup.close()
        if isinstance(self._wire, SocketTransport):
            self._wire.identity = self._wire.identity or loan.identity
        if loan.records is not None and self._tls is None:  # the handler has begun it
            self._speak_by(TLSTransport(self._wire, loan.records))
        if self._stream.broken is not None:
            sender.buffer = b""
        return loan

    def _interrupt(self) -> None:
        """End whatever the borrower waits for in its socket, at once.

        And its output, unless that cuts a write: a client that has taken all of half a reply
        would see the end before the reset.
        """
        how = socket.SHUT_RDWR
        if self._loan is not None:
            self._loan.interrupt()
            if self._loan.cuts_write:
                how = socket.SHUT_RD
        self._shut_down(how)

    def _shut_down(self, how: int) -> None:
        if isinstance(self._wire, SocketTransport) and not self._is_lost():
            with suppress(OSError):  # the peer is gone already
                self._wire.socket.shutdown(how)

    def _is_lost(self) -> bool:
        transport, loan = self._wire, self._loan
        if loan is None or not isinstance(transport, SocketTransport):
            return super()._is_lost()
        return is_lost(transport.fileno(), loan.identity or transport.identity)

    # While it is lent ----------------------------------------------------------

    @property
    def state(self) -> Literal["working", "reading", "idle", "writing", "closed"]:
        """What the connection is doing now; ``idle`` is a wait between two requests."""
        return super().state if self._loan is None else self._loan.doing

    def _end_idle_waits(self) -> None:
        if self._loan is None:
            super()._end_idle_waits()
        else:
            self._receiver.drain.wakeup.wake_all()


_LINGER = struct.Struct("ii")
_NO_LINGER = _LINGER.pack(0, 0)


def _do_not_wait_in_close(sock: socket.socket) -> None:
    """Take a SO_LINGER back with which close() would wait, and all of Trio with it.

    Non-blocking or not (Linux). For no time at all means a reset, and does not wait.
    """
    set_to = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
    if set_to == _NO_LINGER:
        return
    on, seconds = _LINGER.unpack(set_to)
    if on and seconds:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
