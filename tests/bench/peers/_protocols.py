"""What the peers by asyncio's protocols do alike, whatever loop they run in."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from _common import Stopping, Task, datagram_socket, listener, ready, task


class Connection(asyncio.BaseProtocol):
    """One connection; it reads no more while what it has written cannot leave."""

    open: ClassVar[set[Connection]] = set()
    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class Line(Connection):
    """Answer each line."""

    rest = b""

    def data_received(self, data: bytes) -> None:
        lines = (self.rest + data).splitlines(keepends=True)
        self.rest = b"" if data.endswith(b"\n") else lines.pop()
        write = self.transport.write
        for line in lines:
            write(line.upper())


class Bulk(Connection):
    """Echo."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Upper(asyncio.DatagramProtocol):
    """Answer a datagram."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data.upper(), addr)


async def sigterm() -> Stopping:
    """Wait until we are told to stop."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    return Stopping()


async def serve_connections(choose: Callable[[Task], type[asyncio.BaseProtocol]]) -> None:
    """Serve by TCP, or by a Unix socket, until SIGTERM."""
    asked = task()
    accepting = listener(asked)
    loop = asyncio.get_running_loop()
    start: Any = loop.create_unix_server if asked.unix else loop.create_server
    server = await start(choose(asked), sock=accepting, backlog=asked.backlog)
    ready(accepting.getsockname())
    stopping = await sigterm()
    server.close()
    for connection in Connection.open:
        connection.transport.abort()
    while Connection.open:  # noqa: ASYNC110  (an event would cost each connection)
        await asyncio.sleep(0)
    stopping.done()


async def serve_datagrams() -> None:
    """Serve by UDP until SIGTERM."""
    sock = datagram_socket(task())
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Upper, sock=sock)
    ready(sock.getsockname())
    stopping = await sigterm()
    transport.abort()
    stopping.done()
