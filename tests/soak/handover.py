"""Hand a program over again and again, under clients who come one after the other.

    python tests/soak/handover.py                    # 200 handovers under 50 clients
    python tests/soak/handover.py 20 --bad 5

Each client connects, sends a line, reads the answer, and begins anew. Nobody is refused or reset,
no reply is lost, and nothing is left of the old programs. Then a successor crashes, hangs, or is
never ready, 20 times each: the old program serves on.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from _common import Verdict, arguments, in_words, run_plain

sys.path.append(str(Path(__file__).resolve().parents[1]))

from support import plain_client, running_programs
from support.process_state import is_running
from support.running_programs import heard, running_program

CLIENTS = 50
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


@attrs.define
class Crowd:
    """Clients, each a thread, and what came of their visits."""

    address: Any
    outcomes: Counter[str] = attrs.field(factory=Counter)
    is_over: bool = False

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """They come as long as the block lasts."""
        threads = [threading.Thread(target=self._visit) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_over = True
            for thread in threads:
                thread.join()

    def _visit(self) -> None:
        while not self.is_over:
            try:
                with plain_client(self.address) as client:
                    client.sendall(b"hello\n")
                    heard(client, b"hello\n")
            except (OSError, AssertionError, ValueError) as error:
                self.outcomes[type(error).__name__] += 1
            else:
                self.outcomes["answered"] += 1
            time.sleep(0.005)


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
