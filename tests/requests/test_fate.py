"""What becomes of a request: facts that whoever handles it notes, one object for each request."""

import logging

import trio
from support import Witness, read_to_end

from trioserver import BaseRequestHandler, Outcome
from trioserver.testing import MemoryDatagramServer, MemoryServer


class Forgetful(MemoryServer):
    """Constructs a handler for the first of its clients and does not await it."""

    async def finish_request(self, request, client_address):
        handling = BaseRequestHandler(request, client_address, self)
        if request.info.id > 1:
            await handling


async def test_each_request_has_its_own(autojump_clock, caplog):
    """What one request's hook has forgotten is held against no other one."""
    caplog.set_level(logging.CRITICAL, "trioserver.error")
    witness = Witness()
    server = Forgetful(("memory", 1), BaseRequestHandler, observers=[witness])
    with trio.fail_after(60):
        async with server.serving():
            for _ in range(2):
                client = await server.connect()
                await client.send_eof()
                await read_to_end(client)
    assert witness.outcomes == [Outcome.FAILED, Outcome.COMPLETED]


async def test_each_datagram_has_its_own(autojump_clock):
    """A datagram is a request, too."""
    fates = []

    async def note(request, client_address, server):
        fates.append(request._fate)

    server = MemoryDatagramServer(("memory", 1), note)
    with trio.fail_after(60):
        async with server.serving():
            client = server.client()
            for _ in range(2):
                await client.send(b"a")
            await trio.testing.wait_all_tasks_blocked()
    assert len({id(fate) for fate in fates}) == 2
