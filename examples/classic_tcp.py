"""The classic first server: it prints what a client sends, and answers in upper case.

    python examples/classic_tcp.py [PORT] [--variant recv|line]

Talk to it with classic_tcp_client.py; stop it with Ctrl-C.
"""

import argparse
import logging

import trio

import trioserver


class Receives(trioserver.BaseRequestHandler):
    """Takes what one send of the client brought."""

    async def handle(self) -> None:
        data = (await self.request.recv(1024)).strip()
        print(f"{self.client_address[0]} wrote:")
        print(data)
        await self.request.sendall(data.upper())


class ReadsLine(trioserver.StreamRequestHandler):
    """Takes a whole line, however many sends it came in."""

    async def handle(self) -> None:
        data = (await self.rfile.readline()).strip()
        print(f"{self.client_address[0]} wrote:")
        print(data)
        await self.wfile.write(data.upper())


VARIANTS = {"recv": Receives, "line": ReadsLine}


def make_server(port: int, variant: str) -> trioserver.TCPServer:
    return trioserver.TCPServer(("localhost", port), VARIANTS[variant])


async def main(
    port: int,
    variant: str = "recv",
    *,
    task_status: trio.TaskStatus[trioserver.TCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port, variant).serve_forever(task_status=task_status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int, nargs="?", default=9999)
    parser.add_argument("--variant", choices=VARIANTS, default="recv")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # where it listens, who came
    trioserver.run(make_server(options.port, options.variant))
