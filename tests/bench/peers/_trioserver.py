"""What every peer of ours does alike: it serves until it is told to stop."""

from __future__ import annotations

import signal

import trio
from _common import Stopping, ready

import trioserver


async def serve(server: trioserver.BaseServer) -> None:
    """Serve until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            ready(server.server_address)
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()
