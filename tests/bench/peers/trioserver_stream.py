"""trioserver's stream servers, as the documentation writes them."""

from __future__ import annotations

import trio
from _common import CHUNK, task
from _trioserver import serve

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


if __name__ == "__main__":
    asked = task()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    handler = Line if asked.service == "line" else bulk
    limits = trioserver.Limits(requests=20_000)  # no other peer has any
    trio.run(serve, kind(asked.address, handler, request_queue_size=asked.backlog, limits=limits))
