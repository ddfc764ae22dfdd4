"""``python -m trioserver``, and the script ``trioserver``: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._cli.commands import parsed
from ._cli.program import Status, in_words, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    command = parsed(arguments)
    if command is None:
        return Status.DONE
    chosen, typed = command
    try:
        status: int = chosen.main(typed)
    except (ValueError, TypeError) as error:
        say(f"error: {in_words(error)}")
        return Status.USAGE
    return status


if __name__ == "__main__":
    sys.exit(main())
