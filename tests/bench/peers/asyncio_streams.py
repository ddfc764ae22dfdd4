"""asyncio's streams, drained after each write."""

from __future__ import annotations

import asyncio
import signal

from _common import CHUNK, Stopping, listener, ready, task


async def line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line."""
    while data := await reader.readline():
        writer.write(data.upper())
        await writer.drain()


async def bulk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def main() -> None:
    """Serve until SIGTERM."""
    asked = task()
    service = line if asked.service == "line" else bulk
    handlers: set[asyncio.Task[None]] = set()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        handlers.add(me)
        try:
            await service(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or we are stopping
        finally:
            writer.close()
            handlers.discard(me)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    accepting = listener(asked)
    start = asyncio.start_unix_server if asked.unix else asyncio.start_server
    server = await start(handler, sock=accepting, backlog=asked.backlog)
    ready(accepting.getsockname())
    await stop.wait()
    stopping = Stopping()
    server.close()
    for running in handlers:
        running.cancel()
    await asyncio.gather(*handlers)
    stopping.done()


if __name__ == "__main__":
    asyncio.run(main())
