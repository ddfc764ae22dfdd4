"""What every peer of ours does alike: it serves until it is told to stop."""

from __future__ import annotations

from _common import ready
from _trio import until_told_to_stop

import trioserver


async def serve(server: trioserver.BaseServer) -> None:
    """Serve until SIGTERM."""
    async with until_told_to_stop() as nursery:
        await nursery.start(server.serve_forever)
        ready(server.server_address)
