"""Whether a server drains: what all its connections look at, and a bell for threads."""

from __future__ import annotations

import contextlib
import socket

import attrs

from .._sockets.making import socket_pair

NEW_CONNECTION_GRACE = 0.5
"""Seconds after its accept in which a connection that has never sent a byte is
not ended by a drain: its first request may be on its way. (Go's net/http waits
5 s, and in a drain most such connections are speculative ones of browsers.)"""


class Bell:
    """Rings when a drain begins, and goes on: for threads that wait in ``poll`` meanwhile.

    One for all of a server's: a socket that becomes readable because its other
    end is closed.
    """

    _rope: socket.socket | None = None
    _ear: socket.socket | None = None

    def hang(self) -> None:
        """Make it, if that has not been done. Without descriptors for it, nobody is woken."""
        if self._ear is None:
            with contextlib.suppress(OSError):
                self._rope, self._ear = socket_pair()

    def ring(self) -> None:
        """Wake all who wait for it, now and later. Twice is once."""
        if self._rope is not None:
            self._rope.close()

    def take_down(self) -> None:
        """Close it."""
        self.ring()
        if self._ear is not None:
            self._ear.close()

    def fileno(self) -> int:
        """What to wait for; -1 if it does not hang."""
        return -1 if self._ear is None else self._ear.fileno()


@attrs.define(eq=False)
class Drain:
    """Whether a server drains; one object, which all its connections look at.

    Attributes:
      began: whether it does.
      bell: rings when it does, for those who wait in threads.
    """

    began: bool = False
    bell: Bell = attrs.field(factory=Bell)
