"""`run`: a whole program that is nothing but its servers.

::

    signals, the service manager     from the first instant to the last
      Trio
        everything                     what the second signal cancels
          beside                         signs of life, and what else goes on meanwhile
          health                         is the first to listen, and the last to end
            servers                        side by side; when one fails, all are cancelled
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from .._facts.chains import lone_errors
from .._facts.events import ShutdownReport
from .._facts.observers import log_safely
from .._facts.validators import check_seconds
from .._servers.base import BaseServer
from .application import servers_of
from .health import health_server
from .notices import Notices, program_log
from .program import Program
from .service_manager import told_by_environment
from .signals import SignalRelay

HEALTH_GRACE = 1.0
"""Seconds that a health check which has begun has to end, when everything else has ended."""


def run(
    *servers: BaseServer | str | Callable[[], BaseServer | Sequence[BaseServer]],
    grace: float | None = None,
    ready_off: float = 0.0,
    health: Any = None,
    start_timeout: float = 60.0,
    on_ready: Callable[[tuple[Any, ...]], object] | None = None,
) -> tuple[ShutdownReport, ...]:
    """Serve until a signal, as the main job of a program.

    The first SIGTERM or SIGINT (Ctrl-C) drains all servers, the second cancels
    what is left, a third ends the process on the spot, even one whose handler
    never lets go of the processor. SIGHUP has every server `reload <TCPServer.reload>` that
    can; SIGUSR1 writes all tasks, and where they wait, to the log ``trioserver.program``. These
    and the next one are heeded only where the program does not handle them itself.

    SIGUSR2 hands over to new code: the program starts itself anew, by the command, in the
    directory and with the environment that it was started with itself, and passes its listening
    sockets on. When that successor lets clients in, this program drains and returns, and no
    client was turned away. One that fails to get ready is logged, and nothing has changed.

    A service manager, such as systemd, that wants to hear of it (``NOTIFY_SOCKET``) is told when
    all servers listen, reload and drain, and why the end takes so long; and that Trio's loop
    turns, if it wants signs of life (``WATCHDOG_USEC``). If it keeps descriptors (``FDSTORE``), it
    keeps the listening sockets, and the program finds them when it is started again: clients
    that connect after a crash wait, and are served.

    Args:
      servers: at least one; they are served side by side. When one fails, the
        others are cancelled. Instead of a server it can be a plain function without arguments
        that returns one, or several, and is called when signals are heard already; or
        ``"module:attribute"``, which is imported then.
      grace: seconds for the drain; None is each server's ``timeouts.shutdown``.
      ready_off: seconds between the first signal and the drain. Meanwhile health checks are
        told that the program is not ready, and whoever comes is served all the same: so a
        balancer has the time to send clients elsewhere. One more signal cuts that short.
      health: where health checks are answered: ``(host, port)``, or a path of a Unix socket.
        By HTTP, ``GET /live`` is answered with 200 as long as Trio's loop turns, ``GET /ready``
        only if every listener accepts and no server drains or is suspended, and else with 503
        and the reason. None: nowhere.
      start_timeout: seconds that a successor has to get ready; see SIGUSR2.
      on_ready: a plain function that is called once, with the addresses of all listeners, when
        all servers let clients in. None: nobody is told.

    Returns:
      The reports, in the order of the servers, when all have drained; what the grace has cut
      is in the log, too. The process then goes on, and commonly ends with status 0.

    Raises:
      SystemExit: of status 128 + N when a second signal, of number N, had to
        cancel them.
      BaseException: what a server failed with, bare.
      TypeError, ValueError: an argument is wrong, and named.
      ImportError, AttributeError: there is no such module, or no such attribute in it.

    Signal handlers are as before when it returns or raises, and in every child
    that the program forks meanwhile; and so is the environment, in which children do not find
    what a service manager has put there for this program. In another thread than the main one
    there are no signals to wait for, and none are touched.
    """
    if not servers:
        raise TypeError("run() needs at least one server")
    check_seconds("grace", grace, zero=True, optional=True)
    check_seconds("ready_off", ready_off, zero=True)
    check_seconds("start_timeout", start_timeout)
    relay = SignalRelay(orders_left=3 if ready_off else 2)
    # Before Trio comes, which has its own idea of Ctrl-C.
    with told_by_environment() as manager, relay.installed():
        found = [server for given in servers for server in servers_of(given)]
        notices = Notices(manager, on_ready)
        program = Program(found, grace, ready_off, start_timeout, relay, notices)
        if health is not None:
            program.checks = health_server(health, program.why_not_ready)
        program.claim_sockets()
        relay.has_begun = True
        reports = trio.run(_serve, program)
    for server, report in zip(found, reports, strict=True):
        _tell_of_cut_requests(server, report)
    return reports


async def _serve(program: Program) -> tuple[ShutdownReport, ...]:
    """Serve everything; the reports, in the order of the servers."""
    reports: dict[int, ShutdownReport] = {}
    with program.everything, lone_errors():
        async with trio.open_nursery() as program.beside:
            program.relay.connect(program.obey)
            program.beside.start_soon(program.notices.give_signs_of_life)
            try:
                await _serve_all(program, reports)
            finally:
                program.close()
    if program.cancelled_by is not None:
        raise SystemExit(128 + program.cancelled_by)
    return tuple(reports[number] for number in sorted(reports))


async def _serve_all(program: Program, reports: dict[int, ShutdownReport]) -> None:
    async with _health(program.checks):
        with lone_errors():
            async with trio.open_nursery() as nursery:
                for number in range(len(program.servers)):
                    nursery.start_soon(_start, nursery, program, number, reports)


async def _start(
    nursery: trio.Nursery, program: Program, number: int, reports: dict[int, ShutdownReport]
) -> None:
    await nursery.start(_serve_one, program, number, reports)
    program.one_more_listens()


async def _serve_one(
    program: Program,
    number: int,
    reports: dict[int, ShutdownReport],
    *,
    task_status: trio.TaskStatus[BaseServer],
) -> None:
    server = program.servers[number]
    if program.is_draining:  # the order came before there was anything to shut down
        server._stop_next_run(program.grace_of(server))
    async with server:
        reports[number] = await server.serve_forever(task_status=task_status)


@asynccontextmanager
async def _health(checks: BaseServer | None) -> AsyncIterator[None]:
    """Answer health checks around the block, if there is a server for them."""
    if checks is None:
        yield
        return
    async with checks.serving(grace=HEALTH_GRACE):
        yield


def _tell_of_cut_requests(server: BaseServer, report: ShutdownReport) -> None:
    if report.cancelled:
        message = "the grace of %g s was over: %s has cancelled %d requests"
        name = type(server).__name__
        values = (report.grace, name, len(report.cancelled))
        log_safely(program_log, logging.WARNING, message, *values)
