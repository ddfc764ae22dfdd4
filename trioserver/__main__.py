"""``python -m trioserver``: what the library can show of itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._demo import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trioserver",
        description="The classic socketserver framework, rebuilt on Trio.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    demonstration = commands.add_parser(
        "demo",
        help="serve, talk and drain, before your eyes",
        description="Serve streams and datagrams, over IP and Unix sockets; talk; drain.",
    )
    demonstration.set_defaults(command=demo)
    command = getattr(parser.parse_args(arguments), "command", None)
    if command is None:
        parser.print_help()
        return 0
    status: int = command()
    return status


if __name__ == "__main__":
    sys.exit(main())
