"""trioserver's stream servers, as the documentation writes them."""

from __future__ import annotations

import signal

import trio
from _common import CHUNK, Stopping, ready, task

import trioserver


class Line(trioserver.StreamRequestHandler):
    """Answer each line."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def bulk(
    request: trioserver.Connection,
    client_address: object,
    server: trioserver.BaseServer,
) -> None:
    """Echo."""
    while data := await request.recv(CHUNK):
        await request.sendall(data)


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    handler = Line if asked.service == "line" else bulk
    server = kind(asked.address, handler, request_queue_size=asked.backlog)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            ready(server.server_address)
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()


trio.run(main)
