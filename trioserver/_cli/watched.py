"""What lets somebody watch a program: a monitor, and the program's own terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import trioserver
from trioserver import monitoring

from . import values
from .options import Option

Beside: TypeAlias = Callable[[Sequence[trioserver.BaseServer]], Awaitable[None]]

OPTIONS = (
    Option(
        "--monitor",
        "tell those who ask there what the program is like, as trioserver top does: host:port of"
        " this machine, or unix:PATH",
        values.address,
        "ADDRESS",
    ),
    Option(
        "--monitor-control",
        "let them cancel requests, suspend and drain servers, too",
        is_switch=True,
    ),
    Option("--live", "show what the program is like in its own terminal", is_switch=True),
)


def check(typed: argparse.Namespace) -> None:
    """See whether these options go together, and with where the program runs.

    Raises:
      ValueError: they do not.
    """
    if typed.monitor_control and typed.monitor is None:
        raise ValueError("--monitor was expected, too: there is nothing to control it by")
    has_output = sys.stdout.isatty() or sys.stderr.isatty()
    if typed.live and not (sys.stdin.isatty() and has_output):
        raise ValueError("--live needs a terminal: leave it out where there is none")


def screen(
    typed: argparse.Namespace,
) -> AbstractContextManager[monitoring.LiveScreen | None]:
    """The program's terminal, for the block in which it runs; None if nothing is shown there."""
    return monitoring.LiveScreen() if typed.live else nullcontext()


def beside(typed: argparse.Namespace, live: monitoring.LiveScreen | None) -> Sequence[Beside]:
    """What is to run beside the servers."""
    found: list[Beside] = []
    if typed.monitor is not None:
        found.append(partial(_monitor, typed.monitor, bool(typed.monitor_control)))
    if live is not None:
        found.append(live.show)
    return found


async def _monitor(
    address: values.Address,
    allow_control: bool,  # noqa: FBT001  (a partial's)
    servers: Sequence[trioserver.BaseServer],
) -> None:
    await monitoring.Monitor(servers, address, allow_control=allow_control).serve()
