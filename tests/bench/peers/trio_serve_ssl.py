"""The reference by TLS: bare `trio.serve_ssl_over_tcp`, with the same context as ours."""

from __future__ import annotations

import trio
from _common import ready, task
from _trio import until_told_to_stop
from trio_serve_tcp import serving_line

import trioserver


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    context = trioserver.server_context(asked.certificate, asked.key)
    host, port = asked.address
    async with until_told_to_stop() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(
            port, context, host=host, backlog=asked.backlog
        )
        await nursery.start(trio.serve_listeners, serving_line, listeners)
        ready(listeners[0].transport_listener.socket.getsockname())


trio.run(main)
