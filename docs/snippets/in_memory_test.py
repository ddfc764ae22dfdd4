import errno
import os

import pytest
import trio
import trioserver
from trioserver.testing import MemoryMixIn, MemoryServer


class Greeter(trioserver.StreamRequestHandler):
    async def handle(self):
        name = (await self.rfile.readline()).decode().strip()
        await self.wfile.write(f"{self.server.greeting}, {name}\n".encode())


class GreetingServer(trioserver.TCPServer):
    greeting: str = "Hello"


class InMemory(MemoryMixIn, GreetingServer):
    pass


async def test_greets(autojump_clock):
    async with InMemory(("memory", 1), Greeter).serving() as server:
        client = await server.connect()
        await client.send_all(b"Ada\n")
        assert await client.receive_some() == b"Hello, Ada\n"


async def test_silent_client_is_ended_after_five_minutes(autojump_clock):
    async with InMemory(("memory", 1), Greeter).serving() as server:
        client = await server.connect()
        assert await client.receive_some() == b""
        assert trio.current_time() == 300


class Records(trioserver.Observer):
    def __init__(self):
        self.outcomes = []

    def request_finished(self, info, outcome, record):
        self.outcomes.append(outcome)


async def test_line_that_never_ends_is_refused(autojump_clock):
    records = Records()
    server = InMemory(("memory", 1), Greeter, observers=[records])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"x" * 65_537)
        await client.receive_some()
    assert records.outcomes == ["refused"]


class Slow(MemoryServer):
    memory_capacity = 10


async def test_reader_that_does_not_read_is_ended(autojump_clock):
    async def talk(request, client_address, server):
        await request.send_all(b"more than ten bytes")

    records = Records()
    async with Slow(("memory", 1), talk, observers=[records]).serving() as server:
        await server.connect()
        await trio.sleep(30)
        await trio.testing.wait_all_tasks_blocked()
        assert records.outcomes == ["timed_out"]


async def test_shortage_of_descriptors_is_survived(autojump_clock):
    async with InMemory(("memory", 1), Greeter).serving() as server:
        server.listener.fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        client = await server.connect()
        await client.send_all(b"Ada\n")
        assert await client.receive_some() == b"Hello, Ada\n"
        assert server.statistics().accept_errors == 1


async def test_handler_error_fails_the_test(autojump_clock):
    server = InMemory(("memory", 1), Greeter, greeting="Hi", propagate_errors=True)
    with pytest.raises(UnicodeDecodeError):  # noqa: PT012  (the block raises when it is left)
        async with server.serving():
            client = await server.connect()
            await client.send_all(b"\xff\n")
            await client.receive_some()


async def test_greets_on_a_socket():
    server = GreetingServer(("127.0.0.1", 0), Greeter)
    async with server.serving():
        async with await trio.open_tcp_stream(*server.server_address) as client:
            await client.send_all(b"Ada\n")
            assert await client.receive_some() == b"Hello, Ada\n"
