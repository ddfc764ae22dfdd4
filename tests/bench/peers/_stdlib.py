"""What the peers that are built on `socketserver`'s servers do alike."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
from typing import Any, NoReturn

from _common import Stopping, ready, task, unlink
from _handlers import handler


def serve(mixin: type, **attributes: Any) -> NoReturn:
    """Serve until SIGTERM, and exit: some connections have a thread each that nothing ends.

    Args:
      mixin: of `socketserver`, in front of the server's class.
      attributes: of the class that is served.
    """
    asked = task()
    base = socketserver.UnixStreamServer if asked.unix else socketserver.TCPServer

    class Server(mixin, base):  # type: ignore[misc, valid-type]
        """One for each connection."""

        allow_reuse_address = not asked.unix
        # 5 by default: connect-c32 then loses clients, and waits a second for others.
        request_queue_size = asked.backlog
        stopping: Stopping

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that are gone are no news."""

    def stop(*_: object) -> None:
        """Begin to stop; `shutdown` would wait for the loop that this interrupts."""
        Server.stopping = Stopping()
        threading.Thread(target=server.shutdown, daemon=True).start()

    for name, value in attributes.items():
        setattr(Server, name, value)
    if isinstance(asked.address, str):
        unlink(asked.address)
    server = Server(asked.address, handler(asked))
    signal.signal(signal.SIGTERM, stop)
    ready(server.socket.getsockname())
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    Server.stopping.done()
    os._exit(0)
