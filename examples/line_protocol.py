"""A protocol of lines: many commands on one connection, and a goodbye.

    python examples/line_protocol.py [PORT]

Connect with `nc localhost 9999`. Ctrl-C drains the server: a command that has
begun is answered, and every client hears a goodbye.
"""

import logging
import sys

import trio

import trioserver


class Adder(trioserver.StreamRequestHandler):
    timeout = 60  # seconds of silence, after which the client is let go

    async def handle(self) -> None:
        total = 0
        await self.wfile.write(b"hello: ADD number, TOTAL or QUIT\n")
        async for line in self.rfile:  # ends with the client's input, or when the server drains
            match line.upper().split():
                case [b"ADD", number] if number.isdigit() and len(number) < 10:
                    total += int(number)
                    await self.wfile.write(b"ok\n")
                case [b"TOTAL"]:
                    await self.wfile.write(b"%d\n" % total)
                case [b"QUIT"]:
                    break
                case _:
                    await self.wfile.write(b"what?\n")
        reason = b", the server is closing" if self.server.draining else b""
        await self.wfile.write(b"goodbye" + reason + b"\n")


def make_server(port: int) -> trioserver.TCPServer:
    return trioserver.TCPServer(("localhost", port), Adder)


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.TCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
