import pytest
import trio
import trioserver
from trioserver.testing import Latency, Slice, Stall, eof, expect, reply

from dictionary import look_up

WORDS = {b"cat": b"chat", b"dog": b"chien"}


class French(trioserver.StreamRequestHandler):
    timeout = 3600

    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(WORDS[line.strip()] + b"\n")


async def test_known_word(trio_server):
    server = await trio_server(French)
    stream = await server.connect()
    assert await look_up(stream, "cat") == "chat"


async def test_unknown_word(trio_server):
    server = await trio_server(French)
    stream = await server.connect()
    async with server.expect_error(KeyError):
        assert await look_up(stream, "cow") is None


async def test_far_away(trio_server, autojump_clock):
    server = await trio_server(French, faults=[Latency(15 * 60)])
    stream = await server.connect()
    assert await look_up(stream, "cat", patience=3600) == "chat"
    assert trio.current_time() == 30 * 60


async def test_patience(trio_server, autojump_clock):
    server = await trio_server(French)
    stream = await server.connect()
    with server.faults.during(Stall(towards="client")):
        assert await look_up(stream, "cat") is None
    assert trio.current_time() == 60


async def test_half_an_answer(scripted_server):
    server = await scripted_server(expect(b"cat\n"), reply(b"ch"), eof())
    stream = await server.connect()
    assert await look_up(stream, "cat") is None


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_in_pieces(size, trio_server, autojump_clock):
    server = await trio_server(French, faults=[Slice(size)])
    stream = await server.connect()
    assert await look_up(stream, "dog") == "chien"
