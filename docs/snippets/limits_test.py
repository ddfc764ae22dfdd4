import pytest
import trio
from support.pages import MEMORY, in_memory
from trioserver.testing import MemoryServer

import limits
from stop import Upper
from tutorial_echo import echo


async def leave(clients):
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("name", ["explain", "refuse"])
async def test_full(name, autojump_clock):
    """A client that finds the server full is told so, or reset."""
    server = in_memory(getattr(limits, name))
    async with server.serving():
        guests = [await server.connect() for _ in range(100)]
        unlucky = await server.connect()
        if name == "explain":
            assert await unlucky.receive_some() == b"421 too busy, try again later\r\n"
        else:
            with pytest.raises(trio.BrokenResourceError):
                await unlucky.receive_some()
        await leave(guests)


@pytest.mark.parametrize(("name", "most"), [("wait", 100), ("one_by_one", 1)])
async def test_waited_for(name, most, autojump_clock):
    """A client that finds the server full waits, and is served when a slot falls free."""
    server = in_memory(getattr(limits, name))
    async with server.serving():
        guests = [await server.connect() for _ in range(most + 1)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.requests) == most
        await guests[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [info.id for info in server.requests][-1] == most + 1
        await leave(guests[1:])


async def test_per_client(autojump_clock):
    """One address gets five connections, and another one is not concerned."""
    server = in_memory(limits.fair)
    async with server.serving():
        guests = [await server.connect(("192.0.2.1", port)) for port in range(5)]
        greedy = await server.connect(("192.0.2.1", 5))
        guests.append(await server.connect(("192.0.2.2", 0)))
        with pytest.raises(trio.BrokenResourceError):
            await greedy.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.requests) == 6
        await leave(guests)


async def test_verified(autojump_clock):
    """A client from elsewhere is turned away before its request begins."""
    server = in_memory(limits.Private(("localhost", 0), echo))
    async with server.serving():
        friend = await server.connect(("10.1.2.3", 1))
        stranger = await server.connect(("192.0.2.1", 1))
        assert await stranger.receive_some() == b""
        await friend.send_all(b"hello")
        assert await friend.receive_some() == b"hello"
        await friend.aclose()


@pytest.mark.parametrize(("talks_until", "ended_at"), [(0, 30), (110, 120)])
async def test_strict(talks_until, ended_at, autojump_clock):
    """The strict server ends a silent client after 30 s, and a busy one after 120 s."""
    server = in_memory(limits.strict(("localhost", 0), Upper))
    async with server.serving():
        client = await server.connect()
        while trio.current_time() < talks_until:
            await client.send_all(b"hello\n")
            await client.receive_some()
            await trio.sleep(10)
        assert await client.receive_some() == b""
        assert trio.current_time() == ended_at


async def test_ban(autojump_clock):
    """One client's requests are ended, and no others."""
    async with MemoryServer(MEMORY, limits.hold).serving() as server:
        bad, good = await server.connect(("192.0.2.1", 1)), await server.connect(("192.0.2.2", 1))
        await trio.testing.wait_all_tasks_blocked()
        limits.ban(server, "192.0.2.1")
        assert await bad.receive_some() == b""
        assert [info.client_address[0] for info in server.requests] == ["192.0.2.2"]
        await good.aclose()
