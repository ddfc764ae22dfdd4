"""A handler can be a function; what it needs comes from the function around it.

python examples/function_handler.py [PORT [GREETING]]
"""

import logging
import sys
from collections.abc import Awaitable, Callable

import trio

import trioserver


def greeter(greeting: str) -> Callable[..., Awaitable[None]]:
    async def handle(
        request: trioserver.Connection,
        client_address: tuple[str, int],
        server: trioserver.TCPServer,
    ) -> None:
        number = server.statistics().accepted
        await request.sendall(f"{greeting}, number {number} from {client_address[0]}\n".encode())
        while True:
            with request.idle():  # when the server drains, this wait ends, and the handler with it
                data = await request.recv(1024)
            if not data:
                break
            await request.sendall(data.upper())

    return handle


def make_server(port: int, greeting: str = "hello") -> trioserver.TCPServer:
    return trioserver.TCPServer(("localhost", port), greeter(greeting))


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.TCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port, *greeting = sys.argv[1:] or ["9999"]
    trioserver.run(make_server(int(port), *greeting))
