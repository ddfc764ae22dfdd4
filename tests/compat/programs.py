"""The server of a program that builds one and serves with it in the same call."""

import socketserver
from unittest import mock

from case import QUEUE


def server_of(program):
    """What ``program`` would serve with, as it stands when it calls ``serve_forever``."""
    built = []

    def serve_forever(server, poll_interval=0.5):
        built.append(server)

    def server_close(server):
        """Not now: some programs call it when ``serve_forever`` has returned."""

    with (
        mock.patch.object(socketserver.BaseServer, "serve_forever", serve_forever),
        mock.patch.object(socketserver.TCPServer, "server_close", server_close),
    ):
        program()
    (server,) = built
    server.socket.listen(QUEUE)
    return server
