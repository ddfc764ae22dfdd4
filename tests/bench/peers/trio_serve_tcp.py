"""The reference: bare `trio.serve_tcp` with a line buffer written by hand.

What a competent Trio user writes without a framework; one send_all a line.
"""

from __future__ import annotations

import contextlib

import trio
from _common import CHUNK, listener, ready, task
from _trio import until_told_to_stop


async def line(stream: trio.abc.Stream) -> None:
    """Answer each line."""
    pending = bytearray()
    while data := await stream.receive_some(CHUNK):
        pending += data
        start = 0
        while (end := pending.find(b"\n", start) + 1) > 0:
            await stream.send_all(pending[start:end].upper())
            start = end
        del pending[:start]


async def bulk(stream: trio.SocketStream) -> None:
    """Echo."""
    while data := await stream.receive_some(CHUNK):
        await stream.send_all(data)


async def serving_line(stream: trio.abc.Stream) -> None:
    """The whole life of a connection; serve_listeners closes it."""
    with contextlib.suppress(trio.BrokenResourceError):  # the client is gone
        await line(stream)


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    service = line if asked.service == "line" else bulk

    async def handler(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the client is gone
            await service(stream)  # serve_listeners closes the stream

    async with until_told_to_stop() as nursery:
        if isinstance(asked.address, str):
            accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener(asked)))
            listeners = [accepting]
        else:
            host, port = asked.address
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=asked.backlog)
        await nursery.start(trio.serve_listeners, handler, listeners)
        ready(listeners[0].socket.getsockname())


if __name__ == "__main__":
    trio.run(main)
