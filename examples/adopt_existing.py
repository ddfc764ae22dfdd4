"""A server object of `socketserver` that somebody else has built, in a Trio program.

    python examples/adopt_existing.py [PORT]

At Ctrl-C it refuses new clients and finishes what has begun; at another one it
does not wait for that.
"""

import itertools
import logging
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trio

import trioserver

# Theirs: nothing in it knows of Trio, and nothing has to be changed ----------------


class VisitServer(ThreadingHTTPServer):
    visits = itertools.count(1)

    def verify_request(self, request: object, client_address: tuple[str, int]) -> bool:
        return client_address[0].startswith("127.")


class Visit(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: VisitServer

    def do_GET(self) -> None:
        body = f"visit number {next(self.server.visits)}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# Ours ------------------------------------------------------------------------------


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[VisitServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``server = await nursery.start(main, port)``."""
    # Building it binds, and looks its own name up, which may wait: so in a thread.
    server = await trio.to_thread.run_sync(VisitServer, ("localhost", port), Visit)
    print(await trioserver.adopt(server, task_status=task_status))


async def until_told(port: int) -> None:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrived:
            server = await nursery.start(main, port)
            async for _ in arrived:
                server.shutdown()
                break


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(until_told, int(sys.argv[1]) if len(sys.argv) > 1 else 9999)
