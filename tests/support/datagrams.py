"""Datagrams in memory, and on the virtual clock: what tests of them share."""

import inspect
import sys
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

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())


async def echo(request, client_address, server):
    """Sends back what came."""
    await request.reply(request.data)


async def echo_later(request, client_address, server):
    """Sends it back after ten seconds."""
    await trio.sleep(10)
    await request.reply(request.data)


def handler_of(body, base=trioserver.DatagramRequestHandler):
    """A handler class that does this, and awaits what comes of it."""

    async def handle(self):
        if inspect.isawaitable(result := body(self)):
            await result

    return type("Handler", (base,), {"handle": handle})


async def receive(client):
    """The next reply, which may take its time."""
    with trio.fail_after(100):
        return await client.receive()


async def ask(server, data=b"still there?"):
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

    async def sends(self, *words):
        """Have the client send these at once; then all is done that can be done at once."""
        for word in words:
            self.client.send_now(word)
        await wait_all_tasks_blocked()


@asynccontextmanager
async def exchange(handler, *words, kind=Loud, client=None, capacity=256, grace=None, **fields):
    """Serve in memory, and have a client with this address send these words."""
    witness = fields.pop("witness", None) or Witness()
    server = kind(("memory", 1), handler, observers=[witness], **fields)
    async with server.serving(grace=grace):
        it = Exchange(server, server.client(client, capacity=capacity), witness)
        await it.sends(*words)
        yield it
