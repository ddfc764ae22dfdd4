"""gevent's `StreamServer` in two processes that accept from one socket."""

from __future__ import annotations

import signal
import socket

import gevent
import gevent.event
from _prefork import serve_by_processes
from gevent_stream import server_on


def serve(sock: socket.socket) -> None:
    """Serve until SIGTERM."""
    gevent.reinit()
    told = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, told.set)
    server = server_on(sock)
    server.start()
    told.wait()
    server.stop(timeout=0)


serve_by_processes(serve)
