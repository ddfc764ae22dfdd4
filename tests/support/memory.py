"""Servers in memory whose events are written down, and clients of few words."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trioserver.testing import MemoryListener, MemoryServer

from . import Witness, connect, read_to_end
from .scenes import hear

MEMORY = ("memory", 1)


def memory(handler, kind=MemoryServer, **fields):
    """A server in memory, the last of whose observers is ``server.witness``."""
    witness = Witness()
    observers = [*fields.pop("observers", ()), witness]
    server = kind(MEMORY, handler, observers=observers, **fields)
    server.witness = witness
    return server


def server_over(transport, *capacity):
    """A server class whose connections are over this class of `MemoryTransport`."""

    class Listener(MemoryListener):
        def accept_now(self):
            accepted = super().accept_now()
            if accepted is None:
                return None
            pipe, client_address = accepted
            return transport(pipe.local_address, pipe._incoming, pipe._outgoing), client_address

    class Server(MemoryServer):
        async def server_bind(self):
            self.listener = Listener(self.server_address, *capacity)
            return [self.listener]

    return Server


def raising(error):
    """A handler that raises ``error``."""

    async def fail(request, client_address, server):
        raise error

    return fail


def noting(kind, names, note):
    """A server class, whose hooks of these names begin with ``note(server, name, *arguments)``.

    It may be an async function.
    """

    def hook(name):
        async def noted(self, *arguments):
            noting = note(self, name, *arguments)
            if noting is not None:
                await noting
            return await getattr(kind, name)(self, *arguments)

        return noted

    return type("Noting", (kind,), {name: hook(name) for name in names})


def assert_bare(found, error):
    """It is that very object; of a group, which may have been split, what was in it."""
    if isinstance(error, BaseExceptionGroup):
        assert (found.message, found.exceptions) == (error.message, error.exceptions)
    else:
        assert found is error


async def raises_bare(error, call, *arguments):
    """Await a call that raises just that, as the very object."""
    with pytest.raises(type(error)) as caught:
        await call(*arguments)
    assert_bare(caught.value, error)


@asynccontextmanager
async def ending_by(error, server):
    """Serve in the background of a block; the server ends with just that. Gives what cancels it."""

    async def serve(*, task_status):
        with scope:
            await raises_bare(error, partial(server.serve_forever, task_status=task_status))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield scope


async def asking(server, question=b"hello\n", address=None):
    """A client, in memory or on a real socket, that has asked, and has no more to say."""
    in_memory = isinstance(server, MemoryServer)
    client = await (server.connect(address) if in_memory else connect(server))
    if question:
        await client.send_all(question)
    await client.send_eof()
    return client


async def ask(server, question=b"hello\n", address=None):
    """What a client is answered, to the end, who says all that it has to say at once."""
    async with await asking(server, question, address) as client:
        return await read_to_end(client)


async def asked(*arguments, times=1, **fields):
    """A server in memory that some have asked, one by one, as ``server.answers`` has it; closed."""
    server = memory(*arguments, **fields)
    async with server.serving():
        server.answers = [await ask(server) for _ in range(times)]
    return server


async def ended(client):
    """What a client gets until the server has ended or reset the connection."""
    got, _, _ = await hear(client)
    await client.aclose()
    return got


async def come(server, number=1):
    """So many clients, who do nothing but are there, and have been seen to."""
    clients = [await server.connect() for _ in range(number)]
    await wait_all_tasks_blocked()
    return clients


def leaves(error):
    """The exceptions in nested groups, however deep."""
    found = [error]
    for one in found:  # it grows
        found.extend(getattr(one, "exceptions", ()))
    return [one for one in found if not isinstance(one, BaseExceptionGroup)]
