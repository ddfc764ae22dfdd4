import json

import trio
import trioserver
from trioserver.monitoring import timeline


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def record(server, recorder):
    with recorder, trio.move_on_after(10):
        await server.serve_forever()


def write(recording, folder):
    (folder / "timeline.html").write_text(timeline(recording, title="Ten seconds"), "utf-8")
    (folder / "recording.json").write_text(json.dumps(recording.as_json()), "utf-8")
    (folder / "trace.json").write_text(json.dumps(recording.as_chrome_trace()), "utf-8")


async def keep(server, recorder, folder):
    async with trio.open_nursery() as nursery:
        with recorder:
            nursery.start_soon(recorder.keep, folder)
            await server.serve_forever()


def show(recording, seconds):
    print(recording.tree(recording.started + seconds))
