"""trioserver's process servers, with the handlers of the standard library's peers."""

from __future__ import annotations

import signal

import trio
from _common import Stopping, ready, task
from _handlers import handler

import trioserver


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    kind = trioserver.ProcessUnixStreamServer if asked.unix else trioserver.ProcessTCPServer
    server = kind(asked.address, handler(asked), request_queue_size=asked.backlog, max_children=8)
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
