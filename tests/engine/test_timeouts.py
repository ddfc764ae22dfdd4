"""Time-outs: which wait each of them bounds, from when, and to the instant when it ends.

Almost everything runs in memory on a virtual clock, so instants are compared
with ``==``. The last section does the same once for each time-out on real
sockets, where only the lower bound is exact.
"""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from support import Upper, Witness, hold, plain_client, read_to_end

import trioserver
from trioserver.testing import MemoryListener, MemoryServer, MemoryTransport

FIELDS = ["handshake", "idle", "line", "write", "request", "linger", "shutdown", "cleanup"]
MAY_BE_ZERO = ["linger", "shutdown", "cleanup"]


class Narrow(MemoryServer):
    """Holds ten bytes on their way, so that a send soon has to wait for the reader."""

    memory_capacity = 10


def memory(handler: Any, kind: type[MemoryServer] = MemoryServer, **fields: Any) -> MemoryServer:
    """A server in memory; keywords that are time-outs are taken as such."""
    seconds = {name: fields.pop(name) for name in FIELDS if name in fields}
    return kind(("memory", 1), handler, timeouts=trioserver.Timeouts(**seconds), **fields)


async def receive(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Receives until the peer ends its input."""
    await read_to_end(request)


async def ended_at(client: trioserver.Connection) -> float:
    """When the server ended its side of the connection."""
    await read_to_end(client)
    moment = trio.current_time()
    await client.aclose()
    return moment


async def drip(client: trioserver.Connection, every: float) -> None:
    """Sends one byte now and one every few seconds, as long as it can."""
    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
        while True:
            await client.send_all(b"x")
            await trio.sleep(every)


# The first byte, and idle waits ------------------------------------------------


async def test_idle_bounds_the_first_byte(autojump_clock: Any) -> None:
    """TO-01: a client that never sends is there until just before the limit, and not after it."""
    witness = Witness()
    server = memory(receive, idle=7, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(6.999)
        assert len(server.requests) == 1
        assert await ended_at(client) == 7
    assert witness.outcomes == ["timed_out"]
    assert "idle" in witness.records[0].reason


async def test_idle_ends_twenty_silent_clients(autojump_clock: Any) -> None:
    """TO-01: twenty clients that never send are all ended, at the very same instant."""
    witness, instants = Witness(), []

    async def wait_for(client: trioserver.Connection) -> None:
        instants.append(await ended_at(client))

    server = memory(Upper, idle=300, observers=[witness])
    async with server.serving():
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait_for, await server.connect())
    assert instants == [300] * 20
    assert witness.outcomes == ["timed_out"] * 20
    assert [record.duration for record in witness.records] == [300] * 20


async def test_idle_counts_from_each_connections_own_start(autojump_clock: Any) -> None:
    """TO-01: clients that come one after the other are ended one after the other."""
    witness = Witness()
    server = memory(receive, idle=10, observers=[witness])
    async with server.serving():
        for _ in range(3):
            await server.connect()
            await trio.sleep(2)
        await trio.sleep(10)
    assert [record.info.started for record in witness.records] == [0, 2, 4]
    assert [record.duration for record in witness.records] == [10, 10, 10]


async def test_idle_counts_from_the_last_byte_of_the_client(autojump_clock: Any) -> None:
    """TO-03: each byte starts the limit anew, in whichever line or request it comes."""
    server = memory(Upper, idle=10, line=math.inf)
    async with server.serving():
        client = await server.connect()
        for portion in [b"one\n", b"tw", b"o\n", b"t"]:
            await trio.sleep(9)
            await client.send_all(portion)
        assert await ended_at(client) == 9 * 4 + 10


async def test_idle_is_not_extended_by_what_we_send(autojump_clock: Any) -> None:
    """TO-03: a server that keeps sending to a silent client still ends it on time."""

    async def chatter(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, request, 1)
            await read_to_end(request)

    witness = Witness()
    server = memory(chatter, idle=10, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 10
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].bytes_sent >= 10


async def test_idle_does_not_count_the_handlers_own_time(autojump_clock: Any) -> None:
    """TO-04: a handler that computes for ten times the limit is not timed out by it."""

    async def ponder(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await request.recv()
        await trio.sleep(100)
        await request.sendall(await request.recv())

    server = memory(ponder, idle=10)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"?")
        await trio.sleep(109.999)
        await client.send_all(b"!")
        assert await read_to_end(client) == b"!"


async def test_idle_bounds_a_read_of_many_bytes_by_the_gaps(autojump_clock: Any) -> None:
    """TO-03: a long read goes on as long as no gap between its bytes reaches the limit."""

    class TakeTwenty(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(await self.rfile.readexactly(20))

    server = memory(TakeTwenty, idle=10)
    async with server.serving():
        client = await server.connect()
        with trio.move_on_after(9 * 19):
            await drip(client, every=9)
        await client.send_all(b"y")
        assert await read_to_end(client) == b"x" * 19 + b"y"
        assert trio.current_time() == 9 * 19


async def test_idle_limit_of_infinity(autojump_clock: Any) -> None:
    """TO-07: with inf a connection may be silent for a year."""
    server = memory(Upper, idle=math.inf)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(365 * 86_400)
        await client.send_all(b"still here\n")
        assert await client.receive_some() == b"STILL HERE\n"


# Lines -------------------------------------------------------------------------


async def test_line_ends_a_drip(autojump_clock: Any) -> None:
    """TO-02: a byte now and then does not keep a line unfinished beyond its limit."""
    witness = Witness()
    server = memory(Upper, idle=300, line=60, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, client, 15)
            assert await ended_at(client) == 160
    assert witness.outcomes == ["timed_out"]
    assert "line" in witness.records[0].reason


@pytest.mark.parametrize(
    "read",
    [
        lambda rfile: rfile.readline(),
        lambda rfile: rfile.readline(1000),
        lambda rfile: rfile.readuntil(b"\r\n\r\n"),
        lambda rfile: rfile.readlines(1),
    ],
    ids=["readline", "readline(n)", "readuntil", "readlines(n)"],
)
async def test_line_bounds_delimited_reads(
    read: Callable[[trioserver.RequestReader], Any], autojump_clock: Any
) -> None:
    """TO-02: every read up to a delimiter is bounded from its first byte."""

    class Read(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await read(self.rfile)

    server = memory(Read, line=60)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, client, 10)
            assert await ended_at(client) == 65


async def test_line_limit_is_per_line(autojump_clock: Any) -> None:
    """TO-11: each line has the limit anew, so a slow conversation may last for ever."""
    server = memory(Upper, line=60)
    async with server.serving():
        client = await server.connect()
        for _ in range(5):
            await client.send_all(b"a")
            await trio.sleep(59)
            await client.send_all(b"b\n")
            assert await client.receive_some() == b"AB\n"


async def test_line_limit_does_not_bound_the_wait_for_a_line(autojump_clock: Any) -> None:
    """TO-03: before the first byte of a line it is the idle limit that counts."""
    server = memory(Upper, idle=300, line=60)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(299)
        await client.send_all(b"late\n")
        assert await client.receive_some() == b"LATE\n"


async def test_line_stays_in_the_buffer_after_a_timeout(autojump_clock: Any) -> None:
    """TO-02: what had arrived of a line is not lost when its limit is caught."""

    class Patient(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            with pytest.raises(trioserver.IdleTimeout, match="line"):
                await self.rfile.readline()
            assert trio.current_time() == 60
            await self.wfile.write(await self.rfile.readline())

    server = memory(Patient, line=60)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"first ")
        await trio.sleep(70)
        await client.send_all(b"second\n")
        assert await client.receive_some() == b"first second\n"


# Writes ------------------------------------------------------------------------


async def flood(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Sends more than a narrow pipe holds."""
    await request.sendall(b"z" * 40)


async def test_write_lets_a_slow_reader_finish(autojump_clock: Any) -> None:
    """TO-06: a reader that takes one byte shortly before each limit gets everything."""
    witness, received = Witness(), b""
    server = memory(flood, Narrow, write=30, observers=[witness])
    async with server.serving():
        client = await server.connect()
        while len(received) < 30:
            await trio.sleep(29)
            received += await client.receive_some(1)
        received += await read_to_end(client)
    assert received == b"z" * 40
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration == 29 * 30


async def test_write_counts_from_the_last_byte_taken(autojump_clock: Any) -> None:
    """TO-06: a reader that stops is ended the limit after the last byte that it took."""
    witness = Witness()
    server = memory(flood, Narrow, write=30, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(29)
        await client.receive_some(1)
        await trio.sleep(31)
    assert witness.outcomes == ["timed_out"]
    assert "write" in witness.records[0].reason
    assert witness.records[0].duration == 59
    assert witness.records[0].bytes_sent == 11


async def test_write_timeout_ends_in_an_error_for_the_client(autojump_clock: Any) -> None:
    """TO-06: half a reply does not look like a whole one."""
    server = memory(flood, Narrow, write=30)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(31)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


async def test_write_timeout_repeats(autojump_clock: Any) -> None:
    """TO-06: after a caught write time-out every later send raises the same, at once."""
    instants = []

    async def stubborn(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        for send in [flood(request, None, None), request.sendall(b"bye"), request.send_eof()]:
            with pytest.raises(trioserver.WriteTimeout):
                await send
            instants.append(trio.current_time())

    witness = Witness()
    server = memory(stubborn, Narrow, write=30, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(29)
        assert len(server.requests) == 1
        await trio.sleep(2)
        await client.aclose()
    assert instants == [30, 30, 30]
    assert witness.outcomes == ["completed"]


async def test_write_timeout_repeats_although_the_reader_is_back(autojump_clock: Any) -> None:
    """TO-06: room that comes later does not mend a reply that was cut."""

    async def stubborn(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with pytest.raises(trioserver.WriteTimeout):
            await flood(request, None, None)
        await request.recv()
        with pytest.raises(trioserver.WriteTimeout):
            await request.sendall(b"bye")

    witness = Witness()
    server = memory(stubborn, Narrow, write=30, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(31)
        await client.receive_some()
        await client.send_all(b"I am back")
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    assert witness.outcomes == ["completed"]


async def test_write_timeout_leaves_reading_alone(autojump_clock: Any) -> None:
    """TO-06: a handler that caught a write time-out can still read what the client says."""
    heard = []

    async def listen(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with pytest.raises(trioserver.WriteTimeout):
            await flood(request, None, None)
        heard.append(await request.recv())

    server = memory(listen, Narrow, write=30)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(40)
        await client.send_all(b"why")
        await trio.testing.wait_all_tasks_blocked()
    assert heard == [b"why"]


async def test_write_bounds_the_last_flush(autojump_clock: Any) -> None:
    """TO-06: what a buffered wfile still holds after handle() is sent under the same limit."""

    class Buffered(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self) -> None:
            await self.wfile.write(b"z" * 40)

    witness = Witness()
    server = memory(Buffered, Narrow, write=30, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(31)
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 30


async def test_write_bounds_a_function_for_a_full_server(autojump_clock: Any) -> None:
    """TO-06: a when_full function that does not end is ended at the write limit."""

    async def dawdle(connection: trioserver.Connection) -> None:
        await trio.sleep_forever()

    witness = Witness()
    limits = trioserver.Limits(requests=1, when_full=dawdle)
    server = memory(hold, write=30, shutdown=0, limits=limits, observers=[witness])
    async with server.serving():
        await server.connect()
        assert await ended_at(await server.connect()) == 30
    assert witness.records[0].outcome == "refused"
    assert witness.records[0].duration == 30


# The whole request ---------------------------------------------------------------


async def test_request_ends_a_drip(autojump_clock: Any) -> None:
    """TO-02: a client that sends a byte every now and then is ended at the limit."""
    witness = Witness()
    server = memory(Upper, request=10, observers=[witness])
    async with server.serving():
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, client, 0.375)
            assert await ended_at(client) == 10
    assert witness.outcomes == ["timed_out"]
    assert "request" in witness.records[0].reason
    assert witness.records[0].duration == 10


async def test_request_bounds_nobody_by_default(autojump_clock: Any) -> None:
    """TO-02: without the limit a busy connection may last for days."""
    server = memory(Upper)
    async with server.serving():
        client = await server.connect()
        for _ in range(1000):
            await trio.sleep(299)
            await client.send_all(b"tick\n")
            assert await client.receive_some() == b"TICK\n"


async def test_request_ends_a_blocked_write(autojump_clock: Any) -> None:
    """TO-02: the limit of the request holds in a send, too."""
    witness = Witness()
    server = memory(flood, Narrow, request=10, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(11)
    assert witness.outcomes == ["timed_out"]
    assert "request" in witness.records[0].reason
    assert witness.records[0].duration == 10


async def test_request_includes_the_linger(autojump_clock: Any) -> None:
    """TO-02: it lasts from accept to close, so a client that lingers is cut by it."""

    async def reply(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(8)
        await request.sendall(b"done")

    witness = Witness()
    server = memory(reply, request=10, linger=100, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(9.999)
        assert server.statistics().lingering == 1
        await trio.sleep(0.002)
        assert server.statistics().lingering == 0
        assert await read_to_end(client) == b"done"
    assert witness.outcomes == ["completed"]


async def test_request_deadline_can_be_moved_closer(autojump_clock: Any) -> None:
    """TO-11: a handler may give itself less time than the server does."""

    class Hasty(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            self.cancel_scope.deadline = trio.current_time() + 3
            await trio.sleep_forever()

    witness = Witness()
    server = memory(Hasty, request=10, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 3
    assert witness.outcomes == ["timed_out"]


async def test_request_deadline_can_be_moved_for_each_request(autojump_clock: Any) -> None:
    """TO-11: a handler of many requests on one connection gives each of them the time anew."""

    class PerRequest(Upper):
        async def handle(self) -> None:
            async for line in self.rfile:
                self.cancel_scope.deadline = trio.current_time() + 10
                await self.wfile.write(line.upper())

    witness = Witness()
    server = memory(PerRequest, request=10, observers=[witness])
    async with server.serving():
        client = await server.connect()
        for _ in range(5):
            await trio.sleep(9)
            await client.send_all(b"again\n")
            assert await client.receive_some() == b"AGAIN\n"
        assert await ended_at(client) == 45 + 10
    assert witness.outcomes == ["timed_out"]


async def test_request_deadline_can_be_taken_away(autojump_clock: Any) -> None:
    """TO-11: a handler may decide that this client has all the time there is."""

    class Upgraded(Upper):
        async def setup(self) -> None:
            self.cancel_scope.deadline = math.inf

    server = memory(Upgraded, request=10)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(100)
        await client.send_all(b"long\n")
        assert await client.receive_some() == b"LONG\n"


async def test_request_deadline_is_readable(autojump_clock: Any) -> None:
    """TO-11: the scope says until when the request may last, and so does the snapshot."""
    deadlines = []

    class Tell(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            deadlines.append(self.cancel_scope.deadline)
            await trio.sleep(4)
            deadlines.append(self.server.snapshot().requests[0].time_left)

    await trio.sleep(5)
    server = memory(Tell, request=10)
    async with server.serving():
        await ended_at(await server.connect())
    assert deadlines == [15, 6]


async def test_request_deadline_swallowed(autojump_clock: Any) -> None:
    """TO-02: a handler that swallowed its deadline and returned has completed."""

    async def swallow(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return

    witness = Witness()
    server = memory(swallow, request=10, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(11)
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration == 10


async def test_request_deadline_is_not_an_outer_one(autojump_clock: Any) -> None:
    """TO-09: a deadline around the whole server is the caller's doing, not a request's time-out."""

    class SlowToFinish(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            await trio.sleep(1)

    witness = Witness()
    server = memory(SlowToFinish, observers=[witness])
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await server.connect()
    assert witness.outcomes == ["cancelled"]


# The handshake -------------------------------------------------------------------


class Guarded(MemoryServer):
    """Takes its time to verify: as long as the client's address says."""

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        await trio.sleep(client_address[1])
        return True


async def test_handshake_bounds_verify_request(autojump_clock: Any) -> None:
    """EX-08: a verify_request that never decides is ended at the limit, and nobody else waits."""
    witness = Witness()
    server = memory(Upper, Guarded, handshake=10, observers=[witness])
    async with server.serving():
        slow = await server.connect(("slow", math.inf))
        fast = await server.connect(("fast", 0))
        await fast.send_all(b"hello\n")
        assert await fast.receive_some() == b"HELLO\n"
        assert trio.current_time() == 0
        assert await ended_at(slow) == 10
    assert witness.records[0].outcome == "timed_out"
    assert "handshake" in witness.records[0].reason
    assert witness.records[0].duration == 10


async def test_handshake_lets_a_slow_verification_pass(autojump_clock: Any) -> None:
    """EX-08: one that decides just in time is heard."""
    server = memory(Upper, Guarded, handshake=10)
    async with server.serving():
        client = await server.connect(("slow", 9.999))
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"


async def test_handshake_does_not_bound_the_handler(autojump_clock: Any) -> None:
    """EX-08: the limit ends with the verification."""
    server = memory(Upper, Guarded, handshake=10)
    async with server.serving():
        client = await server.connect(("slow", 9))
        await trio.sleep(250)
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"


@pytest.mark.parametrize(("grace", "moment"), [(4, 4), (20, 10)])
async def test_handshake_ends_during_the_drain(
    grace: float, moment: float, autojump_clock: Any
) -> None:
    """EX-08: a drain waits for verifications as long as they, and it, may last."""
    server = memory(Upper, Guarded, handshake=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        for _ in range(3):
            await server.connect(("slow", math.inf))
        await trio.testing.wait_all_tasks_blocked()
        server.shutdown(grace)
        report = await server.wait_closed()
    assert trio.current_time() == moment  # nothing was sent to them, so they do not linger
    assert [record.duration for record in report.requests] == [moment] * 3


async def test_handshake_runs_within_the_request(autojump_clock: Any) -> None:
    """TO-02: the shorter limit of the whole request ends a verification, too."""
    witness = Witness()
    server = memory(Upper, Guarded, handshake=10, request=4, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect(("slow", math.inf))) == 4
    assert witness.outcomes == ["timed_out"]
    assert "request" in witness.records[0].reason


# Linger ----------------------------------------------------------------------------


async def test_linger_bounds_the_wait_for_the_client(autojump_clock: Any) -> None:
    """TO-02: a client that does not end its input after the reply is closed at the limit."""
    server = memory(flood, linger=2)
    async with server.serving():
        client = await server.connect()
        assert await read_to_end(client) == b"z" * 40
        assert trio.current_time() == 0
        await trio.sleep(1.999)
        assert server.statistics().lingering == 1
        await trio.sleep(0.002)
        assert server.statistics().lingering == 0


async def test_linger_is_not_extended_by_input(autojump_clock: Any) -> None:
    """TO-02: a client that keeps sending after the reply is closed on time all the same."""
    server = memory(flood, linger=2)
    async with server.serving():
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, client, 0.375)
            await trio.sleep(1.999)
            assert server.statistics().lingering == 1
            await trio.sleep(0.002)
            assert server.statistics().lingering == 0


async def test_linger_of_zero_closes_at_once(autojump_clock: Any) -> None:
    """TO-07: 0 does not wait at all."""
    server = memory(flood, linger=0)
    async with server.serving():
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().lingering == 0
        assert trio.current_time() == 0


async def test_linger_ends_with_the_clients_input(autojump_clock: Any) -> None:
    """TO-02: it lasts no longer than the client does."""
    server = memory(flood, linger=2)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(1)
        await client.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().lingering == 0
        assert trio.current_time() == 1


# A handler's own limits -------------------------------------------------------------


async def test_handler_timeout_overrides_idle(autojump_clock: Any) -> None:
    """TO-01: the class attribute `timeout` replaces the server's idle limit."""

    class Brisk(Upper):
        timeout = 3

    witness = Witness()
    server = memory(Brisk, idle=300, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 3
    assert witness.outcomes == ["timed_out"]


async def test_handler_timeout_overrides_write(autojump_clock: Any) -> None:
    """TO-06: the class attribute `timeout` replaces the server's write limit."""

    class Brisk(trioserver.StreamRequestHandler):
        timeout = 3

        async def handle(self) -> None:
            await self.wfile.write(b"z" * 40)

    witness = Witness()
    server = memory(Brisk, Narrow, write=30, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(4)
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 3


async def test_handler_timeout_of_none_keeps_the_servers(autojump_clock: Any) -> None:
    """TO-07: None, the default, changes nothing."""

    class Same(Upper):
        timeout = None

    server = memory(Same, idle=7)
    async with server.serving():
        assert await ended_at(await server.connect()) == 7


@pytest.mark.parametrize("wrong", [0, -1, math.nan, "3"])
async def test_handler_timeout_is_validated(wrong: Any, autojump_clock: Any, caplog: Any) -> None:
    """TO-07: a wrong `timeout` is an error of the request, and says what was expected."""

    class Wrong(Upper):
        timeout = wrong

    witness = Witness()
    server = memory(Wrong, observers=[witness])
    async with server.serving():
        await ended_at(await server.connect())
    assert witness.outcomes == ["failed"]
    assert "must be a number of seconds" in caplog.text


async def test_connection_idle_timeout_can_be_assigned(autojump_clock: Any) -> None:
    """TO-11: a handler moves the idle limit of its connection, there and back."""
    instants = []

    async def change(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        assert request.idle_timeout == 300
        for seconds in [5, 50]:
            request.idle_timeout = seconds
            with pytest.raises(trioserver.IdleTimeout):
                await request.recv()
            instants.append(trio.current_time())

    server = memory(change, idle=300)
    async with server.serving():
        await ended_at(await server.connect())
    assert instants == [5, 55]


async def test_connection_write_timeout_can_be_assigned(autojump_clock: Any) -> None:
    """TO-11: a handler moves the write limit of its connection."""

    async def change(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        assert request.write_timeout == 30
        request.write_timeout = 5
        await flood(request, client_address, server)

    witness = Witness()
    server = memory(change, Narrow, write=30, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(6)
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 5


async def test_connection_timeouts_are_its_own(autojump_clock: Any) -> None:
    """TO-11: what one handler assigns does not concern the next connection."""

    async def first_is_brisk(request: trioserver.Connection, address: Any, server: Any) -> None:
        if request.info.id == 1:
            request.idle_timeout = 1
        await request.recv()

    server = memory(first_is_brisk, idle=10)
    async with server.serving():
        assert await ended_at(await server.connect()) == 1
        assert await ended_at(await server.connect()) == 11


@pytest.mark.parametrize("name", ["idle_timeout", "write_timeout"])
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (None, TypeError),
        ("5", TypeError),
        (True, TypeError),
    ],
    ids=repr,
)
async def test_connection_timeouts_are_validated(
    name: str, wrong: Any, kind: type[Exception], autojump_clock: Any
) -> None:
    """TO-07: a wrong value is refused with its kind's exception, and changes nothing."""

    async def assign(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        before = getattr(request, name)
        with pytest.raises(kind, match="must be a number of seconds"):
            setattr(request, name, wrong)
        assert getattr(request, name) == before

    witness = Witness()
    server = memory(assign, observers=[witness])
    async with server.serving():
        await ended_at(await server.connect())
    assert witness.outcomes == ["completed"]


async def test_caught_idle_timeout_lets_the_handler_go_on(autojump_clock: Any) -> None:
    """TO-03: a handler that catches the time-out can say so, and even read on."""

    async def ask_twice(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        try:
            await request.recv()
        except trioserver.IdleTimeout:
            await request.sendall(b"are you there?")
        await request.sendall(await request.recv())

    witness = Witness()
    server = memory(ask_twice, idle=10, observers=[witness])
    async with server.serving():
        client = await server.connect()
        assert await client.receive_some() == b"are you there?"
        assert trio.current_time() == 10
        await trio.sleep(9)
        await client.send_all(b"yes")
        assert await read_to_end(client) == b"yes"
    assert witness.outcomes == ["completed"]


async def test_timeouts_are_timeout_errors(autojump_clock: Any) -> None:
    """TO-09: code written for the built-in TimeoutError catches ours, and sees whose request."""
    caught = []

    async def classic(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        for operation in [request.recv(), flood(request, None, None)]:
            try:
                await operation
            except TimeoutError as error:
                caught.append(error)
        assert [error.info for error in caught] == [request.info] * 2

    server = memory(classic, Narrow, idle=10, write=5)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(16)
        await client.aclose()
    assert [type(error) for error in caught] == [trioserver.IdleTimeout, trioserver.WriteTimeout]


async def test_own_fail_after_is_the_handlers_error(autojump_clock: Any, caplog: Any) -> None:
    """TO-09: a TooSlowError of the handler's own scope is its error, with a traceback."""

    async def impatient(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with trio.fail_after(5):
            await request.recv()

    witness = Witness()
    server = memory(impatient, idle=10, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 5
    assert witness.outcomes == ["failed"]
    assert "TooSlowError" in caplog.text


async def test_own_fail_after_later_than_ours(autojump_clock: Any, caplog: Any) -> None:
    """TO-09: when our limit comes first it is a time-out, and no error is logged."""

    async def patient(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with trio.fail_after(15):
            await request.recv()

    witness = Witness()
    server = memory(patient, idle=10, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 10
    assert witness.outcomes == ["timed_out"]
    assert [record for record in caplog.records if record.name == "trioserver.error"] == []


async def test_own_move_on_at_the_same_instant_as_ours(autojump_clock: Any) -> None:
    """TO-09: of two limits at one instant the handler's, which is around ours, decides."""

    async def tie(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with trio.move_on_after(10) as scope:
            await request.recv()
        assert scope.cancelled_caught
        await request.sendall(b"moved on")

    for _ in range(5):
        server = memory(tie, idle=10)
        async with server.serving():
            assert await read_to_end(await server.connect()) == b"moved on"


# The very tick of the deadline -----------------------------------------------------


class LastInstant(MemoryTransport):
    """Between the instant when a limit strikes and what is done about it, `arrive` is called."""

    def arrive(self) -> None:
        self._incoming.data += b"just in time\n"

    async def wait_readable(self) -> None:
        try:
            await super().wait_readable()
        except trio.Cancelled:
            self.arrive()
            raise

    async def wait_writable(self) -> None:
        try:
            await super().wait_writable()
        except trio.Cancelled:
            self.arrive()
            raise


class LastInstantListener(MemoryListener):
    """Accepts transports of another kind."""

    kind: ClassVar[type[MemoryTransport]]

    def accept_now(self) -> tuple[MemoryTransport, Any] | None:
        accepted = super().accept_now()
        if accepted is None:
            return None
        pipe, client_address = accepted
        return self.kind(pipe.local_address, pipe._incoming, pipe._outgoing), client_address


class LastInstantServer(MemoryServer):
    """Accepts such transports, of ten bytes' room."""

    transport: ClassVar[type[MemoryTransport]] = LastInstant

    async def server_bind(self) -> list[MemoryListener]:
        kind = type("Listener", (LastInstantListener,), {"kind": self.transport})
        self.listener = kind(self.server_address, 10)
        return [self.listener]


@pytest.mark.parametrize("limit", [{"idle": 10}, {"line": 10}])
async def test_bytes_in_the_tick_of_the_deadline_count(
    limit: dict[str, int], autojump_clock: Any
) -> None:
    """TO-01: what arrived in the very tick in which the limit struck is received."""
    lines = []

    class Hear(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            lines.append(await self.rfile.readline())

    witness = Witness()
    server = memory(Hear, LastInstantServer, **limit, observers=[witness])
    async with server.serving():
        client = await server.connect()
        if "line" in limit:
            await client.send_all(b"...")
        await ended_at(client)
    assert lines in ([b"just in time\n"], [b"...just in time\n"])
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration == 10


async def test_end_of_input_in_the_tick_of_the_deadline_counts(autojump_clock: Any) -> None:
    """TO-01, CX-13: a peer that ended its input in that tick has done so."""

    class Ended(LastInstant):
        def arrive(self) -> None:
            self._incoming.ended = True

    class Server(LastInstantServer):
        transport = Ended

    witness = Witness()
    server = memory(receive, Server, idle=10, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(11)
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration == 10


async def test_room_in_the_tick_of_the_deadline_counts(autojump_clock: Any) -> None:
    """TO-06: room made in the very tick in which the limit struck is used, and is progress."""

    class Room(LastInstant):
        def arrive(self) -> None:
            del self._outgoing.data[:4]

    class Server(LastInstantServer):
        transport = Room

    witness = Witness()
    server = memory(flood, Server, write=10, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(81)
        await client.aclose()
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration == 10 * math.ceil(30 / 4)


async def test_no_byte_in_the_tick_of_the_deadline(autojump_clock: Any) -> None:
    """TO-01: the last look takes nothing that is not there."""

    class Nothing(LastInstant):
        def arrive(self) -> None:
            pass

    class Server(LastInstantServer):
        transport = Nothing

    witness = Witness()
    server = memory(receive, Server, idle=10, observers=[witness])
    async with server.serving():
        assert await ended_at(await server.connect()) == 10
    assert witness.outcomes == ["timed_out"]


# handle_request and the server's own waits -----------------------------------------


async def test_handle_request_waits_for_its_timeout(autojump_clock: Any) -> None:
    """TO-10: without a client it calls handle_timeout after exactly `timeout` seconds."""
    instants = []

    class Lonely(MemoryServer):
        async def handle_timeout(self) -> None:
            instants.append(trio.current_time())

    async with memory(Upper, Lonely, timeout=4) as server:
        await server.handle_request()
        await server.handle_request()
    assert instants == [4, 8]


async def test_handle_request_timeout_of_zero(autojump_clock: Any) -> None:
    """TO-07: 0 takes who is there already, and waits for nobody."""
    instants = []

    class Lonely(MemoryServer):
        async def handle_timeout(self) -> None:
            instants.append(trio.current_time())

    async with memory(flood, Lonely, timeout=0, linger=0) as server:
        await server.handle_request()
        assert instants == [0]
        client = await server.connect()
        await server.handle_request()
        assert instants == [0]
        assert await read_to_end(client) == b"z" * 40


async def test_handle_request_timeout_does_not_bound_the_request(autojump_clock: Any) -> None:
    """TO-10: once a client was accepted, `timeout` says nothing any more."""

    async def ponder(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(100)
        await request.sendall(b"42")

    async with memory(ponder, timeout=4, linger=0) as server:
        client = await server.connect()
        await server.handle_request()
        assert trio.current_time() == 100
        assert await read_to_end(client) == b"42"


async def test_handle_timeout_raises(autojump_clock: Any) -> None:
    """TO-10: an error in handle_timeout leaves handle_request, bare; the server goes on."""
    error = ValueError("nobody came")

    class Sulky(MemoryServer):
        async def handle_timeout(self) -> None:
            raise error

    async with memory(flood, Sulky, timeout=4, linger=0) as server:
        with pytest.raises(ValueError, match="nobody came") as caught:
            await server.handle_request()
        assert caught.value is error
        client = await server.connect()
        await server.handle_request()
        assert await read_to_end(client) == b"z" * 40


async def test_handle_timeout_sleeps(autojump_clock: Any) -> None:
    """TO-10: a handle_timeout that waits holds nobody but its caller, who can cancel it."""

    class Sleepy(MemoryServer):
        async def handle_timeout(self) -> None:
            await trio.sleep_forever()

    async with memory(flood, Sleepy, timeout=4, linger=0) as server:
        with trio.move_on_after(10):
            await server.handle_request()
        assert trio.current_time() == 10
        client = await server.connect()
        await server.handle_request()
        assert await read_to_end(client) == b"z" * 40


async def test_cleanup_bounds_finish_after_a_cancellation(autojump_clock: Any) -> None:
    """EX-05: a finish() that does not end is cut, the limit after the request was cancelled."""

    class Clinging(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            await trio.sleep_forever()

    witness = Witness()
    server = memory(Clinging, request=3, cleanup=5, observers=[witness])
    async with server.serving():
        await server.connect()
        await trio.sleep(9)
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 8


async def test_cleanup_bounds_server_close(autojump_clock: Any, caplog: Any) -> None:
    """TO-02: a server_close that does not end is cut at the limit, and named."""

    class Clinging(MemoryServer):
        async def server_close(self) -> None:
            await super().server_close()
            await trio.sleep_forever()

    async with memory(Upper, Clinging, cleanup=5):
        pass
    assert trio.current_time() == 5
    assert "server_close did not end within 5 s" in caplog.text


# Values, and clocks ------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (-1, ValueError),
        (-0.001, ValueError),
        (-math.inf, ValueError),
        (math.nan, ValueError),
        (None, TypeError),
        ("10", TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
    ids=repr,
)
def test_timeouts_refuse(name: str, wrong: Any, kind: type[Exception]) -> None:
    """TO-07: a wrong value is refused when it is given, with the field and the value named."""
    message = f"Timeouts.{name} must be a number of seconds .* not {re.escape(repr(wrong))}"
    with pytest.raises(kind, match=message):
        trioserver.Timeouts(**{name: wrong})


@pytest.mark.parametrize("name", FIELDS)
def test_timeouts_of_zero(name: str) -> None:
    """TO-07: 0 is a wrong value, except for what may be skipped."""
    if name in MAY_BE_ZERO:
        assert getattr(trioserver.Timeouts(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match="greater than 0"):
            trioserver.Timeouts(**{name: 0})


@pytest.mark.parametrize("huge", [1e308, 2**62, 10**400], ids=["1e308", "2**62", "10**400"])
@pytest.mark.parametrize("name", FIELDS)
async def test_timeouts_of_huge_values(name: str, huge: Any, autojump_clock: Any) -> None:
    """TO-07: a huge value is a very long time, or it is refused when it is given."""
    try:
        server = memory(Upper, Guarded, **{name: huge})
    except ValueError:
        return
    async with server.serving():
        client = await server.connect(("huge", 1))
        await client.send_all(b"hel")
        await trio.sleep(2)
        await client.send_all(b"lo\n")
        assert await client.receive_some() == b"HELLO\n"
        await client.aclose()


@pytest.mark.parametrize(("wrong", "kind"), [(-1, ValueError), (math.nan, ValueError)], ids=repr)
def test_handle_request_timeout_is_validated(wrong: Any, kind: type[Exception]) -> None:
    """TO-07: the server's own `timeout` is checked when it is given, and when it is assigned."""
    server = memory(Upper, timeout=1)
    with pytest.raises(kind, match="timeout must be"):
        server.timeout = wrong
    with pytest.raises(kind, match="timeout must be"):
        memory(Upper, timeout=wrong)


def test_timeouts_defaults() -> None:
    """TO-07: every wait on a client is bounded by default; the whole request is not."""
    given = trioserver.Timeouts()
    assert [getattr(given, name) for name in FIELDS] == [10, 300, 60, 30, math.inf, 2, 15, 5]


@pytest.mark.parametrize("step", [3600, -3600])
async def test_system_clock_stepped(
    step: float, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TO-12: an hour more or less on the system's clock neither ends nor prolongs a wait."""
    stepped = time.time() + step
    witness = Witness()
    server = memory(Upper, idle=300, line=60, observers=[witness])
    async with server.serving():
        idle, dripping = await server.connect(), await server.connect()
        await dripping.send_all(b"x")
        await trio.sleep(30)
        monkeypatch.setattr(time, "time", lambda: stepped)
        assert await ended_at(dripping) == 60
        assert await ended_at(idle) == 300
    assert [record.duration for record in witness.records] == [60, 300]


# On real sockets, where the kernel's buffers count (the rest is in test_everywhere.py) ---


def tcp(handler: Any, **fields: Any) -> trioserver.TCPServer:
    """A server on a real socket; keywords that are time-outs are taken as such."""
    seconds = {name: fields.pop(name) for name in FIELDS if name in fields}
    timeouts = trioserver.Timeouts(**seconds)
    return trioserver.TCPServer(("127.0.0.1", 0), handler, timeouts=timeouts, **fields)


async def test_write_lets_a_slow_reader_of_a_socket_finish() -> None:
    """TO-06: through the kernel's buffers, too, it is progress that counts and not the whole."""
    size = 40 * 8192

    async def send(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        request.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        await request.sendall(bytes(size))

    witness, received = Witness(), 0
    server = tcp(send, write=0.6, observers=[witness])
    with trio.fail_after(10):
        async with server.serving():
            client = trio.socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await client.connect(server.server_address)
            while received < size:
                await trio.sleep(0.02)
                received += len(await client.recv(8192))
            client.close()
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration > 0.6


async def test_stall_of_the_program_is_not_the_clients_fault() -> None:
    """TO-01: bytes that came while the whole program stood still past the limit are served."""
    waits = trio.Event()

    class Announced(Upper):
        async def setup(self) -> None:
            waits.set()

    witness = Witness()
    server = tcp(Announced, idle=0.1, observers=[witness])
    with trio.fail_after(10):
        async with server.serving():
            client = plain_client(server.server_address)
            await waits.wait()
            client.sendall(b"in time\n")
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.2)  # noqa: ASYNC251  (the stall)
            assert await trio.to_thread.run_sync(client.recv, 100) == b"IN TIME\n"
            client.close()
    assert witness.outcomes == ["completed"]
