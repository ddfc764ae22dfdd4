"""What ``get_request`` is offered: the listener's face, and what was taken from it."""

import pytest
import trio
from support import Upper, Witness, read_to_end

import trioserver
from trioserver.testing import MemoryListener, MemoryServer


async def serve(kind, clients=1):
    """What clients get that come in one moment, and each send a line."""
    witness, got = Witness(), []
    server = kind(("memory", 1), Upper, observers=[witness])
    with trio.fail_after(60):
        async with server.serving():
            streams = [server.listener.connect_now() for _ in range(clients)]
            for stream in streams:
                try:
                    await stream.send_all(b"a\n")
                    await stream.send_eof()
                    got.append(await read_to_end(stream))
                except trio.BrokenResourceError:
                    got.append(b"reset")
    return got, witness


async def test_offer_has_the_listeners_face(autojump_clock):
    """An override can ask the listener whatever it has, of its own, too."""
    seen = []

    class Looks(MemoryServer):
        def get_request(self, listener):
            seen.append((listener.connect_now, listener.address))
            return super().get_request(listener)

    got, _ = await serve(Looks)
    assert got == [b"A\n"]
    assert {address for _, address in seen} == {("memory", 1)}
    assert isinstance(seen[0][0].__self__, MemoryListener)


async def test_second_take_drops_the_first(autojump_clock):
    """An override that takes again refuses the client that it had."""

    class TakesTwo(MemoryServer):
        def get_request(self, listener):
            super().get_request(listener)
            return super().get_request(listener)

    got, witness = await serve(TakesTwo, clients=2)
    assert got == [b"reset", b"A\n"]
    assert witness.names.count("request_refused") == 1


async def test_what_was_not_offered(autojump_clock):
    """An override that passes on another listener is told so, and the server ends."""

    class Strays(MemoryServer):
        def get_request(self, listener):
            return super().get_request(MemoryListener(("memory", 2)))

    with pytest.raises(TypeError, match="takes the listener that get_request was called with"):
        await serve(Strays)


async def test_take_within_a_take(autojump_clock):
    """A get_request that shuts the server down is called from inside, with an offer of its own."""

    class Closes(MemoryServer):
        def get_request(self, listener):
            taken = super().get_request(listener)
            self.shutdown()
            return taken

    got, witness = await serve(Closes, clients=2)
    assert got == [b"A\n", b"A\n"]
    assert witness.outcomes == [trioserver.Outcome.COMPLETED] * 2
