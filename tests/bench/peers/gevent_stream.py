"""gevent's `StreamServer`: a greenlet for each connection, and `makefile` for its lines."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import gevent.pool
import gevent.server
from _common import CHUNK, listener, task
from _gevent import cooperative, serve

asked = task()


def line(sock: Any) -> None:
    """Answer each line."""
    with sock.makefile("rb") as lines:
        for complete in lines:
            sock.sendall(complete.upper())


def bulk(sock: Any) -> None:
    """Echo."""
    while data := sock.recv(CHUNK):
        sock.sendall(data)


def handler(sock: Any, address: Any) -> None:
    """The whole life of a connection; the server closes it."""
    with contextlib.suppress(OSError):  # the client is gone
        if not asked.unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        service(sock)


service = line if asked.service == "line" else bulk


def server_on(sock: socket.socket) -> gevent.server.StreamServer:
    """The server."""
    connections = gevent.pool.Pool()  # without one, it would end none of them
    return gevent.server.StreamServer(cooperative(sock), handler, spawn=connections)


if __name__ == "__main__":
    serve(server_on(listener(asked)))
