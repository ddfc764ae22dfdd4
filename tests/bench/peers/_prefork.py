"""Pre-forked servers, as gunicorn has them: one listening socket, and processes that accept."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from _common import Stopping, listener, ready, task

PROCESSES = 2


def serve_by_processes(serve: Callable[[socket.socket], object]) -> None:
    """Fork, have each child serve until SIGTERM, and end them at ours.

    Args:
      serve: serves what comes to the socket, until SIGTERM.
    """
    asked = task()
    sock = listener(asked)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    children = [_child(serve, sock) for _ in range(PROCESSES)]
    ready(sock.getsockname())
    signal.sigwait([signal.SIGTERM])
    stopping = Stopping()
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)
    stopping.done()


def _child(serve: Callable[[socket.socket], object], sock: socket.socket) -> int:
    child = os.fork()
    if child:
        return child
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        serve(sock)
    finally:
        os._exit(0)
