"""The client, and servers that keep to a script."""

import pytest
import trio
from weather import Unavailable, ask

from trioserver.testing import ServerFactory, eof, expect, expect_eof, pause, reply


async def test_whole_conversation(scripted_server: ServerFactory) -> None:
    script = [
        expect(b"GET Oslo\n"),
        reply(b"OK 21.5\n"),
        expect(b"GET *\n"),
        reply(b"OK -3\n"),
        expect_eof(),
    ]
    server = await scripted_server(*script)
    async with await server.connect() as stream:
        assert await ask(stream, "Oslo") == 21.5
        assert await ask(stream, "Tromsø") == -3


@pytest.mark.parametrize("answer", [b"OK 2", b"OK\n", b"GOOD 21.5\n"])
async def test_wrong_answer(answer: bytes, scripted_server: ServerFactory) -> None:
    server = await scripted_server(expect(b"GET Oslo\n"), reply(answer), eof())
    with pytest.raises(Unavailable):
        await ask(await server.connect(), "Oslo")


async def test_slow_answer(scripted_server: ServerFactory, autojump_clock: object) -> None:
    script = [expect(b"GET Oslo\n"), reply(b"OK 2"), pause(600), reply(b"1.5\n")]
    server = await scripted_server(*script)
    assert await ask(await server.connect(), "Oslo") == 21.5
    assert trio.current_time() == 600
