"""The fastest plausible bare Trio: `trio.socket` alone, no streams, no listeners."""

from __future__ import annotations

import contextlib
import signal
import socket

import trio
from _common import CHUNK, Stopping, listener, ready, task


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    """Send all of it; most often one send is enough."""
    sent = await sock.send(data)
    while sent < len(data):
        sent += await sock.send(memoryview(data)[sent:])


async def line(sock: trio.socket.SocketType) -> None:
    """Answer each line."""
    rest = b""
    while data := await sock.recv(CHUNK):
        lines = (rest + data).splitlines(keepends=True)
        rest = b"" if data.endswith(b"\n") else lines.pop()
        for complete in lines:
            await send_all(sock, complete.upper())


async def bulk(sock: trio.socket.SocketType) -> None:
    """Echo."""
    while data := await sock.recv(CHUNK):
        await send_all(sock, data)


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    service = line if asked.service == "line" else bulk
    accepting = trio.socket.from_stdlib_socket(listener(asked))

    async def handler(sock: trio.socket.SocketType) -> None:
        with sock, contextlib.suppress(OSError):  # the client is gone
            await service(sock)

    async def accept(nursery: trio.Nursery) -> None:
        while True:
            sock, _ = await accepting.accept()
            if not asked.unix:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            nursery.start_soon(handler, sock)

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, nursery)
            ready(accepting.getsockname())
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    accepting.close()
    stopping.done()


trio.run(main)
