import math

import trio
import trioserver


class Reverse(trioserver.StreamRequestHandler):
    """A request is four bytes, the size of what follows; so is a reply."""

    async def handle(self):
        while await self.rfile.more():
            if not await self.answer():
                break

    async def answer(self):
        size = int.from_bytes(await self.rfile.readexactly(4))
        if size > 1_000_000:
            return False
        body = await self.rfile.readexactly(size)
        await self.wfile.write(size.to_bytes(4) + body[::-1])
        return True


class ReverseSoon(Reverse):
    async def handle(self):
        self.request.idle_timeout = 60  # between two requests
        while await self.rfile.more():
            self.cancel_scope.deadline = trio.current_time() + 10  # for this one
            if not await self.answer():
                break
            self.cancel_scope.deadline = math.inf


class News(trioserver.StreamRequestHandler):
    async def handle(self):
        send, self.items = trio.open_memory_channel(10)
        self.server.readers.add(send)
        try:
            await self.pass_on()
        except trioserver.Draining:
            await self.wfile.write(b"that was the news\n")
        except trio.EndOfChannel:
            await self.wfile.write(b"you read too slowly\n")
        finally:
            self.server.readers.discard(send)

    async def pass_on(self):
        while True:
            with self.idle():
                item = await self.items.receive()
            await self.wfile.write(item)


def publish(server, item):
    for reader in tuple(server.readers):
        try:
            reader.send_nowait(item)
        except trio.WouldBlock:
            server.readers.discard(reader)
            reader.close()
