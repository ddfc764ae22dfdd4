"""trioserver's datagram server, with a handler class."""

from __future__ import annotations

from _datagrams import serve_datagrams

import trioserver


class Upper(trioserver.DatagramRequestHandler):
    """Answer a datagram."""

    async def handle(self) -> None:
        await self.wfile.write(self.packet.upper())


if __name__ == "__main__":
    serve_datagrams(Upper)
