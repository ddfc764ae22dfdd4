"""Clients of servers on real sockets."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any, Self

import trio

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (bound, not by us)


async def connected(address: Any) -> trio.SocketStream:
    """A stream to the very address that a server is bound to; of a wildcard, to this machine.

    Never by a name, which may mean another address first.
    """
    return trio.SocketStream(await _connected(address, socket.SOCK_STREAM))


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
        own = tempfile.mktemp(prefix="client-")  # noqa: S306  (bind makes it, or fails)
        return cls(await _connected(address, socket.SOCK_DGRAM, own), own)

    async def send(self, data: bytes) -> None:
        """Send one datagram."""
        await self._socket.send(data)

    async def receive(self) -> bytes:
        """The next datagram; waits for one."""
        return await self._socket.recv(65_536)

    def close(self) -> None:
        """Be gone."""
        self._socket.close()
        if self._own:
            Path(self._own).unlink(missing_ok=True)


async def _connected(address: Any, kind: int, own: str = "") -> trio.socket.SocketType:
    if isinstance(address, tuple):
        host, *rest = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = (_LOOPBACK.get(host, host), *rest)
    else:
        family = socket.AF_UNIX
    sock = trio.socket.socket(family, kind)
    try:
        if own:
            await sock.bind(own)  # else nobody could reply
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
