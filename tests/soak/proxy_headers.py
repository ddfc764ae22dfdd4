"""Read mutated PROXY headers: nothing but the declared error comes of them.

python tests/soak/proxy_headers.py             # a million of them: a minute
python tests/soak/proxy_headers.py 10000 --seed 7
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "sockets"))

from test_proxy_protocol import mutations, outcome_of


def main() -> None:
    """Read them, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("number", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    outcomes = Counter(outcome_of(data) for data in mutations(options.number, options.seed))
    print(*(f"{name} {count}" for name, count in outcomes.items()), sep=", ")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
