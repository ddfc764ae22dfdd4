"""Health checks: a tiny HTTP server that says whether a program lives, and whether it is ready.

``GET /live`` is answered with 200 as long as Trio's loop turns, and ``GET /ready`` with 200 or,
together with the reason, 503. It is written by hand, since the run-time core depends on nothing
that speaks HTTP: the first line is all that it looks at, and every answer ends the connection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from .._facts.address import valid_ip_address, valid_unix_path
from .._facts.config import Limits, Timeouts
from .._servers.base import BaseServer
from .._servers.handlers import StreamRequestHandler
from .._servers.ip_servers import TCPServer, kind_of_fault
from .._servers.unix_servers import UnixStreamServer

LIMITS = Limits(requests=64, line=4096, linger=65_536)
TIMEOUTS = Timeouts(idle=5, line=5, write=5, request=10, linger=1)

_MOST_FIELDS = 100

_OK = "200 OK"  # all of them by RFC 9110, 15
_BAD_REQUEST = "400 Bad Request"
_NOT_FOUND = "404 Not Found"
_METHOD_NOT_ALLOWED = "405 Method Not Allowed"
_SERVICE_UNAVAILABLE = "503 Service Unavailable"


class HealthHandler(StreamRequestHandler):
    """Answers one check."""

    async def handle(self) -> None:
        """Read the request's head, and answer."""
        method, _, rest = (await self.rfile.readline()).decode("latin-1").partition(" ")
        path, _, version = rest.rstrip("\r\n").partition(" ")
        for _ in range(_MOST_FIELDS):
            if not (await self.rfile.readline()).strip():
                break
        status, text = self._look(method, path.partition("?")[0], version)
        body = f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status}\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            "Cache-Control: no-store\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Allow: GET, HEAD\r\n"
            "Connection: close\r\n\r\n"
        )
        await self.request.send_all(head.encode() + (b"" if method == "HEAD" else body))

    def _look(self, method: str, path: str, version: str) -> tuple[str, str]:
        if not version.startswith("HTTP/1."):
            return _BAD_REQUEST, "a request of HTTP/1.1 was expected"
        if method not in {"GET", "HEAD"}:
            return _METHOD_NOT_ALLOWED, "GET was expected"
        if path == "/live":
            return _OK, "live"
        if path == "/ready":
            why = self.server.why_not_ready()
            if why:
                return _SERVICE_UNAVAILABLE, f"not ready: {why}"
            return _OK, "ready"
        return _NOT_FOUND, "there are /live and /ready here"


def health_server(address: Any, why_not_ready: Callable[[], str]) -> BaseServer:
    """A server for health checks, in tasks.

    Args:
      address: ``(host, port)``, or a path of a Unix socket.
      why_not_ready: says why the program is not ready, or ``""``.

    Raises:
      TypeError, ValueError: it is no address; the argument ``health`` is named.
    """
    is_path = isinstance(address, (str, bytes, os.PathLike))
    if expected := valid_unix_path(address) if is_path else valid_ip_address(address):
        kind = kind_of_fault(address, (tuple, list, str, bytes, os.PathLike))
        raise kind(f"health must be None, a path, or {expected}, not {address!r}")
    base = UnixStreamServer if is_path else TCPServer
    # At DEBUG, as probes come every few seconds, and nobody counts them as clients.
    body = {"why_not_ready": staticmethod(why_not_ready), "access_level": logging.DEBUG}
    server: BaseServer = type("Health", (base,), body)(
        address, HealthHandler, limits=LIMITS, timeouts=TIMEOUTS
    )
    return server
