"""Check that every scenario is tested or excused.

    python tests/tools/scenarios.py

A scenario is a situation a server framework must survive, known by its id. A
test covers it by naming the id in its docstring::

    async def test_port_taken():
        '''LC-03: a port that is taken raises from start, and leaves nothing open.'''

and tests/README.md excuses it with a line ``- LC-10: reason``. Prints what is
neither, what is both, and ids that do not exist; exits 1 if there is anything
to print.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# A number is never given to another scenario, so there are gaps.
GROUPS = {
    "LC": "01 02 03 04 05 07 08 09 10 11 12 13",  # lifecycle
    "CX": "01 03 04 06 07 08 09 12 13",  # cancellation at every checkpoint
    "GS": "01 02 03 04 06 07 09 10 11 12 14 15",  # graceful shutdown under load
    "TO": "01 02 03 04 06 07 09 10 11 12",  # time-outs
    "BP": "01 02 03 06 07 08 09 10 11 12",  # backpressure and limits
    "AE": "01 02 04 05 06 07",  # accept errors
    "CM": "01 03 04 05 06 07 08 10 11 12 13 16 17 18 19",  # client misbehaviour
    "UD": "01 02 03 04 07 08 09 10 11 12 13 14",  # datagrams
    "UX": "01 02 04 06 07 08 09 10 12 14",  # Unix sockets
    "EX": "01 02 04 05 07 08 10 11 12 13 14",  # exceptions
    "TL": "01 03 04 05 06 07 08 09 10 11 12",  # TLS
    "SG": "01 02 04 05 06 07 08 09",  # signals
    "NW": "01 02 03 04 05 06 07 08",  # network
    "TH": "02 03 04 05 07 08 09 10",  # threads
    "PR": "01 02 03 06 09 10 11 12 13 14 15 16 18",  # processes
}
# Those that a later release has to cover as a whole; tests may name them already.
FURTHER_GROUPS = {
    "CK": "01 02 03 04 05 06",  # clocks and memory transports
    "CP": "01 02 04",  # compatibility with socketserver
    "LK": "01 03 04 05 06 07",  # leaks and soaks
    "PY": "01 02 03 04 05 06 07 08 09 10",  # test servers
}


def _ids(groups: dict[str, str]) -> frozenset[str]:
    return frozenset(
        f"{group}-{number}" for group, numbers in groups.items() for number in numbers.split()
    )


SCENARIOS = _ids(GROUPS)
FURTHER_SCENARIOS = _ids(FURTHER_GROUPS)

_ID = re.compile(r"\b[A-Z]{2}-\d{2}\b")
_EXCUSE = re.compile(r"^- (?P<id>[A-Z]{2}-\d{2}): \S", re.MULTILINE)


def problems(tests: Path = TESTS) -> list[str]:
    """What is wrong with the scenarios of a folder of tests, a line each."""
    tested = {scenario for file in tests.rglob("*.py") for scenario in _named_by_tests(file)}
    excused = _excused(tests / "README.md")
    return [
        *(f"{it}: neither tested nor excused" for it in sorted(SCENARIOS - tested - excused)),
        *(f"{it}: both tested and excused" for it in sorted(tested & excused)),
        *(
            f"{it}: no such scenario"
            for it in sorted((tested | excused) - SCENARIOS - FURTHER_SCENARIOS)
        ),
    ]


def _named_by_tests(file: Path) -> Iterator[str]:
    """The ids in the docstrings of a file's test functions, and in their tables of parameters."""
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test"):
            yield from _ID.findall(ast.get_docstring(node) or "")
            for decorator in node.decorator_list:
                yield from _ID.findall(ast.unparse(decorator))


def _excused(readme: Path) -> set[str]:
    """The ids excused by a README, which may be missing."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    return {match["id"] for match in _EXCUSE.finditer(text)}


def main() -> None:
    """Print the problems; exit 1 if there are any."""
    found = problems()
    for problem in found:
        print(problem)
    print(f"{len(SCENARIOS)} scenarios, {len(found)} problems")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
