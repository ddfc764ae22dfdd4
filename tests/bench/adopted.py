"""Compare an object of `socketserver` as it serves by itself and under `trioserver.adopt`.

    python tests/bench/adopted.py [-r ROUNDS] [-t SECONDS] [-c CONNECTIONS]

Every connection is a request of one line. Servers take turns in one process, and the
number to quote is the ratio of the two of one pair in the same round: what a hand-off
from Trio to a thread and back costs. See README.md for how not to fool yourself.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import statistics
import subprocess
import threading
from functools import partial

import trio
from measuring import LOADGEN, build_loadgen

import trioserver


class Upper(socketserver.StreamRequestHandler):
    """Answers one line with its upper-case form."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class Plain(socketserver.TCPServer):
    """Serves one after the other."""

    request_queue_size = 1024


class Threading(socketserver.ThreadingTCPServer):
    """Serves many at once."""

    request_queue_size = 1024
    daemon_threads = True


class Waiting(Plain):
    """Has a ``get_request`` of its own, which might wait."""

    def get_request(self):  # type: ignore[no-untyped-def]
        return super().get_request()


def load(port: int, connections: int, seconds: float) -> float:
    """Requests a second."""
    command = [LOADGEN, "connect", "--addr", f"127.0.0.1:{port}", "-n", "32", "--close", "fin"]
    command += ["-c", str(connections), "-t", str(seconds), "-u", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["ops_s"])


def by_itself(kind: type[socketserver.TCPServer], connections: int, seconds: float) -> float:
    """With its own ``serve_forever``."""
    with kind(("127.0.0.1", 0), Upper) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            return load(server.server_address[1], connections, seconds)
        finally:
            server.shutdown()
            thread.join()


async def adopted(kind: type[socketserver.TCPServer], connections: int, seconds: float) -> float:
    """Under `trioserver.adopt`."""
    server = kind(("127.0.0.1", 0), Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trioserver.adopt, server, max_threads=connections))
        port = server.server_address[1]
        speed = await trio.to_thread.run_sync(load, port, connections, seconds)
        server.shutdown()
    return speed


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--seconds", type=float, default=2)
    parser.add_argument("-c", "--connections", type=int, default=1)
    asked = parser.parse_args()
    build_loadgen()
    kinds = (Plain, Waiting, Threading)
    ratios: dict[str, list[float]] = {kind.__name__: [] for kind in kinds}
    for _ in range(asked.rounds):
        for kind in kinds:
            arguments = (kind, asked.connections, asked.seconds)
            theirs, ours = by_itself(*arguments), trio.run(adopted, *arguments)
            ratios[kind.__name__].append(ours / theirs)
            print(
                f"{kind.__name__:10} by itself {theirs:7.0f}/s, adopted {ours:7.0f}/s,"
                f" {1e6 / ours - 1e6 / theirs:5.0f} us more",
                flush=True,
            )
    for name, found in ratios.items():
        print(f"{name:10} x {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
