import socket

import trio
import trioserver


class Names(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            name = await trio.to_thread.run_sync(socket.getfqdn, line.decode().strip())
            await self.wfile.write(name.encode() + b"\n")


class Sorted(trioserver.StreamRequestHandler):
    async def handle(self):
        lines = await self.rfile.read()
        done = await trio.run_process(["sort"], stdin=lines, capture_stdout=True)
        await self.wfile.write(done.stdout)
