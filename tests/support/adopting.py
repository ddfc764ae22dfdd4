"""What the tests of `adopt` share: somebody else's handler, and a server around it that is run."""

from __future__ import annotations

import socketserver
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

import trioserver
from support import plain_client

THERE = ("127.0.0.1", 0)


class Upper(socketserver.StreamRequestHandler):
    """Answers every line with its upper-case form."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class Reports:
    """Where the report of an adoption is put when it is over."""

    report: trioserver.ShutdownReport
    is_over = False


@asynccontextmanager
async def adopted(server: Any, **options: Any) -> AsyncIterator[Reports]:
    """Serve with ``server`` for the length of the block, then shut it down as its owner would."""
    reports = Reports()

    async def run(*, task_status: trio.TaskStatus[Any]) -> None:
        reports.report = await trioserver.adopt(server, task_status=task_status, **options)
        reports.is_over = True

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            assert await nursery.start(run) is server
            yield reports
            await in_thread(server.shutdown)


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Call what may wait."""
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


def ask(address: Any, question: bytes = b"hello\n") -> bytes:
    """One question and its answer, of a client that then leaves."""
    with plain_client(address) as client:
        client.sendall(question)
        return client.recv(1000)
