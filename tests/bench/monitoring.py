r"""What looking at a server costs: the same server, looked at and not, side by side.

    python tests/bench/monitoring.py
    python tests/bench/monitoring.py recorder -r 9 -t 2

The number to quote is the ratio of the same round. It is of microseconds of the server's own CPU
clock for each request, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from loads import SCENARIOS
from measuring import Options, Peer, compare, prepare
from run import ratios, spread, trouble

FIGURE = "server_us_per_op"


def pair(scenario: str, plain: str, looked_at: str, options: Options) -> str:
    """A row: two peers under one load, and how much longer the second takes."""
    peers = [Peer.parse(plain), Peer.parse(looked_at)]
    runs = compare(SCENARIOS[scenario], peers, options)
    ratio = spread(ratios(runs[looked_at], runs[plain], FIGURE), ".3f")
    speeds = [spread([run.get(FIGURE) for run in runs[name]], ".1f") for name in runs]
    all_runs = [run for name in runs for run in runs[name]]
    return f"{scenario} | {' | '.join(speeds)} | {ratio} | {trouble(all_runs)}"


def recorder(options: Options) -> str:
    """A recorder of tasks and requests, beside 50 connections of small lines."""
    return pair("pingpong-c50", "trioserver_stream", "trioserver_recorded", options)


def scopes(options: Options) -> str:
    """The same, and Trio calls it after each step of each task, for the scopes."""
    return pair("pingpong-c50", "trioserver_stream", "trioserver_recorded_scopes", options)


def monitor(options: Options) -> str:
    """A monitor with one viewer, which is shown a state twice a second."""
    return pair("pingpong-c50", "trioserver_stream", "trioserver_monitored", options)


ROWS: dict[str, tuple[Callable[[Options], str], float]] = {
    "recorder": (recorder, 1.10),
    "recorder-scopes": (scopes, 1.50),
    "monitor": (monitor, 1.05),
}
"""What is measured, and the largest ratio that is wanted."""


def main() -> None:
    """Measure, and print a row for each thing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Options.add_to(parser)
    parser.set_defaults(rounds=7, seconds=1.0)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all, {', '.join(ROWS)}")
    asked = parser.parse_args()
    prepare()
    print("| row | load | plain, us CPU | looked at | ratio | trouble | at most |")
    print("|---|---|--:|--:|--:|---|--:|", flush=True)
    for name in asked.rows or ROWS:
        row, most = ROWS[name]
        print(f"| {name} | {row(Options.of(asked))} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
