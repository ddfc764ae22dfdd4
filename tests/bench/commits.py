r"""Compare two commits of ours: the same peers, with `trioserver` as it was in each of them.

    python tests/bench/commits.py main~3
    python tests/bench/commits.py v0.1 main -s pingpong-c50 udp-w64 -r 7 -t 2

The number to quote is the ratio of the newer to the older one of the same round. The peers are
those of the present `peers/`, which an old commit may not understand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loads import SCENARIOS, Scenario
from measuring import HERE, Options, Peer, compare, prepare
from run import UNITS, ratios, spread, trouble

DEFAULT_SCENARIOS = ["pingpong-c50", "pipeline-d32", "connect-c32", "udp-w64"]


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit, compiled; gone at the end of the block."""
    git: list[str | Path] = ["git", "-C", HERE, "worktree"]
    # What a commit is called may not begin as an option does.
    subprocess.run([*git, "add", "--quiet", "--detach", "--", folder, commit], check=True)
    try:
        package = folder / "trioserver"
        subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", folder], check=True)


def peers_for(scenario: Scenario) -> list[str]:
    """Ours that serve such a load."""
    if scenario.service == "datagram":
        return [f"trioserver_udp_{kind}" for kind in ("function", "class", "plain")]
    if scenario.tls:
        return ["trioserver_tls"]
    return ["trioserver_stream"]


def row(name: str, script: str, trees: dict[str, Path], options: Options) -> str:
    """One peer under one load, with either tree."""
    scenario, peer = SCENARIOS[name], Peer.parse(script)
    both = [dataclasses.replace(peer, name=which, tree=trees[which]) for which in trees]
    runs = compare(scenario, both, options)
    figure = scenario.figure
    speeds = [spread([run.get(figure) for run in runs[which]], ",.0f") for which in trees]
    ratio = spread(ratios(runs["new"], runs["old"], figure), ".2f")
    cells = [name, script, *speeds, UNITS[figure], ratio, trouble(runs["old"] + runs["new"])]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print a row for each scenario and peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Options.add_to(parser)
    parser.set_defaults(rounds=5)
    add = parser.add_argument
    add("old", metavar="OLD")
    add("new", metavar="NEW", nargs="?", default="HEAD")
    add(
        "-s", "--scenarios", nargs="+", default=DEFAULT_SCENARIOS, choices=SCENARIOS, metavar="NAME"
    )
    add("-p", "--peers", nargs="+", metavar="NAME", help="default: those that fit the scenario")
    asked = parser.parse_args()
    options = Options.of(asked)
    prepare()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="commits-")))
        trees = {
            which: stack.enter_context(checked_out(getattr(asked, which), folder / which))
            for which in ("old", "new")
        }
        print(f"| scenario | peer | {asked.old} | {asked.new} | | x old, paired | trouble |")
        print("|---|---|--:|--:|---|--:|---|", flush=True)
        for name in asked.scenarios:
            for script in asked.peers or peers_for(SCENARIOS[name]):
                print(row(name, script, trees, options), flush=True)


if __name__ == "__main__":
    main()
