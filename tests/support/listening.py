"""Listening sockets, and what is told of them."""

from __future__ import annotations

import socket
from pathlib import Path

import trio


def tcp(_folder: Path) -> socket.socket:
    """A listening socket of TCP."""
    return socket.create_server(("127.0.0.1", 0))


def unix(folder: Path) -> socket.socket:
    """A listening socket of Unix."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "socket"))
    sock.listen()
    return sock


async def told(client: socket.socket) -> bytes:
    """What a client is told, to the end; what it sees of a reset."""
    try:
        return await trio.to_thread.run_sync(client.recv, 100)
    except ConnectionError as error:
        return type(error).__name__.encode()
