"""`trio.socket`, with a task for each datagram: what `ThreadingUDPServer` is, on Trio."""

from __future__ import annotations

from typing import Any

import trio
from _common import CHUNK, datagram_socket, ready, task
from _trio import until_told_to_stop


async def answer(sock: trio.socket.SocketType, data: bytes, address: Any) -> None:
    """Answer a datagram."""
    await sock.sendto(data.upper(), address)


async def serve(sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
    """Start a task for each."""
    while True:
        data, address = await sock.recvfrom(CHUNK)
        nursery.start_soon(answer, sock, data, address)


async def main() -> None:
    """Serve until SIGTERM."""
    async with until_told_to_stop() as nursery:
        sock = trio.socket.from_stdlib_socket(datagram_socket(task()))
        nursery.start_soon(serve, sock, nursery)
        ready(sock.getsockname())


if __name__ == "__main__":
    trio.run(main)
