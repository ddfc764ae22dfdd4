"""The reference for datagrams: `trio.socket`, one after the other, in one task."""

from __future__ import annotations

import signal

import trio
from _common import CHUNK, Stopping, datagram_socket, ready, task


async def serve(sock: trio.socket.SocketType) -> None:
    """Answer each datagram."""
    while True:
        data, address = await sock.recvfrom(CHUNK)
        await sock.sendto(data.upper(), address)


async def main() -> None:
    """Serve until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            sock = trio.socket.from_stdlib_socket(datagram_socket(task()))
            nursery.start_soon(serve, sock)
            ready(sock.getsockname())
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()


if __name__ == "__main__":
    trio.run(main)
