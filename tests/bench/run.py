r"""Compare servers under load, in rounds in which every peer has its turn.

    python tests/bench/run.py --list
    python tests/bench/run.py -s pingpong-c50 connect-c32 \
        -p trio_serve_tcp trioserver_stream -r 5 -t 2

README.md beside this file says what the columns mean and how not to fool yourself.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from loads import SCENARIOS, Scenario
from measuring import REFERENCE, Options, Peer, Run, compare, installed, prepare, save

DEFAULT_PEERS = [
    REFERENCE,
    "trioserver_stream",
    "trio_raw_socket",
    "asyncio_streams",
    "stdlib_threading",
]

# Counters of the load generator that must be 0.
TROUBLES = ("errors", "eofs", "bad", "connect_errors")

UNITS = {"ops_s": "ops/s", "MB_s": "MB/s", "ops_cpu_s": "ops/s of server CPU"}


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
    header = ["peer", f"{UNITS[figure]} (min-max)", "x ref, paired (min-max)", *COLUMNS]
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
    Options.add_to(parser)
    add("-o", "--out", type=Path, help="write every run to this JSON file, too")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, and print a table for each scenario."""
    asked = arguments()
    if asked.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:15} {scenario.load}{' (Unix socket)' * scenario.unix}")
        return
    prepare()
    options = Options.of(asked)
    peers, skipped = installed([Peer.parse(spec) for spec in asked.peers])
    for note in skipped:
        print(note, file=sys.stderr)
    results: dict[str, dict[str, list[dict[str, object]]]] = {}
    for name in asked.scenarios:
        scenario = SCENARIOS[name]
        runs = compare(scenario, peers, options)
        print(f"\n### {name} (`{scenario.load}`)\n")
        print(table(scenario, runs, asked.reference), flush=True)
        results[name] = {peer: [dataclasses.asdict(run) for run in runs[peer]] for peer in runs}
        if asked.out:
            save(asked.out, scenarios=results)


if __name__ == "__main__":
    main()
