"""Two servers in one nursery of a program that does other work as well.

    python examples/two_servers.py [PORT ADMIN_PORT]

One server tells everybody how far the work is; the other one stops everything
when it is told "stop" (try `nc localhost 9998`).
"""

import logging
import sys

import trio

import trioserver

Servers = tuple[trioserver.TCPServer, trioserver.TCPServer]


class Work:
    done = 0

    async def go_on(self) -> None:
        while True:
            await trio.sleep(0.1)
            self.done += 1  # no lock: tasks take turns, and only at an await

    async def tell(self, request: trioserver.Connection, address: object, server: object) -> None:
        await request.sendall(b"%d pieces are done\n" % self.done)


class Admin(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            if line.strip() == b"stop":
                await self.wfile.write(b"stopping\n")
                self.server.shutdown()


async def main(
    port: int,
    admin_port: int,
    *,
    task_status: trio.TaskStatus[Servers] = trio.TASK_STATUS_IGNORED,
) -> None:
    work = Work()
    public = trioserver.TCPServer(("localhost", port), work.tell)
    admin = trioserver.TCPServer(("localhost", admin_port), Admin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.go_on)
        for server in (public, admin):
            await nursery.start(server.serve_forever)  # returns once it listens
        task_status.started((public, admin))
        await admin.wait_closed()  # until somebody says "stop"
        public.shutdown(grace=5)
        print(await public.wait_closed())
        nursery.cancel_scope.cancel()  # the work goes on to the very end


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port, admin_port = sys.argv[1:] or ["9999", "9998"]
    try:
        trio.run(main, int(port), int(admin_port))
    except* KeyboardInterrupt:
        print("interrupted, and everything is closed")
