"""The server of `trioserver_stream`, with a monitor and one viewer in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import trio
from _common import task
from _trioserver import serve
from trioserver_stream import Line

import trioserver
from trioserver.monitoring import Monitor

VIEWER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as monitor:
    monitor.sendall(b'{"watch": {}}\\n')
    while monitor.recv(1 << 20):
        pass
"""


async def monitored() -> None:
    """Serve until SIGTERM, before the eyes of a viewer."""
    asked = task()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    limits = trioserver.Limits(requests=20_000)
    server = kind(asked.address, Line, request_queue_size=asked.backlog, limits=limits)
    async with trio.open_nursery() as nursery:
        _, port = await nursery.start(Monitor([server], ("127.0.0.1", 0)).serve)
        with subprocess.Popen([sys.executable, "-c", VIEWER, str(port)]) as viewer:  # noqa: ASYNC220
            try:
                await serve(server)
            finally:
                viewer.terminate()
        nursery.cancel_scope.cancel(reason="the server has ended")


if __name__ == "__main__":
    trio.run(monitored)
