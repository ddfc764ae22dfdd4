"""Restart, and kill, instances behind a real HAProxy under clients who come one after the other.

    python tests/soak/fleet.py                       # 100 000 requests of 50 clients
    python tests/soak/fleet.py 10000 --workers 2

HAProxy has the configuration of ``examples/fleet``, but for addresses, and balances three
instances, each with an address of its own. Each client connects, sends a line, reads the answer,
and begins anew. While they do, every instance is told to end, and started again, in turn: no
request is lost. Then one is killed: requests on its connections fail, and no others.
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
from _common import Verdict, arguments, in_words, run_plain
from _crowd import CLIENTS, Crowd
from support import running_programs
from support.running_programs import running

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fleet" / "haproxy.cfg"
HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
READY_OFF = 8
"""Seconds, as the units of the example have it."""
APPLICATION = """
import os
import trioserver

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        await request.sendall(b"%d %s" % (os.getpid(), line))
"""


@attrs.define
class Instance:
    """One of the programs behind the balancer, which may be started again."""

    host: str
    port: int
    health: int
    folder: Path
    workers: int
    _stack: ExitStack = attrs.field(factory=ExitStack)
    program: Any = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._stack = ExitStack()
        told = f"--bind {self.host}:{self.port} --health {self.host}:{self.health}"
        told += f" --proxy-protocol 127.0.0.0/8 --ready-off {READY_OFF}s --grace 20s"
        told += f" --workers {self.workers} --log-level warning --limit-requests 1000"
        command = [sys.executable, "-m", "trioserver", "serve", "app:handle", *told.split()]
        self.program = self._stack.enter_context(running(command, self.folder))
        self.program.says("ready on")

    def restart(self) -> None:
        """End it in order, which takes its time, and start it again."""
        self.program.stops()
        self._stack.close()
        self.start()

    def kill(self) -> None:
        """End it on the spot."""
        self.program.order("SIGKILL")
        self._stack.close()


def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Do it."""
    running_programs.SECONDS = 3600
    (Path(folder) / "app.py").write_text(APPLICATION)
    front, *ports = free_ports()
    instances = [Instance(host, *ports, Path(folder), options.workers) for host in HOSTS]
    with ExitStack() as at_the_end:
        for instance in instances:
            instance.start()
            at_the_end.callback(lambda it=instance: it._stack.close())
        at_the_end.enter_context(balancer(Path(folder), front, *ports))
        crowd = Crowd(("127.0.0.1", front))
        with crowd.visiting():
            began = time.monotonic()
            for instance in instances:
                instance.restart()
                print(f"{instance.host} was restarted: {in_words(crowd.outcomes)}")
            while crowd.outcomes["answered"] < options.requests:
                time.sleep(0.1)
            print(f"restarts, and {options.requests} requests, in {time.monotonic() - began:.0f} s")
            verdict.promise(set(crowd.outcomes) == {"answered"}, "every request is answered")
            instances[0].kill()
            time.sleep(10)
            failed, answered = lost(crowd), crowd.outcomes["answered"]
            print(f"killed one: {failed} requests failed")
            verdict.promise(failed <= CLIENTS, "only requests on its connections fail")
            time.sleep(5)
            verdict.promise(lost(crowd) == failed, "nobody fails any more")
            verdict.promise(crowd.outcomes["answered"] > answered + 1000, "service goes on")
        print(f"clients: {in_words(crowd.outcomes)}")
        for instance in instances[1:]:
            instance.program.stops()
            worrying = [line for line in instance.program.said if "Traceback" in line]
            verdict.promise(not worrying, f"nothing is wrong: {worrying}")


def lost(crowd: Crowd) -> int:
    """How many requests were not answered."""
    return sum(crowd.outcomes.values()) - crowd.outcomes["answered"]


def free_ports() -> list[int]:
    """Three that nobody has now, on any address."""
    with ExitStack() as at_the_end:
        made = [at_the_end.enter_context(socket.create_server(("", 0))) for _ in range(3)]
        return [one.getsockname()[1] for one in made]


@contextmanager
def balancer(folder: Path, front: int, port: int, health: int) -> Iterator[None]:
    """HAProxy, with the configuration of the example but for its addresses, and its own log."""
    text = EXAMPLE.read_text()
    text = re.sub(r"(?ms)^global.*?^defaults", "defaults", text).replace("    log global\n", "")
    text = text.replace("bind :9999", f"bind 127.0.0.1:{front}").replace(
        "port 9998", f"port {health}"
    )
    for number, host in enumerate(HOSTS, 11):
        text = text.replace(f"10.0.0.{number}:9999", f"{host}:{port}")
    path = folder / "haproxy.cfg"
    path.write_text(text)
    with subprocess.Popen(["haproxy", "-db", "-f", str(path)]) as process:
        try:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", front), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("requests", type=int, nargs="?", default=100_000)
    parser.add_argument("--workers", type=int, default=1, help="of each instance")
    run_plain(soak, parser.parse_args())
