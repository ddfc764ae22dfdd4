"""anyio's streams, on Trio."""

from __future__ import annotations

import contextlib
import signal

import anyio
from _common import CHUNK, Stopping, ready, task
from anyio.abc import Listener, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

# What says that the client is gone.
GONE = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError)


async def line(stream: SocketStream) -> None:
    """Answer each line."""
    lines = BufferedByteReceiveStream(stream)
    while True:
        await stream.send((await lines.receive_until(b"\n", CHUNK)).upper() + b"\n")


async def bulk(stream: SocketStream) -> None:
    """Echo."""
    while True:
        await stream.send(await stream.receive(CHUNK))


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    service = line if asked.service == "line" else bulk

    async def handler(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(*GONE):
                await service(stream)

    accepting: Listener[SocketStream]
    if isinstance(asked.address, str):
        accepting = await anyio.create_unix_listener(asked.address, backlog=asked.backlog)
    else:
        host, port = asked.address
        several = await anyio.create_tcp_listener(
            local_host=host, local_port=port, backlog=asked.backlog
        )
        (accepting,) = several.listeners
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(accepting.serve, handler)
            ready(accepting.extra(SocketAttribute.local_address))  # noqa: S610  (not Django's)
            await anext(signals)
            stopping = Stopping()
            group.cancel_scope.cancel()
    stopping.done()


anyio.run(main, backend="trio")
