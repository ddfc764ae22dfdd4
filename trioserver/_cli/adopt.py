"""``trioserver adopt module:factory``: a server object of `socketserver`, served as it is."""

from __future__ import annotations

import argparse
import signal
import socketserver
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import trio

import trioserver

from . import serving_options as options
from . import values
from .options import Option
from .program import Progress, Status, set_up_logging
from .serve import resolve

OPTIONS = (Option("--max-threads", "threads at once (default: 40)", values.count, "N"),)
GROUPS = {
    "how much at once": options.LIMITS,
    "how long": options.TIMEOUTS,
    "as a program": tuple(
        it for it in options.PROGRAM if it.name in {"grace", "log_level", "traceback"}
    ),
}


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
        adoption = _Adoption(_server_at(typed.place), _fields(typed), progress)
        progress.is_made = True
        trio.run(adoption.serve)
    except Exception as error:  # noqa: BLE001  (all of them end the program, each with its status)
        return progress.ended_by(error, show=bool(typed.traceback))
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
    fields = {"timeouts": timeouts, "limits": options.limits(typed)}
    return fields if typed.max_threads is None else {**fields, "max_threads": typed.max_threads}


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
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
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
        await anext(signals)
        self._theirs.shutdown()
        self.cut_by = await anext(signals)
        whole.cancel(reason=f"a second signal: {signal.Signals(self.cut_by).name}")
