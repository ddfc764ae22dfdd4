"""A connection whose socket is lent to somebody who does not run in Trio.

While it is lent, the connection's facts are those of the loan, and a drain wakes
the borrower from his idle waits. Afterwards the connection is whole again: the server
lingers and closes as ever.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import trio

from ._blocking_socket import BlockingSocket, SocketUse
from ._connection import Connection


class LentConnection(Connection):
    """A `Connection` that can lend its socket to a thread."""

    _use: SocketUse | None = None
    _cut_short: bool = False

    @contextmanager
    def _lend(self, *, ends_idle: bool) -> Iterator[BlockingSocket]:
        """Lend the socket for the length of a block, as a blocking one of its own descriptor.

        Args:
          ends_idle: whether a drain may end the borrower's waits between requests.

        Raises:
          RuntimeError: the connection is over something else than a kernel socket.
        """
        ours = self.socket
        if ours is None:
            raise RuntimeError(
                "handlers in threads need the kernel's sockets: this connection is over"
                f" a {type(self._transport).__name__}"
            )
        use = self._open_loan(ends_idle=ends_idle)
        try:
            yield BlockingSocket.sharing(ours, use)
        finally:
            self._take_back()

    def _open_loan(self, *, ends_idle: bool) -> SocketUse:
        """From now on, the facts of the connection are those of the loan."""
        receiver, sender = self._receiver, self._sender
        if ends_idle and not receiver.drain.began:
            receiver.drain.bell.hang()
        until_new = receiver.new_until - trio.current_time()
        self._use = SocketUse(
            info=self.info,
            drain=receiver.drain,
            new_until=time.monotonic() + until_new,
            ends_idle=ends_idle,
            idle=receiver.timeout,
            write=sender.timeout,
            pending=receiver.buffer,
            received=receiver.total,
            sent=sender.total,
            at_eof=receiver.at_eof,
        )
        # Others who would read or write meanwhile are told so: they would block all of Trio.
        receiver.busy = sender.busy = True
        return self._use

    def _take_back(self) -> None:
        """End the loan, and note what has become of the connection meanwhile."""
        use = self._use
        if use is None:
            return
        receiver, sender = self._receiver, self._sender
        receiver.busy = sender.busy = False
        receiver.total, sender.total = use.received, use.sent
        receiver.at_eof = use.at_eof
        receiver.ended_idle = receiver.ended_idle or use.ended_idle
        sender.broken = sender.broken or use.broken or ("cut short" if use.cut_short else None)
        self._cut_short = use.cut_short
        self._use = None
        if self.socket is not None:
            with suppress(OSError):
                self.socket.setblocking(False)

    def close(self) -> None:
        """Close; so that the peer sees an error, if a write was cut short."""
        if self._cut_short:
            self.reset()  # half a reply must not look like a whole one
        else:
            super().close()

    def _interrupt(self) -> None:
        """End whatever the borrower waits for in his socket, at once."""
        if self.socket is not None:
            with suppress(OSError):  # the peer is gone already
                self.socket.shutdown(socket.SHUT_RDWR)

    # While it is lent ----------------------------------------------------------

    @property
    def bytes_received(self) -> int:
        """Bytes that were read so far."""
        return super().bytes_received if self._use is None else self._use.received

    @property
    def bytes_sent(self) -> int:
        """Bytes that were written so far."""
        return super().bytes_sent if self._use is None else self._use.sent

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

    @property
    def _ended_idle(self) -> bool:
        return super()._ended_idle or (self._use is not None and self._use.ended_idle)

    @property
    def _must_linger(self) -> bool:
        at_eof = self._use is not None and self._use.at_eof
        return super()._must_linger and not at_eof

    def _end_idle_waits(self) -> None:
        if self._use is None:
            super()._end_idle_waits()
        else:
            self._use.drain.bell.ring()
