"""`run`: a whole program that is nothing but its servers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import attrs
import trio

from .._facts.chains import lone_errors
from .._facts.events import ShutdownReport
from .._facts.signals import Disposition, dispositions, installed
from .._facts.validators import check_seconds
from .._servers.base import BaseServer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(*servers: BaseServer, grace: float | None = None) -> tuple[ShutdownReport, ...]:
    """Serve until a signal, as the main job of a program.

    The first SIGTERM or SIGINT (Ctrl-C) drains all servers, the second cancels
    what is left, a third ends the process on the spot, even one whose handler
    never lets go of the processor.

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

    Signal handlers are as before when it returns or raises, and in every child
    that the program forks meanwhile. In another thread than the main one there
    are no signals to wait for, and none are touched.
    """
    if not servers:
        raise TypeError("run() needs at least one server")
    check_seconds("grace", grace, zero=True, optional=True)
    # Before Trio comes, which has its own idea of Ctrl-C.
    return trio.run(_serve_all, servers, grace, dispositions(_SIGNALS))


async def _serve_all(
    servers: tuple[BaseServer, ...], grace: float | None, before: Mapping[int, Disposition]
) -> tuple[ShutdownReport, ...]:
    reports: dict[int, ShutdownReport] = {}

    async def serve(number: int, server: BaseServer) -> None:
        if obedience.draining:  # it came before there was anything to shut down
            server._stop_next_run(server.timeouts.shutdown if grace is None else grace)
        async with server:
            reports[number] = await server.serve_forever()

    everything = trio.CancelScope()
    obedience = _Obedience(servers, grace, everything)
    with _signals_go_to(obedience.obey, before), everything, lone_errors():
        async with trio.open_nursery() as nursery:
            for number, server in enumerate(servers):
                nursery.start_soon(serve, number, server)
    if obedience.cancelled_by is not None:
        raise SystemExit(128 + obedience.cancelled_by)
    return tuple(reports[number] for number in range(len(servers)))


@attrs.define
class _Obedience:
    """What signals do: the first drains, the second cancels."""

    _servers: tuple[BaseServer, ...]
    _grace: float | None
    _everything: trio.CancelScope
    draining: bool = False
    cancelled_by: int | None = None

    def obey(self, number: int) -> None:
        if not self.draining:
            self.draining = True
            # In one step, so that all have stopped accepting before any waits.
            for server in self._servers:
                server.shutdown(self._grace)
        else:
            self.cancelled_by = number
            self._everything.cancel(reason=f"a second signal: {signal.Signals(number).name}")


@contextmanager
def _signals_go_to(
    obey: Callable[[int], None], before: Mapping[int, Disposition]
) -> Iterator[None]:
    """Have ``obey`` called in the Trio thread with the first two signals; the third kills.

    Not `trio.open_signal_receiver`, because the third is for a program whose
    handler keeps the Trio thread: Python runs this between two of its bytecodes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    token = trio.lowlevel.current_trio_token()
    arrived = 0

    def handle(number: int, _frame: object) -> None:
        nonlocal arrived
        arrived += 1
        if arrived <= 2:
            token.run_sync_soon(obey, number)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    with installed(handle, before):
        yield
