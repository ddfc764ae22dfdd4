"""asyncio's `BufferedProtocol` in two processes that accept from one socket."""

from __future__ import annotations

import asyncio
import socket

from _common import task
from _prefork import serve_by_processes
from _protocols import sigterm
from asyncio_buffered import protocol


async def serve(sock: socket.socket) -> None:
    """Serve until SIGTERM."""
    server = await asyncio.get_running_loop().create_server(protocol(task()), sock=sock)
    await sigterm()
    server.close()


serve_by_processes(lambda sock: asyncio.run(serve(sock)))
