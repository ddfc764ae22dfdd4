"""``trioserver serve module:attribute``: a handler, or a server, as a program."""

from __future__ import annotations

import argparse
import os
import pkgutil
import socketserver
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import trioserver

from .building import evolved, servers_for, why_not_served
from .options import Option
from .program import in_words, run_program

OPTIONS = (
    Option("--mode", "where handlers run (default: task)", choices=("task", "thread", "process")),
    Option("--udp", "serve datagrams", is_switch=True),
    Option(
        "--factory",
        "call what is there, without arguments: it returns what is served",
        is_switch=True,
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is served."""
    parser.add_argument(
        "place",
        metavar="MODULE:ATTRIBUTE",
        help="a server, several, a handler class, an async handler function, or, with --factory,"
        " a function that returns one of these",
    )


def main(typed: argparse.Namespace) -> int:
    """Serve it."""
    return run_program(partial(_servers, typed), typed)


def _servers(typed: argparse.Namespace) -> Sequence[trioserver.BaseServer]:
    found = resolve(typed.place, call=bool(typed.factory))
    several = found if isinstance(found, (list, tuple)) else [found]
    if several and all(isinstance(it, trioserver.BaseServer) for it in several):
        if typed.mode is not None or typed.udp is not None:
            raise ValueError(
                f"{typed.place} is a server, whose class says how it serves: --mode and --udp are"
                " for handlers"
            )
        if typed.bind is not None and len(several) > 1:
            raise ValueError(f"{typed.place} are several servers: --bind is for one, or a handler")
        return [server for it in several for server in evolved(it, typed)]
    if isinstance(found, socketserver.BaseServer):
        found.server_close()
        raise TypeError(f"{typed.place} is a server of socketserver: see `trioserver adopt`")
    mode, udp = typed.mode or "task", bool(typed.udp) or _wants_datagrams(found)
    if why_not := why_not_served(found, mode=mode, udp=udp):
        fits_threads = not why_not_served(found, mode="thread", udp=udp)
        hint = "; or give --mode thread" if fits_threads else ""
        raise TypeError(f"cannot serve {typed.place}: {why_not}{hint}")
    return servers_for(found, typed, mode=mode, udp=udp)


def resolve(place: str, *, call: bool = False) -> Any:
    """What is at ``module:attribute``, or what that returns; modules from here come first.

    Raises:
      ValueError: it is a text of another form; or it cannot be had, whatever the reason.
      OSError: it cannot be had, since the system refuses something.
    """
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise ValueError(f"MODULE:ATTRIBUTE was expected, as in my_module:Handler, not {place!r}")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109  (as text)
        sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(place)
        return found() if call else found
    except ModuleNotFoundError as error:
        hint = f"modules are looked for in {here} first"
        if module.endswith(".py"):
            hint = f"a module was expected, as in {module.removesuffix('.py')}:{attribute}"
        raise ValueError(f"cannot use {place}: {in_words(error)} ({hint})") from error
    except OSError as error:
        raise OSError(error.errno, f"cannot use {place}: {in_words(error)}") from error
    except Exception as error:
        raise ValueError(f"cannot use {place}: {in_words(error)}") from error


def _wants_datagrams(handler: Any) -> bool:
    return isinstance(handler, type) and issubclass(handler, trioserver.DatagramRequestHandler)
