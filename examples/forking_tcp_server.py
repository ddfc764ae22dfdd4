"""The classic asynchronous mix-in again, with the handlers in worker processes.

    python examples/forking_tcp_server.py [PORT]

It serves, asks itself three times, and ends.
"""

import multiprocessing
import socket
import socketserver
import sys

import trio

import trioserver


class ForkingTCPRequestHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data = str(self.request.recv(1024), "ascii")
        name = multiprocessing.current_process().name
        self.request.sendall(bytes(f"{name}: {data}", "ascii"))


class ForkingTCPServer(trioserver.ForkingMixIn, trioserver.TCPServer):
    pass


def client(address: tuple[str, int], message: str) -> None:
    with socket.create_connection(address) as sock:
        sock.sendall(bytes(message, "ascii"))
        response = str(sock.recv(1024), "ascii")
    print(f"Received: {response}")


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[ForkingTCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    server = ForkingTCPServer(("localhost", port), ForkingTCPRequestHandler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)  # returns once it listens
        task_status.started(server)
        print("Server loop running in process:", multiprocessing.current_process().name)
        for number in (1, 2, 3):
            # What blocks goes to a thread: here it would keep the server from serving.
            await trio.to_thread.run_sync(client, server.server_address, f"Hello World {number}")
        server.shutdown()  # the nursery waits until it has ended


# Workers import this file, too, and must not serve by themselves.
if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0  # 0: the system chooses a free one
    trio.run(main, port)
