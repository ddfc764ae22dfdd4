"""The ceiling: a `Protocol` of asyncio in uvloop, which is libuv's loop, in C."""

from __future__ import annotations

import asyncio

import uvloop
from _common import Task
from _protocols import Bulk, Connection, Line, serve_connections


class LineProtocol(Line, asyncio.Protocol):
    """Answer each line."""


class BulkProtocol(Bulk, asyncio.Protocol):
    """Echo."""


def protocol(asked: Task) -> type[Connection]:
    """The one that was asked for."""
    return LineProtocol if asked.service == "line" else BulkProtocol


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_connections(protocol))
