"""Start and stop many servers in one process, and see that nothing is left of them.

    python tests/soak/servers.py                 # 1000 of each kind, and 1000 programs
    python tests/soak/servers.py 200 --kind udp

Each serves one client. A *program* is `trioserver.run`, which takes over the
signal handlers. As before in the end: descriptors, tasks, threads, signal
handlers, functions for the exit of the process, logging handlers and filters,
Trio's instruments, and the files in the sockets' folder. The interpreter fills
its free lists for some thousand servers, ever more slowly; what a server really
left behind would be a block each. So after the first half Python's memory grows
by less than 500 blocks for a thousand servers, and the process by 64 KiB.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from _clients import FAMILIES
from _common import KINDS, Growth, Upper, Verdict, arguments, make_server, run_plain

import trioserver

STEPS = 10
PROGRAM = "program"


def global_state(folder: str) -> dict[str, Any]:
    """What a server could leave behind outside of itself."""
    names = sorted(logging.root.manager.loggerDict)
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    return {
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wake-up descriptor": _wakeup_descriptor(),
        "functions for the exit": atexit._ncallbacks(),  # type: ignore[attr-defined]
        "loggers": names,
        "logging handlers": [list(logger.handlers) for logger in loggers],
        "logging filters": [list(logger.filters) for logger in loggers],
        "instruments": _instruments(),
        "threads": [thread.name for thread in threading.enumerate()],
        "socket files": [path.name for path in Path(folder).iterdir()],
    }


def _instruments() -> list[str]:
    """Trio's, which only its insides tell."""
    runner = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)
    return [] if runner is None else sorted(map(str, runner.instruments))


def _wakeup_descriptor() -> int:
    before = signal.set_wakeup_fd(-1)
    if before != -1:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
    return before


async def serve_one(kind: str, folder: str) -> None:
    """Start a server, have it serve one client, stop it."""
    server = make_server(kind, folder, Upper)
    async with server.serving():
        await ask(kind, server.server_address)


async def ask(kind: str, address: Any) -> None:
    """Be that client."""
    with trio.socket.socket(*FAMILIES[kind]) as client:
        if kind == "unix-datagram":
            await client.bind(b"\0trioserver-soak-%d" % os.getpid())  # str: in a thread
        await client.connect(address)
        await client.send(b"hello\n")
        assert await client.recv(99) == b"HELLO\n"


def run_program(folder: str) -> None:
    """The same by `trioserver.run`, which is told to stop by its first client."""

    class Last(Upper):
        async def finish(self) -> None:
            await super().finish()
            self.server.shutdown()

    path = f"{folder}/program"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        Path(path).unlink()
        trioserver.run(trioserver.UnixStreamServer(listener.dup(), Last))
        assert client.recv(99) == b"HELLO\n"


def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Start and stop."""
    for kind in [options.kind] if options.kind else [*KINDS, PROGRAM]:
        print(f"{kind}:")
        if kind == PROGRAM:
            repeat_programs(options.count, folder, verdict)
        else:
            trio.run(repeat_servers, kind, options.count, folder, verdict)


async def repeat_servers(kind: str, count: int, folder: str, verdict: Verdict) -> None:
    """So many of a kind in one Trio program."""
    with nothing_left(kind, folder, verdict) as growth:
        growth.sample(0)
        for number in range(1, count + 1):
            await serve_one(kind, folder)
            if number % (count // STEPS) == 0:
                growth.sample(number)


def repeat_programs(count: int, folder: str, verdict: Verdict) -> None:
    """So many Trio programs."""
    run_program(folder)
    with nothing_left(PROGRAM, folder, verdict) as growth:
        growth.sample(0)
        for number in range(1, count + 1):
            run_program(folder)
            if number % (count // STEPS) == 0:
                growth.sample(number)


@contextmanager
def nothing_left(kind: str, folder: str, verdict: Verdict) -> Iterator[Growth]:
    """Promise that everything is as before the block."""
    growth = Growth("servers", warm_up=500, enough=1000, most_kib=64, most_blocks=500)
    before = global_state(folder)
    yield growth
    after = global_state(folder)
    growth.judge(verdict)
    for what, it in before.items():
        verdict.promise(it == after[what], f"{kind}, {what}: {it} before, {after[what]} after")


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="servers of each kind")
    parser.add_argument("--kind", choices=(*KINDS, PROGRAM), help="this one alone")
    run_plain(soak, parser.parse_args())


if __name__ == "__main__":
    main()
