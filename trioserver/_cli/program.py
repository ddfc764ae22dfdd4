"""Running servers as a program of the command line: its log, its ready line, its exit status."""

from __future__ import annotations

import argparse
import enum
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import attrs

import trioserver

from . import values, watched

_NO_SUCH_PLACE = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
"""What bind(2) alone says, also to code of the user's that binds a server when it makes it."""


class Status(enum.IntEnum):
    """How a command ends; one that a signal has cut ends with 128 and its number."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CANNOT_BIND = 3


@attrs.define
class Progress:
    """How far a program is: what an error means, that ends it, depends on that.

    Attributes:
      prints: whether addresses go to stdout, too.
      is_made: whether there are servers.
      is_ready: whether they listen.
    """

    prints: bool = False
    is_made: bool = False
    is_ready: bool = False

    def tell(self, addresses: Sequence[Any]) -> None:
        """Say where it listens."""
        self.is_ready = True
        shown = [values.shown(address) for address in addresses]
        say(f"ready on {', '.join(shown)}")
        if self.prints:
            print(*shown, sep="\n", flush=True)

    def ended_by(self, error: Exception, *, show: bool) -> Status:
        """Say what has ended the program, with a traceback or without; what status that is."""
        if show:
            traceback.print_exception(error)
        error = _the_one_in(error)
        if self.is_ready:
            say(f"error: a server failed: {in_words(error)}")
            if not show:
                say("use --traceback to see where that comes from")
            return Status.FAILED
        say(f"error: {in_words(error)}")
        if isinstance(error, OSError) and (self.is_made or error.errno in _NO_SUCH_PLACE):
            return Status.CANNOT_BIND
        is_usage = not self.is_made or isinstance(error, (TypeError, ValueError))
        return Status.USAGE if is_usage else Status.FAILED


@attrs.define
class _Making:
    """Makes the servers, and notes that there are some; in a worker there is nobody to note it."""

    _make: Callable[[], Sequence[trioserver.BaseServer]]
    _progress: Progress

    def __call__(self) -> Sequence[trioserver.BaseServer]:
        servers = self._make()
        self._progress.is_made = True
        return servers

    def __reduce__(self) -> tuple[Any, ...]:
        return _Making, (self._make, Progress())


def _the_one_in(error: Exception) -> Exception:
    """What a nursery has put into a group, if it is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    return error


def run_program(
    make: Callable[[], Sequence[trioserver.BaseServer]], typed: argparse.Namespace
) -> int:
    """Make servers and run them until a signal; the exit status.

    Args:
      make: makes them, when signals are heard already.
      typed: the options.
    """
    set_up_logging(typed.log_level or "info")
    progress = Progress(prints=bool(typed.print_address))
    watched.check(typed)
    times = {"grace": typed.grace, "ready_off": typed.ready_off}
    times["start_timeout"] = typed.start_timeout
    options: dict[str, Any] = {it: value for it, value in times.items() if value is not None}
    try:
        with watched.screen(typed) as screen:
            if watching := watched.beside(typed, screen):
                options["beside"] = watching
            trioserver.run(
                _Making(make, progress),
                workers=typed.workers or 1,
                total_requests=typed.total_requests,
                health=typed.health,
                on_ready=progress.tell,
                **options,
            )
    except Exception as error:  # noqa: BLE001  (all of them end the program, each with its status)
        return progress.ended_by(error, show=bool(typed.traceback))
    return Status.DONE


def in_words(error: BaseException) -> str:
    """An error in one line: its kind, unless it is one that speaks for itself."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(in_words, error.exceptions))
    told = str(error)
    if isinstance(error, OSError) and error.strerror:
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(told.split())
    if isinstance(error, (ValueError, TypeError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def say(text: str) -> None:
    """Say something to whoever has started the program, on stderr."""
    print(f"trioserver: {text}", file=sys.stderr, flush=True)


def set_up_logging(level: str) -> None:
    """Log to stderr."""
    logging.basicConfig(
        level=level.upper(),
        # The process, as a successor writes to the same stream.
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
        stream=sys.stderr,
    )
