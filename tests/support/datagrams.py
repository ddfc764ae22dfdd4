"""Datagrams in memory, and on the virtual clock: what tests of them share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramClient, MemoryDatagramServer

from . import Witness


class OopsError(Exception):
    """What handlers of tests raise."""


class Loud(MemoryDatagramServer):
    """Keeps the errors that `handle_error` is told of, and tells nobody."""

    errors: list[Any] = attrs.field(factory=list)

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception())


async def echo(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends back what came."""
    await request.reply(request.data)


async def echo_later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends it back after ten seconds."""
    await trio.sleep(10)
    await request.reply(request.data)


def handler_of(body: Callable[[Any], object], base: Any = trioserver.DatagramRequestHandler) -> Any:
    """A handler class that does this, and awaits what comes of it."""

    class Handler(base):  # type: ignore[misc]
        async def handle(self) -> None:
            result = body(self)
            if inspect.isawaitable(result):
                await result

    return Handler


async def receive(client: MemoryDatagramClient) -> bytes:
    """The next reply, which may take its time."""
    with trio.fail_after(100):
        return await client.receive()


async def ask(server: MemoryDatagramServer, data: bytes = b"still there?") -> bytes:
    """What a new client is answered."""
    client = server.client()
    await client.send(data)
    return await receive(client)


@attrs.frozen(eq=False)
class Exchange:
    """A server that serves, one of its clients, and its events."""

    server: Any
    client: MemoryDatagramClient
    witness: Witness

    async def sends(self, *words: bytes) -> None:
        """Have the client send these at once; then all is done that can be done at once."""
        for word in words:
            self.client.send_now(word)
        await wait_all_tasks_blocked()


@asynccontextmanager
async def exchange(
    handler: Any,
    *words: bytes,
    kind: type[MemoryDatagramServer] = Loud,
    client: Any = None,
    capacity: int = 256,
    grace: float | None = None,
    **fields: Any,
) -> AsyncIterator[Exchange]:
    """Serve in memory, and have a client with this address send these words."""
    witness = fields.pop("witness", None) or Witness()
    server = kind(("memory", 1), handler, observers=[witness], **fields)
    async with server.serving(grace=grace):
        who = server.client(client, capacity=capacity)
        it = Exchange(server, who, witness)
        await it.sends(*words)
        yield it
