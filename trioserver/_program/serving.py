"""How a program serves: everything that runs in its Trio.

::

    everything                     what the second signal cancels
      beside                         signs of life, and what the program wants beside its servers
      health                         is the first to listen, and the last to end
        servers                        side by side; when one fails, all are cancelled
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from .._facts.chains import lone_errors
from .._facts.events import ShutdownReport
from .._facts.observers import log_safely
from .._servers.base import BaseServer
from .notices import program_log
from .program import Program

if TYPE_CHECKING:  # it brings multiprocessing
    from .workers.branch import Branch
    from .workers.supervisor import Supervisor

HEALTH_GRACE = 1.0
"""Seconds that a health check which has begun has to end, when everything else has ended."""


async def serve(program: Program) -> tuple[ShutdownReport, ...]:
    """Serve everything; the reports, in the order of the servers."""
    reports: dict[int, ShutdownReport] = {}
    with program.everything, lone_errors():
        async with trio.open_nursery() as program.beside:
            program.relay.connect(program.obey)
            program.beside.start_soon(program.notices.give_signs_of_life)
            for job in program.jobs:
                program.beside.start_soon(job, list(program.servers))
            try:
                await _serve_all(program, reports)
            finally:
                program.close()
    if program.cancelled_by is not None:
        raise SystemExit(128 + program.cancelled_by)
    return tuple(reports[number] for number in sorted(reports))


async def _serve_all(program: Program, reports: dict[int, ShutdownReport]) -> None:
    async with _health(program.checks):
        if program.supervisor is not None:
            await _have_served(program, program.supervisor, reports)
            return
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
    _stop_if_too_late(program, server)
    async with server:
        reports[number] = await server.serve_forever(task_status=task_status)


def _stop_if_too_late(program: Program, server: BaseServer) -> None:
    if program.is_draining:  # the order came before there was anything to shut down
        server._stop_next_run(program.grace_of(server))


async def _have_served(
    program: Program, supervisor: Supervisor, reports: dict[int, ShutdownReport]
) -> None:
    """Bind all servers, and have workers serve them."""
    async with AsyncExitStack() as stack:
        for server in program.servers:
            _stop_if_too_late(program, server)
            await stack.enter_async_context(server)
        for branch in supervisor.branches:
            branch.check()
        with lone_errors():
            async with trio.open_nursery() as nursery:
                for branch in supervisor.branches:
                    await nursery.start(_until_over, branch)
                await supervisor.serve(program.all_listen)
    for number, server in enumerate(program.servers):
        reports[number] = await server.wait_closed()


async def _until_over(branch: Branch, *, task_status: trio.TaskStatus[None]) -> None:
    """Have a server be served by workers, until none of them does so any more."""
    with branch.server._served_by(branch):
        task_status.started()
        await branch.over.wait()


@asynccontextmanager
async def _health(checks: BaseServer | None) -> AsyncIterator[None]:
    """Answer health checks around the block, if there is a server for them."""
    if checks is None:
        yield
        return
    async with checks.serving(grace=HEALTH_GRACE):
        yield


def tell_of_cut_requests(server: BaseServer, report: ShutdownReport) -> None:
    """Log how many requests of a server the grace has cut, if any."""
    if report.cancelled:
        message = "the grace of %g s was over: %s has cancelled %d requests"
        name = type(server).__name__
        values = (report.grace, name, len(report.cancelled))
        log_safely(program_log, logging.WARNING, message, *values)
