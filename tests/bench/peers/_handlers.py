"""The handlers of the peers that are built on `socketserver`'s handler classes."""

from __future__ import annotations

import socketserver

from _common import CHUNK, Task


class Line(socketserver.StreamRequestHandler):
    """Answer each line."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Bulk(socketserver.BaseRequestHandler):
    """Echo."""

    def handle(self) -> None:
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


def handler(asked: Task) -> type[socketserver.BaseRequestHandler]:
    """The one that was asked for."""
    # Nagle, on by default there, stalls pipelined replies for 40 ms.
    Line.disable_nagle_algorithm = not asked.unix
    return Line if asked.service == "line" else Bulk
