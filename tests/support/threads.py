"""What tests of handlers in threads, and of those in processes, share."""

from __future__ import annotations

import os
import socket
import socketserver
from typing import Any

import trio

import trioserver
from support import connect, read_to_end

THERE = ("127.0.0.1", 0)


class Upper(socketserver.StreamRequestHandler):
    """Answers every line with its upper-case form."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def on_tcp(handler: Any, **fields: Any) -> trioserver.ThreadingTCPServer:
    """A server on the loopback interface."""
    return trioserver.ThreadingTCPServer(THERE, handler, **fields)


async def ask(server: trioserver.BaseServer, data: bytes) -> bytes:
    """What a new client is answered, up to the end, who says all that he has to say at once."""
    async with await connect(server) as client:
        await client.send_all(data)
        await client.send_eof()
        return await read_to_end(client)


async def ask_by_datagram(server: trioserver.BaseServer, data: bytes) -> bytes:
    """What a new client is answered."""
    assert server.socket is not None
    with trio.socket.socket(server.socket.family, socket.SOCK_DGRAM) as client:
        udp = client.family == socket.AF_INET
        await client.bind(THERE if udp else f"{server.server_address}-client")
        await client.sendto(data, server.server_address)
        answer, sender = await client.recvfrom(100_000)
    if not udp:
        os.unlink(f"{server.server_address}-client")  # noqa: PTH108
    assert sender == server.server_address
    return bytes(answer)
