"""Print a command of README.md, so that what CI runs is what readers are told.

    python tests/tools/readme_commands.py NAME

A command is the fenced block below the comment ``<!-- command: NAME -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"

_COMMAND = re.compile(
    r"^<!-- command: (?P<name>\w+) -->\n```\w*\n(?P<command>.+?)\n```$", re.MULTILINE | re.DOTALL
)


def commands(readme: str) -> dict[str, str]:
    """The commands in a README's text, by name.

    Raises:
      ValueError: a marker has no block right below it, or a name stands twice.
    """
    found = [(match["name"], match["command"]) for match in _COMMAND.finditer(readme)]
    if len(found) != readme.count("<!-- command:"):
        raise ValueError("a command marker without a fenced block right below it")
    if len(dict(found)) != len(found):
        raise ValueError("two commands of one name")
    return dict(found)


def main() -> None:
    """Print the command named on the command line; exit 1 if there is none."""
    if len(sys.argv) != 2:
        sys.exit("usage: readme_commands.py NAME")
    name = sys.argv[1]
    found = commands(README.read_text(encoding="utf-8"))
    if name not in found:
        sys.exit(f"{README.name} has no command {name!r}, only {sorted(found)}")
    print(found[name])


if __name__ == "__main__":
    main()
