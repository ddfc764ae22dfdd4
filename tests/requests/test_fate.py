"""What becomes of a request: facts that whoever handles it notes, one object for each request."""

from support.datagrams import exchange
from support.memory import asked

from trioserver import BaseRequestHandler
from trioserver.testing import MemoryServer


class Forgetful(MemoryServer):
    """Constructs a handler for the first of its clients and does not await it."""

    async def finish_request(self, request, client_address):
        handling = BaseRequestHandler(request, client_address, self)
        if request.info.id > 1:
            await handling


async def test_each_request_has_its_own(autojump_clock):
    """What one request's hook has forgotten is held against no other one, nor a datagram's."""
    server = await asked(BaseRequestHandler, kind=Forgetful, times=2)
    assert server.witness.outcomes == ["failed", "completed"]
    fates = []

    async def note(request, client_address, server):
        fates.append(request._fate)

    async with exchange(note, b"a", b"a"):
        assert len({id(fate) for fate in fates}) == 2
