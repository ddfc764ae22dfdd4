"""Clients of servers on real sockets."""

from __future__ import annotations

import math
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

import trio

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (bound, not by us)


# Streams of Trio, and plain sockets, send as everybody's do.
_NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))


async def connected(address: Any) -> trio.SocketStream:
    """A stream to the very address that a server is bound to; of a wildcard, to this machine.

    Never by a name, which may mean another address first.
    """
    return trio.SocketStream(await _connected(address, socket.SOCK_STREAM))


def blocking_client(address: Any, kind: int, seconds: float, own: str = "") -> socket.socket:
    """The same, as a socket of the standard library, whose operations take so long at most.

    Args:
      address: of the server.
      kind: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
      seconds: real ones; ``inf``: any number.
      own: a path to be bound to; "" is none.
    """
    family, address = _reachable(address)
    sock = socket.socket(family, kind)
    try:
        sock.settimeout(None if seconds == math.inf else seconds)
        if own:
            sock.bind(own)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def path_of_its_own() -> str:
    """For a Unix client to whom datagrams are to be sent back."""
    return tempfile.mktemp(prefix="client-")  # noqa: S306  (bind makes it, or fails)


class KernelDatagramClient:
    """Sends datagrams to a server on a real socket, and receives its replies."""

    def __init__(self, sock: trio.socket.SocketType, own: str = "") -> None:
        self._socket = sock
        self._own = own

    @classmethod
    async def of(cls, address: Any) -> Self:
        """One for the server that is bound to ``address``."""
        if isinstance(address, tuple):
            return cls(await _connected(address, socket.SOCK_DGRAM))
        own = path_of_its_own()
        return cls(await _connected(address, socket.SOCK_DGRAM, own), own)

    async def send(self, data: bytes) -> None:
        """Send one datagram."""
        await self._socket.send(data, _NO_SIGNAL)

    async def receive(self) -> bytes:
        """The next datagram; waits for one."""
        return await self._socket.recv(65_536)

    def close(self) -> None:
        """Close the socket, and remove its file if it has one."""
        self._socket.close()
        if self._own:
            Path(self._own).unlink(missing_ok=True)


def _reachable(address: Any) -> tuple[int, Any]:
    """The family, and where a client finds a server that is bound to this."""
    if not isinstance(address, tuple):
        return socket.AF_UNIX, address
    host, *rest = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, (_LOOPBACK.get(host, host), *rest)


async def _connected(address: Any, kind: int, own: str = "") -> trio.socket.SocketType:
    family, address = _reachable(address)
    sock = trio.socket.socket(family, kind)
    try:
        if own:
            await sock.bind(own)  # else nobody could reply
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
