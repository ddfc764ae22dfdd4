"""``trioserver adopt module:factory``: a server object of `socketserver`, served as it is."""

from __future__ import annotations

import argparse
import logging
import signal
import socketserver
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import trio

import trioserver
from trioserver.monitoring import task_tree

from . import serving_options as options
from . import values
from .options import Option
from .program import Progress, Status, set_up_logging
from .serve import resolve

adopt_log = logging.getLogger("trioserver.adopt")

OPTIONS = (
    Option("--max-threads", "threads at once (default: 40)", values.count, "N"),
    Option(
        "--forking",
        "threads: run the handlers of a ForkingMixIn in threads, where they share their memory",
        choices=("threads",),
    ),
)

# Of the others, its own handlers and their files know nothing.
_LIMITS = {"limit_requests", "limit_per_client", "limit_when_full", "limit_linger"}
_TIMEOUTS = {
    f"timeout_{name}" for name in ("handshake", "idle", "write", "request", "linger", "cleanup")
}
_PROGRAM = {"grace", "log_level", "traceback"}
GROUPS = {
    "how much at once": tuple(it for it in options.LIMITS if it.name in _LIMITS),
    "how long": tuple(it for it in options.TIMEOUTS if it.name in _TIMEOUTS),
    "as a program": tuple(it for it in options.PROGRAM if it.name in _PROGRAM),
}

_ENDING = (signal.SIGINT, signal.SIGTERM)
_OTHERS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has none of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which object."""
    parser.add_argument(
        "place",
        metavar="MODULE:FACTORY",
        help="a function without arguments that builds and binds the server object, or that object",
    )


def main(typed: argparse.Namespace) -> int:
    """Serve it until a signal."""
    set_up_logging(typed.log_level or "info")
    progress = Progress()
    try:
        theirs = _server_at(typed.place)
        progress.is_made = True
        return _serve(theirs, _fields(typed), progress)
    except Exception as error:  # noqa: BLE001  (all of them end the program, each with its status)
        return progress.ended_by(error, show=bool(typed.traceback))


def _serve(theirs: socketserver.BaseServer, fields: Mapping[str, Any], progress: Progress) -> int:
    adoption = _Adoption(theirs, fields, progress)
    try:
        trio.run(adoption.serve)
    finally:
        if not progress.is_ready:  # else `trioserver.adopt` has done it
            theirs.server_close()
    return Status.DONE if adoption.cut_by is None else 128 + adoption.cut_by


def _server_at(place: str) -> socketserver.BaseServer:
    theirs = resolve(place)
    if not isinstance(theirs, socketserver.BaseServer):
        theirs = resolve(place, call=True)
    if not isinstance(theirs, socketserver.BaseServer):
        raise TypeError(
            f"{place} must be a server of socketserver, or a function that makes one, not"
            f" {theirs!r}"
        )
    return theirs


def _fields(typed: argparse.Namespace) -> Mapping[str, Any]:
    timeouts = options.timeouts(typed)
    if typed.grace is not None:
        timeouts = attrs.evolve(timeouts, shutdown=typed.grace)
    fields: dict[str, Any] = {"timeouts": timeouts, "limits": options.limits(typed)}
    for name in ("max_threads", "forking"):
        if (value := getattr(typed, name)) is not None:
            fields[name] = value
    return fields


@attrs.define(eq=False)
class _Adoption:
    """Their server, until it has ended.

    Attributes:
      cut_by: the second signal, which has cancelled it.
    """

    _theirs: socketserver.BaseServer
    _fields: Mapping[str, Any]
    _progress: Progress
    cut_by: int | None = None

    async def serve(self) -> None:
        """Serve until a signal: the first one drains, the second cancels."""
        with trio.open_signal_receiver(*_ENDING, *_OTHERS) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._adopt, nursery.cancel_scope)
                self._progress.tell([self._theirs.server_address])
                await self._obey(signals, nursery.cancel_scope)

    async def _adopt(
        self, whole: trio.CancelScope, *, task_status: trio.TaskStatus[object]
    ) -> None:
        await trioserver.adopt(self._theirs, **self._fields, task_status=task_status)
        whole.cancel(reason="the server has ended")

    async def _obey(self, signals: AsyncIterator[int], whole: trio.CancelScope) -> None:
        is_ending = False
        async for number in signals:
            if number not in _ENDING:
                self._answer(signal.Signals(number))
            elif not is_ending:
                is_ending = True
                self._theirs.shutdown()
            else:
                self.cut_by = number
                whole.cancel(reason=f"a second signal: {signal.Signals(number).name}")

    def _answer(self, order: signal.Signals) -> None:
        """Show the tasks; of the other orders, say that nothing comes of them."""
        if order.name == "SIGUSR1":
            adopt_log.warning("SIGUSR1: the tasks are\n%s", task_tree())
        else:
            adopt_log.warning("%s: an adopted server neither reloads nor hands over", order.name)
