"""Start servers one after another, load each, and tell what that measured.

`run.py`, `table.py`, `commits.py` and `idle.py` are the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import trustme
from loads import Scenario
from machine import Bystanders, wait_until_quiet

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
BUILD = HERE / "build"
LOADGEN = BUILD / "loadgen"
TLS_LOADGEN = HERE / "tls_loadgen.py"
CERTIFICATE, KEY, AUTHORITY = (BUILD / name for name in ("cert.pem", "key.pem", "ca.pem"))
SERVER_LOG = BUILD / "server.err"

REFERENCE = "trio_serve_tcp"
LIBRARIES = ("anyio", "gevent", "uvloop")
"""Those of the extra ``bench`` that some peers need; their names say which."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A server to measure: a script, and the Python that runs it."""

    name: str
    script: Path
    python: str = sys.executable
    tree: Path | None = None
    """Where its `trioserver` is; otherwise it is the one that Python finds."""

    @classmethod
    def parse(cls, spec: str) -> Peer:
        """Read ``NAME[@PYTHON][=PATH]``; without a path it is ``peers/NAME.py``."""
        name, _, path = spec.partition("=")
        script, _, python = name.partition("@")
        return cls(name, Path(path) if path else PEERS / f"{script}.py", python or sys.executable)

    @property
    def environment(self) -> dict[str, str]:
        """That of its process: a peer that lives elsewhere can still import peers/_common.py."""
        folders = [str(PEERS), str(self.tree or ""), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, folders))
        return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def lacks(self) -> str:
        """Which library it needs that is not there; nothing, most often."""
        for library in LIBRARIES:
            if library in self.script.stem.split("_"):
                program = f"import importlib.util as u; exit(u.find_spec({library!r}) is None)"
                if subprocess.run([self.python, "-c", program], check=False).returncode:
                    return f"{library} is not installed"
        return ""


def installed(peers: list[Peer]) -> tuple[list[Peer], list[str]]:
    """Those of the peers that can be run, and words for each of the others."""
    lacks = {peer: peer.lacks() for peer in peers}
    notes = [f"{peer.name} skipped: {what}" for peer, what in lacks.items() if what]
    return [peer for peer, what in lacks.items() if not what], notes


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of one peer measured."""

    figures: dict[str, float]
    """What the load generator printed; empty when it failed."""
    bystanders: float = 0.0
    """The share of a core that other programs took meanwhile."""
    failure: str = ""

    def get(self, figure: str) -> float:
        """A figure, 0 if the run failed."""
        return self.figures.get(figure, 0.0)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure; the command line's help says what each is."""

    rounds: int = 3
    seconds: float = 2
    warm_up: float = 0.3
    server_core: str = "0"
    client_core: str = "1"
    bystanders: float = 0.10
    retries: int = 2
    patience: float = 30

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Have a command line understand them."""
        add, default = parser.add_argument, Options()
        add("-r", "--rounds", type=int, default=default.rounds)
        add("-t", "--seconds", type=float, default=default.seconds, help="measured, in each run")
        add("-u", "--warm-up", type=float, default=default.warm_up, help="seconds before them")
        cores = "as taskset takes them; 0,1: both"
        add("--server-core", default=default.server_core, metavar="CORES", help=cores)
        add("--client-core", default=default.client_core, metavar="CORES")
        much = "repeat runs in which others took more of a core"
        add("--bystanders", type=float, default=default.bystanders, help=much)
        add("--retries", type=int, default=default.retries, help="how often to repeat such a run")
        wait = "seconds to wait for a quiet machine"
        add("--patience", type=float, default=default.patience, help=wait)

    @classmethod
    def of(cls, asked: argparse.Namespace) -> Options:
        """What a command line has said."""
        return cls(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(cls)})


def prepare() -> None:
    """Make what runs need."""
    if not shutil.which("taskset"):
        sys.exit("this needs Linux, taskset and a C compiler")
    build_loadgen()
    make_certificates()


def build_loadgen() -> None:
    """Compile the load generator, if it is not newer than its source."""
    source = HERE / "loadgen.c"
    BUILD.mkdir(exist_ok=True)
    if not LOADGEN.exists() or LOADGEN.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", LOADGEN, source], check=True)


def make_certificates() -> None:
    """Make what servers by TLS need, if it is not there."""
    if not AUTHORITY.exists():
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(KEY)
        issued.cert_chain_pems[0].write_to_path(CERTIFICATE)
        authority.cert_pem.write_to_path(AUTHORITY)


def pinned(core: str, *command: str | Path) -> list[str | Path]:
    """A command line that runs on these cores only."""
    return ["taskset", "-c", core, *command]


class Server:
    """A peer's process, in a session of its own."""

    def __init__(self, peer: Peer, scenario: Scenario, options: Options) -> None:
        listen = f"unix:{BUILD}/{os.getpid()}.sock" if scenario.unix else "127.0.0.1:0"
        arguments = ["--listen", listen, "--service", scenario.service]
        if scenario.tls:
            arguments += ["--certificate", str(CERTIFICATE), "--key", str(KEY)]
        with SERVER_LOG.open("ab") as log:
            self._process = subprocess.Popen(
                pinned(options.server_core, peer.python, peer.script, *arguments),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=peer.environment,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_ready(self, patience: float = 15) -> str:
        """The address it listens on, from its READY line."""
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline() if select.select([stdout], [], [], patience)[0] else ""
        if not line.startswith("READY "):
            raise RuntimeError(f"no READY line but {line!r}; see {SERVER_LOG}")
        return line.removeprefix("READY ").strip()

    def stop(self, patience: float = 10) -> float:
        """Ask it to end, and see that it did so in order; milliseconds from the signal on."""
        self._process.send_signal(signal.SIGTERM)
        try:
            output, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"still there {patience} s after SIGTERM") from None
        _, said, milliseconds = output.partition("STOPPED")
        if not said:
            raise RuntimeError(f"no STOPPED line at SIGTERM; see {SERVER_LOG}")
        return float(milliseconds)

    def kill(self) -> None:
        """End whatever is left of it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()


@contextlib.contextmanager
def serving(peer: Peer, scenario: Scenario, options: Options) -> Iterator[Server]:
    """A fresh server process; gone, whatever happens, at the end of the block."""
    server = Server(peer, scenario, options)
    try:
        yield server
    finally:
        server.kill()


def generate_load(
    address: str, server_pid: int, scenario: Scenario, options: Options
) -> dict[str, float]:
    """Run the load generator once; its figures."""
    where = ["--addr", address, "--pid", str(server_pid)]
    how_long = ["-t", str(options.seconds), "-u", str(options.warm_up)]
    program: list[str | Path] = [LOADGEN]
    if scenario.tls:
        program, where = [sys.executable, TLS_LOADGEN], [*where, "--ca", str(AUTHORITY)]
    done = subprocess.run(
        pinned(options.client_core, *program, *scenario.load.split(), *where, *how_long),
        capture_output=True,
        text=True,
        timeout=options.seconds + options.warm_up + 20,
        check=False,
    )
    if done.returncode or not done.stdout:
        raise RuntimeError(f"loadgen ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    figures = json.loads(done.stdout)
    return {name: value for name, value in figures.items() if name != "mode"}


def measure_once(peer: Peer, scenario: Scenario, options: Options) -> Run:
    """One run against a fresh server."""
    figures: dict[str, float] = {}
    share = 0.0
    try:
        with serving(peer, scenario, options) as server:
            address = server.wait_ready()
            bystanders = Bystanders(server.pid)
            figures = generate_load(address, server.pid, scenario, options)
            share = bystanders.share()
            server.stop()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Run(figures, share, failure=str(error))
    return Run(figures, share)


def measure(peer: Peer, scenario: Scenario, options: Options) -> Run:
    """The quietest of a few runs: repeated only while others took too much CPU.

    Chosen by what others used, never by speed.
    """
    runs: list[Run] = []
    for _ in range(1 + options.retries):
        wait_until_quiet(options.patience)
        runs.append(measure_once(peer, scenario, options))
        if runs[-1].bystanders <= options.bystanders:
            break
    return min(runs, key=lambda run: run.bystanders)


def in_rounds(measures: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """The runs of each, one a round, interleaved: A B C, then B C A, ..."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for number in range(rounds):
        first = number % len(measures)
        for name in [*measures][first:] + [*measures][:first]:
            runs[name].append(measures[name]())
    return runs


def compare(scenario: Scenario, peers: list[Peer], options: Options) -> dict[str, list[Run]]:
    """The runs of each peer under this load."""
    measures = {peer.name: partial(measure, peer, scenario, options) for peer in peers}
    return in_rounds(measures, options.rounds)


def save(path: Path, **results: object) -> None:
    """Write what was found as JSON."""
    everything = {"python": sys.version, "time": time.time(), **results}
    path.write_text(json.dumps(everything, indent=1))
