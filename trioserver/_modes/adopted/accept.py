"""A client that was accepted already, for a ``get_request`` of theirs that accepts it again.

The code that accepts must not wait, and own the client from the first moment on; an override of
``get_request`` may wait, for its client's half of a handshake above all. So the server accepts
in Trio's thread, and the override is called later, in another thread: there, for the length of
that call, their listening socket is ready, and its ``accept`` returns this very client.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..._facts.address import Address
from ..._sockets.making import socket_pair


class Accepted:
    """A client, until somebody takes it."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._clients = [(sock, address)]
        self._readable: socket.socket | None = None

    def take(self) -> tuple[int, Address] | None:
        """Its descriptor and address, for one caller alone; None for all others."""
        try:
            sock, address = self._clients.pop()
        except IndexError:
            return None
        return sock.detach(), address

    @property
    def is_taken(self) -> bool:
        """Whether a ``get_request`` has accepted the client again."""
        return not self._clients

    def readable(self) -> int | None:
        """A descriptor that is readable until the client is taken, then None.

        A ``get_request`` may select on the listening socket before it accepts.
        """
        if self.is_taken:
            return None
        if self._readable is None:
            self._readable, other = socket_pair()
            other.close()
        return self._readable.fileno()

    def close(self) -> None:
        """Close it, if nobody has taken it."""
        if (client := self.take()) is not None:
            os.close(client[0])
        if self._readable is not None:
            self._readable.close()


class _InThisThread(threading.local):
    accepted: Accepted | None = None


_here = _InThisThread()


class HandsOut(socket.socket):
    """A listening socket whose ``accept`` returns a client that was accepted already."""

    __slots__ = ()

    def _accept(self) -> tuple[int, Address]:
        client = None if _here.accepted is None else _here.accepted.take()
        return super()._accept() if client is None else client  # type: ignore[misc]

    def fileno(self) -> int:
        """Its number; in a ``get_request``, that of a descriptor that is readable."""
        number = None if _here.accepted is None else _here.accepted.readable()
        return super().fileno() if number is None else number


@contextmanager
def handing_out(accepted: Accepted) -> Iterator[None]:
    """Have every `HandsOut` hand it out, in this thread and in the block."""
    _here.accepted = accepted
    try:
        yield
    finally:
        _here.accepted = None
        accepted.close()


def have_hand_out(sock: socket.socket) -> bool:
    """Make their listening socket, the same object, one that does; whether that can be done."""
    try:
        kind = type(sock)
        sock.__class__ = type(kind.__name__, (HandsOut, kind), {"__slots__": ()})
    except TypeError:  # an object of some extension's
        return False
    return True
