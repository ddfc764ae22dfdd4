"""Shutdown: the drain, the waiting room, the grace, the cut, the clean-up, and lingering."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
import trio
from support import Upper, Witness, hold, plain_client, read_to_end
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver import Connection, Draining, Limits, Outcome, Timeouts
from trioserver._sockets.stream_sockets import SocketListener
from trioserver.testing import MemoryMixIn, MemoryServer


class InMemory(MemoryServer):
    """A server in memory; who waits for ever fails, in an instant of real time."""

    @asynccontextmanager
    async def serving(self, grace: float | None = None) -> AsyncIterator[Self]:
        with trio.fail_after(80_000):
            async with super().serving(grace):
                yield self


def in_memory(handler: Any, **fields: Any) -> InMemory:
    """A server in memory."""
    return InMemory(("memory", 1), handler, **fields)


def on_tcp(handler: Any, **fields: Any) -> trioserver.TCPServer:
    """A server on the loopback interface."""
    return trioserver.TCPServer(("127.0.0.1", 0), handler, **fields)


@asynccontextmanager
async def on_loopback(server: trioserver.BaseServer) -> AsyncIterator[Any]:
    """Serve on real sockets, for ten real seconds at most; gives the address."""
    with trio.fail_after(10):
        async with server.serving():
            yield server.server_address


async def a_second(request: Connection, client_address: Any, server: Any) -> None:
    """Works for a second, then replies."""
    await trio.sleep(1)
    await request.sendall(b"done")


async def recv_forever(request: Connection, client_address: Any, server: Any) -> None:
    """Reads with plain ``recv`` and sends back what it gets, to the end of input."""
    while data := await request.recv():
        await request.sendall(data)


class Jobs(trioserver.BaseRequestHandler):
    """Sends its client every job of a channel, and waits for the next in an idle block."""

    source: trio.MemoryReceiveChannel[bytes]

    async def handle(self) -> None:
        while True:
            with self.idle():
                job = await self.source.receive()
            await self.request.sendall(job)


def jobs_from(source: trio.MemoryReceiveChannel[bytes]) -> type[Jobs]:
    """`Jobs`, with a channel to take them from."""
    return type("JobsFromHere", (Jobs,), {"source": source})


async def close(client: Connection) -> None:
    """Close a client's connection, without a checkpoint."""
    client.close()


async def reset(client: Connection) -> None:
    """Reset it, without a checkpoint."""
    client.reset()


async def last_words(client: Connection) -> bytes:
    """Everything a client gets to the end; then it closes, so that nobody lingers for it."""
    async with client:
        return await read_to_end(client)


# The wait between two requests: more() ------------------------------------------


async def test_more_ends_at_once_between_requests(autojump_clock: MockClock) -> None:
    """GS-03: a keep-alive connection that is idle at the drain is closed at once."""
    async with in_memory(Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(60)
        server.shutdown(5)
        assert await last_words(client) == b"ONE\n"
        report = await server.wait_closed()
    assert trio.current_time() == 60
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]
    assert report.duration == 0


async def test_more_is_true_for_a_request_that_has_begun(autojump_clock: MockClock) -> None:
    """A request whose first byte is there at the drain is read to its end, and answered."""
    async with in_memory(Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\ntw")
        await trio.sleep(10)
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"o\n")
        assert await last_words(client) == b"ONE\nTWO\n"
        assert trio.current_time() == 14


async def test_more_has_a_last_look_at_the_kernel(autojump_clock: MockClock) -> None:
    """A byte that arrived in the very step of the drain begins a request."""
    async with in_memory(Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(60)
        await client.send_all(b"t")  # nobody has run since
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"wo\n")
        assert await last_words(client) == b"ONE\nTWO\n"


async def test_more_has_a_last_look_at_the_kernel_on_tcp() -> None:
    """The same on real sockets, for many clients, with whole, half and pipelined requests."""
    server = on_tcp(Upper)
    async with on_loopback(server) as address:
        clients = [plain_client(address) for _ in range(30)]
        for client in clients:
            client.sendall(b"one\n")
            await trio.to_thread.run_sync(client.recv, 4)
        for number, client in enumerate(clients):
            client.sendall((b"two\n", b"tw", b"two\nthree\n")[number % 3])
        server.shutdown(8)
        await wait_all_tasks_blocked()
        for number, client in enumerate(clients):
            with client:
                if number % 3 == 1:
                    client.sendall(b"o\n")
                await wait_all_tasks_blocked()
                expected = b"TWO\nTHREE\n" if number % 3 == 2 else b"TWO\n"
                assert await trio.to_thread.run_sync(read_all, client) == expected


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end that a blocking socket gets."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


async def test_more_serves_what_is_buffered_when_the_drain_comes(
    autojump_clock: MockClock,
) -> None:
    """Pipelined requests that were received in one piece are all answered, then it ends."""

    class Slow(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            async for line in self.rfile:
                await trio.sleep(1)
                await self.wfile.write(line.upper())

    async with in_memory(Slow).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\ntwo\nthree\n")
        await trio.sleep(0.5)
        server.shutdown(5)
        assert await last_words(client) == b"ONE\nTWO\nTHREE\n"
        assert trio.current_time() == 3


async def test_more_serves_what_arrives_during_the_last_request(
    autojump_clock: MockClock,
) -> None:
    """A request that waits in the kernel when more() is called in a drain is served."""

    class Slow(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            async for line in self.rfile:
                await trio.sleep(1)
                await self.wfile.write(line.upper())

    async with in_memory(Slow).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(0.5)
        server.shutdown(5)
        await trio.sleep(0.25)
        await client.send_all(b"two\n")
        assert await last_words(client) == b"ONE\nTWO\n"


@pytest.mark.parametrize(
    ("leave", "outcome"),
    [(Connection.send_eof, "completed"), (close, "completed"), (reset, "disconnected")],
)
async def test_client_that_leaves_in_the_step_of_the_drain(
    leave: Any, outcome: str, autojump_clock: MockClock
) -> None:
    """What the client did counts, whatever was about to be done to it."""
    async with in_memory(Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(10)
        assert await client.receive_some() == b"ONE\n"
        await leave(client)
        server.shutdown(5)
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == [outcome]


async def test_more_stays_false_in_a_drain(autojump_clock: MockClock) -> None:
    """Asked again, it says the same, at once."""
    answers: list[tuple[bool, float]] = []

    class Stubborn(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.rfile.readline()
            while len(answers) < 3:
                answers.append((await self.rfile.more(), trio.current_time()))

    async with in_memory(Stubborn).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(60)
        server.shutdown(5)
        await server.wait_closed()
    assert answers == [(False, 60)] * 3


async def test_more_looks_again_after_its_flush(autojump_clock: MockClock) -> None:
    """A request that arrives while more() flushes a buffered reply is not lost to the drain."""

    class Buffered(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self) -> None:
            async for line in self.rfile:
                await self.wfile.write(2 * line)

    server = in_memory(Buffered)
    server.memory_capacity = 4  # type: ignore[misc]  (the reply has to wait for its reader)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"one\n")
        await wait_all_tasks_blocked()
        assert server.snapshot().requests[0].state == "writing"
        await client.send_all(b"two\n")
        server.shutdown(5)
        assert await last_words(client) == b"one\none\ntwo\ntwo\n"


# A new connection ---------------------------------------------------------------


@pytest.mark.parametrize("handler", [Upper, recv_forever])
async def test_new_connection_is_idle_after_half_a_second(
    handler: Any, autojump_clock: MockClock
) -> None:
    """GS-04: one that has never sent a byte is ended half a second after its accept."""
    async with in_memory(handler).serving() as server:
        client = await server.connect()
        await trio.sleep(0.125)
        server.shutdown(60)
        assert await last_words(client) == b""
        assert trio.current_time() == 0.5
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]
    assert report.duration == 0.375


@pytest.mark.parametrize("handler", [Upper, recv_forever])
async def test_silent_connection_is_idle_at_once(handler: Any, autojump_clock: MockClock) -> None:
    """GS-04: one that has been silent for longer than that is ended by the drain itself."""
    async with in_memory(handler).serving() as server:
        client = await server.connect()
        await trio.sleep(0.5)
        server.shutdown(60)
        assert await last_words(client) == b""
        assert trio.current_time() == 0.5


@pytest.mark.parametrize("handler", [Upper, recv_forever])
async def test_new_connection_can_still_send_its_first_request(
    handler: Any, autojump_clock: MockClock
) -> None:
    """GS-04: a first byte that comes within that half second is in time."""
    async with in_memory(handler).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(60)
        await trio.sleep(0.4375)
        await client.send_all(b"42\n")
        await client.send_eof()
        assert await last_words(client) == b"42\n"
        assert trio.current_time() == 0.4375


async def test_connections_of_different_ages_end_each_at_its_time(
    autojump_clock: MockClock,
) -> None:
    """GS-04: the half second is each connection's own."""
    ends: list[float] = []

    async def watch(client: Connection) -> None:
        await last_words(client)
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery, in_memory(Upper).serving() as server:
        for _ in range(4):
            nursery.start_soon(watch, await server.connect())
            await trio.sleep(0.125)
        server.shutdown(60)
        await server.wait_closed()
    assert ends == [0.5, 0.625, 0.75, 0.875]


async def test_recv_is_not_interrupted_after_the_first_byte(autojump_clock: MockClock) -> None:
    """A plain recv() says nothing of requests: in the middle of a connection it waits on."""
    async with in_memory(recv_forever).serving() as server:
        client = await server.connect()
        await client.send_all(b"one")
        await trio.sleep(60)
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"two")
        await trio.sleep(10)
        assert await last_words(client) == b"onetwo"
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["cancelled"]
    assert report.duration == 5


async def test_recv_raises_draining_for_the_first_byte(autojump_clock: MockClock) -> None:
    """A handler that waits for its first byte can catch what ends the wait, and say goodbye."""

    async def polite(request: Connection, client_address: Any, server: Any) -> None:
        with pytest.raises(Draining):
            await request.recv()
        await request.sendall(b"goodbye")

    async with in_memory(polite).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"goodbye"


# Other waits between requests: idle() --------------------------------------------


async def test_idle_raises_draining_from_a_wait(autojump_clock: MockClock) -> None:
    """When the server drains, the block raises, with the request's facts; nothing falls through."""
    came_by: list[object] = []

    async def waits(request: Connection, client_address: Any, server: Any) -> None:
        try:
            with request.idle():
                await trio.sleep_forever()
            came_by.append("fell through")
        except Draining as draining:
            came_by.append(draining.info)
            raise

    async with in_memory(waits).serving() as server:
        await server.connect()
        await trio.sleep(1)
        [info] = server.requests
        server.shutdown(60)
        report = await server.wait_closed()
    assert came_by == [info]
    [record] = report.drained
    assert record.reason
    assert record.info is info
    assert trio.current_time() == 1  # nothing was sent, so nobody lingers


async def test_draining_let_out_is_no_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that lets it out has ended properly: no handle_error, one INFO line."""
    caplog.set_level(logging.INFO, "trioserver")

    async def waits(request: Connection, client_address: Any, server: Any) -> None:
        with request.idle():
            await trio.sleep_forever()

    async with in_memory(waits).serving() as server:
        await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        await server.wait_closed()
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert sum(" drained " in record.getMessage() for record in caplog.records) == 1


class BuffersThenIdles(trioserver.StreamRequestHandler):
    """Leaves its reply in the buffer, and lets `Draining` out of the wait for the next request."""

    wbufsize = -1

    async def handle(self) -> None:
        await self.wfile.write(await self.rfile.readline())
        with self.idle():
            await trio.sleep_forever()


class BuffersThenIdlesAndHasAFinish(BuffersThenIdles):
    async def finish(self) -> None:
        """Its own, which knows nothing of the buffer."""


async def buffers_then_idles(request: Connection, client_address: Any, server: Any) -> None:
    """The same as a function."""
    await trioserver.RequestWriter(request, -1).write(await request.recv())
    with request.idle():
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "handler", [BuffersThenIdles, BuffersThenIdlesAndHasAFinish, buffers_then_idles]
)
async def test_reply_in_the_buffer_is_sent_when_idle_raises(
    handler: Any, autojump_clock: MockClock
) -> None:
    """Who lets it out has ended properly, so what he wrote reaches the client."""
    async with in_memory(handler).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"one\n"
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]


async def test_reply_in_the_buffer_that_nobody_takes_is_timed_out(
    autojump_clock: MockClock,
) -> None:
    """The last flush keeps to the write time-out, also of a request that the drain ended."""

    async def buffers(request: Connection, client_address: Any, server: Any) -> None:
        await trioserver.RequestWriter(request, 1_000_000).write(bytes(999_999))
        with request.idle():
            await trio.sleep_forever()

    async with in_memory(buffers).serving() as server:
        await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.TIMED_OUT]
    assert trio.current_time() == 1 + Timeouts().write


async def test_draining_caught_lets_the_handler_say_goodbye(autojump_clock: MockClock) -> None:
    """GS-07: what is written after it reaches the client, before its end of input."""
    send, source = trio.open_memory_channel[bytes](0)

    class Polite(Jobs):
        async def handle(self) -> None:
            try:
                await super().handle()
            except Draining:
                await trio.sleep(2)
                await self.request.sendall(b"goodbye")

    Polite.source = source
    async with in_memory(Polite).serving() as server:
        client = await server.connect()
        await send.send(b"job ")
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"job goodbye"
        assert trio.current_time() == 3
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]


async def test_idle_never_loses_or_repeats_what_arrived_in_the_same_step(
    autojump_clock: MockClock,
) -> None:
    """A job that is handed over in the step of the drain is done, once; the next wait raises."""
    send, source = trio.open_memory_channel[bytes](0)
    async with in_memory(jobs_from(source)).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        send.send_nowait(b"job")
        server.shutdown(60)
        assert await last_words(client) == b"job"
        assert trio.current_time() == 1
        with pytest.raises(trio.WouldBlock):
            send.send_nowait(b"nobody waits for this one")


async def test_idle_takes_no_job_in_the_step_after_the_drain(autojump_clock: MockClock) -> None:
    """A job that is offered right after the drain stays where it is."""
    send, source = trio.open_memory_channel[bytes](1)
    async with in_memory(jobs_from(source)).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        send.send_nowait(b"job")
        assert await last_words(client) == b""
        assert source.receive_nowait() == b"job"


async def test_idle_entered_in_a_drain_raises_at_its_first_wait(autojump_clock: MockClock) -> None:
    """A handler that comes to its idle block after the drain began does not wait in it."""
    came_by: list[str] = []

    async def works_then_waits(request: Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(2)
        with request.idle():
            came_by.append("inside")
            await trio.lowlevel.checkpoint()
            came_by.append("after the wait")

    async with in_memory(works_then_waits).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b""
        assert trio.current_time() == 2
    assert came_by == ["inside"]


async def test_idle_that_does_not_wait_is_no_wait(autojump_clock: MockClock) -> None:
    """A block that had what it wanted without waiting ends as if nothing were."""

    async def finds_at_once(request: Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(2)
        with request.idle():
            answer = b"found"
        await request.sendall(answer)

    async with in_memory(finds_at_once).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"found"
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.COMPLETED]


class Parser(trioserver.BaseRequestHandler):
    """Waits for four-byte commands in an idle block, with ``recv`` and a parser of its own."""

    async def handle(self) -> None:
        parsed = bytearray()
        while True:
            with self.idle():
                while len(parsed) < 4:
                    data = await self.request.recv(4 - len(parsed))
                    if not data:
                        return
                    parsed += data
            await self.request.sendall(parsed.upper())
            parsed.clear()


async def test_idle_is_inert_while_bytes_are_readable(autojump_clock: MockClock) -> None:
    """Bytes that are in the kernel at the instant of the drain begin a request."""
    async with in_memory(Parser).serving() as server:
        client = await server.connect()
        await client.send_all(b"one.")
        await trio.sleep(60)
        await client.send_all(b"tw")  # nobody has run since
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"o.")
        assert await last_words(client) == b"ONE.TWO."


async def test_idle_is_inert_once_bytes_were_received_in_it(autojump_clock: MockClock) -> None:
    """A parser that is in the middle of a request is not interrupted."""
    async with in_memory(Parser).serving() as server:
        client = await server.connect()
        await client.send_all(b"one.tw")
        await trio.sleep(60)
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"o.")
        assert await last_words(client) == b"ONE.TWO."


async def test_idle_is_inert_once_buffered_bytes_were_taken_in_it(
    autojump_clock: MockClock,
) -> None:
    """The same for bytes that were in the buffer before the block was entered."""

    class Mixed(Parser):
        async def handle(self) -> None:
            buffered = await trioserver.RequestReader(self.request).peek()
            assert buffered == b"on"
            await super().handle()

    async with in_memory(Mixed).serving() as server:
        client = await server.connect()
        await client.send_all(b"on")
        await trio.sleep(60)
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"e.")
        assert await last_words(client) == b"ONE."


async def test_idle_is_inert_once_a_last_look_s_bytes_were_taken_in_it(
    autojump_clock: MockClock,
) -> None:
    """Bytes that the drain's look had put in the buffer belong to a request that has begun."""

    class SlowParser(Parser):
        async def handle(self) -> None:
            await trio.sleep(0.125)  # half a request arrives, and then the drain
            await super().handle()

    async with in_memory(SlowParser).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        await client.send_all(b"on")
        server.shutdown(5)
        await trio.sleep(4)
        await client.send_all(b"e.")
        assert await last_words(client) == b"ONE."


async def test_idle_is_inert_while_bytes_are_buffered(autojump_clock: MockClock) -> None:
    """Whatever the block waits for, a request that is in the buffer goes first."""

    async def peeks(request: Connection, client_address: Any, server: Any) -> None:
        reader = trioserver.RequestReader(request)
        await reader.peek()
        with request.idle():
            await trio.sleep(2)
        await request.sendall(await reader.readline())

    async with in_memory(peeks).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"one\n"
        assert trio.current_time() == 2


async def test_idle_of_a_new_connection_has_half_a_second(autojump_clock: MockClock) -> None:
    """GS-04: the first request may be on its way there, too."""
    async with in_memory(Parser).serving() as server:
        silent, quick = await server.connect(), await server.connect()
        await trio.sleep(0.125)
        server.shutdown(60)
        await trio.sleep(0.25)
        await quick.send_all(b"one.")
        assert await last_words(quick) == b"ONE."
        assert trio.current_time() == 0.375
        assert await last_words(silent) == b""
        assert trio.current_time() == 0.5


async def test_idle_lets_errors_through(autojump_clock: MockClock) -> None:
    """What the block raises by itself leaves it unchanged, in a drain, too."""
    errors: list[Exception] = []

    async def fails(request: Connection, client_address: Any, server: Any) -> None:
        try:
            with request.idle():
                server.shutdown(60)
                raise KeyError("mine")
        except Exception as error:  # noqa: BLE001  (whatever it is)
            errors.append(error)

    async with in_memory(fails).serving() as server:
        await server.connect()
        await server.wait_closed()
    assert list(map(repr, errors)) == ["KeyError('mine')"]


async def test_idle_raises_from_the_outermost_of_nested_blocks(
    autojump_clock: MockClock,
) -> None:
    """Blocks inside each other end as nested cancel scopes do: all of them, by the outermost."""
    came_by: list[str] = []

    async def nests(request: Connection, client_address: Any, server: Any) -> None:
        try:
            with request.idle():
                with request.idle():
                    await trio.sleep_forever()
                came_by.append("fell through the inner")
            came_by.append("fell through the outer")
        except Draining:
            came_by.append("draining")
        await request.sendall(b"goodbye")

    async with in_memory(nests).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b"goodbye"
    assert came_by == ["draining"]


class Chat(Jobs):
    """Reads lines in one task, and passes on what others say in another."""

    async def handle(self) -> None:
        try:
            async with trio.open_nursery() as both:
                both.start_soon(self.listen)
                both.start_soon(super().handle)
        except* Draining:
            await self.request.sendall(b"goodbye\n")

    async def listen(self) -> None:
        async for line in trioserver.RequestReader(self.request):
            await self.request.sendall(line.upper())


async def test_idle_in_one_task_ends_whatever_another_has_read(autojump_clock: MockClock) -> None:
    """A task that waits for others, while its neighbour serves requests, is idle at the drain."""
    send, Chat.source = trio.open_memory_channel[bytes](0)
    async with in_memory(Chat).serving() as server, send:
        client = await server.connect()
        await client.send_all(b"one\n")
        await trio.sleep(10)
        server.shutdown(5)
        assert await last_words(client) == b"ONE\ngoodbye\n"
        assert trio.current_time() == 10


async def test_idle_in_one_task_ends_when_another_has_finished_its_request(
    autojump_clock: MockClock,
) -> None:
    """The block is inert *while* a request has begun; after it, the drain ends it."""
    send, Chat.source = trio.open_memory_channel[bytes](0)
    async with in_memory(Chat).serving() as server, send:
        client = await server.connect()
        await client.send_all(b"on")
        await trio.sleep(10)
        server.shutdown(5)
        await trio.sleep(2)
        await client.send_all(b"e\n")
        assert await last_words(client) == b"ONE\ngoodbye\n"
        assert trio.current_time() == 12


async def test_draining_in_a_child_task_is_draining(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler whose tasks let it out, in a group, has ended properly all the same."""

    async def waits(request: Connection) -> None:
        with request.idle():
            await trio.sleep_forever()

    async def waits_twice(request: Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as tasks:
            for _ in range(2):
                tasks.start_soon(waits, request)

    async with in_memory(waits_twice).serving() as server:
        await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]
    assert caplog.text == ""


async def test_idle_leaves_other_scopes_alone(autojump_clock: MockClock) -> None:
    """A time-out inside the block is the block's own; a drain goes past it."""
    came_by: list[str] = []

    async def polls(request: Connection, client_address: Any, server: Any) -> None:
        with request.idle():
            with trio.move_on_after(1):
                await trio.sleep_forever()
            came_by.append("timed out")
            with trio.move_on_after(10):
                await trio.sleep_forever()
            came_by.append("stale")

    async with in_memory(polls).serving() as server:
        client = await server.connect()
        await trio.sleep(2)
        server.shutdown(60)
        assert await last_words(client) == b""
        report = await server.wait_closed()
    assert came_by == ["timed out"]
    assert [record.outcome for record in report.requests] == [Outcome.DRAINED]


async def test_idle_cancelled_is_not_draining(autojump_clock: MockClock) -> None:
    """Somebody's cancellation passes through the block as what it is."""
    witness = Witness()

    async def waits(request: Connection, client_address: Any, server: Any) -> None:
        with request.idle():
            await trio.sleep_forever()

    async with in_memory(waits, observers=[witness]).serving() as server:
        await server.connect()
        await trio.sleep(1)
        server.cancel_request(1, "because")
        await wait_all_tasks_blocked()
        assert [(str(it.outcome), it.reason) for it in witness.records] == [
            ("cancelled", "because")
        ]


async def test_idle_connections_are_drained_even_without_grace(autojump_clock: MockClock) -> None:
    """With a grace of zero, who is idle is drained; who works is cancelled."""

    class Either(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            match await self.rfile.readline():
                case b"more\n":
                    await self.rfile.more()
                case b"idle\n":
                    with self.idle():
                        await trio.sleep_forever()
                case _:
                    await trio.sleep_forever()

    async with in_memory(Either).serving() as server:
        for line in (b"more\n", b"idle\n", b"work\n"):
            client = await server.connect()
            await client.send_all(line)
        await trio.sleep(60)
        server.shutdown(0)
        report = await server.wait_closed()
    outcomes = {record.info.id: str(record.outcome) for record in report.requests}
    assert outcomes == {1: "drained", 2: "drained", 3: "cancelled"}
    assert trio.current_time() == 60


# The waiting room ----------------------------------------------------------------


async def greets(request: Connection, client_address: Any, server: Any) -> None:
    """Reads a line, works for a second, and answers with when it was done."""
    await trioserver.RequestReader(request).readline()
    await trio.sleep(1)
    await request.sendall(b"%g" % trio.current_time())


async def test_clients_in_the_queue_are_served_as_slots_fall_free(
    autojump_clock: MockClock,
) -> None:
    """Who waited for a slot when the drain began gets one, in the order of arrival."""
    async with in_memory(greets, limits=Limits(requests=1)).serving() as server:
        clients = [await server.connect() for _ in range(2)]
        for client in clients:
            await client.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert server.statistics().waiting == 1
        assert [await last_words(client) for client in clients] == [b"1", b"2"]
        report = await server.wait_closed()
    assert len(report.completed) == 2
    assert report.statistics.accepted == 2
    assert report.statistics.waiting == 0


async def test_waiting_room_is_as_large_as_the_server(autojump_clock: MockClock) -> None:
    """Beyond ``limits.requests`` they are reset at once, counted and reported."""
    witness = Witness()
    server = in_memory(greets, limits=Limits(requests=2), observers=[witness])
    async with server.serving():
        clients = [await server.connect(("client", number)) for number in range(7)]
        for client in clients:
            await client.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert server.statistics().waiting == 2
        assert server.statistics().unaccepted == 3
        for client in clients[4:]:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        assert trio.current_time() == 0
        assert [await last_words(it) for it in clients[:4]] == [b"1", b"1", b"2", b"2"]
        report = await server.wait_closed()
    turned_away = [("client", number) for number in (4, 5, 6)]
    assert list(report.unaccepted) == turned_away
    refused = [event[1:] for event in witness.events if event[0] == "request_refused"]
    assert refused == [(address, "the server drains") for address in turned_away]
    assert not report.clean


async def test_waiting_room_is_emptied_when_the_grace_is_over(autojump_clock: MockClock) -> None:
    """Who never got a slot is reset then, and reported as unaccepted."""
    async with in_memory(hold, limits=Limits(requests=1)).serving() as server:
        first, second = await server.connect(("client", 1)), await server.connect(("client", 2))
        await wait_all_tasks_blocked()
        server.shutdown(5)
        with pytest.raises(trio.BrokenResourceError):
            await second.receive_some()
        assert trio.current_time() == 5
        report = await server.wait_closed()
        await first.aclose()
    assert [record.info.client_address for record in report.cancelled] == [("client", 1)]
    assert report.unaccepted == (("client", 2),)
    assert report.statistics.accepted == 1


async def test_waiting_room_keeps_the_limit_of_one_client(autojump_clock: MockClock) -> None:
    """``per_client`` holds in the drain, too; who is over it is turned away unserved."""
    limits = Limits(requests=2, per_client=1)
    async with in_memory(greets, limits=limits).serving() as server:
        for host in "ab":  # no free slots: nobody is told apart yet
            client = await server.connect((host, 1))
            await client.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        waiting = [await server.connect((host, 2)) for host in "cc"]
        for client in waiting:
            await client.send_all(b"hello\n")
        server.shutdown(5)
        assert await last_words(waiting[0]) == b"2"
        report = await server.wait_closed()
    assert report.unaccepted == (("c", 2),)
    assert len(report.completed) == 3


async def test_waiting_room_survives_a_client_that_vanished(autojump_clock: MockClock) -> None:
    """An accept error of one client's own is counted; those behind it are served all the same."""
    async with in_memory(greets, limits=Limits(requests=1)).serving() as server:
        first = await server.connect()
        await first.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        second = await server.connect()
        await second.send_all(b"hello\n")
        server.listener.fail(ConnectionAbortedError(errno.ECONNABORTED, "gone"))
        server.shutdown(5)
        assert await last_words(first) == b"1"
        assert await last_words(second) == b"2"
        report = await server.wait_closed()
    assert report.statistics.accept_errors == 1


async def test_waiting_room_survives_a_shortage_of_descriptors(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """When no more can be accepted, shutdown() does not raise, and the rest is drained."""
    async with in_memory(a_second).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.listener.errors.append(OSError(errno.EMFILE, "too many"))
        server.shutdown(5)
        assert await last_words(client) == b"done"
        report = await server.wait_closed()
    assert len(report.completed) == 1
    assert report.statistics.accept_errors == 1
    assert caplog.text == ""


async def test_get_request_that_raises_in_a_shortage_is_not_the_caller_s(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """shutdown() does not raise what a get_request raises while the rest is turned away."""

    class Raises(InMemory):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            answer = super().get_request(listener)
            if answer is not None and self.draining:
                raise ValueError("its own")
            return answer

    server = Raises(("memory", 1), a_second)
    async with server.serving():
        client = await server.connect()
        await wait_all_tasks_blocked()
        queued = server.listener.connect_now()
        server.listener.errors.append(OSError(errno.EMFILE, "too many"))
        server.shutdown(5)
        with pytest.raises(trio.BrokenResourceError):
            await queued.receive_some()
        assert await last_words(client) == b"done"
    assert "its own" in caplog.text


async def test_waiting_client_that_left_costs_nothing(autojump_clock: MockClock) -> None:
    """One that went away while it waited gets its turn, and is over at once."""
    async with in_memory(greets, limits=Limits(requests=2)).serving() as server:
        clients = [await server.connect() for _ in range(4)]
        for client in clients:
            await client.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        clients.pop(2).reset()
        assert [await last_words(client) for client in clients] == [b"1", b"1", b"2"]
        report = await server.wait_closed()
    assert [record.info.id for record in report.ended(Outcome.DISCONNECTED)] == [3]
    assert len(report.completed) == 3


async def test_waiting_room_gives_a_new_client_half_a_second(autojump_clock: MockClock) -> None:
    """GS-04: one whom the drain accepted can still send its first request."""
    async with in_memory(Upper).serving() as server:
        quick, silent = server.listener.connect_now(), server.listener.connect_now()
        server.shutdown(60)
        await trio.sleep(0.375)
        await quick.send_all(b"one\n")
        assert await last_words(quick) == b"ONE\n"
        assert await last_words(silent) == b""
        assert trio.current_time() == 0.5


async def test_shutdown_called_by_get_request(autojump_clock: MockClock) -> None:
    """A hook that shuts the server down in the middle of an accept loses nobody."""

    class OnlyOne(InMemory):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            accepted = super().get_request(listener)
            if accepted is not None:
                self.shutdown(5)
            return accepted

    async with OnlyOne(("memory", 1), a_second).serving() as server:
        clients = [server.listener.connect_now() for _ in range(3)]
        assert [await last_words(client) for client in clients] == [b"done"] * 3
        report = await server.wait_closed()
    assert report.statistics.accepted == 3


async def test_shutdown_called_by_get_request_before_it_accepts(
    autojump_clock: MockClock,
) -> None:
    """The drain then takes in the very client whom it was called for, who is served like others."""

    class EnoughAfterOne(InMemory):
        calls = 0

        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            self.calls += 1
            if self.calls == 3:  # the second found that there was nobody else
                self.shutdown(5)
            return super().get_request(listener)

    server = EnoughAfterOne(("memory", 1), a_second)
    async with server.serving():
        busy = await server.connect()
        await wait_all_tasks_blocked()
        late = await server.connect()
        assert await last_words(busy) == b"done"
        assert await last_words(late) == b"done"
        report = await server.wait_closed()
    assert (len(report.completed), report.reason) == (2, "shutdown() was called")
    assert report.statistics.accept_errors == 0


async def test_shutdown_called_by_get_request_before_it_accepts_on_tcp() -> None:
    """The listening socket is closed by then, and that is no broken listener."""

    class Enough(trioserver.TCPServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            self.shutdown(5)
            return super().get_request(listener)

    server = Enough(("127.0.0.1", 0), Upper)
    async with on_loopback(server) as address:
        with plain_client(address) as client:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            assert await trio.to_thread.run_sync(read_all, client) == b"HELLO\n"
        report = await server.wait_closed()
    assert (len(report.completed), report.statistics.accept_errors) == (1, 0)


async def test_shutdown_called_by_an_observer(autojump_clock: MockClock) -> None:
    """An observer that shuts the server down at the first event of a kind loses nobody."""

    class OneIsEnough(trioserver.Observer):
        server: Any = None

        def request_started(self, info: trioserver.RequestInfo) -> None:
            self.server.shutdown(5)

    observer = OneIsEnough()
    server = observer.server = in_memory(a_second, observers=[observer])
    async with server.serving():
        clients = [server.listener.connect_now() for _ in range(3)]
        assert [await last_words(client) for client in clients] == [b"done"] * 3


class StopsAfterOne(trioserver.TCPServer):
    """Shuts itself down when a request has given its slot back, before anybody else has run."""

    async def shutdown_request(self, request: Connection) -> None:
        self.shutdown(5)
        await super().shutdown_request(request)


class StopsAfterOneInMemory(MemoryMixIn, StopsAfterOne):
    """The same, in memory."""


async def test_slot_that_falls_free_in_the_step_of_the_drain(autojump_clock: MockClock) -> None:
    """An accept loop that waited for a slot, and has just got one, ends as any other."""
    server = StopsAfterOneInMemory(("memory", 1), a_second, limits=Limits(requests=1))
    async with server.serving():
        assert await last_words(await server.connect()) == b"done"
        report = await server.wait_closed()
    assert report.clean


async def test_slot_that_falls_free_in_the_step_of_the_drain_on_tcp() -> None:
    """The same on real sockets."""

    async def ends_at_once(request: Connection, client_address: Any, server: Any) -> None:
        await request.sendall(b"done")

    server = StopsAfterOne(("127.0.0.1", 0), ends_at_once, limits=Limits(requests=1))
    async with on_loopback(server) as address:
        with plain_client(address) as client:
            assert await trio.to_thread.run_sync(read_all, client) == b"done"
        report = await server.wait_closed()
    assert report.clean


@pytest.mark.parametrize("requests", [3, 1024])
async def test_clients_in_the_kernel_s_queue_are_served_on_tcp(requests: int) -> None:
    """Clients who had connected before the drain are served, with or without a free slot."""
    server = on_tcp(Upper, limits=Limits(requests=requests))
    async with on_loopback(server) as address:
        await clients_in_the_queue_are_served(server, address)


@pytest.mark.parametrize("requests", [3, 1024])
async def test_clients_in_the_kernel_s_queue_are_served_on_unix(
    requests: int, tmp_path: Path
) -> None:
    """The same on a Unix socket, whose file is gone from that instant."""
    path = tmp_path / "socket"
    server = trioserver.UnixStreamServer(path, Upper, limits=Limits(requests=requests))
    async with on_loopback(server) as address:
        await clients_in_the_queue_are_served(server, address)
    assert not path.exists()


async def clients_in_the_queue_are_served(server: trioserver.BaseServer, address: Any) -> None:
    """Three have slots; fill the queue and drain in one step; read every reply."""
    inside = [plain_client(address) for _ in range(3)]
    for client in inside:
        client.sendall(b"one\n")
        assert await trio.to_thread.run_sync(client.recv, 100) == b"ONE\n"
    queued = [plain_client(address) for _ in range(3)]
    for client in queued:
        client.sendall(b"one\ntwo\n")
    server.shutdown(8)
    assert refuses(address)
    for client in queued:
        with client:
            assert await trio.to_thread.run_sync(read_all, client) == b"ONE\nTWO\n"
    for client in inside:
        with client:
            assert await trio.to_thread.run_sync(read_all, client) == b""
    report = await server.wait_closed()
    assert report.statistics.accepted == 6
    assert report.clean


def refuses(address: Any) -> bool:
    """Whether nobody can connect there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(address) != 0


async def test_clients_beyond_the_waiting_room_are_reset_on_tcp() -> None:
    """They see a reset at once, as from a server that is gone, and are counted."""
    server = on_tcp(hold, limits=Limits(requests=1))
    async with on_loopback(server) as address:
        clients = [plain_client(address) for _ in range(4)]
        await wait_all_tasks_blocked()
        server.shutdown(600)
        for client in clients[2:]:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        server.shutdown(0)
        report = await server.wait_closed()
        for client in clients[:2]:
            client.close()
    assert len(report.unaccepted) == 3
    assert len(report.cancelled) == 1


async def test_adopted_listener_is_only_closed() -> None:
    """What waits in a queue that others share stays there, for them."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        server = trioserver.TCPServer(ours.dup(), hold, limits=Limits(requests=1))
        async with on_loopback(server) as address:
            with plain_client(address) as held, plain_client(address) as waiting:
                await wait_all_tasks_blocked()
                server.shutdown(0)
                report = await server.wait_closed()
                assert report.statistics.accepted == 1
                assert report.unaccepted == ()
                with plain_client(address):  # the port is still open, thanks to the other
                    taken_over, peer = ours.accept()
                with taken_over:
                    assert peer == waiting.getsockname()
                    taken_over.sendall(b"from the other one")
                    assert waiting.recv(100) == b"from the other one"
                assert held.recv(1) == b""


async def test_shared_listener_is_only_closed(autojump_clock: MockClock) -> None:
    """A listener that says it is shared is not swept."""
    async with in_memory(a_second, limits=Limits(requests=1)).serving() as server:
        server.listener.shared = True
        served, queued = await server.connect(), await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert server.listener.closed
        with pytest.raises(trio.BrokenResourceError):
            await queued.receive_some()
        assert await last_words(served) == b"done"
        report = await server.wait_closed()
    assert report.statistics.accepted == 1
    assert report.unaccepted == ()


async def test_reuse_port_queue_is_taken_in() -> None:
    """With ``allow_reuse_port`` each socket has a queue of its own: who is in it is served."""
    server = on_tcp(Upper, limits=Limits(requests=1), allow_reuse_port=True)
    async with on_loopback(server) as address:
        with plain_client(address) as first, plain_client(address) as queued:
            await wait_all_tasks_blocked()
            server.shutdown(5)
            for client in (first, queued):
                client.sendall(b"hello\n")
            report = await server.wait_closed()
            assert [client.recv(9) for client in (first, queued)] == [b"HELLO\n", b"HELLO\n"]
    assert report.statistics.accepted == 2
    assert report.unaccepted == ()


async def test_new_clients_are_refused_while_requests_go_on(autojump_clock: MockClock) -> None:
    """GS-06: from the instant of the drain nobody can connect; who is inside is served."""
    async with in_memory(a_second).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        with pytest.raises(ConnectionRefusedError):
            server.listener.connect_now()
        assert await last_words(client) == b"done"
        assert trio.current_time() == 1


async def test_all_listeners_stop_before_any_is_waited_for(tmp_path: Path) -> None:
    """GS-06, GS-10: TCP on all families and Unix refuse clients while requests are in flight."""
    path = str(tmp_path / "socket")

    class Everywhere(trioserver.TCPServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(path)
            return [*await super().server_bind(), SocketListener(unix)]

    server = Everywhere(("", 0), Upper)
    async with on_loopback(server):
        port = server.server_address[1]
        places = [("127.0.0.1", port), path]
        clients = [plain_client(place) for place in places]
        for client in clients:
            client.sendall(b"on")
        await wait_all_tasks_blocked()
        server.shutdown(8)
        assert [refuses(place) for place in places] == [True, True]
        for client in clients:
            with client:
                client.sendall(b"e\n")
                assert await trio.to_thread.run_sync(read_all, client) == b"ONE\n"


# The grace -----------------------------------------------------------------------


async def test_requests_in_flight_finish(autojump_clock: MockClock) -> None:
    """GS-01: 100 requests that need a second get it, and the end comes then, not later."""
    async with in_memory(a_second).serving() as server:
        clients = [await server.connect() for _ in range(100)]
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert server.draining
        for client in clients:
            assert await last_words(client) == b"done"
        report = await server.wait_closed()
    assert trio.current_time() == 1
    assert report.duration == 1
    assert len(report.completed) == 100
    assert report.clean


async def test_request_in_verification_is_in_flight(autojump_clock: MockClock) -> None:
    """A client that is looked at when the drain begins is let in, and served."""

    class Slow(InMemory):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await trio.sleep(1)
            return True

    async with Slow(("memory", 1), Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert await last_words(client) == b"ONE\n"
        assert trio.current_time() == 1


async def test_request_is_cut_when_the_grace_is_over(autojump_clock: MockClock) -> None:
    """GS-02: at exactly that instant, with the reason in its record; others are unharmed."""
    witness = Witness()

    async def as_told(request: Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(float(await trioserver.RequestReader(request).readline()))
        await request.sendall(b"done")

    async with in_memory(as_told, observers=[witness]).serving() as server:
        slow, quick = await server.connect(), await server.connect()
        await slow.send_all(b"60\n")
        await quick.send_all(b"4.5\n")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert await last_words(quick) == b"done"
        assert trio.current_time() == 4.5
        assert await last_words(slow) == b""
        assert trio.current_time() == 5
        await server.wait_closed()
    assert [(str(it.outcome), it.reason) for it in witness.records] == [
        ("completed", ""),
        ("cancelled", "the grace is over"),
    ]
    assert witness.records[1].duration == 5


async def test_grace_is_timeouts_shutdown_unless_given(autojump_clock: MockClock) -> None:
    """``shutdown()`` without a grace takes the server's own."""
    async with in_memory(hold, timeouts=Timeouts(shutdown=7)).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown()
        await server.wait_closed()
        assert trio.current_time() == 7


@pytest.mark.parametrize(
    ("second", "ends"), [(1.0, 3.0), (0.0, 2.0), (2.5, 4.5), (3.0, 5.0), (60.0, 5.0)]
)
async def test_second_shutdown_only_shortens(
    second: float, ends: float, autojump_clock: MockClock
) -> None:
    """GS-12: called twice, the earlier deadline holds."""
    async with in_memory(hold).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        await trio.sleep(2)
        server.shutdown(second)
        report = await server.wait_closed()
    assert trio.current_time() == ends
    assert report.duration == ends


async def test_report_s_grace_is_the_one_that_held(autojump_clock: MockClock) -> None:
    """GS-12: after a second shutdown, the report says what the requests were given."""
    async with in_memory(hold).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        await trio.sleep(2)
        server.shutdown(1)
        report = await server.wait_closed()
    assert report.grace == 3


async def test_report_of_a_cancelled_run_has_no_grace(autojump_clock: MockClock) -> None:
    """A shutdown that comes during the clean-up gives nobody a grace any more."""

    async def cleans_up(request: Connection, client_address: Any, server: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    server = in_memory(cleans_up)
    with trio.CancelScope() as scope:
        async with server.serving():
            await server.connect()
            await trio.sleep(1)
            scope.cancel(reason="enough")
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                server.shutdown(15)
    report = await server.wait_closed()
    assert (report.grace, report.duration, report.reason) == (0, 2, "enough")


async def test_grace_without_end(autojump_clock: MockClock) -> None:
    """``math.inf`` waits as long as it takes."""

    async def a_day(request: Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(70_000)
        await request.sendall(b"done")

    async with in_memory(a_day).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(math.inf)
        assert await last_words(client) == b"done"


async def test_no_grace(autojump_clock: MockClock) -> None:
    """A grace of zero cuts whoever works, at once."""
    async with in_memory(hold).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(0)
        assert await last_words(client) == b""
        report = await server.wait_closed()
    assert trio.current_time() == 0
    assert [record.reason for record in report.cancelled] == ["the grace is over"]


async def test_shutdown_by_a_handler(autojump_clock: MockClock) -> None:
    """A handler that shuts its server down is a request in flight as any other."""

    async def last_one(request: Connection, client_address: Any, server: Any) -> None:
        server.shutdown(5)
        await trio.sleep(1)
        await request.sendall(b"done")

    async with in_memory(last_one).serving() as server:
        client = await server.connect()
        assert await last_words(client) == b"done"
        report = await server.wait_closed()
    assert len(report.completed) == 1


async def test_shutdown_by_another_thread() -> None:
    """From a thread that Trio knows nothing of, it returns at once and the drain begins."""
    server = on_tcp(Upper)
    async with on_loopback(server) as address:
        async with await trio.open_tcp_stream(*address) as client:
            await client.send_all(b"one\n")
            assert await client.receive_some() == b"ONE\n"
            thread = threading.Thread(target=server.shutdown, args=(60,))
            thread.start()
            assert await read_to_end(client) == b""
            thread.join()


async def test_shutdown_takes_in_what_the_kernel_had_in_one_step(
    autojump_clock: MockClock,
) -> None:
    """When shutdown() returns, no listener accepts, and every wait between requests is ended."""
    async with in_memory(Upper, limits=Limits(requests=1)).serving() as server:
        await server.connect()
        await trio.sleep(1)
        await server.connect()
        server.shutdown(60)
        assert server.draining
        assert server.listener.closed
        assert server.statistics().waiting == 1
        assert server.snapshot().state == "draining"
        assert [listener.accepting for listener in server.snapshot().listeners] == [False]


def test_ctrl_c_in_the_middle_of_the_drain_waits_for_its_end() -> None:
    """It strikes when the step is whole: the listener closed, the queued client taken in."""
    steps: list[object] = []

    class Interrupted(InMemory):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            accepted = super().get_request(listener)
            if accepted is not None:
                signal.raise_signal(signal.SIGINT)
            return accepted

    async def main() -> None:
        async with Interrupted(("memory", 1), hold).serving() as server:
            server.listener.connect_now()
            server.shutdown(5)
            steps.extend([server.listener.closed, len(server.requests)])
            await trio.lowlevel.checkpoint()
            steps.append("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert steps == [True, 1]


async def test_draining_event_comes_once(autojump_clock: MockClock) -> None:
    """Observers are told of the drain when it begins, and of the end when nothing is left."""
    witness = Witness()
    async with in_memory(a_second, observers=[witness]).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        server.shutdown(4)
        await last_words(client)
        await server.wait_closed()
    assert witness.names == [
        "server_listening",
        "request_started",
        "draining",
        "request_finished",
        "server_closed",
    ]


# The cut -------------------------------------------------------------------------


async def test_cancelled_server_passes_its_reason_on(autojump_clock: MockClock) -> None:
    """Whoever cancels ``serve_forever`` is quoted in every record."""
    witness = Witness()
    server = in_memory(hold, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="lunch")
    assert [(str(it.outcome), it.reason) for it in witness.records] == [("cancelled", "lunch")]
    assert (await server.wait_closed()).reason == "lunch"


async def test_cancelled_without_a_reason(autojump_clock: MockClock) -> None:
    """Then the record says by what kind of thing it was cancelled."""
    witness = Witness()
    server = in_memory(hold, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    [record] = witness.records
    assert record.outcome is Outcome.CANCELLED
    assert record.reason


async def hold_and_unwind(request: Connection, client_address: Any, server: Any) -> None:
    """Needs a second to end after it was cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)


@pytest.mark.parametrize("handler", [hold, hold_and_unwind])
async def test_deadline_around_the_server_is_no_time_out_of_the_request(
    handler: Any, autojump_clock: MockClock
) -> None:
    """A request that ends with ``move_on_after(...)`` around its server was cancelled."""
    witness = Witness()
    server = in_memory(handler, observers=[witness])
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await server.connect()
    assert witness.outcomes == ["cancelled"]


async def test_deadline_of_the_request_is_its_time_out(autojump_clock: MockClock) -> None:
    """``timeouts.request`` still counts in a drain."""
    async with in_memory(hold, timeouts=Timeouts(request=3)).serving() as server:
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(60)
        assert await last_words(client) == b""
        assert trio.current_time() == 3
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["timed_out"]


async def test_block_that_fails_cuts_its_server(autojump_clock: MockClock) -> None:
    """An error in a ``serving`` block cancels the requests, with a reason, and leaves it bare."""
    witness = Witness()

    async def fails_while_serving() -> None:
        async with in_memory(hold, observers=[witness]).serving() as server:
            await server.connect()
            await wait_all_tasks_blocked()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fails_while_serving()
    assert witness.outcomes == ["cancelled"]
    assert "serving()" in witness.records[0].reason


async def test_cancel_request_ends_one(autojump_clock: MockClock) -> None:
    """``cancel_request`` ends that request, in a drain, too, and says why in its record."""
    async with in_memory(hold).serving() as server:
        await server.connect()
        other = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(60)
        assert server.cancel_request(2, "out of favour")
        assert await last_words(other) == b""
        assert not server.cancel_request(2, "gone already")
        assert [info.id for info in server.requests] == [1]
        server.shutdown(0)
        report = await server.wait_closed()
    assert [(it.info.id, it.reason) for it in report.cancelled] == [
        (2, "out of favour"),
        (1, "the grace is over"),
    ]


async def test_cancelled_handler_that_returns_completed(autojump_clock: MockClock) -> None:
    """A handler that swallowed its cancellation and returned is completed."""

    async def swallows(request: Connection, client_address: Any, server: Any) -> None:
        with suppress(trio.Cancelled):
            await trio.sleep_forever()

    async with in_memory(swallows).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["completed"]


async def test_finish_has_the_cleanup_time_after_a_cut(autojump_clock: MockClock) -> None:
    """After the grace, ``finish`` runs under a shield, for ``timeouts.cleanup`` seconds."""
    came_by: list[float] = []

    class Finishes(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            try:
                await trio.sleep(2)
                came_by.append(trio.current_time())
                await trio.sleep_forever()
            finally:
                came_by.append(trio.current_time())

    async with in_memory(Finishes, timeouts=Timeouts(cleanup=3)).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        report = await server.wait_closed()
    assert came_by == [7, 8]
    assert len(report.cancelled) == 1
    assert trio.current_time() == 8


# The clean-up --------------------------------------------------------------------


async def shields_itself(request: Connection, client_address: Any, server: Any) -> None:
    """Cannot be cancelled for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


async def swallows_every_cancellation(
    request: Connection, client_address: Any, server: Any
) -> None:
    """Goes on for a minute, whoever wants it to end."""
    until = trio.current_time() + 60
    while trio.current_time() < until:
        try:
            await trio.sleep_until(until)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)


class WillNotEnd(trioserver.BaseRequestHandler):
    """The same, as a class."""

    async def handle(self) -> None:
        await shields_itself(self.request, self.client_address, self.server)


@pytest.mark.parametrize(
    ("handler", "stuck_in"),
    [
        (shields_itself, "shields_itself"),
        (swallows_every_cancellation, "swallows_every_cancellation"),
        (WillNotEnd, "shields_itself"),
    ],
)
async def test_handler_that_will_not_end_is_named_and_waited_for(
    handler: Any, stuck_in: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """GS-02: at the cleanup limit it is named with its stack; nothing outlives the server."""
    named_at: list[float] = []

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            named_at.append(trio.current_time())

    async with in_memory(handler, timeouts=Timeouts(cleanup=4)).serving() as server:
        await server.connect(("client", 7))
        await wait_all_tasks_blocked()
        logger = logging.getLogger("trioserver.error")
        logger.addHandler(clock := Clock())
        try:
            server.shutdown(5)
            report = await server.wait_closed()
        finally:
            logger.removeHandler(clock)
    assert trio.current_time() == 60
    assert named_at == [9]
    [record] = [record for record in caplog.records if record.name == "trioserver.error"]
    assert record.levelname == "ERROR"
    assert "client:7" in record.getMessage()
    assert f"in {stuck_in}\n" in record.getMessage()  # a frame of its stack
    assert [str(record.outcome) for record in report.requests] == ["completed"]


async def test_hook_that_will_not_end_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """So is a request whose outcome is decided, and which does not close."""

    class WillNotClose(InMemory):
        async def shutdown_request(self, request: Connection) -> None:
            await shields_itself(request, None, self)

    server = WillNotClose(("memory", 1), greets, timeouts=Timeouts(cleanup=4))
    async with server.serving():
        client = await server.connect(("client", 7))
        await client.send_all(b"hello\n")
        await wait_all_tasks_blocked()
        server.shutdown(0)
        await server.wait_closed()
    assert trio.current_time() == 60
    named = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "in shields_itself\n" in named[0]
    assert "client:7" in named[0]


@pytest.mark.parametrize(("cancelled", "seconds"), [(False, 6), (True, 4)])
async def test_hook_that_is_cut_is_named(
    cancelled: bool, seconds: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown_request that takes too long is ended, and somebody is told."""

    class TakesLong(InMemory):
        async def shutdown_request(self, request: Connection) -> None:
            await trio.sleep(60)

    server = TakesLong(("memory", 1), a_second, timeouts=Timeouts(cleanup=4, linger=2))
    async with server.serving():
        async with await server.connect() as client:
            await wait_all_tasks_blocked()
            if cancelled:
                server.cancel_request(1, "enough")
            with suppress(trio.BrokenResourceError):
                await read_to_end(client)
        assert trio.current_time() == seconds + (not cancelled)
    [named] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert f"shutdown_request did not end within {seconds} s" in named


async def test_hook_of_a_wrapped_request_is_bounded(autojump_clock: MockClock) -> None:
    """What get_request made of the connection closes itself in bounds, too."""

    class Wrapped:
        def __init__(self, connection: Connection) -> None:
            self.connection = connection

        async def linger(self) -> None:
            await trio.sleep(60)

        async def aclose(self) -> None:
            """Nothing."""

    class Wraps(InMemory):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            answer = super().get_request(listener)
            return answer and (Wrapped(answer[0]), answer[1])

    async def replies(request: Wrapped, client_address: Any, server: Any) -> None:
        await request.connection.sendall(b"hello")

    server = Wraps(("memory", 1), replies, timeouts=Timeouts(cleanup=4, linger=2))
    async with server.serving():
        assert await last_words(await server.connect()) == b"hello"
        assert trio.current_time() == 6


async def test_handler_that_will_not_end_holds_nobody_else_up(
    autojump_clock: MockClock,
) -> None:
    """GS-02: the others are cut and closed at the end of the grace, as if it were not there."""

    async def by_turns(request: Connection, client_address: Any, server: Any) -> None:
        await (shields_itself if request.info.id == 1 else hold)(request, client_address, server)

    async with in_memory(by_turns).serving() as server:
        clients = [await server.connect() for _ in range(3)]
        await wait_all_tasks_blocked()
        server.shutdown(5)
        assert await last_words(clients[1]) == b""
        assert await last_words(clients[2]) == b""
        assert trio.current_time() == 5
        await server.wait_closed()
        assert trio.current_time() == 60


async def test_cancelled_server_names_who_will_not_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The same when ``serve_forever`` is cancelled instead of drained."""
    server = in_memory(shields_itself)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="lunch")
    assert trio.current_time() == 60
    assert caplog.text.count("shields_itself") == 1


async def test_handler_that_ends_in_time_is_not_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One that takes its time, but less than ``timeouts.cleanup``, is nobody's business."""

    async def takes_its_time(request: Connection, client_address: Any, server: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with in_memory(takes_its_time, timeouts=Timeouts(cleanup=4)).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        await server.wait_closed()
    assert trio.current_time() == 8
    assert caplog.text == ""


# Servers inside servers ----------------------------------------------------------


@attrs.define
class Nest:
    """Three servers, each in a handler of the one before, and a client of each."""

    servers: list[InMemory]
    clients: list[Connection] = attrs.field(factory=list)


async def nest_of_three(*, innermost: Any = hold) -> Nest:
    """Make the servers; only the first is for the caller to serve."""
    patient = Timeouts(shutdown=1000)
    inner = in_memory(innermost, timeouts=patient)

    async def serves_inner(request: Connection, client_address: Any, server: Any) -> None:
        async with inner.serving():
            await trio.sleep_forever()

    middle = in_memory(serves_inner, timeouts=patient)

    async def serves_middle(request: Connection, client_address: Any, server: Any) -> None:
        async with middle.serving():
            await trio.sleep_forever()

    return Nest([in_memory(serves_middle, timeouts=patient), middle, inner])


async def enter(nest: Nest) -> None:
    """Connect to each of them, outermost first."""
    for server in nest.servers:
        nest.clients.append(await server.connect())
        await wait_all_tasks_blocked()


async def test_nested_servers_end_by_the_outermost_deadline(autojump_clock: MockClock) -> None:
    """Three levels deep, the innermost request ends when the outermost grace is over."""
    nest = await nest_of_three()
    outermost, middle, inner = nest.servers
    async with outermost.serving():
        await enter(nest)
        outermost.shutdown(5)
        for client in nest.clients:
            assert await last_words(client) == b""
        report = await outermost.wait_closed()
    assert trio.current_time() == 5
    assert [it.reason for it in report.cancelled] == ["the grace is over"]
    reports = [await server.wait_closed() for server in (middle, inner)]
    assert [len(report.cancelled) for report in reports] == [1, 1]
    assert reports[1].cancelled[0].reason == "the grace is over"


async def test_nested_drain_is_cut_by_the_outermost_deadline(autojump_clock: MockClock) -> None:
    """An inner drain with more grace of its own does not outlast the outer one."""
    nest = await nest_of_three()
    outermost, middle, inner = nest.servers
    async with outermost.serving():
        await enter(nest)
        inner.shutdown(100)
        await trio.sleep(1)
        middle.shutdown(50)
        await trio.sleep(1)
        outermost.shutdown(5)
        await outermost.wait_closed()
    assert trio.current_time() == 7
    assert [server.snapshot().state for server in nest.servers] == ["unbound"] * 3


async def test_nested_drain_leaves_the_outer_servers_alone(autojump_clock: MockClock) -> None:
    """The innermost server can end by itself, and the others go on."""
    nest = await nest_of_three()
    outermost, middle, inner = nest.servers
    async with outermost.serving():
        await enter(nest)
        inner.shutdown(5)
        report = await inner.wait_closed()
        assert trio.current_time() == 5
        assert len(report.cancelled) == 1
        assert len(outermost.requests) == len(middle.requests) == 1
        outermost.shutdown(0)


async def test_nested_handler_that_will_not_end_is_waited_for_by_all(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named at each level, and nothing outlives any of the servers."""
    nest = await nest_of_three(innermost=shields_itself)
    outermost = nest.servers[0]
    async with outermost.serving():
        await enter(nest)
        outermost.shutdown(5)
        await outermost.wait_closed()
    assert trio.current_time() == 60
    assert caplog.text.count("has not ended 5 s after it was cancelled") == 3


# Lingering: the reply gets through ------------------------------------------------


class RepliesEarly(trioserver.BaseRequestHandler):
    """Reads four bytes of a request, sends the reply of a thousand bytes, and returns."""

    async def handle(self) -> None:
        await self.request.recv(4)
        await self.request.sendall(bytes(1000))


@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 65_536, 200_000, 500_000, 1_000_000])
async def test_reply_survives_unread_input_on_tcp(size: int, drains: bool) -> None:
    """GS-14: a slow client that sent a byte too many gets every byte of its reply, and its end."""
    reply = hashlib.shake_128(b"%d" % size).digest(size)
    replied = trio.Event()

    async def replies_early(request: Connection, client_address: Any, server: Any) -> None:
        assert await request.recv(4) == b"what"
        await request.sendall(reply)
        replied.set()

    # As large as it gets, so that much of the reply still waits in the server's
    # kernel when the handler returns, behind a client that has no room for it.
    much = (socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
    server = on_tcp(replies_early, socket_options=[much])
    async with on_loopback(server) as address:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
            client.settimeout(10)
            client.connect(address)
            client.sendall(b"what?")
            got = bytearray()
            while not replied.is_set():
                with trio.move_on_after(0.01):
                    await replied.wait()
                if not replied.is_set():
                    got += await trio.to_thread.run_sync(client.recv, 4096)
            if drains:
                server.shutdown(8)
            await wait_all_tasks_blocked()
            got += await trio.to_thread.run_sync(read_all, client)
    assert bytes(got) == reply


async def test_linger_ends_with_the_client(autojump_clock: MockClock) -> None:
    """When the client ends its input, the connection is closed."""
    async with in_memory(RepliesEarly).serving() as server:
        client = await server.connect()
        await client.send_all(b"what?")
        await trio.sleep(1)
        server.shutdown(60)
        await client.send_eof()
        assert await read_to_end(client) == bytes(1000)
        await server.wait_closed()
    assert trio.current_time() == 1


async def test_linger_is_bounded_in_time(autojump_clock: MockClock) -> None:
    """A client that does not close is left after ``timeouts.linger``."""
    async with in_memory(RepliesEarly, timeouts=Timeouts(linger=3)).serving() as server:
        client = await server.connect()
        await client.send_all(b"what?")
        await wait_all_tasks_blocked()
        assert server.statistics().lingering == 1
        server.shutdown(60)
        report = await server.wait_closed()
    assert trio.current_time() == 3
    assert report.statistics.outcomes[Outcome.COMPLETED] == 1
    assert await last_words(client) == bytes(1000)


async def test_linger_is_bounded_in_bytes(autojump_clock: MockClock) -> None:
    """A client that goes on sending is left after ``limits.linger`` bytes."""
    async with in_memory(RepliesEarly, limits=Limits(linger=100)).serving() as server:
        client = await server.connect()
        await client.send_all(b"what" + bytes(99))
        await wait_all_tasks_blocked()
        assert server.statistics().lingering == 1
        await client.send_all(b"!")
        await wait_all_tasks_blocked()
        assert server.statistics().lingering == 0
    assert trio.current_time() == 0


async def test_no_linger(autojump_clock: MockClock) -> None:
    """With ``timeouts.linger`` of zero, the connection is closed at once."""
    async with in_memory(RepliesEarly, timeouts=Timeouts(linger=0)).serving() as server:
        client = await server.connect()
        await client.send_all(b"what")
        await wait_all_tasks_blocked()
        assert server.statistics().outcomes[Outcome.COMPLETED] == 1
        assert server.statistics().lingering == 0
        assert await last_words(client) == bytes(1000)


async def test_linger_holds_no_slot(autojump_clock: MockClock) -> None:
    """The next client is served while the last one lingers."""
    async with in_memory(RepliesEarly, limits=Limits(requests=1)).serving() as server:
        for _ in range(2):
            client = await server.connect()
            await client.send_all(b"what?")
            assert await client.receive_some() == bytes(1000)
            assert trio.current_time() == 0


async def test_lingering_connections_are_as_many_as_slots(autojump_clock: MockClock) -> None:
    """Beyond ``limits.requests``, the oldest is closed at once."""
    async with in_memory(RepliesEarly, limits=Limits(requests=2)).serving() as server:
        clients = []
        for _ in range(3):
            clients.append(await server.connect())
            await clients[-1].send_all(b"what")
            await wait_all_tasks_blocked()
        assert server.statistics().lingering == 2
        for client in clients:
            await client.send_all(b"?")  # what nobody receives is answered with a reset
            await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await clients[0].send_all(b"?")
        for client in clients[1:]:
            await client.send_all(b"?")
        assert trio.current_time() == 0


async def test_linger_ends_with_the_grace(autojump_clock: MockClock) -> None:
    """GS-14: lingering is part of the drain; a finished request stays ``completed``."""
    witness = Witness()
    server = in_memory(RepliesEarly, timeouts=Timeouts(linger=60), observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"what?")
        await wait_all_tasks_blocked()
        server.shutdown(5)
        await server.wait_closed()
    assert trio.current_time() == 5
    assert witness.outcomes == ["completed"]


async def test_cancelled_request_does_not_linger(autojump_clock: MockClock) -> None:
    """A request that was cut has no finished reply to wait for."""
    async with in_memory(hold).serving() as server:
        await server.connect()
        await wait_all_tasks_blocked()
        server.cancel_request(1, "because")
        await wait_all_tasks_blocked()
        assert server.statistics().lingering == 0
        assert server.statistics().outcomes[Outcome.CANCELLED] == 1


async def test_client_that_ended_its_input_is_not_lingered_for(autojump_clock: MockClock) -> None:
    """There is nothing to discard after an end of input."""
    async with in_memory(Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert server.statistics().outcomes[Outcome.COMPLETED] == 1
        assert server.statistics().lingering == 0
        assert await last_words(client) == b"ONE\n"


# The report ------------------------------------------------------------------------


async def test_report_says_who_ended_how(autojump_clock: MockClock) -> None:
    """Who was drained, who completed, who was cut, who never got in; how long each took."""

    class AsTold(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            async for line in self.rfile:
                if line == b"bye\n":
                    return
                await trio.sleep(float(line))

    server = in_memory(AsTold, limits=Limits(requests=4))
    async with server.serving():
        early = await server.connect(("early", 0))
        await early.send_all(b"bye\n")
        await last_words(early)
        await trio.sleep(1)
        for name, line in (
            ("idle", b"0\n"),
            ("completes", b"4\nbye\n"),
            ("slow", b"60\n"),
            ("drains", b"3\n"),
        ):
            client = await server.connect((name, 1))
            await client.send_all(line)
        await trio.sleep(1)
        for number in range(6):
            client = await server.connect(("queued", number))
            await client.send_all(b"bye\n")
        server.shutdown(5)
        report = await server.wait_closed()
    ended = {it.info.client_address: (str(it.outcome), it.duration) for it in report.requests}
    assert list(ended.items()) == [
        (("idle", 1), ("drained", 1)),
        (("queued", 0), ("completed", 0)),
        (("queued", 1), ("completed", 0)),
        (("queued", 2), ("completed", 0)),
        (("queued", 3), ("completed", 0)),
        (("drains", 1), ("drained", 3)),
        (("completes", 1), ("completed", 4)),
        (("slow", 1), ("cancelled", 6)),
    ]
    assert report.unaccepted == (("queued", 4), ("queued", 5))
    assert report.reason == "shutdown() was called"
    assert (report.grace, report.duration) == (5, 5)
    assert not report.clean
    assert report.summary == (
        "shutdown() was called: ended in 5.000 s of 5 s grace,"
        " 5 completed, 2 drained, 1 cancelled, 2 unaccepted"
    )
    assert str(report).splitlines()[0] == report.summary
    assert len(str(report).splitlines()) == 1 + 8 + 2
    assert report.statistics.accepted == 9


async def test_report_is_clean_when_all_could_finish(autojump_clock: MockClock) -> None:
    """Nobody cut and nobody turned away is a clean end."""
    async with in_memory(a_second).serving() as server:
        client = await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(5)
        await last_words(client)
        report = await server.wait_closed()
    assert report.clean
    assert (report.drained, report.cancelled, report.unaccepted) == ((), (), ())
    [record] = report.completed
    assert record.duration == 1


# Many at once ------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for 1000 connections, both ends of which are ours."""
    needed = 2500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        pytest.skip(f"needs {needed} descriptors, and may have {hard}")
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reply_to(number: int) -> bytes:
    """A reply that no other request gets, of up to 100 kB."""
    return hashlib.shake_128(b"%d" % number).digest(number**2 % 100_000 + 1)


@pytest.mark.slow
async def test_a_thousand_requests_in_flight_lose_nothing(many_descriptors: None) -> None:
    """GS-01: over TCP, ``shutdown(grace=5)`` loses no reply that was begun and took up to a second.

    Every other client has sent more than its handler reads. Each reply is
    checked byte for byte, and each connection for an end without an error.
    """
    in_flight, all_in_flight, drained = 0, trio.Event(), trio.Event()

    async def replies_late(request: Connection, client_address: Any, server: Any) -> None:
        nonlocal in_flight
        number = int(await trioserver.RequestReader(request).readline())
        in_flight += 1
        if in_flight == 1000:
            all_in_flight.set()
        await drained.wait()
        await trio.sleep(number % 10 / 10)
        await request.sendall(reply_to(number))

    got: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        async with await trio.open_tcp_stream(*server.server_address) as client:
            await client.send_all(b"%d\n%s" % (number, b"and more" * (number % 2)))
            got[number] = await read_to_end(client)

    server = on_tcp(replies_late)
    with trio.fail_after(30):
        async with server.serving(), trio.open_nursery() as clients:
            for number in range(1000):
                clients.start_soon(ask, number)
            await all_in_flight.wait()
            server.shutdown(grace=5)
            drained.set()
            assert len(server.requests) == 1000
            report = await server.wait_closed()
    assert len(report.completed) == 1000
    assert report.clean
    assert report.duration < 5
    wrong = [number for number in range(1000) if got[number] != reply_to(number)]
    assert wrong == []
