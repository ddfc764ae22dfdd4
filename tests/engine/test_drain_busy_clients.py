"""Drains under clients that send the next request as soon as they have an answer.

A request has begun if its first byte was there before the answer to the one before was sent.
Otherwise such clients would keep a server from ending for as long as its grace lasts.
"""

import pytest
import trio
from support import IdlesMixIn, connect, read_to_end, reading, running, until

import trioserver
from trioserver.testing import MemoryServer

THERE = ("127.0.0.1", 0)
GRACE = 8
"""Seconds; nobody needs them."""

DOORS = [
    pytest.param(trioserver.TCPServer, reading.AsyncTwoLines, id="task"),
    pytest.param(trioserver.TCPServer, reading.AsyncIdleTwoLines, id="task-idle"),
    pytest.param(trioserver.ThreadingTCPServer, reading.TwoLines, id="thread"),
    pytest.param(trioserver.ProcessTCPServer, reading.TwoLines, id="process"),
    pytest.param(trioserver.ProcessTCPServer, reading.AsyncTwoLines, id="process-async"),
]


class Lines(trioserver.StreamRequestHandler):
    """Works on each line for a millisecond, and answers it."""

    async def handle(self):
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line):
        self.server.executed += 1
        await trio.sleep(0.001)
        await self.wfile.write(line.upper())
        for _ in range(10):  # time enough for the client's next request
            await trio.lowlevel.checkpoint()


class Buffered(Lines):
    """Has its answers sent when it waits for the next line."""

    wbufsize = -1


class Idle(IdlesMixIn, Lines):
    """Waits in an idle block."""


@pytest.mark.slow
@pytest.mark.parametrize("handler", [Lines, Buffered, Idle])
@pytest.mark.parametrize("clients", [1, 50, 500])
async def test_ends_after_the_answers_in_flight(handler, clients, autojump_clock):
    """GS-03: a drain is over when those who were being served have their answers, and no later."""
    limits = trioserver.Limits(requests=clients)
    server = MemoryServer(("memory", 1), handler, limits=limits)
    server.executed = 0
    answered = 0

    async def client():
        nonlocal answered
        async with await server.connect() as stream:
            await stream.send_all(b"hello\n")
            while await stream.receive_some() == b"HELLO\n":
                answered += 1
                await stream.send_all(b"hello\n")

    async with server.serving(), trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
        await trio.sleep(0.0205)
        before = server.executed
        server.shutdown(GRACE)
        report = await server.wait_closed()
    assert report.duration < 0.002
    assert server.executed == answered
    assert server.executed - before <= clients
    assert {str(record.outcome) for record in report.requests} == {"drained"}


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "handler"), DOORS)
async def test_next_request_counts_if_it_came_before_the_answer(kind, handler, *, early):
    """Who waits for each answer is told the end, however soon the next request comes after it."""
    server = kind(THERE, handler)
    expected = b"TWO\nTHREE\n" if early else b"TWO\n"
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"one\n.\n")
            assert await client.receive_some() == b"ONE\n"
            await client.send_all(b"two\n")
            await until(lambda: server.snapshot().requests[0].bytes_received == 10)
            server.shutdown(GRACE)
            await client.send_all(b".\nthree\n.\n" if early else b".\n")
            answer = b""
            while len(answer) < len(expected):
                answer += await client.receive_some()
            await client.send_all(b"four\n.\n")
            assert answer + await read_to_end(client) == expected
        report = await server.wait_closed()
    assert report.duration < GRACE / 2
    assert [str(record.outcome) for record in report.requests] == ["drained"]


@pytest.mark.parametrize(
    ("said", "left_unread", "lingers"),
    [(b"", b"", False), (b"read", b"", False), (b"read", b"unread", True), (b"hello\n", b"", True)],
    ids=["silent", "told nothing", "unread input", "answered"],
)
async def test_end_is_not_put_off_for_who_was_told_nothing(
    said, left_unread, *, lingers, autojump_clock
):
    """A drain lingers where a reply could be lost, or input would make the end a reset."""

    async def handler(request, client_address, server):
        if said and b"\n" in await request.recv():
            await request.sendall(b"HELLO\n")
        await draining.wait()

    draining = trio.Event()
    server = MemoryServer(("memory", 1), handler)
    async with server.serving():
        client = await server.connect()
        await client.send_all(said)
        await trio.sleep(1)
        await client.send_all(left_unread)
        server.shutdown()
        draining.set()
        report = await server.wait_closed()
    assert report.duration == (server.timeouts.linger if lingers else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "handler"), DOORS)
async def test_silent_client_does_not_put_off_the_end(kind, handler):
    """The same of a client that never says a byte, on a real socket, in every mode."""
    server = kind(THERE, handler)
    async with running(server), await connect(server):
        await until(lambda: server.requests)
        await trio.sleep_until(server.requests[0].started + 0.6)  # it is not new any more
        server.shutdown()
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["drained"]
    assert report.duration < server.timeouts.linger / 2
