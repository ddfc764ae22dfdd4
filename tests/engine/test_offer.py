"""What ``get_request`` is offered: the listener's face, and what was taken from it."""

import pytest
from support import Upper
from support.scenes import Scene, Visit, end

from trioserver.testing import MemoryListener, MemoryServer

LINE = {0.1: [b"a\n", end]}


def of_two(get_request):
    """Two clients that come in one moment, of a server with this override."""
    kind = type("Takes", (MemoryServer,), {"get_request": get_request})
    return Scene(Upper, LINE, kind=kind).beside(Visit(LINE).gives(b"A\n"))


async def test_offer_has_the_listeners_face(autojump_clock):
    """An override can ask the listener whatever it has, of its own, too."""
    seen = []

    def looks(self, listener):
        seen.append((listener.connect_now.__self__, listener.address))
        return MemoryServer.get_request(self, listener)

    played = await of_two(looks).gives(b"A\n").play()
    assert set(seen) == {(played.server.listener, ("memory", 1))}


async def test_second_take_drops_the_first(autojump_clock):
    """An override that takes again refuses the client that it had."""

    def takes_two(self, listener):
        MemoryServer.get_request(self, listener)
        return MemoryServer.get_request(self, listener)

    played = await of_two(takes_two).gives(breaks=True, outcomes=["completed"]).play()
    assert len(played.refusals) == 1


async def test_what_was_not_offered(autojump_clock):
    """An override that passes on another listener is told so, and the server ends."""

    def strays(self, listener):
        return MemoryServer.get_request(self, MemoryListener(("memory", 2)))

    with pytest.raises(TypeError, match="takes the listener that get_request was called with"):
        await of_two(strays).play()


async def test_take_within_a_take(autojump_clock):
    """A get_request that shuts the server down is called from inside, with an offer of its own."""

    def closes(self, listener):
        taken = MemoryServer.get_request(self, listener)
        self.shutdown()
        return taken

    await of_two(closes).gives(b"A\n", outcomes=["completed"] * 2).play()
