"""Whose a descriptor's number is.

A handler that is told a number can close it behind the back of the socket object:
``os.fdopen`` and ``socket.socket(fileno=...)`` do so when they are let go. From then on it is
nobody's, or already another connection's, and to go on with it harms a stranger. So whoever
shows a number notes what is behind it, and looks before the library itself uses it again.

Not for all, though a look takes less than a microsecond: hardly any handler asks for its number.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TypeAlias

import trio

Identity: TypeAlias = tuple[int, int]


def identity_of(number: int) -> Identity | None:
    """Which file a number stands for; None if it is closed, or on Windows, which cannot tell."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_lost(number: int, identity: Identity | None) -> bool:
    """Whether something else is behind ``number`` than was there when it was shown, or nothing.

    Args:
      number: the descriptor that an object has; -1: it has none.
      identity: what was behind it; None: it was not shown.
    """
    return identity is not None and number != -1 and identity_of(number) != identity


def lost() -> OSError:
    """The error of a handler that has closed its number."""
    return OSError(
        errno.EBADF,
        "the descriptor of the connection was closed by its number, as os.fdopen() and"
        " socket.socket(fileno=...) do when they are let go: give them a duplicate, os.dup(number)",
    )


def close_socket(
    sock: socket.socket, identity: Identity | None, *, was_waited_for: bool = True
) -> None:
    """Close a socket, unless its number is not its own any more.

    Args:
      sock: it.
      identity: what was behind its number when that was shown; None: it was not.
      was_waited_for: whether tasks may wait for it, or have. If not, Trio need not be told, which
        is a twentieth of a short connection.
    """
    if identity is not None and is_lost(sock.fileno(), identity):
        sock.detach()
        return
    if was_waited_for:
        trio.lowlevel.notify_closing(sock)
    try:  # noqa: SIM105  (a `suppress` takes as long as all else here)
        sock.close()
    except OSError:
        pass  # the number was closed, and nobody had asked us for it
