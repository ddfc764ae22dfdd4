import pytest
import trio
from trioserver.testing import expect, expect_eof, open_scripted_server, pause, reply

SCRIPT = [
    reply(b"220 mail.example\r\n"),
    expect(b"EHLO *\r\n"),
    reply(b"250 welcome\r\n"),
    expect(b"MAIL FROM:<*>\r\n"),
    reply(b"452 no room\r\n"),
    expect(b"QUIT\r\n"),
    expect_eof(),
]


async def answer(stream):
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some()
    return line


async def deliver(stream):
    """The client under test."""
    with trio.fail_after(30):
        await answer(stream)
    for command in (b"EHLO me", b"MAIL FROM:<me@example.org>"):
        await stream.send_all(command + b"\r\n")
        if not (await answer(stream)).startswith(b"250"):
            break
    await stream.send_all(b"QUIT\r\n")
    await stream.aclose()


async def test_no_room(scripted_server):
    server = await scripted_server(*SCRIPT)
    await deliver(await server.connect())


async def test_patience(scripted_server, autojump_clock):
    server = await scripted_server(pause(3600), reply(b"220 mail.example\r\n"))
    with pytest.raises(trio.TooSlowError):
        await deliver(await server.connect())
    assert trio.current_time() == 30


async def test_block(autojump_clock):
    async with open_scripted_server(*SCRIPT) as server:
        await deliver(await server.connect())
