"""The classic first server, over UDP: it prints what a client sends, and answers in upper case.

    python examples/classic_udp.py [PORT]

Talk to it with classic_udp_client.py; stop it with Ctrl-C.
"""

import argparse
import logging

import trio

import trioserver


class Upper(trioserver.BaseRequestHandler):
    async def handle(self) -> None:
        data, socket = self.request
        data = data.strip()
        print(f"{self.client_address[0]} wrote:")
        print(data)
        await socket.sendto(data.upper(), self.client_address)


def make_server(port: int) -> trioserver.UDPServer:
    return trioserver.UDPServer(("localhost", port), Upper)


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.UDPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int, nargs="?", default=9999)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # where it listens, who wrote
    trioserver.run(make_server(options.port))
