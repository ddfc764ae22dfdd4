"""What the peers of ours for datagrams do alike."""

from __future__ import annotations

from typing import Any

import trio
from _common import datagram_socket, task
from _trioserver import serve

import trioserver


def serve_datagrams(handler: Any) -> None:
    """Serve by UDP until SIGTERM."""
    trio.run(serve, trioserver.UDPServer(datagram_socket(task()), handler))
