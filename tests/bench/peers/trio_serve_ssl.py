"""The reference by TLS: bare `trio.serve_ssl_over_tcp`, with the same context as ours."""

from __future__ import annotations

import signal

import trio
from _common import Stopping, ready, task
from trio_serve_tcp import serving_line

import trioserver


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    context = trioserver.server_context(asked.certificate, asked.key)
    host, port = asked.address
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_ssl_over_tcp_listeners(
                port, context, host=host, backlog=asked.backlog
            )
            await nursery.start(trio.serve_listeners, serving_line, listeners)
            ready(listeners[0].transport_listener.socket.getsockname())
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()


trio.run(main)
