"""A connection whose socket is lent to somebody who does not run in Trio.

While it is lent, the connection's facts are those of the loan, and a drain wakes
the borrower from his idle waits. Afterwards the connection is whole again: the server
lingers and closes as ever. Unless the borrower could not be made to give it back:
then the descriptor is his, and he closes it.
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
from .blocking_socket import kernels_time_outs
from .loan import SocketUse

# The borrower may detach the descriptor in the very moment in which it is left to him.
_detach_lock = threading.Lock()


class LentConnection(Connection):
    """A `Connection` that can lend its socket to a thread."""

    _use: SocketUse | None = None

    def _lend(self, *, ends_idle: bool) -> SocketUse:
        """Lend the socket: from now on, the facts of the connection are those of the loan.

        Args:
          ends_idle: whether a drain may end the borrower's waits between requests.

        Raises:
          RuntimeError: the connection is over something else than a kernel socket.
        """
        if not isinstance(self._transport, SocketTransport):
            raise RuntimeError(  # noqa: TRY004  (it is the server that is put together wrong)
                "a handler outside of Trio needs a kernel socket, and this connection is over"
                f" a {type(self._transport).__name__}"
            )
        receiver, sender = self._receiver, self._sender
        if ends_idle and not receiver.drain.began:
            receiver.drain.wakeup.open()
        bounds = {"idle": receiver.timeout, "write": sender.timeout}
        bounds |= kernels_time_outs(self._transport.socket)
        until_new = receiver.new_until - trio.current_time()
        use = self._use = SocketUse(
            info=self.info,
            drain=receiver.drain,
            stream=self._stream,
            new_until=time.monotonic() + until_new,
            ends_idle=ends_idle,
            idle=bounds["idle"],
            write=bounds["write"],
            hand_over=self._hand_over,
        )
        # Others who would read or write meanwhile are told so: they would take what is his.
        receiver.busy = sender.busy = True
        return use

    def _hand_over(self) -> None:
        """The borrower takes the descriptor over: go on with another one. In his thread."""
        transport, use = self._transport, self._use
        if use is None or not isinstance(transport, SocketTransport):
            return  # it has been left to him
        with _detach_lock:
            before = transport.socket
            if before.fileno() == -1:
                return
            if self._is_lost():
                raise lost()
            transport.socket, transport.identity = twin_of(before), None
            before.detach()
            use.stream.detached, use.identity = True, None
        if use.interrupted:  # perhaps the other one, which was not there any more
            self._interrupt()

    def _take_back(self) -> None:
        """End the loan, and note what has become of the connection meanwhile. Twice is once."""
        use, transport = self._end_loan(), self._transport
        if use is None or not isinstance(transport, SocketTransport) or transport.is_lost():
            return
        with suppress(OSError):
            _do_not_wait_in_close(transport.socket)

    def _give_away(self) -> None:
        """The same, but that the borrower keeps the descriptor, and closes it."""
        use = self._end_loan()
        if use is not None:  # the borrower goes on writing the one that it has
            self._go_on_with(self._stream.copy())
        with _detach_lock:
            if use is not None and use.stream.detached:
                self._transport.close()  # this one is ours
            elif isinstance(self._transport, SocketTransport):
                self._transport.give_away()

    def _end_loan(self) -> SocketUse | None:
        use, self._use = self._use, None
        if use is None:
            return None
        receiver, sender = self._receiver, self._sender
        receiver.busy = sender.busy = False
        if isinstance(self._transport, SocketTransport):
            self._transport.identity = self._transport.identity or use.identity
        if self._stream.broken is not None:
            sender.buffer.clear()
        return use

    def _interrupt(self) -> None:
        """End whatever the borrower waits for in his socket, at once."""
        if self._use is not None:
            self._use.interrupted = True
        if isinstance(self._transport, SocketTransport) and not self._is_lost():
            with suppress(OSError):  # the peer is gone already
                self._transport.socket.shutdown(socket.SHUT_RDWR)

    def _is_lost(self) -> bool:
        transport, use = self._transport, self._use
        if use is None or not isinstance(transport, SocketTransport):
            return super()._is_lost()
        return is_lost(transport.fileno(), use.identity or transport.identity)

    # While it is lent ----------------------------------------------------------

    @property
    def state(self) -> Literal["working", "reading", "idle", "writing", "closed"]:
        """What the connection is doing now; ``idle`` is a wait between two requests."""
        use = self._use
        if use is None:
            return super().state
        if use.writing:
            return "writing"
        if not use.reading:
            return "working"
        return "idle" if use.waits_idle() else "reading"

    def _end_idle_waits(self) -> None:
        if self._use is None:
            super()._end_idle_waits()
        else:
            self._receiver.drain.wakeup.wake_all()


_LINGER = struct.Struct("ii")


def _do_not_wait_in_close(sock: socket.socket) -> None:
    """Take a SO_LINGER back with which close() would wait, and all of Trio with it.

    Non-blocking or not (Linux). For no time at all means a reset, and does not wait.
    """
    on, seconds = _LINGER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size))
    if on and seconds:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(0, 0))
