r"""Measure trioserver against what it must reach and aims at, and print one table of that.

    python tests/bench/table.py -o table.json
    python tests/bench/table.py --rows pingpong-c50 connect-c32 --peers none -r 3 -t 1

README.md beside this file says what the columns mean and how not to fool yourself.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from goals import GOALS, RACES, Goal, Race
from idle import compare_idle
from loads import SCENARIOS
from machine import wait_until_quiet
from measuring import Options, Peer, Run, compare, in_rounds, installed, pinned, prepare, save
from run import UNITS, ratios, spread, trouble

COLUMNS = ("row", "bare", "ours", "best peer in Python", "ceiling", "must", "aim")
CONNECTIONS = 5000
"""Idle ones."""
IMPORTS = 9
"""Rounds of the race of imports, which are short."""

Runs = dict[str, list[Run]]


# Measuring


def measure_import(what: str, options: Options) -> Run:
    """Import a ``module``, or a ``module:name``, in a fresh interpreter.

    It is the time of the processor that counts, as nothing waits.
    """
    module, _, name = what.partition(":")
    program = (
        "import time; began = time.process_time()\n"
        f"{f'from {module} import {name}' if name else f'import {module}'}\n"
        "print(time.process_time() - began)"
    )
    wait_until_quiet(options.patience)
    done = subprocess.run(
        pinned(options.server_core, sys.executable, "-c", program),
        capture_output=True,
        text=True,
        check=False,
        env={name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"},
    )
    if done.returncode:
        return Run({}, failure=done.stderr.strip().rpartition("\n")[2])
    return Run({"s": float(done.stdout)})


def compare_imports(imported: list[str], options: Options) -> Runs:
    """The runs of each import, once its bytecode has been written."""
    measures = {what: partial(measure_import, what, options) for what in imported}
    in_rounds(measures, 1)
    return in_rounds(measures, IMPORTS)


def entrants(race: Race, goals: list[Goal], how_many: str) -> list[str]:
    """Who takes part: ours, what they are compared with, and as many others as asked for."""
    some = {"none": 0, "some": 2, "all": None}[how_many]
    aims = [goal.aim for goal in goals if isinstance(goal.aim, str)]
    ceiling = [race.ceiling] if race.ceiling and how_many == "all" else []
    ours = [goal.ours for goal in goals]
    return list(dict.fromkeys([race.bare, *ours, *aims, *race.rivals[:some], *ceiling]))


def hold_race(name: str, names: list[str], options: Options) -> tuple[Runs, list[str]]:
    """The runs of those who take part; and words for those who cannot."""
    if name == "import":
        return compare_imports(names, options), []
    race = RACES[name]
    if race.cores:
        options = dataclasses.replace(options, server_core=race.cores, client_core=race.cores)
    peers, skipped = installed([Peer.parse(peer) for peer in names])
    if name == "idle":
        return compare_idle(peers, CONNECTIONS, options), skipped
    return compare(SCENARIOS[race.scenario or name], peers, options), skipped


# Telling


@dataclasses.dataclass(frozen=True)
class Row:
    """A goal, and the runs that tell whether it is reached."""

    name: str
    goal: Goal
    race: Race
    runs: Runs

    @property
    def figure(self) -> str:
        """What is compared."""
        return self.goal.figure or SCENARIOS[self.race.scenario or self.goal.race].figure

    @property
    def unit(self) -> str:
        """Its unit."""
        return UNITS.get(self.figure, self.figure.rpartition(" ")[2])

    def values(self, peer: str) -> list[float]:
        """What is to reach the goal, of each round; none if it is no result."""
        mine, bare = self.runs.get(peer, []), self.runs[self.race.bare]
        if trouble(mine) or trouble(bare):
            return []
        figure = self.figure
        if self.goal.by == "itself":
            return [run.get(figure) for run in mine]
        if self.goal.by == "difference":
            pairs = zip(mine, bare, strict=False)
            return [run.get(figure) - ref.get(figure) for run, ref in pairs]
        return ratios(mine, bare, figure)

    def told(self, peer: str) -> str:
        """What is to reach the goal, in words."""
        values = self.values(peer)
        if not values:
            return "no result" if peer in self.runs else "-"
        if self.goal.by == "ratio":
            return spread(values, ".2f")
        form = "+.3f" if self.goal.by == "difference" else ".2f"
        return f"{spread(values, form)} {self.unit}"

    def bare(self) -> str:
        """What ours is compared with, and its own figure."""
        runs = self.runs[self.race.bare]
        middle = statistics.median(run.get(self.figure) for run in runs)
        form = ",.0f" if middle >= 100 else ".3g"
        return f"{self.race.bare}, {middle:{form}} {self.unit}"

    def best(self) -> str:
        """The best of the others."""
        medians = {
            peer: statistics.median(values)
            for peer in self.race.rivals
            if (values := self.values(peer))
        }
        if not medians:
            return "-"
        peer = (min if self.goal.less else max)(medians, key=lambda peer: medians[peer])
        return f"{peer} {self.told(peer)}"

    def verdict(self, wanted: float | str | None) -> str:
        """What is wanted, and whether the median reaches it."""
        peer = wanted if isinstance(wanted, str) else ""
        if isinstance(wanted, str):
            values = self.values(wanted)
            wanted = statistics.median(values) if values else None
        ours = self.values(self.goal.ours)
        if wanted is None:
            return peer or "-"
        shown = f"{wanted:.2f} ({peer})" if peer else f"{wanted:g}"
        if not ours:
            return shown
        middle = statistics.median(ours)
        reached = middle <= wanted if self.goal.less else middle >= wanted
        return f"{shown} {'reached' if reached else 'missed'}"

    def cells(self) -> list[str]:
        """The row of the table."""
        ceiling, goal = self.race.ceiling, self.goal
        verdicts = [self.verdict(goal.must), self.verdict(goal.aim)]
        return [
            self.name,
            self.bare(),
            self.told(goal.ours),
            self.best(),
            f"{ceiling} {self.told(ceiling)}" if ceiling in self.runs else "-",
            *verdicts,
        ]


def remarks(race: str, runs: Runs, most: float) -> list[str]:
    """What makes some runs no result, or doubtful ones."""
    said = [f"{race}, {peer}: {what}" for peer in runs if (what := trouble(runs[peer]))]
    busy = max(run.bystanders for several in runs.values() for run in several)
    return said + [f"{race}: others took {busy:.2f} of a core in some run"] * (busy > most)


def line(cells: list[str] | tuple[str, ...]) -> None:
    """Print a line of the table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure what was asked for, race by race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Options.add_to(parser)
    parser.set_defaults(rounds=5)
    parser.add_argument("--rows", nargs="+", default=list(GOALS), choices=GOALS, metavar="NAME")
    parser.add_argument("--peers", default="all", choices=["none", "some", "all"], help="others")
    parser.add_argument("-o", "--out", type=Path, help="write rows and runs to this JSON file, too")
    asked = parser.parse_args()
    options = Options.of(asked)
    prepare()
    line(COLUMNS)
    line(["---"] * len(COLUMNS))
    notes: dict[str, None] = {}
    rows: dict[str, dict[str, str]] = {}
    races: dict[str, dict[str, list[dict[str, object]]]] = {}
    for name, race in RACES.items():
        goals = {
            row: goal for row, goal in GOALS.items() if row in asked.rows and goal.race == name
        }
        if not goals:
            continue
        runs, skipped = hold_race(name, entrants(race, [*goals.values()], asked.peers), options)
        for row, goal in goals.items():
            cells = Row(row, goal, race, runs).cells()
            line(cells)
            rows[row] = dict(zip(COLUMNS, cells, strict=True))
        notes |= dict.fromkeys([*skipped, *remarks(name, runs, options.bystanders)])
        races[name] = {peer: [dataclasses.asdict(run) for run in runs[peer]] for peer in runs}
        if asked.out:
            save(asked.out, rows=rows, notes=list(notes), races=races)
    if notes:
        print("", *(f"- {note}" for note in notes), sep="\n")


if __name__ == "__main__":
    main()
