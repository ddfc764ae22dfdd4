"""Many datagrams in one run: side by side, within limits, through the hooks, to the end."""

import errno
import gc
import itertools
import random
import weakref

import pytest
import trio
from support import hold
from support.datagrams import Loud, echo, echo_later, exchange
from support.pipes import does
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramListener, MemoryDatagramServer


async def test_addresses_are_never_crossed(autojump_clock):
    """UD-10: datagrams of one peer are handled side by side, each reply to its own sender."""

    async def later(request, client_address, server):
        await trio.sleep(10 - int(request.data.split()[1]))
        await request.reply(b"%r of " % client_address[1] + request.data)

    async with exchange(later) as it:
        clients = [it.server.client(("peer", number)) for number in range(1, 21)]
        for turn in range(10):
            for client in clients:
                client.send_now(b"%d %d" % (client.address[1], turn))
        await trio.sleep(10.5)
        for number, client in enumerate(clients, 1):
            # The last ones had the least to wait.
            expected = [b"%d of %d %d" % (number, number, turn) for turn in reversed(range(10))]
            assert client.received() == expected


async def test_one_request_at_a_time_keeps_the_order(autojump_clock):
    """UD-10: with Limits(requests=1) replies come in the order of the datagrams."""
    rng, running = random.Random(3), []
    words = [b"%d" % number for number in range(50)]

    async def handle(request, client_address, server):
        running.append(request)
        assert len(running) == 1
        await trio.sleep(rng.random())
        await request.reply(request.data)
        running.remove(request)

    async with exchange(handle, *words, limits=trioserver.Limits(requests=1)) as it:
        await trio.sleep(50)
        assert it.client.received() == words


async def busy(request):
    """Tells that the server is full."""
    await request.reply(b"busy")


@pytest.mark.parametrize(
    ("when_full", "told", "refused"), [("wait", [], 0), ("refuse", [], 6), (busy, [b"busy"] * 6, 6)]
)
async def test_limit_of_requests_is_exact(when_full, told, refused, autojump_clock):
    """There is never one request more than limits.requests, whatever happens to the others."""
    limits = trioserver.Limits(requests=4, when_full=when_full)
    async with exchange(hold, *[b"?"] * 10, limits=limits, grace=0) as it:
        counts = it.server.statistics()
        assert len(it.server.requests) == counts.active == 4
        assert it.client.received() == told
        assert counts.refused + counts.outcomes[trioserver.Outcome.REFUSED] == refused
        for info in it.server.requests[:2]:
            it.server.cancel_request(info.id, "make room")
        await wait_all_tasks_blocked()
        assert len(it.server.requests) == (4 if when_full == "wait" else 2)


@pytest.mark.parametrize("unix", [False, True])
async def test_limit_of_one_client(unix, autojump_clock):
    """limits.per_client counts datagrams: by the host over UDP, by the user over Unix."""
    async with exchange(hold, limits=trioserver.Limits(per_client=2), grace=0) as it:
        for user, number in itertools.product((1, 2), range(5)):
            credentials = trioserver.PeerCredentials(pid=number, uid=user, gid=0)
            address = f"/{user}/{number}" if unix else (f"10.0.0.{user}", 1000 + number)
            it.server.client(address, credentials=credentials).send_now(b"?")
        await wait_all_tasks_blocked()
        assert (len(it.server.requests), it.server.statistics().refused) == (4, 6)


@pytest.mark.slow
async def test_flood_leaves_others_their_turn(autojump_clock):
    """UD-14: however many datagrams wait, other tasks have their turn after 64 of them."""
    large = type("Large", (MemoryDatagramServer,), {"memory_capacity": 10_000})
    limits, turns = trioserver.Limits(requests=10_000), [0]
    words = [b"%d" % number for number in range(5000)]
    async with exchange(echo, kind=large, limits=limits, capacity=10_000) as it:
        for word in words:
            it.client.send_now(word)
        while turns[-1] < 5000:
            await trio.lowlevel.checkpoint()
            turns.append(it.server.statistics().accepted)
        # Twice as many where the loop was last in one tick and first in the next.
        assert max(after - before for before, after in itertools.pairwise(turns)) <= 128
        await wait_all_tasks_blocked()
        assert sorted(it.client.received()) == sorted(words)


@pytest.mark.parametrize("slow", [False, True])
async def test_verify_request_refuses(slow, autojump_clock):
    """A datagram that verify_request refuses, or cannot judge in time, has no answer."""

    class Picky(Loud):
        async def verify_request(self, request, client_address):
            assert (request.data, request.client_address) == (b"?", client_address)
            await trio.sleep(100 * slow)
            return False

    async with exchange(echo, b"?", kind=Picky) as it:
        await trio.sleep(11)
        assert it.client.received() == []
    [record] = it.witness.records
    assert record.outcome == ("timed_out" if slow else "refused")
    assert record.duration == (10 if slow else 0)


async def test_get_request_drops_fails_and_shuts_down(autojump_clock):
    """Whatever get_request does, a datagram is handled, or refused, or counted, and given back."""

    class Choosy(Loud):
        def get_request(self, listener):
            found = super().get_request(listener)
            match found and found[0].data:
                case b"drop":
                    return None
                case b"fail":
                    raise OSError(errno.ECONNABORTED, "not this one")
                case b"stop":
                    self.shutdown()
            return found

    words = [b"one", b"drop", b"fail", b"two", b"stop", b"three"]
    async with exchange(echo, *words, kind=Choosy) as it:
        await it.server.wait_closed()
    assert sorted(it.client.received()) == [b"one", b"stop", b"three", b"two"]
    counts = it.server.statistics()
    assert (counts.accepted, counts.refused, counts.accept_errors) == (4, 1, 1)
    assert ("request_refused", it.client.address, "get_request") in it.witness.events


async def test_handle_request_handles_one_datagram(autojump_clock):
    """handle_request serves exactly one datagram, to its end; without one it times out."""
    timeouts = []

    class Once(MemoryDatagramServer):
        async def handle_timeout(self):
            timeouts.append(trio.current_time())

    server = Once(("memory", 1), echo_later, timeout=3, max_packet_size=3)
    async with server:
        client = server.client()
        await server.handle_request()
        assert timeouts == [3]
        for word in [b"too large", b"", b"one", b"two"]:
            client.send_now(word)
        for answer in [b"", b"one"]:
            await server.handle_request()
            assert client.received() == [answer]
        assert trio.current_time() == 3 + 20
        with trio.move_on_after(5):
            await server.handle_request()
        assert client.received() == []
        await server.handle_request()
    assert timeouts == [3, 23 + 5 + 3]
    counts = server.statistics()
    assert (counts.accepted, counts.accept_errors) == (3, 1)
    assert counts.outcomes[trioserver.Outcome.CANCELLED] == 1


class PassesOver(MemoryDatagramServer):
    max_packet_size = 5

    def get_request(self, listener):
        accepted = super().get_request(listener)
        return None if accepted and accepted[0].data == b"ours?" else accepted


@pytest.mark.parametrize("patience", [0, 10])
async def test_handle_request_passes_over_errors_of_clients(patience, autojump_clock):
    """Neither what is too large nor whom get_request drops hides the next one."""
    async with PassesOver(("memory", 1), echo, timeout=patience) as server:
        client = server.client()
        for word in [b"too large", b"ours?", b"too large", b"yes", b"again"]:
            client.send_now(word)
        for word in [b"yes", b"again"]:
            await server.handle_request()
            assert client.received() == [word]
    counts = server.statistics()
    assert (counts.accepted, counts.accept_errors, counts.refused) == (2, 2, 1)


@pytest.mark.parametrize("patience", [0, 10])
async def test_exit_of_an_observer_ends_the_last_look(patience, autojump_clock):
    """An observer that ends the program while one is passed over: nobody else is let in."""

    class Exits(trioserver.Observer):
        def accept_failed(self, server_address, error):
            raise SystemExit(3)

    async with PassesOver(("memory", 1), echo, timeout=patience, observers=[Exits()]) as server:
        client = server.client()
        client.send_now(b"too large")
        client.send_now(b"next")
        with pytest.raises(SystemExit):
            await server.handle_request()
    assert (client.received(), server.statistics().accepted) == ([], 0)


# The end of a run -----------------------------------------------------------------


@pytest.mark.parametrize("word", [b"seen", b""])
async def test_drain_serves_what_is_queued(word, autojump_clock):
    """UD-11: queued datagrams are served as slots fall free, and replies go out in the grace."""
    limits = trioserver.Limits(requests=2)
    async with exchange(echo_later, limits=limits, max_packet_size=8) as it:
        clients = [it.server.client() for _ in range(7)]
        for client in clients:
            client.send_now(b"too large")
            client.send_now(word)
        await wait_all_tasks_blocked()
        assert it.server.statistics().accept_errors == 2
        it.server.shutdown(grace=60)
        counts = it.server.statistics()
        assert (counts.accept_errors, counts.waiting, counts.unaccepted) == (7, 5, 0)
        with pytest.raises(ConnectionRefusedError):
            clients[0].send_now(b"too late")
        report = await it.server.wait_closed()
    assert [client.received() for client in clients] == [[word]] * 7
    assert report.duration == 40
    assert not report.unaccepted
    assert [str(record.outcome) for record in report.requests] == ["completed"] * 7
    names = it.witness.names
    assert names.count("request_started") == names.count("request_finished") == 7


@pytest.mark.slow
@pytest.mark.parametrize(("requests", "taken_in"), [(1, 4096), (4100, 4100)])
async def test_drain_takes_in_a_bounded_number(requests, taken_in, autojump_clock):
    """UD-11: with a queue larger than any by default, the rest is dropped, and reported."""
    waits = trio.Event()
    large = type("Large", (MemoryDatagramServer,), {"memory_capacity": requests + 5000})

    async def wait(request, client_address, server):
        await waits.wait()

    limits = trioserver.Limits(requests=requests)
    async with exchange(wait, *[b"served"] * requests, kind=large, limits=limits) as it:
        for _ in range(5000):
            it.client.send_now(b"queued")
        it.server.shutdown()
        counts = it.server.statistics()
        assert (counts.active, counts.waiting) == (requests, taken_in)
        assert counts.unaccepted == 5000 - taken_in
        waits.set()
        report = await it.server.wait_closed()
    assert len(report.completed) == requests + taken_in


async def test_drain_cuts_at_the_end_of_the_grace(autojump_clock):
    """UD-11: who is not done when the grace is over is cut, who waits is turned away."""
    limits = trioserver.Limits(requests=1)
    async with exchange(echo_later, *[b"?"] * 5, limits=limits) as it:
        it.server.shutdown(grace=4)
        report = await it.server.wait_closed()
    assert (report.duration, len(report.cancelled), len(report.unaccepted)) == (4, 1, 4)
    assert it.client.received() == []


async def test_drain_leaves_a_shared_queue(autojump_clock):
    """What queues on a socket that others have, too, is left to them."""

    class Shared(MemoryDatagramServer):
        async def server_bind(self):
            self.listener = MemoryDatagramListener(("memory", 1), shared=True)
            return [self.listener]

    limits = trioserver.Limits(requests=1)
    async with exchange(echo_later, *[b"?"] * 3, kind=Shared, limits=limits) as it:
        pass
    assert it.client.received() == [b"?"]
    assert (it.server.statistics().accepted, it.server.statistics().unaccepted) == (1, 0)


async def test_idle_does_nothing(autojump_clock):
    """A datagram is a request that has begun: idle() is inert, and a drain ends no wait in it."""

    class Idle(trioserver.StreamRequestHandler):
        async def handle(self):
            with self.idle(), self.request.idle():
                await trio.sleep(5)
            assert await self.rfile.more()
            assert [line async for line in self.rfile] == [b"a\n", b"b"]
            assert not await self.rfile.more()
            await self.wfile.write(b"done")

    async with exchange(Idle, b"a\nb") as it:
        await trio.sleep(1)
    assert it.client.received() == [b"done"]


# Nothing is kept, nothing is half done ----------------------------------------------


class Ends(trioserver.DatagramRequestHandler):
    async def cannot_reach(self):
        self.server.listener.clients["me"].close()
        await self.request.reply(b"x")

    async def closes_beside(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.request.reply, b"x")
            await wait_all_tasks_blocked()
            self.request.close()


ENDS = [
    *("sleep 0", "write 'text'", "cannot_reach", "closes_beside", f"reply {bytes(70_000)}"),
    *("cancel_request 1; sleep_forever", "sendto b'x', 'nobody'", "reply b'x'", "write b'x'"),
]


@pytest.mark.parametrize("steps", ENDS, ids=range(len(ENDS)))
async def test_ended_request_is_collected_at_once(steps, autojump_clock):
    """No cycle keeps a handler, its datagram or its way back, however it ended."""
    refs = []

    class Handler(does(steps, Ends)):
        async def setup(self):
            # A tuple cannot be referred to weakly: what it alone has can.
            refs.extend(map(weakref.ref, [self, self.socket, self.request._receiver]))

    class Silent(MemoryDatagramServer):
        async def handle_error(self, request, client_address): ...

    fields = {"kind": Silent, "timeouts": trioserver.Timeouts(write=5)}
    gc.collect()
    gc.disable()  # without the collector of cycles, what is in one stays
    try:
        async with exchange(Handler, b"?", client="me", capacity=0, **fields) as it:
            await trio.sleep(20)
            assert [ref() for ref in refs] == [None] * 3
            counts = it.server.statistics()
            assert (counts.active, counts.lingering, sum(counts.outcomes.values())) == (0, 0, 1)
    finally:
        gc.enable()
