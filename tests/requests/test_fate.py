"""What becomes of a request: facts that whoever handles it notes, one object for each request."""

from support.datagrams import exchange
from support.memory import asked


async def test_each_request_has_its_own(autojump_clock):
    """What is noted of one is held against no other one, be it a connection or a datagram."""
    fates = []

    async def note(request, client_address, server):
        fates.append(request._fate)

    await asked(note, times=2)
    async with exchange(note, b"a", b"a"):
        assert len({id(fate) for fate in fates}) == 4
