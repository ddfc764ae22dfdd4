"""What all connections of a server share: whether it drains, and what ends their waits."""

from __future__ import annotations

import contextlib
import socket

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._sockets.making import socket_pair
from .alarms import Alarms

NEW_CONNECTION_GRACE = 0.5
"""Seconds after its accept in which a connection that has never sent a byte is
not ended by a drain: its first request may be on its way. (Go's net/http waits
5 s, and in a drain most such connections are speculative ones of browsers.)"""


class WakeupPipe:
    """Wakes threads that wait in ``poll`` when a drain begins, and those that wait later.

    One for all threads of a server: a socket that becomes readable, and stays so,
    because its other end is closed.
    """

    _write_end: socket.socket | None = None
    _read_end: socket.socket | None = None

    def open(self) -> None:
        """Make the pipe, unless it is there. Without descriptors for it, no thread is woken."""
        if self._read_end is None:
            with contextlib.suppress(OSError):
                self._write_end, self._read_end = socket_pair()

    def wake_all(self) -> None:
        """Wake all threads that wait for it, now and later. Twice is once."""
        if self._write_end is not None:
            self._write_end.close()

    def close(self) -> None:
        """Wake all, and close both ends."""
        self.wake_all()
        if self._read_end is not None:
            self._read_end.close()

    def fileno(self) -> int:
        """The descriptor to wait for, which has input when all wake; -1 if there is no pipe."""
        return -1 if self._read_end is None else self._read_end.fileno()


@attrs.define(eq=False)
class Drain:
    """Whether a server drains; one object, which all its connections look at.

    Attributes:
      began: whether it does.
      wakeup: wakes those that wait in threads when it does.
      alarms: ends waits whose time is up, while `keep_alarms` runs.
    """

    began: bool = False
    wakeup: WakeupPipe = attrs.field(factory=WakeupPipe)
    alarms: Alarms | None = None

    @enable_ki_protection
    async def keep_alarms(self, until: trio.CancelScope) -> None:
        """Have waits be ended by alarms, until ``until`` is cancelled."""
        self.alarms = alarms = Alarms()
        try:
            with until:
                await alarms.ring()
        finally:
            self.alarms = None
            alarms.wake_all()
