import gc
import logging

import trio
import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class Buffered(Upper):
    wbufsize = -1


def for_many(address, handler):
    return trioserver.TCPServer(address, handler, limits=trioserver.Limits(requests=20_000))


def log_only_what_is_wrong():
    logging.getLogger("trioserver.access").setLevel(logging.WARNING)


async def serve(server):
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)  # all that it needs is imported by now
        gc.collect()  # what is garbage now would stay
        gc.freeze()
        gc.set_threshold(20_000)
