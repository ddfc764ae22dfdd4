"""Count the instructions of the hot paths, so that no noise can hide a regression.

    python tests/bench/instructions.py            # count, and compare with the file
    python tests/bench/instructions.py --write    # ... and write the file anew

Each path of `paths.py` is run under valgrind by trioserver and by Trio alone, twice, the second
time twice as often: the difference is what one costs. The same call gives the same count, to a few
parts in ten thousand. What is compared is the ratio of the two, since a count depends on how Python
was built. The bytes of an idle connection are compared alike.

It needs valgrind, and the Python that has written the file, as each one has counts of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "instructions.json"
COUNTS = {
    "line": 4000,
    "awaited line": 4000,
    "connection": 800,
    "datagram": 1280,
    "plain datagram": 1280,
}
"""How often each path is taken in the shorter run: enough that the start does not show."""
IDLE = 1000
TOLERANCE = 0.03
"""By which part of it a ratio may grow. A call more in each line is a hundredth."""
SERVERS = ("trioserver", "trio")


def run_path(path: str, by: str, count: int, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run one path in a process of its own."""
    return subprocess.run(
        [*wrapper, sys.executable, HERE / "paths.py", path, by, str(count)],
        capture_output=True,
        text=True,
        check=True,
        # Hashes decide how dicts and sets look inside.
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def instructions_of_run(path: str, by: str, count: int) -> int:
    """All instructions of a process that takes a path ``count`` times."""
    counter = ("--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    done = run_path(path, by, count, "valgrind", *counter)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind says nothing of instructions: {done.stderr[-300:]!r}")
    return int(found[1].replace(",", ""))


def cost(path: str, by: str) -> float:
    """Instructions of one request; of an idle connection its bytes."""
    if path == "idle":
        return float(run_path(path, by, IDLE).stdout)
    count = COUNTS[path]
    once, twice = (instructions_of_run(path, by, times * count) for times in (1, 2))
    return (twice - once) / count


def measure() -> dict[str, dict[str, float]]:
    """What each path costs by trioserver, by Trio, and in proportion."""
    asked = [(path, by) for path in (*COUNTS, "idle") for by in SERVERS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        costs = dict(zip(asked, pool.map(lambda pair: cost(*pair), asked), strict=True))
    found = {}
    for path in (*COUNTS, "idle"):
        ours, bare = (costs[path, by] for by in SERVERS)
        found[path] = {"trioserver": round(ours), "trio": round(bare), "ratio": ours / bare}
    return found


def version() -> str:
    """The version of Python that counts: a patch level more changes nothing."""
    return ".".join(map(str, sys.version_info[:2]))


def main() -> None:
    """Measure, tell, and fail if a path has become dearer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write what was found to the file")
    asked = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("instructions.py needs valgrind, which counts them")
    kept = json.loads(FILE.read_text())
    if not asked.write and kept["python"] != version():
        sys.exit(f"the counts are those of Python {kept['python']}, and this is {version()}")
    found = measure()
    dearer = []
    print("| path | trioserver | trio | ratio | ratio in the file |\n|---|--:|--:|--:|--:|")
    for path, costs in found.items():
        before = kept["paths"].get(path, {}).get("ratio", costs["ratio"])
        if costs["ratio"] > before * (1 + TOLERANCE):
            dearer.append(path)
        ours, bare, ratio = costs["trioserver"], costs["trio"], costs["ratio"]
        print(f"| {path} | {ours:,} | {bare:,} | {ratio:.3f} | {before:.3f} |")
    if asked.write:
        FILE.write_text(json.dumps({"python": version(), "paths": found}, indent=1) + "\n")
    elif dearer:
        sys.exit(f"dearer than before, by more than {TOLERANCE:.0%}: {', '.join(dearer)}")


if __name__ == "__main__":
    main()
