"""The same server in memory, over TCP and a Unix socket, by TLS or not: all see the same.

In memory all of it runs on a virtual clock, to the instant, and where nobody can open a
socket; on real sockets it runs on the real clock, and time has only a lower bound.
"""

import math
from contextlib import contextmanager, nullcontext
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import attrs
import pytest
import trio
import trio.testing
from support import Upper, hold, no_sockets, read_to_end
from support.memory import ask
from support.scenes import does, in_memory, reset, sleep, table
from support.speaking import all_wait, says_and_hears

import trioserver
from trioserver import Connection, Limits, Outcome, Timeouts
from trioserver.testing import Faults, TLSClient, open_test_server, run_trial

MUCH = 64 * 1024 * 1024
"""Bytes: more than any network holds on the way."""


@attrs.frozen
class Place:
    """Where the servers of a test listen."""

    transport: Literal["memory", "tcp", "unix"]
    tls: bool
    _folder: Path

    @property
    def moment(self):
        """Seconds that a test likes to wait."""
        return 1.0 if self.transport == "memory" else 0.05

    def serve(self, handler, *hooks, faults=None, **fields):
        """A test server here, with the hooks of mix-ins."""
        unix = self.transport == "unix"
        base = trioserver.UnixStreamServer if unix else trioserver.TCPServer
        address = str(self._folder / "socket") if unix else ("127.0.0.1", 0)
        server = type("Served", (*hooks, base), {})(address, handler, **fields)
        return open_test_server(server, transport=self.transport, faults=faults, tls=self.tls)

    @contextmanager
    def takes(self, seconds):
        """What is done in the block takes so long, or on real sockets so long at least."""
        began = trio.current_time()
        yield
        self.assert_duration(trio.current_time() - began, seconds)

    def assert_duration(self, took, seconds):
        """What took so long should have, or on real sockets at least."""
        if self.transport == "memory":
            assert took == pytest.approx(seconds)
        else:
            assert took >= seconds - 0.001

    def sees_a_cut(self):
        """What is done in the block meets the end of what was cut: by TLS it is a break."""
        broken = (trio.BrokenResourceError, ConnectionResetError)
        return pytest.raises(broken) if self.tls else nullcontext()

    def sees_a_break(self):
        """What is done in the block meets a reset.

        On a Unix socket that is an end, unless somebody has left something unread. By TLS it is
        none there, either.
        """
        if self.tls or self.transport != "unix":
            return pytest.raises((trio.BrokenResourceError, ConnectionResetError))
        return nullcontext()


@pytest.fixture(params=["memory", "tcp", "unix"])
def transport(request):
    """Each in turn."""
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request):
    """Each in turn."""
    return request.param


@pytest.fixture
def clock(transport):
    """The clock of the test's run, which a test has to take; None is the real one."""
    return trio.testing.MockClock(autojump_threshold=0) if transport == "memory" else None


@pytest.fixture
async def place(transport, tls):
    """Each in turn; async, because Trio has opened a pair of sockets for itself by then."""
    with TemporaryDirectory(prefix="ts-") as folder:
        with no_sockets() if transport == "memory" else nullcontext():
            yield Place(transport, tls, Path(folder))


async def only(server):
    """The record of the only request, when it has ended."""
    [exchange] = await server.wait_requests()
    return exchange.record


async def begun(server, *words):
    """A client for each word, who has said it, and whose request has begun."""
    clients = [await server.connect() for _ in words]
    for client, word in zip(clients, words, strict=True):
        await says_and_hears(client, word, b"begun\n")
    return clients


RECEIVES = methodcaller("recv", 1)
begins_then_ends = does(b"begun\n", RECEIVES, b"done\n")
begins_then_holds = does(b"begun\n", sleep(math.inf))
flood = does(bytes(MUCH))  # more than a client takes


async def test_no_socket_is_opened_in_memory():
    """CK-01: all of this suite that is in memory runs where opening one is an error."""
    with no_sockets(), pytest.raises(AssertionError, match="a socket is opened"):
        async with open_test_server(Upper, transport="unix"):
            pass


def test_same_seed_and_the_same_steps():
    """CK-03: a scenario in memory takes the same steps again; with another seed, others."""

    async def scenario(trial):
        async with in_memory().serving() as server, trio.open_nursery() as nursery:
            trial.arm()
            for number in range(3):
                nursery.start_soon(ask, server, b"%d\n" % number)

    first, again, another = [run_trial(scenario, seed=seed).trace for seed in (1, 1, 2)]
    assert first == again != another


# One client ---------------------------------------------------------------------------


async def at_the_end(request, client_address, server):
    """Has a long answer when the client has said everything."""
    await request.sendall(await read_to_end(request) * 500_000)


class Unfriendly:
    async def verify_request(self, request, client_address):
        return False


class Undecided:
    async def verify_request(self, request, client_address):
        await trio.sleep_forever()


LONG, REPLY = b"fits\n" + bytes(40_000), b"z" * 50_000
replies_early = does(RECEIVES, REPLY)  # and does not read on
hangs_up = does(b"no", methodcaller("aclose"))


@table(
    "visit",
    {
        "its lines are answered": (Upper, [], b"one\ntwo\nend", b"ONE\nTWO\nEND", "completed"),
        "CM-06: it ends its input first": (at_the_end, [], b"ab", b"ab" * 500_000, "completed"),
        "GS-14: it has sent too much": (replies_early, [], LONG, REPLY, "completed"),
        "its handler closes early": (hangs_up, [], b"", b"no", "completed"),
        "its handler resets it": (does(reset), [], b"", Place.sees_a_break, "completed"),
        "BP-08: a line is too long": (Upper, [], LONG, b"FITS\n", "refused line"),
        "it is not wanted": (Upper, [Unfriendly], b"", Place.sees_a_cut, "refused"),
        "TO-01: it is silent": (Upper, [], b"", b"", "timed_out idle"),
        "TO-02: it never ends its line": (Upper, [], b"half of it", b"", "timed_out line"),
        "TO-02: its handler never ends": (hold, [], b"", Place.sees_a_cut, "timed_out request"),
        "EX-08: nobody decides": (Upper, [Undecided], b"", Place.sees_a_cut, "timed_out handshake"),
    },
)
async def test_one_client(visit, place, clock):
    """It gets all that it must, and then an end, or a break; a limit ends it when it is reached."""
    handler, hooks, says, gets, told = visit
    sees = gets if callable(gets) else lambda _: nullcontext()
    gets = b"" if callable(gets) else gets
    outcome, _, limit = told.partition(" ")
    fields = {"limits": Limits(line=1000)}
    seconds = 0.0
    if outcome == "timed_out":
        seconds = 2 * place.moment
        fields["timeouts"] = Timeouts(**{limit: seconds})
    async with place.serve(handler, *hooks, **fields) as server:
        with place.takes(seconds):
            with sees(place):
                client = await server.connect()
                await client.send_all(says)
                if handler is at_the_end or says.endswith(b"end"):
                    await client.send_eof()
                assert await read_to_end(client) == gets
                await client.aclose()
        record = await only(server)
    assert str(record.outcome) == outcome
    assert f"({limit})" in record.reason or not limit
    place.assert_duration(record.duration, seconds)


async def test_server_that_does_not_read_stops_its_client(place, clock):
    """CK-02, BP-09: a network holds so much and no more; read at last, it is all there."""
    reads, sent = trio.Event(), trio.Event()

    async def reads_late(request, client_address, server):
        assert len(await request.recv(1)) == 1
        await reads.wait()
        await request.sendall(b"%d" % len(await read_to_end(request)))

    async def send():
        await client.send_all(bytes(MUCH))
        sent.set()
        await client.send_eof()

    async with place.serve(reads_late) as server, trio.open_nursery() as nursery:
        client = await server.connect()
        nursery.start_soon(send)
        await trio.sleep(4 * place.moment)
        assert not sent.is_set()
        [request] = server.server.snapshot().requests
        assert request.bytes_received == 1
        reads.set()
        assert await read_to_end(client) == b"%d" % (MUCH - 1)


async def test_client_that_does_not_read_stops_its_handler(place, clock):
    """CK-02, BP-09: the same the other way."""
    async with place.serve(flood) as server:
        client = await server.connect()
        await client.receive_some(1)
        await trio.sleep(4 * place.moment)
        [request] = server.server.snapshot().requests
        assert request.state == "writing"
        assert 1000 < request.bytes_sent < MUCH
        assert len(await read_to_end(client)) == MUCH - 1


@pytest.mark.parametrize("faulty", [False, True])
async def test_trio_s_contract_of_streams(place, faulty, clock):
    """CK-06: both ends keep it, also of a network that may be given faults."""
    accepted, connections = trio.open_memory_channel[Connection](0)

    async def hands_out(request, client_address, server):
        await accepted.send(request)
        while request.state != "closed":  # noqa: ASYNC110  (nobody tells)
            await trio.sleep(place.moment / 10)

    async def connect():
        client = await server.connect()
        return await connections.receive(), client

    faults = Faults() if faulty else None
    async with place.serve(hands_out, faults=faults, timeouts=Timeouts(linger=0)) as server:
        await trio.testing.check_half_closeable_stream(connect, None)


async def test_error_of_one_client_harms_no_other(place, clock):
    """EX-01: its connection ends; the one beside it goes on, and new ones come."""

    class Fragile(Upper):
        async def handle(self):
            if await self.rfile.peek(1) == b"!":
                raise KeyError("a handler's own")
            await super().handle()

    async with place.serve(Fragile) as server:
        other = await server.connect()
        await says_and_hears(other, b"one\n", b"ONE\n")
        async with server.expect_error(KeyError) as errors:
            guilty = await server.connect()
            await guilty.send_all(b"!")
            assert await read_to_end(guilty) == b""
        for client in (other, await server.connect()):
            await says_and_hears(client, b"two\n", b"TWO\n")
        failed = server.exchanges[1]
        assert (failed.outcome, failed.error) == (Outcome.FAILED, errors[0])
        assert server.server.statistics().active == 2


async def test_peer_that_breaks_off(place, clock):
    """CM-13: it has left a reply unread: an error of the peer's, to each operation, and no end."""
    waits = trio.Event()

    async def told(request, client_address, server):
        await request.sendall(b"begun\n")
        await waits.wait()
        for operation in (request.recv, request.recv):
            with pytest.raises(trioserver.PeerGone):
                await operation(1)
        await request.sendall(b"x")

    async with place.serve(told) as server:
        client = await server.connect()
        beneath = client.transport_stream if place.tls else client
        await beneath.receive_some(1)
        await beneath.aclose()
        waits.set()
        record = await only(server)
    assert (record.outcome, record.bytes_sent) == (Outcome.DISCONNECTED, 6)


@pytest.mark.parametrize("outcome", ["cancelled", "timed_out"])
async def test_half_a_reply_does_not_look_like_a_whole_one(outcome, place, clock):
    """CX-03, TO-06: of a request that was ended in the middle of a write."""
    seconds, reason = 2 * place.moment, "(write)"
    async with place.serve(flood, timeouts=Timeouts(write=seconds)) as server:
        client = await server.connect()
        if outcome == "cancelled":
            seconds, reason = 0, "enough"
            await client.receive_some(1)
            assert server.server.cancel_request(1, reason)
        record = await only(server)
        assert record.outcome == outcome
        assert reason in record.reason
        place.assert_duration(record.duration, seconds)
        assert 0 < record.bytes_sent < MUCH
        with place.sees_a_break():
            assert len(await read_to_end(client)) < MUCH


async def say_busy(connection):
    """What a client is told who finds no slot."""
    await connection.sendall(b"busy\n")


@pytest.mark.parametrize("when_full", ["wait", "refuse", say_busy])
async def test_excess_clients(when_full, place, clock):
    """BP-01, BP-02: the limit is exact; who comes meanwhile waits, or is reset, or is told.

    Whoever comes, or waits, when there is a slot is served.
    """
    limits = Limits(requests=1, when_full=when_full)
    async with place.serve(begins_then_ends, limits=limits) as server:
        [first] = await begun(server, b"")
        if when_full == "refuse":
            with place.sees_a_break():
                assert await read_to_end(await server.connect()) == b""
            assert server.server.statistics().refused == 1
        elif when_full == "wait":
            beneath = await server.connect(tls=False)
            excess = TLSClient(beneath, server.tls.client_context) if place.tls else beneath
            with trio.move_on_after(place.moment) as patience:
                await beneath.receive_some()
            assert patience.cancelled_caught
        else:
            excess = await server.connect()
            await excess.send_all(b"x" * 10_000)  # which nobody reads
            assert await read_to_end(excess) == b"busy\n"
            record = await only(server)
            assert record.outcome is Outcome.REFUSED
            assert record.reason == "the server is full (requests)"
        assert server.server.statistics().active == 1
        await first.send_all(b"x")
        assert await read_to_end(first) == b"done\n"
        if when_full == "wait" and place.tls:
            await excess.do_handshake()
        last = excess if when_full == "wait" else await server.connect()
        assert await last.receive_some() == b"begun\n"
        assert len(server.exchanges) == (3 if when_full is say_busy else 2)


async def test_client_that_never_closes(place, clock):
    """TO-02: has the time of the linger; its slot is free before."""
    limit = 2 * place.moment
    async with place.serve(does(b"done\n"), timeouts=Timeouts(linger=limit)) as server:
        with place.takes(limit):
            client = await server.connect()
            assert await read_to_end(client) == b"done\n"
            assert (await only(server)).outcome is Outcome.COMPLETED
            assert server.server.requests == ()
            await server.stop(grace=600)


# The end ------------------------------------------------------------------------------


async def test_drain_ends_waits_and_no_request(place, clock):
    """GS-01, GS-03, GS-07: who waits is let go at once, who works finishes; all say goodbye."""

    class Works(trioserver.StreamRequestHandler):
        async def handle(self):
            line = await self.rfile.readline()
            await self.wfile.write(b"begun\n")
            if line == b"work\n":
                await trio.sleep(2 * place.moment)
                await self.wfile.write(b"done\n")
            elif line == b"idle\n":
                with pytest.raises(trioserver.Draining), self.idle():
                    await trio.sleep_forever()
            async for _ in self.rfile:
                raise AssertionError
            await self.wfile.write(b"goodbye\n")

    async with place.serve(Works) as server:
        reading, idle, working = clients = await begun(server, b"read\n", b"idle\n", b"work\n")
        server.server.shutdown(600)
        assert await read_to_end(reading) == await read_to_end(idle) == b"goodbye\n"
        with pytest.raises(OSError):  # noqa: PT011  (refused, or the file is gone)
            await server.connect()
        assert await read_to_end(working) == b"done\ngoodbye\n"
        for client in clients:
            await client.aclose()
        report = await server.server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["drained"] * 3
    assert report.clean
    assert report.duration < 300


async def test_request_that_outlives_the_grace(place, clock):
    """GS-02: is cut when it is over, and told of in the report."""
    async with place.serve(begins_then_holds) as server:
        [client] = await begun(server, b"")
        with place.takes(2 * place.moment):
            report = await server.stop(grace=2 * place.moment)
        with place.sees_a_cut():
            assert await read_to_end(client) == b""
    [record] = report.cancelled
    assert record.info is server.exchanges[0].info
    assert not report.clean


async def test_what_a_server_tells_of_itself(place, clock):
    """Where it listens, whom it serves, and what they wait for."""
    async with place.serve(Upper) as server:
        client = await server.connect()
        await says_and_hears(client, b"hello\n", b"HELLO\n")
        await all_wait()
        snapshot = server.server.snapshot()
        [listener], [request] = snapshot.listeners, snapshot.requests
        assert (snapshot.state, request.state, listener.accepting) == ("serving", "idle", True)
        assert listener.address == request.info.server_address == server.address
        assert (request.bytes_received, request.bytes_sent) == (6, 6)
