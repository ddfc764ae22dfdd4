"""Who gets the connections, of several workers that accept from one socket.

    python tests/soak/shares.py                      # 400 connections, 4 workers
    python tests/soak/shares.py --plain              # the same of plain Trio, pre-forked

Connections that stay, and such that end after a line, from one in 20 ms to as many as there can
be. The figure is what the one that has most has, as a multiple of the mean.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _common import Verdict, arguments, run_plain
from _crowd import Crowd
from support import plain_client
from support.running_programs import guarded, heard, running_program, who_answers
from support.workers import a_program

MOST = 1.3
"""What is promised of connections that stay."""

SERVER = """
limits = trioserver.Limits(requests=1000)
logging.getLogger("trioserver.access").setLevel("WARNING")
server = trioserver.TCPServer(("127.0.0.1", 0), handle, limits=limits)
"""
PLAIN = """
import signal, socket

async def line(stream):
    while data := await stream.receive_some():
        await stream.send_all(b"%d %s" % (os.getpid(), data))

sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
children = []
for _ in range(WORKERS):
    if not (child := os.fork()):
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        trio.run(trio.serve_listeners, line, [listener])
    children.append(child)
host, port = sock.getsockname()
logging.info("the program serves %s:%d", host, port)
signal.sigwait(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) | {signal.SIGTERM})
for child in children:
    os.kill(child, signal.SIGKILL)
    os.wait()
"""


@contextmanager
def serving(options: argparse.Namespace, folder: str) -> Iterator[Any]:
    """The program."""
    if options.plain:
        source = guarded(PLAIN.replace("WORKERS", str(options.workers)))
        with running_program(Path(folder) / "program.py", source) as program:
            yield program
        return
    with a_program(Path(folder), f"server, workers={options.workers}", SERVER) as program:
        yield program


def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Do it."""
    with serving(options, folder) as program:
        address = program.address()
        for name, pause in (("3 ms apart", 0.003), ("in a burst", 0.0)):
            worst = show(
                f"{options.count} that stay, {name}", stay(address, pause, options), options
            )
            verdict.promise(options.plain or worst <= MOST, f"{name}: at most {MOST}")
        for name, pause in (("one in 20 ms", 0.02), ("one in 2 ms", 0.002)):
            found = Counter(come(address, pause, options.count))
            show(f"{options.count} of a line each, {name}", found, options)
        crowd = Crowd(address)
        with crowd.visiting():
            time.sleep(1)
            found = Counter(come(address, 0, options.count))
        show(f"{options.count} of a line each, among 50 clients without a pause", found, options)
        program.stops()


def show(what: str, found: Counter[int], options: argparse.Namespace) -> float:
    """Print it."""
    shares = sorted(found.values(), reverse=True) + [0] * (options.workers - len(found))
    worst = shares[0] * options.workers / sum(shares)
    print(f"{what}: {', '.join(map(str, shares))}; most to mean {worst:.2f}")
    return worst


def stay(address: Any, pause: float, options: argparse.Namespace) -> Counter[int]:
    """Who has how many of the connections that stay."""
    with ExitStack() as at_the_end:
        clients = []
        for _ in range(options.count):
            clients.append(at_the_end.enter_context(plain_client(address)))
            time.sleep(pause)
        for client in clients:
            client.sendall(b"hello\n")
        return Counter(heard(client, b"hello\n") for client in clients)


def come(address: Any, pause: float, count: int) -> Iterator[int]:
    """Who answers clients that come one after the other."""
    for _ in range(count):
        yield who_answers(address)
        time.sleep(pause)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=400)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="plain Trio, for comparison")
    run_plain(soak, parser.parse_args())
