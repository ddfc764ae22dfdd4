import trio
from trioserver.testing import MemoryDatagramServer

from datagrams import Upper, echo


async def test_answers_in_upper_case(autojump_clock):
    async with MemoryDatagramServer(("memory", 1), Upper).serving() as server:
        client = server.client()
        await client.send(b"hello")
        assert await client.receive() == b"HELLO"


async def test_says_nothing_to_nothing(autojump_clock):
    async with MemoryDatagramServer(("memory", 1), Upper).serving() as server:
        client = server.client()
        await client.send(b"")
        await trio.testing.wait_all_tasks_blocked()
        assert client.received() == []


async def test_client_that_does_not_receive_is_given_up(autojump_clock):
    async with MemoryDatagramServer(("memory", 1), echo).serving() as server:
        client = server.client(capacity=1)
        await client.send(b"one")
        await client.send(b"another")
        await trio.sleep(30)
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().outcomes["timed_out"] == 1
