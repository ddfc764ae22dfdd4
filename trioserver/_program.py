"""`run`: a whole program that is nothing but its servers."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from ._base import BaseServer
from ._config import grace_seconds
from ._errors import lone_errors
from ._events import ShutdownReport

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(*servers: BaseServer, grace: float | None = None) -> tuple[ShutdownReport, ...]:
    """Serve until a signal, as the main job of a program.

    The first SIGTERM or SIGINT (Ctrl-C) drains all servers, the second cancels
    what is left, a third ends the process on the spot.

    Args:
      servers: at least one; they are served side by side. When one fails, the
        others are cancelled.
      grace: seconds for the drain; None is each server's ``timeouts.shutdown``.

    Returns:
      The reports, in the order of the servers, when all have drained. The
      process then goes on, and commonly ends with status 0.

    Raises:
      SystemExit: of status 128 + N when a second signal, of number N, had to
        cancel them.
      BaseException: what a server failed with, bare.

    Signal handlers are as before when it returns or raises. In another thread
    than the main one there are no signals to wait for, and none are touched.
    """
    if not servers:
        raise TypeError("run() needs at least one server")
    grace_seconds(grace)
    return trio.run(_serve_all, servers, grace)


async def _serve_all(
    servers: tuple[BaseServer, ...], grace: float | None
) -> tuple[ShutdownReport, ...]:
    reports: dict[int, ShutdownReport] = {}

    async def serve(number: int, server: BaseServer) -> None:
        reports[number] = await server.serve_forever()

    with lone_errors(), _receiver() as arrived:
        async with trio.open_nursery() as watch:
            with lone_errors():
                async with trio.open_nursery() as serving:
                    obey = _Obedience(servers, grace, serving.cancel_scope)
                    watch.start_soon(obey.all, arrived)
                    for number, server in enumerate(servers):
                        serving.start_soon(serve, number, server)
            watch.cancel_scope.cancel(reason="all servers have ended")
    if obey.cancelled_by is not None:
        raise SystemExit(128 + obey.cancelled_by)
    return tuple(reports[number] for number in range(len(servers)))


@contextmanager
def _receiver() -> Iterator[AsyncIterator[int]]:
    """The signals that arrive while the block runs; handlers are as before afterwards."""
    if threading.current_thread() is threading.main_thread():
        with trio.open_signal_receiver(*_SIGNALS) as arrived:
            yield arrived
    else:
        yield _never()


async def _never() -> AsyncIterator[int]:
    await trio.sleep_forever()
    yield 0


class _Obedience:
    """What each signal does: the first drains, the second cancels, the third ends the process."""

    def __init__(
        self, servers: tuple[BaseServer, ...], grace: float | None, everything: trio.CancelScope
    ) -> None:
        self.cancelled_by: int | None = None
        self._servers = servers
        self._grace = grace
        self._everything = everything
        self._draining = False

    async def all(self, arrived: AsyncIterator[int]) -> None:
        async for number in arrived:
            self._one(number)

    def _one(self, number: int) -> None:
        if not self._draining:
            self._draining = True
            # In one step, so that all have stopped accepting before any waits.
            for server in self._servers:
                server.shutdown(self._grace)
        elif self.cancelled_by is None:
            self.cancelled_by = number
            self._everything.cancel(reason=f"a second signal: {signal.Signals(number).name}")
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
