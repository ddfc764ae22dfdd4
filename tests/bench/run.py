r"""Compare servers under load, in rounds in which every peer has its turn.

    python tests/bench/run.py --list
    python tests/bench/run.py -s pingpong-c50 connect-c32 \
        -p trio_serve_tcp trioserver_stream -r 5 -t 2

README.md beside this file says what the columns mean and how not to fool yourself.
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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import trustme
from machine import Bystanders, wait_until_quiet

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
BUILD = HERE / "build"
LOADGEN = BUILD / "loadgen"
TLS_LOADGEN = HERE / "tls_loadgen.py"
CERTIFICATE, KEY, AUTHORITY = (BUILD / name for name in ("cert.pem", "key.pem", "ca.pem"))
# A peer that lives elsewhere can still import peers/_common.py; and a clone can be measured.
PATH = os.pathsep.join([str(PEERS), *filter(None, [os.environ.get("PYTHONPATH")])])
SERVER_LOG = BUILD / "server.err"

# Counters of the load generator that must be 0.
TROUBLES = ("errors", "eofs", "bad", "connect_errors")

REFERENCE = "trio_serve_tcp"
DEFAULT_PEERS = [
    REFERENCE,
    "trioserver_stream",
    "trio_raw_socket",
    "asyncio_streams",
    "stdlib_threading",
]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A load, and the service it needs."""

    load: str
    """The load generator's mode and options."""
    service: Literal["line", "bulk", "datagram"] = "line"
    unix: bool = False
    figure: Literal["ops_s", "MB_s", "ops_cpu_s"] = "ops_s"
    """What the peers are compared by."""
    tls: bool = False


SCENARIOS = {
    "pingpong-c1": Scenario("pingpong -c 1 -n 32"),
    "pingpong-c50": Scenario("pingpong -c 50 -n 32"),
    "pingpong-c500": Scenario("pingpong -c 500 -n 32"),
    "pingpong-4k": Scenario("pingpong -c 50 -n 4096"),
    "pingpong-unix": Scenario("pingpong -c 50 -n 32", unix=True),
    "pipeline-d32": Scenario("pipeline -c 10 -d 32 -n 32"),
    "connect-c1": Scenario("connect -c 1 -n 32 --close eof"),
    "connect-c2": Scenario("connect -c 2 -n 32 --close eof"),
    "connect-c8": Scenario("connect -c 8 -n 32 --close eof"),
    "connect-c32": Scenario("connect -c 32 -n 32 --close eof"),
    "connect-fin": Scenario("connect -c 32 -n 32 --close fin"),
    "tls-pingpong-c50": Scenario("pingpong -c 50 -n 32", figure="ops_cpu_s", tls=True),
    "tls-connect-c32": Scenario("connect -c 32 -n 32", figure="ops_cpu_s", tls=True),
    "udp-w64": Scenario("udp -c 4 -d 16 -n 64", service="datagram"),
    "udp-w1": Scenario("udp -c 1 -d 1 -n 64", service="datagram"),
    "bulk-c4": Scenario("bulk -c 4", service="bulk", figure="MB_s"),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A server to measure: a script, and the Python that runs it."""

    name: str
    script: Path
    python: str

    @classmethod
    def parse(cls, spec: str) -> Peer:
        """Read ``NAME[@PYTHON][=PATH]``; without a path it is ``peers/NAME.py``."""
        name, _, path = spec.partition("=")
        script, _, python = name.partition("@")
        return cls(name, Path(path) if path else PEERS / f"{script}.py", python or sys.executable)


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
    """How to measure; see the command line's help."""

    rounds: int
    seconds: float
    warm_up: float
    server_core: str
    client_core: str
    bystanders: float
    retries: int
    patience: float


# Measuring


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
                # A peer that lives elsewhere can still import peers/_common.py.
                env={**os.environ, "PYTHONPATH": PATH, "PYTHONDONTWRITEBYTECODE": "1"},
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

    def stop(self, patience: float = 10) -> None:
        """Ask it to end, and see that it did so in order."""
        self._process.send_signal(signal.SIGTERM)
        try:
            output, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"still there {patience} s after SIGTERM") from None
        if "STOPPED" not in output:
            raise RuntimeError(f"no STOPPED line at SIGTERM; see {SERVER_LOG}")

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


def compare(scenario: Scenario, peers: list[Peer], options: Options) -> dict[str, list[Run]]:
    """The runs of each peer, one a round, interleaved: A B C, then B C A, ..."""
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    for number in range(options.rounds):
        first = number % len(peers)
        for peer in peers[first:] + peers[:first]:
            runs[peer.name].append(measure(peer, scenario, options))
    return runs


# Telling


def ratios(runs: list[Run], reference: list[Run], figure: str) -> list[float]:
    """This peer's figure by the reference's of the same round; none without a reference."""
    pairs = zip(runs, reference, strict=False)
    return [run.get(figure) / ref.get(figure) for run, ref in pairs if ref.get(figure)]


def spread(values: list[float], form: str) -> str:
    """The median, minimum and maximum of some values."""
    if not values:
        return "-"
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}}-{most:{form}})"


def trouble(runs: list[Run]) -> str:
    """What makes these runs no result."""
    counted = {name: sum(run.get(name) for run in runs) for name in TROUBLES}
    counts = [f"{name}={number:.0f}" for name, number in counted.items() if number]
    return ", ".join(counts + sorted({run.failure for run in runs if run.failure}))


Cell = Callable[[list[Run]], str]


def median_of(figure: str, form: str = ".0f") -> Cell:
    """A column: the median of one figure over the runs that have it."""

    def cell(runs: list[Run]) -> str:
        values = [run.figures[figure] for run in runs if run.figures]
        return f"{statistics.median(values):{form}}" if values else "-"

    return cell


COLUMNS: dict[str, Cell] = {
    "p50 us": median_of("p50_us"),
    "p99 us": median_of("p99_us"),
    "p99.9 us": median_of("p999_us"),
    "max us": median_of("max_us"),
    "server CPU us/op": median_of("server_us_per_op", ".1f"),
    "server CPU": median_of("server_cpu", ".2f"),
    "client CPU": median_of("client_cpu", ".2f"),
    "others' CPU (max)": lambda runs: f"{max(run.bystanders for run in runs):.2f}",
    "trouble": trouble,
}


def table(scenario: Scenario, runs: dict[str, list[Run]], reference: str) -> str:
    """A markdown table of the peers, the fastest first."""
    figure = scenario.figure
    unit = {"ops_s": "ops/s", "MB_s": "MB/s", "ops_cpu_s": "ops/s of server CPU"}[figure]
    header = ["peer", f"{unit} (min-max)", "x ref, paired (min-max)", *COLUMNS]
    rows = [header, ["---", *["--:"] * (len(header) - 2), "---"]]

    def speed(name: str) -> float:
        return statistics.median(run.get(figure) for run in runs[name])

    for name in sorted(runs, key=speed, reverse=True):
        mine = runs[name]
        rows.append(
            [
                f"{name} (ref)" if name == reference else name,
                spread([run.get(figure) for run in mine], ",.0f"),
                spread(ratios(mine, runs.get(reference, []), figure), ".2f"),
                *(cell(mine) for cell in COLUMNS.values()),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# The command line


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the scenarios and end")
    add("-s", "--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS, metavar="NAME")
    add("-p", "--peers", nargs="+", default=DEFAULT_PEERS, metavar="NAME[@PYTHON][=PATH]")
    add("--reference", default=REFERENCE, metavar="NAME", help="the peer of the ratios")
    add("-r", "--rounds", type=int, default=3)
    add("-t", "--seconds", type=float, default=2, help="measured, in each run")
    add("-u", "--warm-up", type=float, default=0.3, help="seconds before them")
    add("--server-core", default="0", metavar="CORES", help="as taskset takes them; 0,1: both")
    add("--client-core", default="1", metavar="CORES")
    add("--bystanders", type=float, default=0.10, help="repeat runs in which others took more")
    add("--retries", type=int, default=2, help="how often to repeat such a run")
    add("--patience", type=float, default=30, help="seconds to wait for a quiet machine")
    add("-o", "--out", type=Path, help="write every run to this JSON file, too")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, and print a table for each scenario."""
    asked = arguments()
    if asked.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:15} {scenario.load}{' (Unix socket)' * scenario.unix}")
        return
    if not shutil.which("taskset"):
        sys.exit("run.py needs Linux, taskset and a C compiler")
    fields = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(asked, name) for name in fields})
    peers = [Peer.parse(spec) for spec in asked.peers]
    build_loadgen()
    make_certificates()
    results: dict[str, dict[str, list[dict[str, object]]]] = {}
    for name in asked.scenarios:
        scenario = SCENARIOS[name]
        runs = compare(scenario, peers, options)
        print(f"\n### {name} (`{scenario.load}`)\n")
        print(table(scenario, runs, asked.reference), flush=True)
        results[name] = {peer: [dataclasses.asdict(run) for run in runs[peer]] for peer in runs}
        if asked.out:
            everything = {"python": sys.version, "time": time.time(), "scenarios": results}
            asked.out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
