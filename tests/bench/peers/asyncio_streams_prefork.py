"""asyncio's streams in two processes that accept from one socket."""

from __future__ import annotations

import asyncio
import socket

from _prefork import serve_by_processes
from _protocols import sigterm
from asyncio_streams import line


async def serve(sock: socket.socket) -> None:
    """Serve until SIGTERM."""
    server = await asyncio.start_server(line, sock=sock)
    await sigterm()
    server.close()


serve_by_processes(lambda sock: asyncio.run(serve(sock)))
