"""The handlers of the peers that are built on `socketserver`'s handler classes."""

from __future__ import annotations

import socketserver

from _common import CHUNK, Task


class Line(socketserver.StreamRequestHandler):
    """Answer each line."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Bulk(socketserver.StreamRequestHandler):
    """Echo."""

    def handle(self) -> None:
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


def handler(asked: Task) -> type[socketserver.StreamRequestHandler]:
    """The one that was asked for."""
    chosen = Line if asked.service == "line" else Bulk
    # Nagle, on by default there, stalls pipelined replies for 40 ms.
    chosen.disable_nagle_algorithm = not asked.unix
    return chosen
