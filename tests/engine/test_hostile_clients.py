"""Clients that misbehave: they vanish, trickle, flood, stall and lie, and harm nobody else."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, hold, plain_client, read_to_end
from support.protocols import Delimited, Framed

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer, open_descriptors

MEMORY = ("memory", 1)


@attrs.define(eq=False)
class Ends(Witness):
    """A witness that can be waited for."""

    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        super().request_finished(info, outcome, record)
        self._changed.unpark_all()

    async def of(self, count: int) -> None:
        """Wait until that many requests have ended."""
        while len(self.records) < count:
            await self._changed.park()


def vanish(client: socket.socket) -> None:
    """Close so that the peer is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error, or as a warning."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


async def settled() -> None:
    """Wait until everything has happened that happens by itself."""
    await trio.testing.wait_all_tasks_blocked()


def tcp_server(handler: Any = Upper, **fields: Any) -> trioserver.TCPServer:
    """A server on this machine."""
    return trioserver.TCPServer(("127.0.0.1", 0), handler, **fields)


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Let a blocking client block a thread, not the server."""
    return await trio.to_thread.run_sync(function, *arguments)


async def ask(server: trioserver.TCPServer, request: bytes = b"hello\n") -> bytes:
    """What a well-behaved client gets for a request, up to the end."""
    with plain_client(server.server_address) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return await in_thread(client.makefile("rb").read)


# They vanish -------------------------------------------------------------------


@pytest.mark.parametrize("says", [b"", b"half a li", b"hello\n"], ids=["nothing", "half", "line"])
async def test_clients_that_connect_and_vanish(
    caplog: pytest.LogCaptureFixture, says: bytes
) -> None:
    """CM-01: after 500 clients that reset their connections, everything is as before."""
    ends = Ends()
    before = open_descriptors()
    server = tcp_server(observers=[ends])
    with trio.fail_after(20):
        async with server.serving():
            await settled()
            tasks = trio.lowlevel.current_statistics().tasks_living
            for number in range(500):
                client = plain_client(server.server_address)
                client.sendall(says)
                vanish(client)
                if number % 50 == 0:
                    await trio.lowlevel.checkpoint()
            assert await ask(server) == b"HELLO\n"
            await ends.of(501)
            await settled()
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            assert len(open_descriptors() - before) == 2  # the listener, and the reserve
    ids = [record.info.id for record in ends.records]
    assert sorted(ids) == list(range(1, 502))
    assert ends.names.count("request_started") == 501
    assert set(ends.outcomes) <= {"completed", "disconnected"}
    assert errors_in(caplog) == []
    assert open_descriptors() == before


async def test_unix_clients_that_connect_and_vanish(tmp_path: Path) -> None:
    """CM-01: the same over a Unix socket, where leaving unread input behind is a reset."""
    ends = Ends()
    before = open_descriptors()
    server = trioserver.UnixStreamServer(str(tmp_path / "s"), Upper, observers=[ends])
    with trio.fail_after(20):
        async with server.serving():
            for _ in range(500):
                client = plain_client(server.server_address)
                client.sendall(b"hello\nhello\n")
                await trio.lowlevel.checkpoint()
                client.close()
            await ends.of(500)
    assert open_descriptors() == before
    assert set(ends.outcomes) <= {"completed", "disconnected"}


async def test_clients_that_vanish_in_setup() -> None:
    """CM-19: clients that reset while `setup` runs have their `finish` run, once each."""
    calls = []

    class Slow(trioserver.StreamRequestHandler):
        async def setup(self) -> None:
            calls.append("setup")
            if calls.count("setup") == 100:
                everybody_here.set()
            await everybody_gone.wait()

        async def handle(self) -> None:
            calls.append("handle")
            await self.rfile.readline()

        async def finish(self) -> None:
            calls.append("finish")

    everybody_here, everybody_gone = trio.Event(), trio.Event()
    ends = Ends()
    server = tcp_server(Slow, observers=[ends])
    with trio.fail_after(10):
        async with server.serving():
            clients = [plain_client(server.server_address) for _ in range(100)]
            await everybody_here.wait()
            for client in clients:
                vanish(client)
            everybody_gone.set()
            await ends.of(100)
    assert [calls.count(name) for name in ("setup", "handle", "finish")] == [100, 100, 100]
    assert set(ends.outcomes) == {"disconnected"}


async def test_client_that_vanishes_in_a_setup_that_notices() -> None:
    """CM-19: where `setup` itself meets the reset and fails, `finish` is not run."""
    finished = []

    class Greeted(trioserver.StreamRequestHandler):
        async def setup(self) -> None:
            await self.rfile.readline()

        async def finish(self) -> None:
            finished.append(self)

    ends = Ends()
    async with MemoryServer(MEMORY, Greeted, observers=[ends]).serving() as server:
        client = await server.connect()
        await settled()
        client.reset()
        await ends.of(1)
    assert ends.outcomes == ["disconnected"]
    assert finished == []


async def test_client_that_vanishes_mid_reply(caplog: pytest.LogCaptureFixture) -> None:
    """CM-13: a client that closes with a large reply unread ends its request quietly."""
    ends = Ends()
    returned = []

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(bytes(50_000_000))
            returned.append(self)

    server = tcp_server(Talk, observers=[ends])
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                await in_thread(client.recv, 1000)
            await ends.of(1)
    assert returned == []
    assert ends.outcomes == ["disconnected"]
    assert errors_in(caplog) == []


async def test_clients_that_close_while_the_server_does(caplog: pytest.LogCaptureFixture) -> None:
    """CM-17: 1000 connections that both sides close in one instant have one record each."""

    async def leave(request: Any, client_address: Any, server: Any) -> None:
        await request.recv(1)

    ends = Ends()
    async with MemoryServer(MEMORY, leave, observers=[ends]).serving() as server:
        for _ in range(1000):
            client = await server.connect()
            await settled()
            client._transport.send_now(b"x")  # the handler returns in the next tick...
            await client.aclose()  # ...and so does this
        await ends.of(1000)
    assert sorted(record.info.id for record in ends.records) == list(range(1, 1001))
    assert set(ends.outcomes) == {"completed"}
    assert errors_in(caplog) == []


async def test_tcp_clients_that_close_while_the_server_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CM-17: over TCP, too."""

    async def leave(request: Any, client_address: Any, server: Any) -> None:
        await request.recv(1)

    ends = Ends()
    before = open_descriptors()
    server = tcp_server(leave, observers=[ends])
    with trio.fail_after(20):
        async with server.serving():
            for count in range(1, 1001):
                client = plain_client(server.server_address)
                await trio.lowlevel.checkpoint()
                client.sendall(b"x")
                client.close()
                await ends.of(count)
    assert len(ends.records) == 1000
    assert errors_in(caplog) == []
    assert open_descriptors() == before


# They trickle ------------------------------------------------------------------


async def trickle(client: trioserver.Connection) -> None:
    """Send a byte every 5 s, as long as the server takes it."""
    async with client:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await client.send_all(b"x")
                await trio.sleep(5)


async def test_slow_clients_are_cut_at_the_request_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """CM-03: 500 clients that send a byte every 5 s are cut at the limit; others notice nothing."""
    ends = Ends()
    timeouts = Timeouts(request=62, line=math.inf)
    async with MemoryServer(MEMORY, Upper, timeouts=timeouts, observers=[ends]).serving() as server:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(trickle, await server.connect())
            for _ in range(6):
                await trio.sleep(10)
                asked = trio.current_time()
                async with await server.connect() as client:
                    await client.send_all(b"hello\n")
                    assert await client.receive_some() == b"HELLO\n"
                assert trio.current_time() == asked
    slow = [record for record in ends.records if record.outcome == "timed_out"]
    assert len(slow) == 500
    assert {record.info.started + record.duration for record in slow} == {began + 62}
    assert all("(request)" in record.reason for record in slow)


async def test_slow_line_is_cut_at_the_line_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """CM-03: without such a limit, a line has a minute from its first byte, however busy."""
    ends = Ends()
    async with MemoryServer(MEMORY, Upper, observers=[ends]).serving() as server:
        client = await server.connect()
        await trio.sleep(100)
        began = trio.current_time()
        await trickle(client)
    (record,) = ends.records
    assert record.outcome == "timed_out"
    assert "(line)" in record.reason
    assert record.info.started + record.duration == began + 60


PROTOCOLS = {
    "lines": (Upper, b"hello\nworld\n\nlast", b"HELLO\nWORLD\n\nLAST"),
    "frames": (Framed, b"\x00\x05hello\x00\x00\x00\x01x", b"<hello><><x>"),
    "delimited": (Delimited, b"a\r\r\n\r\nb\n\r\n\r\n", b"A\r\r\n\r\nB\n\r\n\r\n"),
}


@pytest.mark.parametrize(("handler", "sent", "reply"), PROTOCOLS.values(), ids=PROTOCOLS)
async def test_request_in_single_bytes(handler: Any, sent: bytes, reply: bytes) -> None:
    """CM-04: a request that comes byte by byte has the reply of one that comes at once."""
    async with MemoryServer(MEMORY, handler).serving() as server:
        for pieces in ([sent], [sent[i : i + 1] for i in range(len(sent))]):
            async with await server.connect() as client:
                for piece in pieces:
                    await client.send_all(piece)
                    await settled()
                await client.send_eof()
                assert await read_to_end(client) == reply


@pytest.mark.parametrize(("handler", "sent", "reply"), PROTOCOLS.values(), ids=PROTOCOLS)
async def test_request_over_a_pipe_of_one_byte(handler: Any, sent: bytes, reply: bytes) -> None:
    """CM-04: nor does it matter when the network holds a single byte in each direction."""

    class Narrow(MemoryServer):
        memory_capacity = 1

    async with Narrow(MEMORY, handler).serving() as server:
        async with await server.connect() as client, trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, sent)
            assert await read_to_end(client) == reply


async def send_and_end(client: trio.abc.HalfCloseableStream, data: bytes) -> None:
    """Say everything."""
    await client.send_all(data)
    await client.send_eof()


@pytest.mark.parametrize(("handler", "sent", "reply"), PROTOCOLS.values(), ids=PROTOCOLS)
async def test_request_in_single_segments(handler: Any, sent: bytes, reply: bytes) -> None:
    """CM-04: over TCP, one byte a segment."""
    server = tcp_server(handler)
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in sent:
                    client.sendall(bytes([byte]))
                    await settled()
                client.shutdown(socket.SHUT_WR)
                assert await in_thread(client.makefile("rb").read) == reply


# They flood --------------------------------------------------------------------


async def test_line_without_end(caplog: pytest.LogCaptureFixture) -> None:
    """CM-05: a gigabyte without a newline is cut at the limit; memory stays flat."""
    ends = Ends()
    chunk, sent = bytes(65_536), 0
    async with MemoryServer(MEMORY, Upper, observers=[ends]).serving() as server:
        async with await server.connect() as client:
            tracemalloc.start()
            try:
                with contextlib.suppress(trio.BrokenResourceError):
                    while sent < 2**30:
                        await client.send_all(chunk)
                        sent += len(chunk)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    (record,) = ends.records
    assert (record.outcome, "(line)" in record.reason) == ("refused", True)
    assert sent < 3_000_000
    assert peak < 1_000_000
    assert errors_in(caplog) == []


async def test_line_without_end_over_tcp() -> None:
    """CM-05: the same over TCP, where the client's kernel holds some more."""
    ends = Ends()
    server = tcp_server(observers=[ends])
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                with pytest.raises(ConnectionError):
                    await in_thread(client.sendall, bytes(2**28))
    (record,) = ends.records
    assert record.outcome == "refused"
    assert record.bytes_received <= Limits().line + 65_536


@pytest.mark.parametrize("handler", [Upper, Framed, Delimited])
async def test_garbage(caplog: pytest.LogCaptureFixture, handler: Any) -> None:
    """CM-11: random bytes of any length end as a protocol says, never as an error of the server."""
    rng = random.Random(11)
    ends, reported = Ends(), []

    class Reporting(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            reported.append(client_address)

    async with Reporting(MEMORY, handler, observers=[ends]).serving() as server:
        for _ in range(150):
            async with await server.connect() as client:
                with contextlib.suppress(trio.BrokenResourceError):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drop_all, client)
                        await client.send_all(rng.randbytes(rng.choice((0, 1, 100, 64_000))))
                        await client.send_eof()
        assert server.statistics().active == 0
    assert len(ends.records) == 150
    assert set(ends.outcomes) <= {"completed", "disconnected", "refused"}
    assert reported == []
    assert errors_in(caplog) == []


async def drop_all(client: trio.abc.ReceiveStream) -> None:
    """Read, and throw away."""
    with contextlib.suppress(trio.BrokenResourceError):
        await read_to_end(client)


async def test_pipelined_requests() -> None:
    """CM-16: requests in one segment are answered one by one, in order, without loss."""
    lines = [b"line %d\n" % number for number in range(1000)]
    server = tcp_server()
    with trio.fail_after(10):
        async with server.serving():
            assert await ask(server, b"".join(lines)) == b"".join(lines).upper()


async def test_second_request_in_the_segment_of_the_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """CM-16: the beginning of a second request waits in the buffer for its rest."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        async with await server.connect() as client:
            await client.send_all(b"first\nsec")
            assert await client.receive_some() == b"FIRST\n"
            await trio.sleep(30)
            await client.send_all(b"ond\n")
            assert await client.receive_some() == b"SECOND\n"


async def test_urgent_byte_is_not_mixed_into_the_data() -> None:
    """CM-12: a byte of TCP's urgent data is left out, and the data goes on around it."""
    server = tcp_server()
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                client.sendall(b"hel")
                client.send(b"!", socket.MSG_OOB)
                client.sendall(b"lo\n")
                assert await in_thread(client.recv, 100) == b"HELLO\n"


async def test_more_clients_than_the_queue_holds() -> None:
    """CM-18: clients who find no place in the kernel's queue do not touch those who are served."""
    server = tcp_server(limits=Limits(requests=1), request_queue_size=3)
    with trio.fail_after(10), contextlib.ExitStack() as open_clients:
        async with server.serving():
            live = open_clients.enter_context(plain_client(server.server_address))
            live.sendall(b"hello\n")
            assert await in_thread(live.recv, 100) == b"HELLO\n"
            for _ in range(200):
                half_open = open_clients.enter_context(socket.socket())
                half_open.setblocking(False)
                half_open.connect_ex(server.server_address)
            live.sendall(b"hello\n")
            assert await in_thread(live.recv, 100) == b"HELLO\n"
            assert len(server.requests) == 1
            server.shutdown(grace=0)


# They stop half-way --------------------------------------------------------------


async def test_client_that_has_said_everything() -> None:
    """CM-06: a client that ends its output gets the whole of a large reply."""
    reply = random.Random(6).randbytes(5_000_000)

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            assert await self.rfile.read() == b"hello\n"
            await self.wfile.write(reply)

    server = tcp_server(Talk)
    with trio.fail_after(10):
        async with server.serving():
            assert await ask(server) == reply


async def test_client_that_ends_in_the_middle() -> None:
    """CM-07: a line cut short by the end of input is read once, then the end, for ever."""
    reads = []

    class Careful(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            while line := await self.rfile.readline():
                reads.append(line)
            assert [await self.rfile.readline() for _ in range(3)] == [b""] * 3
            assert self.rfile.at_eof()
            await self.wfile.write(b"goodbye")

    server = tcp_server(Careful)
    with trio.fail_after(10):
        async with server.serving():
            assert await ask(server, b"line\nhalf a li") == b"goodbye"
    assert reads == [b"line\n", b"half a li"]


@pytest.mark.parametrize("handler", [Framed, Delimited])
async def test_client_that_announces_more_than_it_sends(
    caplog: pytest.LogCaptureFixture, handler: Any
) -> None:
    """CM-07, CM-08: where a protocol asks for more, the end of input ends the request at once."""
    ends = Ends()
    async with MemoryServer(MEMORY, handler, observers=[ends]).serving() as server:
        async with await server.connect() as client:
            await client.send_all(b"\x00\x0a123456789")
            await client.send_eof()
            assert await read_to_end(client) == b""
    (record,) = ends.records
    assert (record.outcome, record.duration) == ("disconnected", pytest.approx(0, abs=1))
    assert errors_in(caplog) == []


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """Counts how often any task runs."""

    count: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@contextlib.contextmanager
def counted() -> Iterator[Steps]:
    """Count the steps of a block."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    yield steps
    trio.lowlevel.remove_instrument(steps)


async def test_client_that_falls_silent(autojump_clock: trio.testing.MockClock) -> None:
    """CM-08: a client that announces more and falls silent is cut when idle for too long."""
    ends = Ends()
    timeouts = Timeouts(idle=40)
    async with MemoryServer(
        MEMORY, Framed, timeouts=timeouts, observers=[ends]
    ).serving() as server:
        async with await server.connect() as client:
            await trio.sleep(3)
            await client.send_all(b"\x00\x0a123456789")
            began = trio.current_time()
            with counted() as steps:
                assert await read_to_end(client) == b""
            assert trio.current_time() == began + 40
    assert ends.outcomes == ["timed_out"]
    assert "(idle)" in ends.records[0].reason
    assert steps.count < 100


async def test_end_of_input_does_not_spin(autojump_clock: trio.testing.MockClock) -> None:
    """CM-07: a handler that is busy elsewhere costs nothing after its client's end of input."""

    async def think(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await request.recv(1)
        await trio.sleep(3600)

    async with MemoryServer(MEMORY, think).serving() as server:
        async with await server.connect() as client:
            await client.send_all(b"x")
            await client.send_eof()
            with counted() as steps:
                assert await read_to_end(client) == b""
    assert steps.count < 100


# They do not read ----------------------------------------------------------------


async def test_client_that_never_reads(autojump_clock: trio.testing.MockClock) -> None:
    """CM-10: it is cut when it has taken nothing for too long, and nothing is sent after that."""
    errors = []

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            for _ in range(3):
                try:
                    await self.wfile.write(bytes(1_000_000))
                except trioserver.WriteTimeout as error:
                    errors.append(trio.current_time())
                    last = error
            raise last

    ends = Ends()
    server = MemoryServer(MEMORY, Talk, timeouts=Timeouts(write=9), observers=[ends])
    async with server.serving():
        client = await server.connect()
        began = trio.current_time()
        await ends.of(1)
        assert errors == [began + 9] * 3
        await settled()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    assert ends.outcomes == ["timed_out"]
    assert "(write)" in ends.records[0].reason
    assert ends.records[0].bytes_sent == server.memory_capacity


async def test_client_with_a_closed_window() -> None:
    """CM-10: a TCP client with a tiny buffer that never reads is cut, and stopping is prompt."""

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(bytes(50_000_000))

    ends = Ends()
    server = tcp_server(Talk, timeouts=Timeouts(write=0.3), observers=[ends])
    with trio.fail_after(5):
        async with server.serving():
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                client.connect(server.server_address)
                await ends.of(1)
    assert ends.outcomes == ["timed_out"]


async def test_server_stops_although_clients_never_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """CM-10: a drain is over with its grace, whatever is stuck in a send."""

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(bytes(1_000_000))

    server = MemoryServer(MEMORY, Talk, timeouts=Timeouts(write=1000))
    async with server.serving(grace=4):
        for _ in range(20):
            await server.connect()
        await settled()
        began = trio.current_time()
    assert trio.current_time() == began + 4
    report = await server.wait_closed()
    assert len(report.cancelled) == 20


async def test_hostile_clients_do_not_delay_a_polite_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """CM-03, CM-10: beside a hundred of each kind, a polite client waits for nothing."""
    async with MemoryServer(MEMORY, Upper).serving(grace=0) as server:
        for number in range(300):
            client = await server.connect()
            if number % 3 == 0:
                client._transport.send_now(b"no end")
            elif number % 3 == 1:
                client._transport.send_now(b"line\n" * 10_000)  # and never reads
            else:
                client.reset()
        began = trio.current_time()
        async with await server.connect() as polite:
            await polite.send_all(b"hello\n")
            assert await polite.receive_some() == b"HELLO\n"
        assert trio.current_time() == began


async def test_client_that_is_refused_and_goes_on() -> None:
    """CM-01: a client that ignores its reset and comes back a hundred times is reset each time."""
    limits = Limits(requests=1, when_full="refuse")
    server = tcp_server(hold, limits=limits)
    with trio.fail_after(10):
        async with server.serving(grace=0):
            with plain_client(server.server_address):
                await settled()
                for _ in range(100):
                    with plain_client(server.server_address) as client:
                        await settled()
                        with pytest.raises(ConnectionError):
                            client.recv(1)
                assert server.statistics().refused == 100
