"""Clients of test servers, who say what they have to say at once."""

import pytest
import trio
import trio.testing

from . import read_to_end
from .process_handlers import AsyncBack as Back  # noqa: F401

EVERYWHERE = pytest.mark.parametrize("where", ["memory", "tcp", "unix"])
ON_THE_INTERNET = pytest.mark.parametrize("where", ["memory", "tcp"])
ON_SOCKETS = pytest.mark.parametrize("where", ["tcp", "unix"])


async def echo(request, client_address, server):
    """Says everything again."""
    async for data in request:
        await request.sendall(data)


async def fails(request, client_address, server):
    """Fails with what its client has said."""
    raise KeyError(await request.recv(100))


async def speaks(server, said=b"hello\n", *, ends=False):
    """A new client of a test server that has said something, and ends its output if told to."""
    client = await server.connect()
    if said:
        await client.send_all(said)
    if ends:
        await client.send_eof()
    return client


async def pieces(server, said=b"hello\n"):
    """What comes back to a new client, as it comes."""
    return [piece async for piece in await speaks(server, said, ends=True)]


async def answer(server, said=b"hello\n"):
    """What comes back to a new client, to the end."""
    return await read_to_end(await speaks(server, said, ends=True))


async def says_and_hears(client, said, heard):
    """One exchange of a client that stays."""
    await client.send_all(said)
    assert await client.receive_some() == heard


async def all_wait():
    """Let everything happen that does not need time, in memory or in the kernel."""
    await trio.testing.wait_all_tasks_blocked(0.01)
