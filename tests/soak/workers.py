"""Renew, and kill, the workers of a program under clients who come one after the other.

    python tests/soak/workers.py                     # 200 rolling restarts under 50 clients
    python tests/soak/workers.py --seconds 20        # a worker killed every 100 ms, for so long
    python tests/soak/workers.py --workers 4

Each client connects, sends a line, reads the answer, and begins anew. A rolling restart loses
none of them, and nothing is left of the old workers: no process, no descriptor, no memory. When a
worker is killed, those that it was serving fail; as soon as the killing is over, all workers are
there, and nobody fails any more.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from pathlib import Path

from _common import Verdict, arguments, in_words, run_plain
from _crowd import Crowd
from support import running_programs
from support.process_state import is_running
from support.workers import a_program, all_end, worker_processes

SERVER = """
limits = trioserver.Limits(requests=200)
logging.getLogger("trioserver.access").setLevel("WARNING")
server = trioserver.TCPServer(("127.0.0.1", 0), handle, limits=limits)
"""
PAUSE = 0.1
SETTLED = 20
"""Restarts after which nothing may grow any more."""


def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Do it."""
    running_programs.SECONDS = 7200
    run = f"server, workers={options.workers}, start_timeout=30"
    with a_program(Path(folder), run, SERVER) as program:
        pid = program.process.pid
        crowd = Crowd(program.address())
        with crowd.visiting():
            if options.seconds:
                kill(pid, options, verdict)
            else:
                restart(program, options.restarts, verdict)
            verdict.promise(serve(crowd, options.workers, pid), "all workers are there and serve")
        print(f"clients: {in_words(crowd.outcomes)}")
        if not options.seconds:
            verdict.promise(set(crowd.outcomes) == {"answered"}, "every client is answered")
        workers = worker_processes(pid)
        program.stops()
        all_end(workers, 1)
        warned = [line for line in program.said if "Warning" in line]
        verdict.promise(not warned, f"nothing is wrong: {warned}")


def restart(program, times: int, verdict: Verdict) -> None:
    """Restart all workers so often; what the program holds must not grow."""
    pid, held = program.process.pid, {}
    began = time.monotonic()
    for number in range(times):
        if number == min(SETTLED, times // 2):
            held["before"] = holds(pid)
        program.order("SIGHUP")
        program.says(rf"were replaced \(generation {number + 2}\)")
    held["after"] = holds(pid)
    print(f"{times} restarts in {time.monotonic() - began:.0f} s")
    for what, before in held["before"].items():
        print(f"{what}: {before} then {held['after'][what]}")
    (descriptors, memory), (more, then) = (tuple(it.values()) for it in held.values())
    verdict.promise(more - descriptors <= 40, "no descriptor stays")
    verdict.promise(then - memory < 4096, "less than 4 MiB for all of them")


def kill(pid: int, options: argparse.Namespace, verdict: Verdict) -> None:
    """Kill a worker every so often, whichever it is, be it that it starts only."""
    killed, until = 0, time.monotonic() + options.seconds
    while time.monotonic() < until:
        time.sleep(PAUSE)
        if workers := worker_processes(pid):
            os.kill(random.choice(sorted(workers)), signal.SIGKILL)
            killed += 1
    print(f"killed {killed} workers")
    verdict.promise(is_running(pid), "the program goes on")


def serve(crowd: Crowd, workers: int, pid: int) -> bool:
    """Whether so many workers are there within 10 seconds, and then nobody fails for 2 seconds."""
    until = time.monotonic() + 10
    while len(worker_processes(pid)) != workers and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)  # for those who have connected to a worker that was killed
    before, answered = failed(crowd), crowd.outcomes["answered"]
    time.sleep(2)
    print(f"then {(crowd.outcomes['answered'] - answered) / 2:.0f} answered a second")
    return len(worker_processes(pid)) == workers and failed(crowd) == before


def failed(crowd: Crowd) -> int:
    """How many clients were not answered."""
    return sum(crowd.outcomes.values()) - crowd.outcomes["answered"]


def holds(pid: int) -> dict[str, int]:
    """What a process holds: descriptors, and KiB of memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    (memory,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return {"descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())), "KiB": int(memory)}


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("restarts", type=int, nargs="?", default=200)
    parser.add_argument("--seconds", type=float, default=0, help="kill workers for so long instead")
    parser.add_argument("--workers", type=int, default=2)
    run_plain(soak, parser.parse_args())
