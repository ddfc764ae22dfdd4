"""Idle time-outs, which have no scope of their own: each on time, and nobody else is disturbed."""

import pytest
import trio
from support import connect, read_to_end, running, until
from support.memory import memory, server_over
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer, MemoryTransport

THERE = ("127.0.0.1", 0)
SECONDS = [3, 1, 2, 1, 5, 3, 0.5, 3]
LARGE = b"x" * (1 << 22)
"""More bytes than the kernel holds of a connection."""


class Asks(trioserver.StreamRequestHandler):
    """Is told by its first line after how many seconds it is idle, and answers the others."""

    async def handle(self):
        self.request.idle_timeout = float(await self.rfile.readline())
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class Foreign(MemoryTransport):
    """One that nobody can be woken in."""

    wake_reader = None


kinds = pytest.mark.parametrize(
    "kind", [MemoryServer, server_over(Foreign)], ids=["alarms", "scopes"]
)


@kinds
async def test_each_is_idle_for_its_own_time(kind, autojump_clock):
    """However many there are, and in whichever order they begin."""
    ended = []

    async def client(number, seconds):
        async with await server.connect() as stream:
            await stream.send_all(b"%f\n" % seconds)
            await trio.sleep(number * 0.01)
            await stream.send_all(b"one\n")
            assert await stream.receive_some() == b"ONE\n"
            asked = trio.current_time()
            assert await read_to_end(stream) == b""
            ended.append((number, round(trio.current_time() - asked, 6)))

    server = memory(Asks, kind)
    async with server.serving():
        async with trio.open_nursery() as nursery:
            for number, seconds in enumerate(SECONDS):
                nursery.start_soon(client, number, seconds)
    assert sorted(ended) == list(enumerate(SECONDS))
    assert {record.reason for record in server.witness.records} == {
        f"no byte from the peer for {seconds:g} s (idle)" for seconds in SECONDS
    }


@kinds
async def test_input_puts_it_off(kind, autojump_clock):
    """Each byte counts, be it the last one in time."""
    server = memory(Asks, kind)
    async with server.serving(), await server.connect() as stream:
        await stream.send_all(b"10\n")
        for _ in range(5):
            await trio.sleep(9.999)
            await stream.send_all(b"one\n")
            assert await stream.receive_some() == b"ONE\n"
        asked = trio.current_time()
        assert await read_to_end(stream) == b""
        assert trio.current_time() - asked == pytest.approx(10)


async def test_more_time_outs_than_are_kept_in_mind(autojump_clock):
    """A hundred that all differ, twice: those that have been are forgotten, not those that are."""
    ends = {}

    async def client(seconds):
        async with await server.connect() as stream, await server.connect() as leaves:
            for one in (stream, leaves):
                await one.send_all(b"%f\n" % seconds)
            await trio.sleep(seconds / 2)
            await leaves.send_eof()
            assert await read_to_end(stream) == b""
            ends[seconds] = trio.current_time()

    server = memory(Asks)
    async with server.serving():
        for begins in (0, 1000):
            await trio.sleep_until(begins)
            async with trio.open_nursery() as nursery:
                for seconds in range(1, 101):
                    nursery.start_soon(client, seconds)
            assert ends == {seconds: begins + seconds for seconds in range(1, 101)}


@pytest.mark.parametrize("begins", ["before", "after"])
async def test_shielded_wait_outlives_the_alarms(begins, autojump_clock):
    """A clean-up that waits for input has its time-out, from when the server is cancelled."""
    seen = []

    async def handler(request, client_address, server):
        request.idle_timeout = 3
        assert await request.recv() == b"x"
        with trio.CancelScope(shield=True):
            if begins == "after":
                await cancelled.wait()
                await wait_all_tasks_blocked()
            try:
                await request.recv()
            except trioserver.IdleTimeout:
                seen.append(trio.current_time())

    cancelled = trio.Event()
    server = memory(handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = await server.connect()
        await client.send_all(b"x")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        cancelled.set()
    assert seen == [4]
    client.close()


@pytest.mark.parametrize("ends", ["drain", "time-out"])
async def test_a_reader_that_is_woken_does_not_disturb_the_writer(ends):
    """Both wait for one socket, and Trio wakes all who do."""
    written = trio.Event()

    async def handler(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, request)
            with pytest.raises((trioserver.Draining, trioserver.IdleTimeout)):
                await request.recv()
            reading_is_over.set()

    async def write(request):
        await request.send_all(LARGE)
        written.set()

    reading_is_over = trio.Event()
    timeouts = trioserver.Timeouts(idle=0.05 if ends == "time-out" else 60)
    server = trioserver.TCPServer(THERE, handler, timeouts=timeouts)
    async with running(server), await connect(server) as client:
        if ends == "drain":
            await until(lambda: server.snapshot().requests)
            server.shutdown(10)  # which waits half a second for a connection that is so new
        with trio.fail_after(10):
            await reading_is_over.wait()
            assert not written.is_set()
            assert len(await read_to_end(client)) == len(LARGE)
            await written.wait()


async def test_who_waits_for_the_socket_itself_is_told_of_the_close():
    """Trio knows the socket then, though the connection has not waited for it."""

    async def handler(request, client_address, server):
        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(sock)
            told.set()

        sock = request.socket
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked(0.01)
            await request.aclose()

    told = trio.Event()
    server = trioserver.TCPServer(THERE, handler)
    async with running(server), await connect(server):
        with trio.fail_after(10):
            await told.wait()
