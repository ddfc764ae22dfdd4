"""Serve many connections one after the other, and see that nothing is left of them.

    python tests/soak/connections.py                        # 100 000 polite clients
    python tests/soak/connections.py 20000 --misbehave      # one in three is not
    python tests/soak/connections.py 20000 --misbehave --no-gc --unix
    python tests/soak/connections.py 10000 --only vanish    # each resets its connection

Prints descriptors, tasks, threads and memory as it goes, and what a thousand
connections cost in the end. Exits 1 if anything has grown: descriptors, tasks
or threads at all; Python's memory blocks by 30 per 1000 connections; or the
process by more than 1 KiB per 1000 connections, if there were enough of them to
tell. The first half is for warming up. Linux: it reads /proc.

A misbehaving client is drawn by a seeded generator; the seed is an argument.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio

import trioserver

FEWEST = 10_000
ENOUGH = 50_000  # for less, a page more or less is the whole slope
SAMPLES = 20
WARM_UP = SAMPLES // 2
MOST_KIB_PER_1000 = 1.0
MOST_BLOCKS_PER_1000 = 30.0

Behaviour = Callable[[socket.socket, random.Random], Awaitable[None]]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
LINE_LIMIT = 1000


class Upper(trioserver.StreamRequestHandler):
    """Answers every line with its upper-case form."""

    async def handle(self) -> None:
        """Until the client has said everything."""
        async for line in self.rfile:
            if line == b"fail\n":
                raise ValueError("asked for")
            await self.wfile.write(line.upper())


class Quiet(trioserver.Observer):
    """Counts how requests ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        """One more."""
        self.outcomes[str(outcome)] += 1


class TCP(trioserver.TCPServer):
    """Says nothing of errors: they are asked for."""

    async def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


class Unix(trioserver.UnixStreamServer):
    """The same on a Unix socket."""

    async def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


# Clients -------------------------------------------------------------------------


async def polite(client: socket.socket, rng: random.Random) -> None:
    """Asks, reads the answer, and leaves."""
    request = b"hello %d\n" % rng.randrange(1000)
    client.send(request)
    assert await receive(client) == request.upper()


async def vanish(client: socket.socket, rng: random.Random) -> None:
    """Resets the connection, at once or after half a request."""
    if rng.random() < 0.5:
        client.send(b"half a li")
    reset_on_close(client)


async def leave_unread(client: socket.socket, rng: random.Random) -> None:
    """Asks, and leaves without reading: the kernel resets the connection."""
    client.send(b"hello\n" * rng.randrange(1, 100))


async def cut_short(client: socket.socket, rng: random.Random) -> None:
    """Ends its output in the middle of a line, and reads to the end."""
    client.send(b"half a li")
    client.shutdown(socket.SHUT_WR)
    assert await receive(client) == b"HALF A LI"
    assert await receive(client) == b""


async def exceed(client: socket.socket, rng: random.Random) -> None:
    """Sends a line that is too long, and is cut off."""
    with contextlib.suppress(ConnectionError):
        client.send(bytes(LINE_LIMIT * 2))
        await receive(client)


async def talk_rubbish(client: socket.socket, rng: random.Random) -> None:
    """Sends random bytes, and resets the connection if it is not cut off."""
    with contextlib.suppress(ConnectionError):
        client.send(rng.randbytes(rng.randrange(1, 5000)))
    reset_on_close(client)


async def stay_silent(client: socket.socket, rng: random.Random) -> None:
    """Says nothing, and is cut off."""
    assert await receive(client) == b""


async def provoke(client: socket.socket, rng: random.Random) -> None:
    """Has the handler fail."""
    client.send(b"fail\n")
    assert await receive(client) == b""


QUICK: tuple[Behaviour, ...] = (vanish, leave_unread, cut_short, exceed, talk_rubbish, provoke)
MISBEHAVIOUR = QUICK * 50 + (stay_silent,)  # which takes as long as the time-out
BY_NAME = {behave.__name__: behave for behave in QUICK}


def reset_on_close(client: socket.socket) -> None:
    """Have the close tell the server that something is wrong."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


async def receive(client: socket.socket) -> bytes:
    """What comes next, within a minute."""
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(client)
    return client.recv(65_536)


async def connect(address: Any) -> socket.socket:
    """A client that is connected, and that does not block the server's thread."""
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect(address)
    await trio.lowlevel.wait_writable(client)
    return client


# Figures ---------------------------------------------------------------------------


@attrs.frozen
class Sample:
    """What the process holds at one instant."""

    connections: int
    seconds: float
    descriptors: int
    tasks: int
    threads: int
    blocks: int
    kib: int

    @classmethod
    def take(cls, connections: int, seconds: float) -> Sample:
        """Look now."""
        if gc.isenabled():
            gc.collect()
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (rss,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return cls(
            connections=connections,
            seconds=seconds,
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            tasks=trio.lowlevel.current_statistics().tasks_living,
            threads=threading.active_count(),
            blocks=sys.getallocatedblocks(),
            kib=int(rss),
        )

    def __str__(self) -> str:
        return (
            f"{self.connections:>9} connections {self.seconds:8.1f} s"
            f" {self.descriptors:4} fds {self.tasks:4} tasks {self.threads:3} threads"
            f" {self.blocks:9} blocks {self.kib:8} KiB"
        )


def troubles(samples: list[Sample]) -> list[str]:
    """Print what a thousand connections cost; say what has grown."""
    warm = samples[WARM_UP:]
    first, last = warm[0], warm[-1]
    rate = (last.connections - first.connections) / (last.seconds - first.seconds)
    kib, blocks = slope(warm, "kib"), slope(warm, "blocks")
    print(f"{rate:.0f} connections a second, client and server in one thread")
    print(f"{blocks:+.2f} blocks per 1000 connections (at most {MOST_BLOCKS_PER_1000:g})")
    print(f"{kib:+.2f} KiB per 1000 connections (at most {MOST_KIB_PER_1000:g})")
    found = [
        f"{name} went from {getattr(first, name)} to {getattr(last, name)}"
        for name in ("descriptors", "tasks", "threads")
        if getattr(first, name) != getattr(last, name)
    ]
    if blocks > MOST_BLOCKS_PER_1000:
        found.append("Python's memory grows")
    if kib > MOST_KIB_PER_1000 and last.connections >= ENOUGH:
        found.append("the process grows")
    return found


def slope(samples: list[Sample], name: str) -> float:
    """By how much a figure grows per 1000 connections."""
    thousands = [sample.connections / 1000 for sample in samples]
    return statistics.linear_regression(thousands, [getattr(it, name) for it in samples]).slope


# The soak --------------------------------------------------------------------------


async def soak(options: argparse.Namespace, folder: str) -> list[str]:
    """Serve and be served; what is wrong in the end."""
    rng, quiet = random.Random(options.seed), Quiet()
    kind, address = (Unix, f"{folder}/s") if options.unix else (TCP, ("127.0.0.1", 0))
    server = kind(
        address,
        Upper,
        limits=trioserver.Limits(line=LINE_LIMIT),
        timeouts=trioserver.Timeouts(idle=0.2, linger=0.2),
        observers=[quiet],
    )
    samples: list[Sample] = []
    async with server.serving():
        began = time.monotonic()
        for number in range(options.count):
            if number % (options.count // SAMPLES) == 0:
                await until_quiet(server)
                samples.append(Sample.take(number, time.monotonic() - began))
                print(samples[-1], flush=True)
            behave = choose(options, number, rng)
            with await connect(server.server_address) as client:
                await behave(client, rng)
        await until_quiet(server)
        samples.append(Sample.take(options.count, time.monotonic() - began))
        print(samples[-1])
        counts = server.statistics()
    print(", ".join(f"{count} {outcome}" for outcome, count in quiet.outcomes.most_common()))
    found = troubles(samples)
    ended = sum(quiet.outcomes.values())
    if not ended == counts.accepted == options.count:
        found.append(f"{options.count} clients, {counts.accepted} accepted, {ended} records")
    return found


def choose(options: argparse.Namespace, number: int, rng: random.Random) -> Behaviour:
    """How the next client behaves."""
    if options.only:
        return BY_NAME[options.only]
    return rng.choice(MISBEHAVIOUR) if options.misbehave and number % 3 == 0 else polite


async def until_quiet(server: trioserver.BaseServer) -> None:
    """Wait until every connection so far is closed."""
    with trio.fail_after(60):
        while (now := server.statistics()).active or now.lingering:  # noqa: ASYNC110  (no event)
            await trio.sleep(0.001)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=100_000, help="connections")
    parser.add_argument("--misbehave", action="store_true", help="one client in three")
    parser.add_argument("--only", choices=BY_NAME, help="all clients do this")
    parser.add_argument("--seed", type=int, default=1, help="for the misbehaving ones")
    parser.add_argument("--unix", action="store_true", help="over a Unix socket")
    parser.add_argument("--no-gc", action="store_true", help="without the garbage collector")
    options = parser.parse_args()
    if options.count < FEWEST:
        parser.error(f"count must be at least {FEWEST}: less says nothing about memory")
    if options.no_gc:
        gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        found = trio.run(soak, options, folder)
    for trouble in found:
        print(f"FAILED: {trouble}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
