"""Protocols that handlers of tests speak."""

import struct

import trioserver


class Framed(trioserver.StreamRequestHandler):
    """A protocol with announced lengths: two bytes that say how many follow."""

    async def handle(self):
        while await self.rfile.more():
            (size,) = struct.unpack(">H", await self.rfile.readexactly(2))
            await self.wfile.write(b"<" + await self.rfile.readexactly(size) + b">")


class Delimited(trioserver.StreamRequestHandler):
    """A protocol with a delimiter of several bytes."""

    async def handle(self):
        while await self.rfile.more():
            await self.wfile.write((await self.rfile.readuntil(b"\r\n\r\n")).upper())
