"""The reference for datagrams: `trio.socket`, one after the other, in one task."""

from __future__ import annotations

import trio
from _common import CHUNK, datagram_socket, ready, task
from _trio import until_told_to_stop


async def serve(sock: trio.socket.SocketType) -> None:
    """Answer each datagram."""
    while True:
        data, address = await sock.recvfrom(CHUNK)
        await sock.sendto(data.upper(), address)


async def main() -> None:
    """Serve until SIGTERM."""
    async with until_told_to_stop() as nursery:
        sock = trio.socket.from_stdlib_socket(datagram_socket(task()))
        nursery.start_soon(serve, sock)
        ready(sock.getsockname())


if __name__ == "__main__":
    trio.run(main)
