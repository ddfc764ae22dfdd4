"""asyncio's `BufferedProtocol`: it reads into 64 KiB of its own.

A `Protocol` gets bytes from a read of up to 256 KiB, for which memory is mapped and given back
each time. The connections share one buffer, as this loop fills it only just before it asks for
what was read to be taken.
"""

from __future__ import annotations

import asyncio

from _common import CHUNK, Task
from _protocols import Bulk, Connection, Line, serve_connections

BUFFER = memoryview(bytearray(CHUNK))


class Buffered(Connection, asyncio.BufferedProtocol):
    """Hands on what has been read."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(BUFFER[:nbytes]))


class BufferedLine(Line, Buffered):
    """Answer each line."""


class BufferedBulk(Bulk, Buffered):
    """Echo."""


def protocol(asked: Task) -> type[Buffered]:
    """The one that was asked for."""
    return BufferedLine if asked.service == "line" else BufferedBulk


if __name__ == "__main__":
    asyncio.run(serve_connections(protocol))
