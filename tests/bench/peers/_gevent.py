"""What the peers by gevent do alike."""

from __future__ import annotations

import signal
import socket

import gevent
import gevent.event
import gevent.server
import gevent.socket
from _common import Stopping, ready


def cooperative(sock: socket.socket) -> gevent.socket.socket:
    """The same socket, which lets others run where it would wait."""
    return gevent.socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def serve(server: gevent.server.StreamServer | gevent.server.DatagramServer) -> None:
    """Serve until SIGTERM."""
    told = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, told.set)
    server.start()
    ready(server.socket.getsockname())
    told.wait()
    stopping = Stopping()
    server.stop(timeout=0)
    stopping.done()
