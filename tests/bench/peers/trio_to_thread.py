"""A bare loop of Trio with a thread for each connection: the yardstick of threading servers.

The threads run the handlers of the standard library's peer.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import trio
from _common import listener, ready, task
from _handlers import handler
from _trio import until_told_to_stop

asked = task()
handle = handler(asked)
threads = trio.CapacityLimiter(1000)  # as many as the peer of ours has
connections: set[socket.socket] = set()


def serve(request: socket.socket, address: Any) -> None:
    """The whole life of a connection, in a thread."""
    with request, contextlib.suppress(OSError):  # the client is gone
        handle(request, address, None)  # type: ignore[arg-type]


async def hand_over(accepted: trio.socket.SocketType, address: Any) -> None:
    """Have a thread serve a connection."""
    request = socket.socket(fileno=accepted.detach())
    request.setblocking(True)
    connections.add(request)
    try:
        await trio.to_thread.run_sync(serve, request, address, limiter=threads)
    finally:
        connections.discard(request)


async def accept(accepting: trio.socket.SocketType, nursery: trio.Nursery) -> None:
    """Start a task for each connection; at the end, have all of them end."""
    try:
        while True:
            nursery.start_soon(hand_over, *await accepting.accept())
    finally:
        for request in connections:
            with contextlib.suppress(OSError):  # it was just closed
                request.shutdown(socket.SHUT_RDWR)


async def main() -> None:
    """Serve until SIGTERM."""
    async with until_told_to_stop() as nursery:
        accepting = trio.socket.from_stdlib_socket(listener(asked))
        nursery.start_soon(accept, accepting, nursery)
        ready(accepting.getsockname())


trio.run(main)
