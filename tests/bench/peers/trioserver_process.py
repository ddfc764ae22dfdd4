"""trioserver's process servers, with the handlers of the standard library's peers."""

from __future__ import annotations

import signal
import socketserver

import trio
from _common import CHUNK, Stopping, ready, task

import trioserver


class Line(socketserver.StreamRequestHandler):
    """Answer each line."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Bulk(socketserver.BaseRequestHandler):
    """Echo."""

    def handle(self) -> None:
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    kind = trioserver.ProcessUnixStreamServer if asked.unix else trioserver.ProcessTCPServer
    handler = Line if asked.service == "line" else Bulk
    server = kind(asked.address, handler, request_queue_size=asked.backlog, max_children=8)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            ready(server.server_address)
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()


if __name__ == "__main__":
    trio.run(main)
