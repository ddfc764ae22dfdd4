"""Hand a program over again and again, under clients who come one after the other.

    python tests/soak/handover.py                    # 200 handovers under 50 clients
    python tests/soak/handover.py 20 --bad 5

Each client connects, sends a line, reads the answer, and begins anew. Nobody is refused or reset,
no reply is lost, and nothing is left of the old programs. Then a successor crashes, hangs, or is
never ready, 20 times each: the old program serves on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from _common import Verdict, arguments, in_words, run_plain
from _crowd import Crowd
from support import running_programs
from support.process_state import is_running
from support.running_programs import running_program

PROGRAM = """
limits = trioserver.Limits(requests=200)
server = trioserver.TCPServer(("127.0.0.1", 0), handle, limits=limits)
trioserver.run(server, start_timeout=TIMEOUT)
"""
BAD = {
    "crashes": "raise SystemExit(3)",
    "hangs": "time.sleep(600)",
    "is never ready": "trio.run(trio.sleep_forever)",
}


def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Do it."""
    running_programs.SECONDS = 3600
    path, began = Path(folder) / "program.py", time.monotonic()
    source = PROGRAM.replace("TIMEOUT", "30" if not options.bad else "2")
    with running_program(path, source) as program:
        crowd, processes = Crowd(program.address()), [program.process.pid]
        with crowd.visiting():
            processes += [program.hands_over() for _ in range(options.handovers)]
            print(f"{options.handovers} handovers in {time.monotonic() - began:.0f} s")
            print(f"clients: {in_words(crowd.outcomes)}")
            for name, fault in BAD.items():
                fail(program, path, fault, options.bad, processes)
                print(f"{options.bad} times, a successor that {name}: {in_words(crowd.outcomes)}")
        for process in processes[:-1]:
            program.has_gone(process)
        verdict.promise(set(crowd.outcomes) == {"answered"}, "every client is answered")
        verdict.promise(is_running(processes[-1]), "the last program serves")
        warned = [line for line in program.said if "Warning" in line or "Traceback" in line]
        verdict.promise(not warned, f"nothing is wrong: {warned}")


def fail(program: Any, path: Path, fault: str, times: int, processes: list[int]) -> None:
    """Have so many successors fail."""
    good = path.read_text()
    path.write_text(good.replace("limits =", f"{fault}\nlimits ="))
    try:
        for _ in range(times):
            said = len([line for line in program.said if "this program serves on" in line])
            program.order("SIGUSR2", processes[-1])
            program.says(r"the successor .*: this program serves on", said + 1)
    finally:
        path.write_text(good)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("handovers", type=int, nargs="?", default=200)
    parser.add_argument("--bad", type=int, default=20, help="how often a successor fails, each way")
    run_plain(soak, parser.parse_args())
