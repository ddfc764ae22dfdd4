"""Serve with worker processes that crash, hang, and are killed at random.

    python tests/soak/processes.py               # a thousand requests, one in ten hostile
    python tests/soak/processes.py --killer 10   # a worker killed every 100 ms, for 10 s

A thousand requests: one in twenty ends its worker, one in twenty is cancelled, idle
workers are killed at random, and each is replaced after 40 requests or so. No other
request fails. The killer hits any worker, so requests do fail; but the server answers
all the time, and afterwards. In the end descriptors and workers are as before, and
there are no zombies.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socketserver
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from _common import Tally, Verdict, arguments, descriptors, in_words, is_quiet, run, table, until

import trioserver

CLIENTS = 8
HANG = b"hang, please\n"


class Works(socketserver.StreamRequestHandler):
    """Answers a line; or ends its worker, or hangs, as it is asked to."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if line == b"crash\n":
            os._exit(3)
        if line == HANG:
            time.sleep(60)
        self.wfile.write(line.upper())


class Quiet(trioserver.ProcessTCPServer):
    """Says nothing of the errors that were asked for."""

    async def handle_error(self, request: Any, client_address: Any) -> None: ...


async def ask(address: Any, line: bytes) -> bytes:
    """One exchange; what came back."""
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        try:
            await stream.send_all(line)
            return b"".join([data async for data in stream])
        except trio.BrokenResourceError:
            return b"reset"


def zombies() -> list[str]:
    """Processes below this one that have ended and were not reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == os.getpid():
            found.append(stat.parent.name)
    return found


async def cancel_who_hangs(server: Any) -> None:
    """And nobody else."""
    while True:
        for request in server.snapshot().requests:
            if request.bytes_received == len(HANG) and request.state == "working":
                server.cancel_request(request.info.id, "it hangs")
        await trio.sleep(0.01)


async def kill_the_idle(server: Any, chance: random.Random) -> None:
    """A worker that has nothing to do, now and then."""
    while True:
        await trio.sleep(chance.uniform(0.05, 0.2))
        if idle := server._run.resources._idle:
            kill(chance.choice(idle).pid)


def kill(pid: int) -> None:
    """If it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def torture(server: Any, options: argparse.Namespace, answers: Counter[str]) -> None:
    """The thousand."""
    chance = random.Random(options.seed)
    lines = chance.choices([b"work\n", b"crash\n", HANG], [90, 5, 5], k=options.requests)

    async def client() -> None:
        while lines:
            line = lines.pop()
            got = await ask(server.server_address, line)
            answers[f"{line.decode().strip()}: {got.decode().strip() or 'end'}"] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_who_hangs, server)
        nursery.start_soon(kill_the_idle, server, chance)
        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)
        nursery.cancel_scope.cancel()


async def random_killer(server: Any, options: argparse.Namespace, answers: Counter[str]) -> None:
    """Any worker, every 100 ms."""
    chance = random.Random(options.seed)

    async def client() -> None:
        while True:
            got = await ask(server.server_address, b"work\n")
            answers[f"work: {got.decode().strip() or 'end'}"] += 1

    with trio.move_on_after(options.killer):
        async with trio.open_nursery() as clients:
            for _ in range(100):
                clients.start_soon(client)
            while True:
                await trio.sleep(0.1)
                if pids := server.active_children:
                    kill(chance.choice(pids))


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    answers: Counter[str] = Counter()
    tally = Tally()
    server = Quiet(
        ("127.0.0.1", 0),
        Works,
        min_children=4,
        max_children=8,
        child_idle=1,
        max_requests=40,
        max_requests_jitter=10,
        observers=[tally],
    )
    async with server.serving():
        await ask(server.server_address, b"work\n")
        await until(lambda: is_quiet(server))
        before, workers = descriptors(), len(server.active_children)
        began = time.perf_counter()
        await (random_killer if options.killer else torture)(server, options, answers)
        seconds = time.perf_counter() - began
        after_all = await ask(server.server_address, b"work\n")
        with suppress(trio.TooSlowError):
            await until(lambda: (before, workers) == (descriptors(), len(server.active_children)))
        after, workers_after, dead = descriptors(), len(server.active_children), zombies()
    table(
        ("answers", in_words(answers)),
        ("outcomes", in_words(tally.outcomes)),
        ("seconds", f"{seconds:.1f}"),
        ("descriptors before and after", f"{before}, {after}"),
        ("workers before and after", f"{workers}, {workers_after}"),
        ("zombies", len(dead)),
    )
    verdict.promise(after_all == b"WORK\n", "the server answers afterwards")
    verdict.promise((before, workers) == (after, workers_after), "all is as before")
    verdict.promise(not dead, "no zombies")
    if not options.killer:
        harmed = {what for what in answers if what.startswith("work") and what != "work: WORK"}
        verdict.promise(not harmed, "no innocent request fails")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--killer", type=float, default=0, help="seconds of it")
    parser.add_argument("--seed", type=int, default=0)
    run(soak, parser.parse_args())
