"""trioserver's threading servers, with the handlers of the standard library's peer."""

from __future__ import annotations

import signal

import trio
from _common import Stopping, ready, task
from _handlers import handler

import trioserver


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    kind = trioserver.ThreadingUnixStreamServer if asked.unix else trioserver.ThreadingTCPServer
    # The other peer has no bound; the most clients here are 1000.
    server = kind(asked.address, handler(asked), request_queue_size=asked.backlog, max_threads=1000)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            ready(server.server_address)
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()


trio.run(main)
