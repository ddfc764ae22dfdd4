"""The private names of CPython's `socket.socket` that the library rests on, by names of ours.

There is no public way to be told that a socket and all files made of it are closed, to make a
file that keeps the socket open, or to have ``sendfile`` send portion by portion. Whoever ports
this to another Python, or to a CPython that has changed, looks here alone.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

PRIVATE = ("_io_refs", "_real_close", "_sendfile_use_send")


class PythonHasChanged(Exception):
    """A private name of `socket.socket`, on which sockets of threads rest, is not there."""


def require_private_names() -> None:
    """See to it that all the names are there.

    Raises:
      PythonHasChanged: one is not; says which.
    """
    for name in PRIVATE:
        if not hasattr(socket.socket, name):
            python = f"{sys.implementation.name} {sys.version.split()[0]}"
            raise PythonHasChanged(
                f"{python} has no socket.socket.{name}, without which no handler can have its"
                " connection in a thread or in a worker process: run it as a task of Trio"
            )


class OpenSocket(socket.socket):
    """A `socket.socket` that says when it is closed, and can be kept open by files."""

    __slots__ = ()

    def keep_open(self) -> None:
        """Count one more file that is made of it: the socket closes after that."""
        self._io_refs += 1  # type: ignore[attr-defined]

    def send_in_portions(self, file: Any, offset: int, count: int | None) -> int:
        """Send a file as `socket.socket.sendfile` does, but by ``send``; the bytes sent."""
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def close_at_last(self) -> None:
        """Close: called when the socket was closed, and no file is left that was made of it."""
        raise NotImplementedError

    def _real_close(self, *_arguments: Any) -> None:
        self.close_at_last()
