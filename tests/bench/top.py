"""What `trioserver top` costs while it watches, and how soon it answers a key.

    python tests/bench/top.py
    python tests/bench/top.py --seconds 30 --keys 50

It watches a monitor in this process, which tells once a second of a server with two workers and
5 000 connections: of 512 of them, as many as a monitor tells of, whose ages and bytes change each
time. The figures are processor time of the program that watches, by ``/proc``, after it has
started; and the time from a key to the bytes that answer it, in a terminal of 50 lines. Beside
that, what one picture takes: by hand as it is, and as a table of rich.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from support.fake_monitor import FakeMonitor
from support.seen import a_request, a_server, a_worker
from support.terminals import in_terminal

import trioserver
from trioserver.monitoring import as_rich
from trioserver.monitoring._top.screen import picture
from trioserver.monitoring._top.state import state_of
from trioserver.monitoring._top.view import View
from trioserver.testing import open_test_server

COLUMNS, LINES = 160, 50
OF_A_WORKER = 256
CONNECTIONS = 5000
GOAL = 5.0
"""Per cent of a processor."""


@attrs.define(eq=False)
class BusyMonitor(FakeMonitor):
    """A monitor of a busy server with two workers."""

    def state(self) -> dict[str, Any]:
        """What it is like now: everything is a second older."""
        self.servers = [busy_server(self.at)]
        told = super().state()
        told["servers"][0]["hidden"] = CONNECTIONS - 2 * OF_A_WORKER
        return told


def busy_server(at: float) -> Any:
    """The server at this second."""
    counts = trioserver.Statistics(accepted=9000, active=CONNECTIONS)
    workers = [
        a_worker(
            pid,
            *(
                a_request(
                    number, age=at + number, time_left=1000 - number, bytes_sent=int(at) * number
                )
                for number in range(OF_A_WORKER)
            ),
        )
        for pid in (4242, 4243)
    ]
    return a_server(workers=tuple(workers), statistics=counts, slots=10_000)


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def answer_time(program: Any, key: str) -> float:
    """Seconds from a key to the first bytes that come then."""
    before = time.perf_counter()
    program.types(key)
    await program.changed()
    return time.perf_counter() - before


def time_of(function: Callable[[], object], times: int = 50) -> float:
    """The median time of a call, in milliseconds."""
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        function()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken) * 1000


def print_pictures() -> None:
    """What one state, and one picture of it, takes in this process."""
    view, message = View(), BusyMonitor().state()
    console = Console(file=io.StringIO(), width=COLUMNS, height=LINES, force_terminal=True)
    few = as_rich(busy_server(0), most=LINES // 2)
    print(f"a state of {2 * OF_A_WORKER} requests  {time_of(lambda: state_of(message)):6.2f} ms")
    view.update(state_of(message))
    print(f"a picture, by hand       {time_of(lambda: picture(view, COLUMNS, LINES)):6.2f} ms")
    print(f"a picture, by rich       {time_of(lambda: console.print(few)):6.2f} ms")


async def measure(seconds: float, keys: int) -> bool:
    """Print what it costs; whether that is less than the goal."""
    async with open_test_server(
        BusyMonitor().handle, transport="unix", strict=False, guard=seconds + 120
    ) as server:
        command = [sys.executable, "-m", "trioserver", "top", f"unix:{server.address}"]
        async with in_terminal(command, Path.cwd(), columns=COLUMNS, lines=LINES) as program:
            await program.shows("worker 4243", "/s")
            before = cpu_of(program.process.pid)
            await trio.sleep(seconds)
            used = 100 * (cpu_of(program.process.pid) - before) / seconds
            print(f"while it watches         {used:6.2f} % of a processor (goal: {GOAL:g} %)")
            times = []
            for number in range(keys):
                times.append(1000 * await answer_time(program, "jk"[number // 10 % 2]))
                await trio.sleep(0.1)
            median, worst = statistics.median(times), max(times)
            print(f"a key is answered after  {median:6.2f} ms, at worst {worst:.2f} ms")
    return used < GOAL


def main() -> int:
    """Measure, and print; status 1 if it costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--keys", type=int, default=30)
    typed = parser.parse_args()
    print_pictures()
    return 0 if trio.run(measure, typed.seconds, typed.keys) else 1


if __name__ == "__main__":
    sys.exit(main())
