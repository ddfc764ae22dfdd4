"""Compare where handlers run, for work of the processor: what docs/explanation/modes.rst shows.

    python tests/bench/modes.py [-r ROUNDS] [-t SECONDS]

Each server is a process of its own, on all cores, and so are the clients, which
mostly wait. The handler uses 10 ms of processor time for each request. It prints
answers a second, and the memory of the server and its workers (their private
memory and their share of the rest) by the end of the last round. Runs in which
other programs took much of a core are repeated, and the quietest is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import trio
from machine import Bystanders, wait_until_quiet

import trioserver

CLIENTS = 8
WORK = 0.010
"""Seconds of processor time for each request."""

QUIET = 0.15
"""The share of a core that other programs may take."""


def compute() -> None:
    """Use the processor."""
    until = time.thread_time() + WORK
    while time.thread_time() < until:
        pass


class Sync(socketserver.BaseRequestHandler):
    """A synchronous handler."""

    def handle(self) -> None:
        self.request.recv(100)
        compute()
        self.request.sendall(b"done")


class Async(trioserver.BaseRequestHandler):
    """An asynchronous one."""

    async def handle(self) -> None:
        await self.request.recv(100)
        compute()
        await self.request.sendall(b"done")


def with_workers(count: int) -> trioserver.ProcessTCPServer:
    """A server with so many worker processes."""
    address = ("127.0.0.1", 0)
    return trioserver.ProcessTCPServer(address, Sync, min_children=count, max_children=count)


SERVERS: dict[str, Callable[[], trioserver.TCPServer]] = {
    "task": lambda: trioserver.TCPServer(("127.0.0.1", 0), Async),
    "thread": lambda: trioserver.ThreadingTCPServer(("127.0.0.1", 0), Sync),
    "process-1": lambda: with_workers(1),
    "process-2": lambda: with_workers(2),
}


async def serve(name: str) -> None:
    """Serve until standard input ends."""
    async with SERVERS[name]().serving() as server:
        print(server.server_address[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def load(port: int, seconds: float) -> float:
    """Answers a second."""
    ends = time.monotonic() + seconds
    counts = []

    def client() -> None:
        count = 0
        while time.monotonic() < ends:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"work")
                while sock.recv(100):
                    pass
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def memory(group: int) -> float:
    """MiB of a session's processes: private memory, and a share of what several have."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == group:
                rollup = (folder / "smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
    return total / 1024


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of one server measured."""

    rate: float
    """Answers a second."""
    memory: float
    bystanders: float
    """The share of a core that other programs took meanwhile."""


def measure(name: str, seconds: float) -> Run:
    """The quietest of a few runs."""
    runs: list[Run] = []
    for _ in range(5):
        wait_until_quiet(30)
        runs.append(measure_once(name, seconds))
        if runs[-1].bystanders < QUIET:
            break
    return min(runs, key=lambda run: run.bystanders)


def measure_once(name: str, seconds: float) -> Run:
    """One run of a fresh server."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        load(port, 0.3)
        bystanders = Bystanders(process.pid)
        rate = load(port, seconds)
        run = Run(rate, memory(process.pid), bystanders.share())
        process.stdin.close()
    return run


def main() -> None:
    """Measure in rounds, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--seconds", type=float, default=2)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        trio.run(serve, asked.serve)
        return
    found: dict[str, list[Run]] = {name: [] for name in SERVERS}
    for _ in range(asked.rounds):
        for name, runs in found.items():
            runs.append(measure(name, asked.seconds))
    print(f"{'server':10} {'answers/s':>9} {'(least-most)':>14} {'MiB':>6} {'others':>6}")
    for name, runs in found.items():
        rates, last = [run.rate for run in runs], runs[-1]
        others = max(run.bystanders for run in runs)
        spread = f"({min(rates):.0f}-{max(rates):.0f})"
        middle = statistics.median(rates)
        print(f"{name:10} {middle:9.0f} {spread:>14} {last.memory:6.1f} {others:6.2f}")


if __name__ == "__main__":
    main()
