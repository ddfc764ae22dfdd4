"""Which servers can read their files anew, and how they are told to."""

from __future__ import annotations

import logging
from typing import Any

from .._facts.observers import error_log, log_safely
from .._servers.base import BaseServer
from .._servers.ip_servers import TCPServer


def can_reload(server: BaseServer) -> bool:
    """Whether a server is bound, and has anything to reload."""
    if server._state == "unbound" or not hasattr(server, "reload"):
        return False
    if not isinstance(server, TCPServer) or type(server).reload is not TCPServer.reload:
        return True  # it is the program's own
    return callable(server.ssl_context)


def reloads(server: Any) -> bool:
    """Have a server reload; whether it could."""
    try:
        server.reload()
    except Exception as error:  # noqa: BLE001  (a file's, or the program's own)
        message = "%s could not reload, and goes on as it was: %s"
        # What is wrong with a file says so itself; the rest is the program's.
        trace = None if isinstance(error, (OSError, ValueError)) else error
        name = type(server).__name__
        log_safely(error_log, logging.ERROR, message, name, error, exc_info=trace)
        return False
    return True
