"""The life of a worker process, from its first line to its last.

Its server tells it what to do, over a line that no other process has, and it serves one
request after the other, in its main thread. It ends when the server hangs up, when the server
is gone for whatever reason, and when a handler ends it, which costs that handler's request
and no other.
"""

from __future__ import annotations

import os
import socket
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any

import trio

from ..protocol.channel import Channel, NoDescriptor
from ..protocol.files import all_of
from ..protocol.frames import Message, shorten, unpack
from ..protocol.log import forward_records
from ..protocol.result import traceback_of
from ..protocol.setup import WorkerSetup
from ..protocol.status import SharedStatus
from . import asynchronous, synchronous
from .beginning import begin
from .contexts import Contexts


def main(
    control: socket.socket, lifeline: int, setup: int, parent: int, shared_status: int
) -> None:
    """Run a worker process.

    Args:
      control: the line to the server.
      lifeline: the descriptor that ends when the server does.
      setup: the descriptor of the file with a `WorkerSetup`, packed.
      parent: the process id of the server.
      shared_status: the descriptor of the file for a `SharedStatus`.
    """
    channel = begin(control, lifeline, parent)
    shared = SharedStatus(shared_status)
    os.close(shared_status)
    try:
        work(channel, shared, all_of(setup))
    finally:
        channel.close()  # now, not when the last thread of a handler has ended


def work(channel: Channel, shared_status: SharedStatus, setup: bytes) -> None:
    """Get ready, tell the server so, and serve until it hangs up.

    Args:
      channel: the line to the server.
      shared_status: what the server can look at.
      setup: a `WorkerSetup`, packed.

    Raises:
      SystemExit: the worker cannot get ready, or has no descriptor left; the server was told.
    """
    try:
        server = prepare(unpack(setup), channel)
        contexts = Contexts(server._credentials())  # now: who is ready, goes on with what it has
    except BaseException as error:  # noqa: BLE001  (the server is told, and raises it)
        channel.say(Message.NOT_READY, why=shorten(traceback_of(error)))
        raise SystemExit(1) from None
    channel.say(Message.READY)
    try:
        if server._handles_in_trio():
            trio.run(partial(asynchronous.serve_all, server, channel, shared_status, contexts))
        else:
            serve_all(server, channel, shared_status, contexts)
    except NoDescriptor as error:  # another one can: it has not begun
        channel.say(Message.NOT_READY, why=str(error))
        raise SystemExit(1) from None


def prepare(setup: WorkerSetup, channel: Channel) -> Any:
    """Do what has to be done once in a worker; returns the copy of the server."""
    for name in setup.preload:
        try:
            import_module(name)
        except BaseException as error:
            error.add_note(f"This was the import of {name!r}, which the server has in `preload`.")
            raise
    server = unpack(setup.server)
    if setup.levels is not None:
        forward_records(channel, setup.levels)
    if setup.init is not None:
        setup.init()
    return server


def serve_all(
    server: Any, channel: Channel, shared_status: SharedStatus, contexts: Contexts
) -> None:
    """Serve each request that the server sends, until it hangs up."""
    requests = synchronous.Requests(server, channel, shared_status, contexts)
    while (heard := channel.listen()) is not None:
        kind, body = heard
        if kind is not Message.DRAIN:
            # What a handler sets in context variables, the next one must not see.
            copy_context().run(requests.take_up, kind, body)
