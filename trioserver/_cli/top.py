"""``trioserver top ADDRESS``: another program, watched from a terminal; or once, for scripts."""

from __future__ import annotations

import argparse
import json
import signal
import sys

import trio

from trioserver import monitoring

from . import values
from .program import Status, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to watch, and how."""
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        type=values.address,
        help="where the program's monitor is: host:port, or unix:PATH",
    )
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--once", action="store_true", help="print what is there now, and end")
    once.add_argument("--json", action="store_true", help="the same, as JSON")
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=_interval,
        default=1.0,
        help="time between two pictures (default: 1s)",
    )
    parser.add_argument(
        "--most",
        metavar="N",
        type=values.count,
        default=256,
        help="requests of each server, or worker, that the program tells of (default: 256)",
    )
    parser.add_argument("--no-colour", action="store_true", help="use no colours")


def _interval(text: str) -> float:
    found = values.seconds(text)
    if not 0.1 <= found <= 3600:
        raise argparse.ArgumentTypeError(f"a time from 100ms to 1h was expected, not {text!r}")
    return found


def main(typed: argparse.Namespace) -> int:
    """Watch it; status 1 if there is nobody to watch."""
    is_asked_once = typed.once or typed.json
    if not is_asked_once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError("top needs a terminal; --once and --json are for pipes and files")
    status: int = Status.DONE
    try:
        status = _print_once(typed) if is_asked_once else trio.run(_watch, typed)
    except* monitoring.MonitorError as errors:
        say(f"error: {values.shown(typed.address)}: {errors.exceptions[0]}")
        status = Status.FAILED
    except* KeyboardInterrupt:  # before there was a screen, which hears of it by itself
        status = 128 + signal.SIGINT
    return status


def _print_once(typed: argparse.Namespace) -> int:
    state = trio.run(_ask, typed)
    print(json.dumps(state.as_json()) if typed.json else state)
    return Status.DONE


async def _ask(typed: argparse.Namespace) -> monitoring.MonitorState:
    return await monitoring.ask_monitor(typed.address, most=typed.most)


async def _watch(typed: argparse.Namespace) -> int:
    colour = False if typed.no_colour else None
    ended_by = await monitoring.top(
        typed.address, interval=typed.interval, most=typed.most, colour=colour
    )
    return 128 + ended_by if ended_by else Status.DONE
