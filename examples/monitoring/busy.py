"""A server to look at: run it, talk to it with nc, and open the address of its monitor.

    python examples/monitoring/busy.py

Lines are answered after a while; "work" takes half a minute in a child task, and "hold" is kept
from its time-out by a shield, for as long.
"""

from collections.abc import Sequence
from functools import partial

import trio

import trioserver
from trioserver.monitoring import Monitor


class Busy(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            match line.strip():
                case b"work":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep, 30)
                case b"hold":
                    with trio.move_on_after(30, shield=True):
                        await trio.sleep_forever()
                case _:
                    await trio.sleep(1)
            await self.wfile.write(line.upper())


async def watch(servers: Sequence[trioserver.BaseServer]) -> None:
    monitor = Monitor(servers, ("127.0.0.1", 0), allow_control=True)
    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(monitor.serve)
        print(f"its monitor is at http://{host}:{port}/", flush=True)


def main() -> None:
    timeouts = trioserver.Timeouts(idle=60, request=120)
    server = trioserver.TCPServer(("127.0.0.1", 0), Busy, timeouts=timeouts)
    tell = partial(print, "it serves on", flush=True)
    trioserver.run(server, on_ready=lambda places: tell(*places), beside=[watch])


if __name__ == "__main__":
    main()
