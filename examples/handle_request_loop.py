"""One request after the other, with your own code in between.

    python examples/handle_request_loop.py [PORT]

Connect with `nc localhost 9999` and say something; say "stop" to stop it.
"""

import contextlib
import logging
import sys

import trio

import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        line = await self.rfile.readline()
        if line.strip() == b"stop":
            self.server.shutdown()  # never waits, so a handler may call it
        await self.wfile.write(line.upper())


class Patient(trioserver.TCPServer):
    async def handle_timeout(self) -> None:
        print(f"nobody came for {self.timeout} seconds")


async def main(
    port: int,
    patience: float = 5,
    *,
    task_status: trio.TaskStatus[Patient] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with Patient(("localhost", port), Upper, timeout=patience) as server:  # listens from here
        task_status.started(server)
        while not server.draining:
            await server.handle_request()  # when it returns, the request is closed
            print(server.statistics().accepted, "requests so far")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 9999)
