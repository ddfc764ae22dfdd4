"""Many datagrams in one run: side by side, within limits, through the hooks, to the end."""

from __future__ import annotations

import errno
import gc
import itertools
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import trio
from support import Witness, hold
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import (
    MemoryDatagramClient,
    MemoryDatagramListener,
    MemoryDatagramServer,
    Trial,
    sweep,
)


class OopsError(Exception):
    """What these tests raise."""


def memory(handler: Any, **fields: Any) -> MemoryDatagramServer:
    """A datagram server in memory."""
    return MemoryDatagramServer(("memory", 1), handler, **fields)


async def echo(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends back what came."""
    await request.reply(request.data)


async def echo_later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends it back after ten seconds."""
    await trio.sleep(10)
    await request.reply(request.data)


async def receive(client: MemoryDatagramClient) -> bytes:
    """The next reply, which may take its time."""
    with trio.fail_after(100):
        return await client.receive()


class Silent(MemoryDatagramServer):
    """Tells nobody of the errors."""

    async def handle_error(self, request: Any, client_address: Any) -> None:
        pass


# Many at once -------------------------------------------------------------------


async def test_addresses_are_never_crossed(autojump_clock: Any) -> None:
    """UD-10: datagrams of one peer are handled side by side, each reply to its own sender."""

    async def later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await trio.sleep(10 - int(request.data.split()[1]))
        await request.reply(b"%r of " % client_address[1] + request.data)

    server = memory(later)
    async with server.serving():
        clients = [server.client(("peer", number)) for number in range(1, 21)]
        for turn in range(10):
            for client in clients:
                client.send_now(b"%d %d" % (client.address[1], turn))
        await trio.sleep(10.5)
        for number, client in enumerate(clients, 1):
            # The last ones had the least to wait.
            expected = [b"%d of %d %d" % (number, number, turn) for turn in reversed(range(10))]
            assert client.received() == expected


async def test_one_request_at_a_time_keeps_the_order(autojump_clock: Any) -> None:
    """UD-10: with Limits(requests=1) replies come in the order of the datagrams."""
    rng, running = random.Random(3), []

    async def handle(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        running.append(request)
        assert len(running) == 1
        await trio.sleep(rng.random())
        await request.reply(request.data)
        running.remove(request)

    server = memory(handle, limits=trioserver.Limits(requests=1))
    async with server.serving():
        client = server.client()
        for number in range(50):
            client.send_now(b"%d" % number)
        assert [await receive(client) for _ in range(50)] == [b"%d" % n for n in range(50)]


async def busy(request: trioserver.Datagram) -> None:
    """Tells that the server is full."""
    await request.reply(b"busy")


@pytest.mark.parametrize(
    ("when_full", "told", "refused"), [("wait", [], 0), ("refuse", [], 6), (busy, [b"busy"] * 6, 6)]
)
async def test_limit_of_requests_is_exact(
    when_full: Any, told: list[bytes], refused: int, autojump_clock: Any
) -> None:
    """There is never one request more than limits.requests, whatever happens to the others."""
    witness = Witness()
    limits = trioserver.Limits(requests=4, when_full=when_full)
    server = memory(hold, limits=limits, observers=[witness])
    async with server.serving(grace=0):
        client = server.client()
        for _ in range(10):
            client.send_now(b"?")
        await wait_all_tasks_blocked()
        assert len(server.requests) == server.statistics().active == 4
        assert client.received() == told
        counts = server.statistics()
        assert counts.refused + counts.outcomes[trioserver.Outcome.REFUSED] == refused
        for info in server.requests[:2]:
            server.cancel_request(info.id, "make room")
        await wait_all_tasks_blocked()
        assert len(server.requests) == (4 if when_full == "wait" else 2)


@pytest.mark.parametrize("unix", [False, True])
async def test_limit_of_one_client(unix: bool, autojump_clock: Any) -> None:
    """limits.per_client counts datagrams: by the host over UDP, by the user over Unix."""
    server = memory(hold, limits=trioserver.Limits(per_client=2))
    async with server.serving(grace=0):
        for user in (1, 2):
            for number in range(5):
                credentials = trioserver.PeerCredentials(pid=number, uid=user, gid=0)
                address = f"/{user}/{number}" if unix else (f"10.0.0.{user}", 1000 + number)
                server.client(address, credentials=credentials).send_now(b"?")
        await wait_all_tasks_blocked()
        assert (len(server.requests), server.statistics().refused) == (4, 6)


async def test_flood_leaves_others_their_turn(autojump_clock: Any) -> None:
    """UD-14: however many datagrams wait, other tasks have their turn after 64 of them."""

    class Large(MemoryDatagramServer):
        memory_capacity = 10_000

    server, turns = Large(("memory", 1), echo, limits=trioserver.Limits(requests=10_000)), [0]
    async with server.serving():
        client = server.client(capacity=10_000)
        await wait_all_tasks_blocked()
        for number in range(5000):
            client.send_now(b"%d" % number)
        while turns[-1] < 5000:
            await trio.lowlevel.checkpoint()
            turns.append(server.statistics().accepted)
        # Twice as many where the loop was last in one tick and first in the next.
        assert max(after - before for before, after in itertools.pairwise(turns)) <= 128
        await wait_all_tasks_blocked()
        assert sorted(client.received()) == sorted(b"%d" % number for number in range(5000))


# Hooks --------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
async def test_verify_request_refuses(slow: bool, autojump_clock: Any) -> None:
    """A datagram that verify_request refuses, or cannot judge in time, has no answer."""

    class Picky(MemoryDatagramServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            assert (request.data, request.client_address) == (b"?", client_address)
            await trio.sleep(100 * slow)
            return False

    witness = Witness()
    server = Picky(("memory", 1), echo, observers=[witness])
    async with server.serving():
        client = server.client()
        client.send_now(b"?")
        await trio.sleep(11)
        assert client.received() == []
    [record] = witness.records
    assert record.outcome == ("timed_out" if slow else "refused")
    assert record.duration == (10 if slow else 0)


@attrs.define
class Wrapped:
    """What a get_request makes of a datagram."""

    data: bytes
    inner: Any

    async def linger(self) -> None:
        await self.inner.linger()

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_get_request_wraps_drops_fails_and_shuts_down(autojump_clock: Any) -> None:
    """What get_request returns is handled; whatever else it does, the datagram is given back."""

    class Choosy(MemoryDatagramServer):
        def get_request(self, listener: Any) -> Any:
            found = super().get_request(listener)
            if found is None:
                return None
            request, client_address = found
            match request.data:
                case b"drop":
                    return None
                case b"fail":
                    raise OSError(errno.ECONNABORTED, "not this one")
                case b"stop":
                    self.shutdown()
            return Wrapped(request.data, request), ("behind", client_address)

    async def answer(request: Any, client_address: Any, server: Any) -> None:
        assert client_address == ("behind", request.inner.client_address)
        await request.inner.reply(request.data)

    witness = Witness()
    server = Choosy(("memory", 1), answer, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = server.client()
        for word in [b"one", b"drop", b"fail", b"two", b"stop", b"three"]:
            client.send_now(word)
    assert sorted(client.received()) == [b"one", b"stop", b"three", b"two"]
    counts = server.statistics()
    assert (counts.accepted, counts.refused, counts.accept_errors) == (4, 1, 1)
    refused = [event[1:] for event in witness.events if event[0] == "request_refused"]
    assert refused == [(client.address, "get_request")]


async def test_handle_request_handles_one_datagram(autojump_clock: Any) -> None:
    """handle_request serves exactly one datagram, to its end; without one it times out."""
    timeouts = []

    class Once(MemoryDatagramServer):
        async def handle_timeout(self) -> None:
            timeouts.append(trio.current_time())

    server = Once(("memory", 1), echo_later, timeout=3, max_packet_size=3)
    async with server:
        client = server.client()
        await server.handle_request()
        assert len(timeouts) == 1
        for word in [b"too large", b"", b"one", b"two"]:
            client.send_now(word)
        began = trio.current_time()
        for answer in [b"", b"one"]:
            await server.handle_request()
            assert client.received() == [answer]
        assert trio.current_time() - began == 20
        with trio.move_on_after(5):
            await server.handle_request()
        assert client.received() == []
        await server.handle_request()
    assert len(timeouts) == 2
    counts = server.statistics()
    assert (counts.accepted, counts.accept_errors) == (3, 1)
    assert counts.outcomes[trioserver.Outcome.CANCELLED] == 1


@pytest.mark.parametrize("patience", [0, 10])
async def test_handle_request_passes_over_errors_of_clients(
    patience: float, autojump_clock: Any
) -> None:
    """Neither what is too large nor whom get_request drops hides the next one."""

    class Picky(MemoryDatagramServer):
        def get_request(self, listener: Any) -> Any:
            accepted = super().get_request(listener)
            return None if accepted and accepted[0].data == b"ours?" else accepted

    server = Picky(("memory", 1), echo, timeout=patience, max_packet_size=5)
    async with server:
        client = server.client()
        for word in [b"too large", b"ours?", b"too large", b"yes", b"again"]:
            client.send_now(word)
        for word in [b"yes", b"again"]:
            await server.handle_request()
            assert client.received() == [word]
    counts = server.statistics()
    assert (counts.accepted, counts.accept_errors, counts.refused) == (2, 2, 1)


@pytest.mark.parametrize("patience", [0, 10])
async def test_exit_of_an_observer_ends_the_last_look(patience: float, autojump_clock: Any) -> None:
    """An observer that ends the program while one is passed over: nobody else is let in."""

    class Exits(Witness):
        def accept_failed(self, server_address: Any, error: OSError) -> None:
            raise SystemExit(3)

    witness = Exits()
    server = MemoryDatagramServer(
        ("memory", 1), echo, timeout=patience, max_packet_size=5, observers=[witness]
    )
    async with server:
        client = server.client()
        client.send_now(b"too large")
        client.send_now(b"next")
        with pytest.raises(SystemExit):
            await server.handle_request()
    assert client.received() == []
    assert "request_started" not in witness.names


# The end of a run -----------------------------------------------------------------


@pytest.mark.parametrize("word", [b"seen", b""])
async def test_drain_serves_what_is_queued(word: bytes, autojump_clock: Any) -> None:
    """UD-11: queued datagrams are served as slots fall free, and replies go out in the grace."""
    witness = Witness()
    limits = trioserver.Limits(requests=2)
    server = memory(echo_later, limits=limits, observers=[witness], max_packet_size=8)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        clients = [server.client() for _ in range(7)]
        for client in clients:
            client.send_now(b"too large")
            client.send_now(word)
        await wait_all_tasks_blocked()
        assert server.statistics().accept_errors == 2
        server.shutdown(grace=60)
        counts = server.statistics()
        assert (counts.accept_errors, counts.waiting, counts.unaccepted) == (7, 5, 0)
        with pytest.raises(ConnectionRefusedError):
            clients[0].send_now(b"too late")
        report = await server.wait_closed()
    assert [client.received() for client in clients] == [[word]] * 7
    assert report.duration == 40
    assert not report.unaccepted
    assert [str(record.outcome) for record in report.requests] == ["completed"] * 7
    assert witness.names.count("request_started") == witness.names.count("request_finished") == 7


@pytest.mark.parametrize(("requests", "taken_in"), [(1, 4096), (4100, 4100)])
async def test_drain_takes_in_a_bounded_number(
    requests: int, taken_in: int, autojump_clock: Any
) -> None:
    """UD-11: with a queue larger than any by default, the rest is dropped, and reported."""
    waits = trio.Event()

    async def wait(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await waits.wait()

    server = memory(wait, limits=trioserver.Limits(requests=requests))
    server.memory_capacity = requests + 5000
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = server.client()
        for _ in range(requests):
            client.send_now(b"served")
        await wait_all_tasks_blocked()
        for _ in range(5000):
            client.send_now(b"queued")
        server.shutdown()
        counts = server.statistics()
        assert (counts.active, counts.waiting) == (requests, taken_in)
        assert counts.unaccepted == 5000 - taken_in
        waits.set()
        report = await server.wait_closed()
    assert len(report.completed) == requests + taken_in


async def test_drain_cuts_at_the_end_of_the_grace(autojump_clock: Any) -> None:
    """UD-11: who is not done when the grace is over is cut, who waits is turned away."""
    server = memory(echo_later, limits=trioserver.Limits(requests=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = server.client()
        for _ in range(5):
            client.send_now(b"?")
        await wait_all_tasks_blocked()
        server.shutdown(grace=4)
        report = await server.wait_closed()
    assert (report.duration, len(report.cancelled), len(report.unaccepted)) == (4, 1, 4)
    assert client.received() == []


async def test_drain_leaves_a_shared_queue(autojump_clock: Any) -> None:
    """What queues on a socket that others have, too, is left to them."""

    class Shared(MemoryDatagramServer):
        async def server_bind(self) -> Any:
            self.listener = MemoryDatagramListener(("memory", 1), shared=True)
            return [self.listener]

    server = Shared(("memory", 1), echo_later, limits=trioserver.Limits(requests=1))
    async with server.serving():
        client = server.client()
        for _ in range(3):
            client.send_now(b"?")
        await wait_all_tasks_blocked()
    assert client.received() == [b"?"]
    assert (server.statistics().accepted, server.statistics().unaccepted) == (1, 0)


async def test_idle_does_nothing(autojump_clock: Any) -> None:
    """A datagram is a request that has begun: idle() is inert, and a drain ends no wait in it."""
    done = []

    class Idle(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            with self.idle(), self.request.idle():
                await trio.sleep(5)
            assert await self.rfile.more()
            done.append([line async for line in self.rfile])
            assert not await self.rfile.more()
            await self.wfile.write(b"done")

    server = memory(Idle)
    async with server.serving():
        client = server.client()
        client.send_now(b"a\nb")
        await trio.sleep(1)
    assert (done, client.received()) == ([[b"a\n", b"b"]], [b"done"])


async def test_cancelled_server_closes_every_request(autojump_clock: Any) -> None:
    """Cancelled, a server sends nothing more, and every datagram has one record."""
    witness = Witness()
    server = memory(echo_later, observers=[witness])
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            client = server.client()
            for _ in range(3):
                client.send_now(b"?")
    assert (witness.outcomes, client.received()) == (["cancelled"] * 3, [])
    assert witness.names[-1] == "server_closed"


async def test_error_of_a_handler_can_stop_the_server(autojump_clock: Any) -> None:
    """With propagate_errors an error leaves the server, bare, and the others are cancelled."""

    async def handle(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        if request.data == b"fail":
            raise OopsError
        await trio.sleep_forever()

    async def serve() -> None:
        async with server.serving():
            client = server.client()
            client.send_now(b"?")
            client.send_now(b"fail")
            await trio.sleep_forever()

    witness = Witness()
    server = memory(handle, propagate_errors=True, observers=[witness])
    with pytest.raises(OopsError):
        await serve()
    assert sorted(witness.outcomes) == ["cancelled", "failed"]


async def test_snapshot_shows_what_a_request_does(autojump_clock: Any) -> None:
    """A snapshot tells arriving, working and writing apart, and who it is."""

    class Slow(MemoryDatagramServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await trio.sleep(2)
            return True

    async def work(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await trio.sleep(2)
        await request.reply(b"12")

    server = Slow(("memory", 1), work)
    async with server.serving():
        server.client("me", capacity=0).send_now(b"abc")
        for age, state in [(1, "arriving"), (3, "working"), (5, "writing")]:
            await trio.sleep_until(trio.current_time() - trio.current_time() % 1 + 1)
            await trio.sleep(0 if age == 1 else 1)
            [request] = server.snapshot().requests
            assert (request.state, request.age) == (state, age)
            assert (request.info.client_address, request.bytes_received) == ("me", 3)


# Nothing is kept, nothing is half done ----------------------------------------------


class KeptError(Exception):
    """An error that can be referred to weakly."""


async def returns(handler: Any) -> None:
    """Is done."""


async def fails(handler: Any) -> None:
    """Has an error."""
    raise KeptError


async def cannot_reach(handler: Any) -> None:
    """Meets a client that is gone."""
    handler.server.listener.clients["me"].close()
    await handler.request.reply(b"x")


async def cannot_reach_somebody(handler: Any) -> None:
    """Meets somebody else who is gone."""
    await handler.request.socket.sendto(b"x", "nobody")


async def sends_too_much(handler: Any) -> None:
    """Sends too much."""
    await handler.request.reply(bytes(100_000))


async def waits_for_room(handler: Any) -> None:
    """Waits for a client that never reads."""
    await handler.request.reply(b"x")


async def leaves_a_reply(handler: Any) -> None:
    """Leaves its reply for the end, where there is no room."""
    await handler.wfile.write(b"x")


async def closes_beside(handler: Any) -> None:
    """Closes while another task of it sends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_room, handler)
        await wait_all_tasks_blocked()
        handler.request.close()


async def is_cancelled(handler: Any) -> None:
    """Has enough."""
    handler.cancel_scope.cancel(reason="enough")
    await trio.sleep_forever()


ENDS = {
    function.__name__: function
    for function in [
        *(returns, fails, cannot_reach, cannot_reach_somebody, sends_too_much),
        *(waits_for_room, leaves_a_reply, closes_beside, is_cancelled),
    ]
}


@contextmanager
def nothing_is_collected() -> Iterator[None]:
    """Without the collector of cycles, what is in one stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ENDS)
async def test_ended_request_is_collected_at_once(name: str, autojump_clock: Any) -> None:
    """No cycle keeps a handler, its datagram or its way back, however it ended."""
    refs: list[weakref.ref[Any]] = []

    class Handler(trioserver.DatagramRequestHandler):
        async def setup(self) -> None:
            # A tuple cannot be referred to weakly: what it alone has can.
            refs.extend(map(weakref.ref, [self, self.socket, self.request._receiver]))

        async def handle(self) -> None:
            await ENDS[name](self)

    server = Silent(("memory", 1), Handler, timeouts=trioserver.Timeouts(write=5))
    with nothing_is_collected():
        async with server.serving():
            server.client("me", capacity=0).send_now(b"?")
            await trio.sleep(20)
            assert [ref() for ref in refs] == [None] * 3
            counts = server.statistics()
            assert (counts.active, counts.lingering, sum(counts.outcomes.values())) == (0, 0, 1)


@pytest.mark.slow
def test_cancelled_after_every_step() -> None:
    """CX-09: cut anywhere, a datagram has one record, and its reply left whole or not at all."""

    class Answer(trioserver.DatagramRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(await self.rfile.read(3))
            await trio.lowlevel.checkpoint()
            await self.wfile.write(await self.rfile.read())

    async def scenario(trial: Trial) -> None:
        witness = Witness()
        server = memory(Answer, observers=[witness])
        with trio.CancelScope() as scope:
            trial.arm(scope=scope)
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve_forever)
                clients = [server.client(("peer", number), capacity=1) for number in (1, 2)]
                for client in clients:
                    await client.send(b"whole reply")
                    await client.send(b"")
                for client in clients:
                    with trio.move_on_after(5):
                        await client.receive()
                        await client.send(b"once more")
                        await client.receive()
                server.shutdown()
        started, finished = map(witness.names.count, ["request_started", "request_finished"])
        assert started == finished
        for record in witness.records:
            assert record.outcome in {"completed", "cancelled"}
            assert record.bytes_sent in {0, record.bytes_received}
            assert record.outcome == "cancelled" or record.bytes_sent == record.bytes_received

    assert sweep(scenario).runs > 50
