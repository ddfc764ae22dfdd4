import trio
import trioserver


class Outer(trioserver.StreamRequestHandler):
    async def handle(self):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.inner.serve_forever)
            try:
                with self.idle():
                    await trio.sleep_forever()
            except trioserver.Draining:
                self.server.inner.shutdown()
