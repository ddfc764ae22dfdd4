"""The server of a program that builds one and serves with it in the same call."""

from __future__ import annotations

import socketserver
from collections.abc import Callable
from unittest import mock

from case import QUEUE


def server_of(program: Callable[[], object]) -> socketserver.BaseServer:
    """What ``program`` would serve with, as it stands when it calls ``serve_forever``."""
    built: list[socketserver.BaseServer] = []

    def serve_forever(server: socketserver.BaseServer, poll_interval: float = 0.5) -> None:
        built.append(server)

    def server_close(server: socketserver.BaseServer) -> None:
        """Not now: some programs call it when ``serve_forever`` has returned."""

    with (
        mock.patch.object(socketserver.BaseServer, "serve_forever", serve_forever),
        mock.patch.object(socketserver.TCPServer, "server_close", server_close),
    ):
        program()
    (server,) = built
    server.socket.listen(QUEUE)
    return server
