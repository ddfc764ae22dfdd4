"""A server on a Unix socket: for programs on one machine, here even of one user.

    python examples/unix_server.py upper.sock            # serves; Ctrl-C stops it
    python examples/unix_server.py upper.sock WORD...    # connects, and asks

Other programs connect as `ask` does, or with `nc -U upper.sock`.
"""

import logging
import socket
import sys

import trio

import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        peer = self.request.peer_credentials  # None where the system does not tell
        print("user", peer.uid if peer else "unknown", "is here")
        async for line in self.rfile:
            await self.wfile.write(line.upper())


def make_server(path: str) -> trioserver.UnixStreamServer:
    return trioserver.UnixStreamServer(path, Upper, mode=0o600)  # nobody else may connect


async def main(
    path: str,
    *,
    task_status: trio.TaskStatus[trioserver.UnixStreamServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, path)``."""
    await make_server(path).serve_forever(task_status=task_status)


def ask(path: str, question: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        client.sendall(f"{question}\n".encode())
        with client.makefile() as answers:
            return answers.readline().rstrip("\n")


if __name__ == "__main__":
    path, *words = sys.argv[1:] or ["upper.sock"]
    if words:
        print(ask(path, " ".join(words)))
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        trioserver.run(make_server(path))
