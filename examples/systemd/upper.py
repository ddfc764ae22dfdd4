"""A handler for the units beside this file: ``trioserver serve upper:Upper``."""

import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())
