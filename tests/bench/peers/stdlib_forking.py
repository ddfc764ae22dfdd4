"""The standard library's `socketserver.ForkingTCPServer`, with a backlog that fits."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
from typing import ClassVar

from _common import Stopping, ready, task
from _handlers import handler

asked = task()

BASE = socketserver.UnixStreamServer if asked.unix else socketserver.TCPServer


class Server(socketserver.ForkingMixIn, BASE):
    """A process a connection."""

    allow_reuse_address = not asked.unix
    block_on_close = False
    max_children = 1000
    # 5 by default: connections are lost then, and waited for for a second.
    request_queue_size = asked.backlog
    stopping: ClassVar[Stopping]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are gone are no news."""


def stop(*_: object) -> None:
    """Begin to stop; `shutdown` would wait for the loop that this interrupts."""
    Server.stopping = Stopping()
    threading.Thread(target=server.shutdown, daemon=True).start()


server = Server(asked.address, handler(asked))
signal.signal(signal.SIGTERM, stop)
ready(server.socket.getsockname())
server.serve_forever(poll_interval=0.05)
server.server_close()
Server.stopping.done()
os._exit(0)
