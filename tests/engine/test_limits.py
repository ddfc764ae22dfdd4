"""Limits: how many requests at once, of whom, how large, and what a slow peer costs."""

import math
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, hold, plain_client, read_to_end, running
from support.scenes import Scene, Visit, close, counts, does, end, heard_by, in_memory, sleep, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Connection, Limits, Timeouts
from trioserver._engine.slots import Slots
from trioserver._facts.address import client_key
from trioserver.testing import MemoryListener, MemoryServer, open_test_server


@attrs.define(eq=False)
class Guests:
    """A handler that keeps each client until it speaks or leaves, and counts them."""

    order: list[str] = attrs.field(factory=list)
    now: int = 0
    most: int = 0

    async def __call__(self, request, client_address, server):
        self.order.append(client_address[0])
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await request.recv(1)
        finally:
            self.now -= 1


class TwoListeners(MemoryServer):
    """Serves at two places at once."""

    async def server_bind(self):
        self.listener, self.other = (MemoryListener(("memory", number)) for number in (1, 2))
        return [self.listener, self.other]


@attrs.define(eq=False)
class Crowd:
    """A server with a limit, and clients called 0, 1, ..., who come one after the other."""

    server: Any
    guests: Guests
    clients: list[Connection] = attrs.field(factory=list)

    async def come(self, count, listener=None):
        """Some more connect."""
        for _ in range(count):
            address = (str(len(self.clients)), 1)
            self.clients.append((listener or self.server.listener).connect_now(address))
            await wait_all_tasks_blocked()

    async def leave(self, number):
        """One of them closes."""
        self.clients[number].close()
        await wait_all_tasks_blocked()


@asynccontextmanager
async def crowd(count, kind=MemoryServer, **limits):
    """So many of them."""
    guests = Guests()
    async with in_memory(guests, kind, limits=Limits(**limits)).serving(grace=0) as server:
        them = Crowd(server, guests)
        await them.come(count)
        yield them


def names(count):
    """What the first clients are called."""
    return [str(number) for number in range(count)]


# Requests at once: "wait" ------------------------------------------------------


async def test_requests_limit_is_exact():
    """BP-01: of 15 clients 10 are served, and the other 5 stay in the queue."""
    async with crowd(15, requests=10) as them:
        assert them.guests.order == names(10)
        assert len(them.server.requests) == 10
        assert them.server.statistics().refused == 0


async def test_requests_limit_is_exact_for_a_burst():
    """BP-01: clients that come all at once find no more slots than those who come one by one."""
    async with crowd(0, requests=10) as them:
        clients = [them.server.listener.connect_now((name, 1)) for name in names(100)]
        while clients:
            await wait_all_tasks_blocked()
            assert them.guests.now == min(10, len(clients))
            clients.pop(0).close()
    assert sorted(them.guests.order) == sorted(names(100))


async def test_requests_wait_in_order():
    """BP-01: who waits is served first come, first served, each as soon as a slot is free."""
    async with crowd(5, requests=2) as them:
        for leaves, expected in ((1, 3), (0, 4), (3, 5)):
            assert them.guests.order == names(expected - 1)
            await them.leave(leaves)
            assert them.guests.order == names(expected)


async def test_requests_wait_in_the_kernels_queue(folder):
    """BP-01: over real sockets, too, waiting clients are connected, and served in their order."""
    order = []

    async def keep(request, client_address, server):
        order.append(await request.recv(1))
        await request.recv(1)

    server = trioserver.UnixStreamServer(str(folder / "s"), keep, limits=Limits(requests=1))
    async with running(server) as path:
        clients = [plain_client(path) for _ in range(4)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        for client in clients:
            await wait_all_tasks_blocked()
            assert len(server.requests) == 1
            client.close()
    assert order == [b"0", b"1", b"2", b"3"]


async def test_requests_limit_is_one_for_all_listeners():
    """BP-01: two listeners share the slots, and a free one goes to whoever has a client."""
    async with crowd(2, TwoListeners, requests=3) as them:
        await them.come(4, them.server.other)
        for here in range(6, 0, -1):
            assert them.guests.now == min(3, here)
            await them.leave(6 - here)
        assert sorted(them.guests.order) == names(6)


@pytest.mark.parametrize("which", ["listener", "other"])
async def test_free_slot_goes_where_a_client_waits(which):
    """BP-01: a slot that falls free is not lost on a listener to which nobody has come."""
    async with crowd(1, TwoListeners, requests=1) as them:
        await them.come(1, getattr(them.server, which))
        assert them.guests.order == ["0"]
        await them.leave(0)
        assert them.guests.order == ["0", "1"]


async def test_requests_limit_holds_in_a_storm(autojump_clock):
    """BP-01: 400 clients that come and go at random never hold more than the 7 slots."""
    rng = random.Random(7)

    async def visit(place):
        await trio.sleep(rng.randrange(20))
        async with await place.connect() as client:
            await trio.sleep(rng.randrange(3))
            await client.send_all(b"x")
            assert await read_to_end(client) == b""

    async with crowd(0, TwoListeners, requests=7) as them, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(visit, them.server.listener)
            nursery.start_soon(visit, them.server.other)
    assert them.guests.most == 7
    assert len(them.guests.order) == 400


# Requests at once: the excess -----------------------------------------------------


greet = does(b"hi", Connection.recv)


async def a_second(request, client_address, server):
    """Tells when it began, and when it ended."""
    await request.sendall(b"from %g" % trio.current_time())
    await trio.sleep(1)
    await request.sendall(b" to %g" % trio.current_time())


async def ask_myself(request, client_address, server):
    """Waits for its own full server."""
    async with await server.connect() as client:
        await client.receive_some()


async def say_busy(connection):
    """A ``when_full`` function."""
    await connection.sendall(b"busy\n")


async def take_a_second(connection):
    """One that says when it began."""
    await connection.sendall(b"busy at %g" % trio.current_time())
    await trio.sleep(1)


async def speak_for_ever(connection):
    """One that does not end."""
    await trio.sleep_forever()


async def speak_at_length(connection):
    """One that says more than a client takes who does not listen."""
    await connection.sendall(bytes(1_000_000))


async def stumble(connection):
    """One that fails."""
    await connection.sendall(b"bu")
    raise ValueError(f"stumbled over {connection.client_address}")


def has_one_request(server):
    """Two clients are there, and the first has the only slot."""
    assert [info.client_address for info in server.requests] == [("first", 1)]
    assert server.statistics().active == 1


REFUSE = Limits(requests=1, when_full="refuse")
EXCESS = [("excess", 1), ("excess", 2)]
FULL = "the server is full (requests)"


@table(
    {
        "BP-01: with one slot each request is complete before the next is started": Scene(a_second)
        .beside(Visit().gives(b"from 1 to 2", 2), Visit().gives(b"from 2 to 3", 3))
        .gives(b"from 0 to 1", 1),
        "BP-12: a handler that waits for its own full server is ended by a time-out": Scene(
            ask_myself, drain_at=6, grace=0, timeouts=Timeouts(request=5)
        ).gives(b"", 5, reason="(request)", outcomes=["timed_out", "cancelled"]),
        "BP-02: the 11th client is reset in the very instant; the others notice nothing": Scene(
            greet, {1: end}, limits=Limits(requests=10, when_full="refuse")
        )
        .beside(*[Visit({1: end}).gives(b"hi", 1)] * 9)
        .beside(*[Visit(address=it).gives(b"", 0, breaks=True) for it in EXCESS])
        .gives(b"hi", 1, *["completed"] * 10, refused=2, refusals=[(it, FULL) for it in EXCESS]),
        "BP-02: after somebody has left, the next client is not refused": Scene(
            greet, {1: close}, limits=REFUSE
        )
        .beside(
            Visit(comes_at=0.5).gives(b"", 0.5, breaks=True),
            Visit({2: end}, comes_at=1.5).gives(b"hi", 2),
        )
        .gives(b"hi", 1, "completed", "completed"),
        "BP-02: a client reads what the function says, then the end, and is refused": Scene(
            greet, {1: close}, limits=Limits(requests=1, when_full=say_busy)
        )
        .beside(Visit().gives(b"busy\n", 0))
        .gives(b"hi", 1, "refused", "completed", reason=FULL),
        "BP-02: further clients wait until the function is done with the first": Scene(
            hold, drain_at=3, grace=0, limits=Limits(requests=1, when_full=take_a_second)
        ).beside(*[Visit().gives(b"busy at %d" % n, n + 1) for n in range(3)]),
        "BP-02: while the function speaks to somebody, the slots are as many as ever": Scene(
            greet,
            {1: close},
            3,
            0,
            address=("first", 1),
            limits=Limits(requests=1, when_full=speak_for_ever),
            meanwhile={0.5: has_one_request},
        )
        .beside(Visit().gives(b"", 3), Visit(comes_at=2).gives(b"hi", 3))
        .gives(b"hi", 1),
        "BP-02, TO-06: the function has a client for `Timeouts.write` seconds": Scene(
            greet,
            {1: close},
            timeouts=Timeouts(write=7),
            limits=Limits(requests=1, when_full=speak_for_ever),
        )
        .beside(Visit().gives(b"", 7))
        .gives(b"hi", 1, "completed", "refused", duration=7),
        "BP-02: so has it one that takes nothing of what it is told": Scene(
            greet,
            {1: close},
            timeouts=Timeouts(write=7),
            limits=Limits(requests=1, when_full=speak_at_length),
        )
        .beside(Visit(reads_from=8).gives(breaks=True))
        .gives(b"hi", 1, "completed", "refused", duration=7),
        "BP-02: its error goes to handle_error, and the next client is still told": Scene(
            hold, drain_at=1, grace=0, limits=Limits(requests=1, when_full=stumble)
        )
        .beside(*[Visit(address=(name, 1)).gives(b"bu", 0) for name in "ab"])
        .gives(
            outcomes=["refused", "refused", "cancelled"], logs=["a:1.*over ..a", "b:1.*over ..b"]
        ),
        "BP-02: a drain waits for the function; the end of the grace cuts it": Scene(
            hold, drain_at=1, grace=4, limits=Limits(requests=1, when_full=speak_for_ever)
        )
        .beside(Visit().gives(b"", 5))
        .gives(b"", 5, closed_at=5, active=0),
    }
)
async def test_one_slot(scene, autojump_clock):
    """What becomes of the clients for whom there is no slot."""
    if scene.limits == Limits():
        scene = scene.gives(limits=Limits(requests=1))
    await scene.play()


async def test_refuse_leaves_others_their_turn():
    """BP-02: a flood of clients to refuse does not starve one who is served."""
    async with in_memory(limits=REFUSE).serving() as server, await server.connect() as client:
        await wait_all_tasks_blocked()
        for _ in range(2000):
            server.listener.connect_now()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        assert server.statistics().refused < 2000
        await wait_all_tasks_blocked()
        assert server.statistics().refused == 2000


# Slots come back ---------------------------------------------------------------


class Obedient(trioserver.StreamRequestHandler):
    """Ends in the way that its client asks for."""

    def __init__(self, request, client_address, server):
        if client_address[0] == "init":
            raise ValueError("init")
        super().__init__(request, client_address, server)

    async def setup(self):
        if self.client_address[0] == "setup":
            raise ValueError("setup")

    async def handle(self):
        match await self.rfile.readline():
            case b"fail\n":
                raise ValueError("fail")
            case b"fail apart\n":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fail)
                    nursery.start_soon(self._fail)
            case b"cancel\n":
                self.cancel_scope.cancel(reason="asked for")
                await trio.sleep_forever()
            case b"sleep\n":
                await trio.sleep_forever()
            case b"talk\n":
                await self.wfile.write(bytes(1_000_000))
            case b"close\n":
                await self.request.aclose()
            case b"count\n":
                await self.rfile.readexactly(10)

    async def _fail(self):
        raise ValueError("fail apart")

    async def finish(self):
        await super().finish()
        if self.client_address[0] == "finish":
            raise ValueError("finish")


class Moody(MemoryServer):
    """Turns clients away, and fails, by their names."""

    async def verify_request(self, request, client_address):
        match client_address[0]:
            case "unwanted":
                return False
            case "verify":
                raise ValueError("verify")
            case "undecided":
                await trio.sleep_forever()
        return True

    async def handle_error(self, request, client_address):
        if client_address[0] == "twice":
            raise ValueError("twice")


@attrs.frozen
class Ending:
    """What a client is called, says and does, and the outcome that this has."""

    outcome: str
    says: bytes = b""
    name: str = "anybody"
    leaves: Callable[[Connection], object] | None = None

    def __str__(self):
        leaves = self.leaves.__name__ if self.leaves else "stays"
        return f"{self.outcome} {self.name} {self.says[:20]!r} {leaves}"

    async def visit(self, server):
        """Be this client from beginning to end."""
        async with await server.connect((self.name, 1)) as client:
            with suppress(trio.BrokenResourceError):
                if self.says:
                    await client.send_all(self.says)
                await wait_all_tasks_blocked()
                if self.leaves:
                    self.leaves(client)
                    return
                if self.says == b"talk\n":
                    await trio.sleep(20)
                await read_to_end(client)


ENDINGS = (
    Ending("completed", b"return\n"),
    Ending("completed", b"close\n"),
    Ending("completed", b"half a li", leaves=Connection.close),
    Ending("completed", leaves=Connection.close),
    Ending("failed", b"fail\n"),
    Ending("failed", b"fail apart\n"),
    Ending("failed", name="init"),
    Ending("failed", name="setup"),
    Ending("failed", b"return\n", name="finish"),
    Ending("failed", name="verify"),
    Ending("failed", b"fail\n", name="twice"),
    Ending("timed_out"),
    Ending("timed_out", b"half a li"),
    Ending("timed_out", b"sleep\n"),
    Ending("timed_out", b"talk\n"),
    Ending("timed_out", name="undecided"),
    Ending("disconnected", leaves=Connection.reset),
    Ending("disconnected", b"talk\n", leaves=Connection.reset),
    Ending("disconnected", b"count\nto 9", leaves=Connection.close),
    Ending("refused", name="unwanted"),
    Ending("refused", b"x" * 101),
    Ending("cancelled", b"cancel\n"),
)


@table(
    "endings",
    {
        **{str(ending): [ending] for ending in ENDINGS},
        "a thousand, of every kind": random.Random(3).choices(ENDINGS, k=1000),
    },
)
async def test_slot_comes_back(autojump_clock, endings):
    """BP-01: however requests end, the only slot is free for the next client."""
    server = in_memory(
        Obedient,
        Moody,
        limits=Limits(requests=1, line=100, per_client=1),
        timeouts=Timeouts(handshake=1, idle=2, line=3, write=4, request=9, linger=0.5),
        observers=[witness := Witness()],
    )
    async with server.serving():
        for ending in endings:
            await ending.visit(server)
            assert len(server.requests) <= 1
        await ENDINGS[0].visit(server)
        statistics = server.statistics()
        assert (statistics.active, statistics.accepted) == (0, len(endings) + 1)
    assert Counter(witness.outcomes[:-1]) == Counter(ending.outcome for ending in endings)
    assert witness.outcomes[-1] == "completed"


# Per client --------------------------------------------------------------------

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


@table(
    ("limits", "hosts", "served"),
    {
        "of 50 connections from one address 5 are served, and another address at once": (
            {"per_client": 5},
            [A] * 50 + [B],
            "hhhhh" + "-" * 45 + "h",
        ),
        "the same address": ({"per_client": 1}, [A, A], "h-"),
        "one address, mapped": ({"per_client": 1}, [A, f"::ffff:{A}"], "h-"),
        "two addresses, mapped": ({"per_client": 1}, [f"::ffff:{A}", f"::ffff:{B}"], "hh"),
        "one network of 64 bits": ({"per_client": 1}, ["2001:db8::1", "2001:db8::f:f:f:f"], "h-"),
        "two such networks": ({"per_client": 1}, ["2001:db8::1", "2001:db8:0:1::1"], "hh"),
        "one address on a link": ({"per_client": 1}, ["fe80::1%eth0"] * 2, "h-"),
        "two loopback addresses": ({"per_client": 1}, ["::1", "127.0.0.1"], "hh"),
        "the network of the loopback": ({"per_client": 1}, ["::1", "::2"], "h-"),
        "waiting does not help": ({"per_client": 1, "requests": 5}, [A, A], "h-"),
        "it is refused as others": ({"per_client": 1, "when_full": "refuse"}, [A, A], "h-"),
        "it is not spoken to": ({"per_client": 1, "when_full": say_busy}, [A, A], "h-"),
        "a greedy client that is refused takes no slot from others": (
            {"per_client": 1, "requests": 2},
            [*[A] * 20, B],
            "h" + "-" * 19 + "h",
        ),
    },
)
async def test_per_client(limits, hosts, served, autojump_clock):
    """BP-06: a client is an IPv4 address, mapped or not, or an IPv6 network; more is reset."""
    welcome, unwelcome = Visit({1: end}).gives(b"hi", 1), Visit().gives(b"", 0, breaks=True)
    visits = [
        attrs.evolve(welcome if told == "h" else unwelcome, address=(host, port))
        for port, (host, told) in enumerate(zip(hosts, served, strict=True), 10_000)
    ]
    first, *others = visits
    scene = Scene(greet, {1: end}, address=first.address, limits=Limits(**limits)).beside(*others)
    await scene.gives(b"hi", 1, refused=served.count("-")).play()


async def test_per_client_in_a_burst():
    """BP-06: connections of one client that come all at once are counted one by one."""
    async with crowd(0, requests=5, per_client=2) as them:
        for host in [A] * 50 + [B] * 50 + [C] * 50:
            them.server.listener.connect_now((host, 1))
        await wait_all_tasks_blocked()
        assert Counter(them.guests.order) == {A: 2, B: 2, C: 1}
        # The 5 slots are taken, so whoever comes now waits, whatever its address.
        assert them.server.statistics().refused == 96


async def test_per_client_is_given_back():
    """BP-06: whoever leaves may come again."""
    async with crowd(0, per_client=1) as them:
        for _ in range(3):
            async with await them.server.connect((A, 1)):
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
        assert them.guests.order == [A] * 3


async def test_per_client_by_user():
    """BP-06: a client over a Unix socket is its user, whatever its process."""
    async with crowd(0, per_client=1) as them:
        for pid, uid in ((1, 1000), (2, 1000), (3, 1001)):
            who = trioserver.PeerCredentials(pid=pid, uid=uid, gid=0)
            them.server.listener.connect_now(str(pid), who)
            await wait_all_tasks_blocked()
        assert them.guests.order == ["1", "3"]
        assert them.server.statistics().refused == 1


async def test_per_client_of_a_unix_server(folder):
    """BP-06: the kernel says which user a client is."""
    server = trioserver.UnixStreamServer(str(folder / "s"), Upper, limits=Limits(per_client=1))
    async with running(server) as path:
        with plain_client(path) as first, plain_client(path) as second:
            assert await heard_by(second) == b""
            first.sendall(b"hello\n")
            assert await trio.to_thread.run_sync(first.recv, 10) == b"HELLO\n"


async def test_per_client_counts_mapped_addresses_of_the_kernel():
    """BP-06: on a dual-stack socket the client ::ffff:127.0.0.1 is the client 127.0.0.1."""
    sockets = [socket.create_server(("127.0.0.1", 0))]
    try:
        sockets.append(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    except OSError:
        sockets[0].close()
        pytest.skip("this machine has no IPv6")
    one, both = (("127.0.0.1", sock.getsockname()[1]) for sock in sockets)
    async with running(trioserver.TCPServer(sockets, Upper, limits=Limits(per_client=1))):
        with plain_client(one):
            await wait_all_tasks_blocked()
            with plain_client(both) as mapped, pytest.raises(ConnectionResetError):
                await heard_by(mapped)


async def test_per_client_forgets_who_has_left():
    """BP-07: after clients from 1000 networks, nobody is remembered."""
    async with in_memory(limits=Limits(per_client=2)).serving() as server:
        for number in range(1000):
            async with await server.connect((f"2001:db8:{number:x}::1", 1)) as client:
                await client.send_eof()
                await read_to_end(client)
        assert not server._bound_run().admission._slots._by_client


def test_slots_remember_only_who_is_here():
    """BP-07: 100 000 clients, 3 at a time, never fill the table with more than 3."""
    slots = Slots(Limits(per_client=1), 1024)
    here, most = [], 0
    for number in range(100_000):
        here.append(client_key((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), None))
        slots.take(here[-1])
        most = max(most, len(slots._by_client))
        if len(here) == 3:
            slots.give_back(here.pop(0))
    for client in here:
        slots.give_back(client)
    assert (most, len(slots._by_client)) == (3, 0)
    assert slots.free == Limits().requests


# Lingering connections (the rest is in test_drain.py) -----------------------------


async def leave_input(request, client_address, server):
    """Ends its request without a look at the input, but of the client called 1."""
    if client_address[0] == "1":
        await read_to_end(request)


def lingering(server):
    """The connections that are open, none of which is served."""
    requests = server.snapshot().requests
    assert {request.state for request in requests} <= {"closing"}
    return [request.info.id for request in requests]


async def test_lingering_connections_are_bounded():
    """BP-01: no more connections linger than there are slots; beyond it the oldest closes."""
    async with in_memory(leave_input, limits=Limits(requests=2)).serving(grace=0) as server:
        for newest in range(1, 6):
            await server.connect()
            await wait_all_tasks_blocked()
            assert lingering(server) == list(range(max(1, newest - 1), newest + 1))
        assert server.statistics().outcomes["completed"] == 5


async def test_lingering_connection_that_closes_makes_room():
    """BP-01: clients that end their side free their places themselves, and nobody is cut."""
    async with in_memory(leave_input, limits=Limits(requests=2)).serving(grace=0) as server:
        await server.connect()
        async with await server.connect():
            await wait_all_tasks_blocked()
            assert lingering(server) == [1, 2]
        await wait_all_tasks_blocked()
        await server.connect()
        await wait_all_tasks_blocked()
        assert lingering(server) == [1, 3]


async def test_lingering_connection_is_not_cut_for_one_that_does_not_linger():
    """BP-01: a request that ends without lingering takes no place from one that lingers."""
    async with in_memory(leave_input, limits=Limits(requests=1)).serving(grace=0) as server:
        await server.connect(("0", 1))
        async with await server.connect(("1", 1)):
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert lingering(server) == [1]
        assert server.statistics().outcomes["completed"] == 2


async def test_cancelled_request_does_not_linger(autojump_clock):
    """BP-01: a request that was cancelled is closed at once, although its input is unread."""
    cancel = {1: lambda server: server.cancel_request(1, "a test"), 1.5: counts(lingering=0)}
    scene = Scene(hold, {0: b"never read"}, meanwhile=cancel)
    await scene.gives(b"", 1, "cancelled", breaks=True).play()


class ClosesItself(trioserver.TCPServer):
    """Calls its own hook, where others do without."""

    async def close_request(self, request):
        await super().close_request(request)


@pytest.mark.parametrize("kind", [trioserver.TCPServer, ClosesItself])
async def test_linger_saves_a_reply_from_unread_input(kind):
    """BP-01: over TCP, a slow client gets all of a reply although its own input was not read."""
    reply = bytes(1_000_000)

    async def reply_early(request, client_address, server):
        await request.recv(1)
        await request.sendall(reply)

    async with open_test_server(kind(("127.0.0.1", 0), reply_early), transport="tcp") as server:
        client = await server.connect()
        await client.send_all(bytes(100_000))
        await server.wait_requests()
        assert await read_to_end(client) == reply


# Large requests ----------------------------------------------------------------


class OneLine(trioserver.StreamRequestHandler):
    """Replies with the length of one line, or with what went wrong and what was left."""

    async def handle(self):
        try:
            line = await self.rfile.readline()
        except trioserver.LimitExceeded:
            await self.wfile.write(b"too long: " + await self.rfile.read1())
        else:
            await self.wfile.write(b"%d" % len(line))


class ReadAll(trioserver.StreamRequestHandler):
    """Replies with the length of its input."""

    async def handle(self):
        await self.wfile.write(b"%d" % len(await self.rfile.read()))


@table(
    ("handler", "sent", "reply", "reason"),
    {
        "a line may have `Limits.line` bytes, its end included": (
            OneLine,
            b"123456789\n",
            b"10",
            "",
        ),
        "whatever follows it": (OneLine, b"123456789\nnext\n", b"10", ""),
        "or the end of input": (OneLine, b"1234567890", b"10", ""),
        "of a longer one nothing is lost": (
            OneLine,
            b"1234567890\n",
            b"too long: 1234567890\n",
            "",
        ),
        "nor without an end": (OneLine, b"12345678901", b"too long: 12345678901", ""),
        "a read without a size takes `Limits.read` bytes": (ReadAll, bytes(1000), b"1000", ""),
        "who sends more is refused": (ReadAll, bytes(1001), b"", "(read)"),
    },
)
async def test_limits_of_reads_are_exact(handler, sent, reply, reason, autojump_clock):
    """BP-08: a request may be as large as it may be, to the byte."""
    scene = Scene(handler, {0: [sent, end]}, limits=Limits(line=10, read=1000))
    await scene.gives(reply, 0, "refused" if reason else "completed", reason=reason).play()


@pytest.mark.parametrize(
    ("handler", "most"), [(ReadAll, Limits().read), (Upper, Limits().line)], ids=["read", "line"]
)
async def test_reader_takes_no_more_than_its_limit(handler, most):
    """BP-08: of an endless request, no more than the limit and one portion is ever taken in."""
    server = in_memory(handler, limits=Limits(linger=0), observers=[witness := Witness()])
    async with server.serving():
        async with await server.connect() as client:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.send_all(bytes(65_536))
    [record] = witness.records
    assert record.outcome == "refused"
    assert most < record.bytes_received <= most + 65_536


# Backpressure ------------------------------------------------------------------


def one_byte(connection):
    """Receive it."""
    return connection.recv(1)


class ReadOneLine(trioserver.StreamRequestHandler):
    """Reads with a buffer, and then thinks for ever."""

    async def handle(self):
        await self.rfile.readline()
        await trio.sleep_forever()


@pytest.mark.parametrize("handler", [does(one_byte, sleep(math.inf)), ReadOneLine, Upper])
async def test_slow_reader_stops_its_client(handler):
    """BP-09: while nobody reads, nothing is taken in, and the client's send waits.

    A handler between a fast sender and a slow reader holds one line, no more.
    """
    async with in_memory(handler).serving(grace=0) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"x" * 999 + b"\n" + b"line\n" * 2_000_000)
            await wait_all_tasks_blocked()
            [request] = server.snapshot().requests
            assert request.bytes_sent == (server.memory_capacity if handler is Upper else 0)
            assert request.bytes_received <= request.bytes_sent + 65_536 + 1000
            assert client.bytes_sent == request.bytes_received + server.memory_capacity
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["write", "writelines"])
async def test_slow_client_stops_its_handler(method):
    """BP-09: no more is sent than the client takes, and nothing piles up in between."""
    returned = []

    class Talk(trioserver.StreamRequestHandler):
        async def handle(self):
            for _ in range(100):
                chunk = bytes(100_000)
                await getattr(self.wfile, method)(chunk if method == "write" else [chunk])
                returned.append(len(chunk))

    async with in_memory(Talk).serving(grace=0) as server, await server.connect() as client:
        await wait_all_tasks_blocked()
        assert server.snapshot().requests[0].bytes_sent == server.memory_capacity
        assert returned == []
        taken = 0
        while taken < 300_000:
            taken += len(await client.receive_some())
            await wait_all_tasks_blocked()
            assert sum(returned) <= taken + server.memory_capacity


# Many --------------------------------------------------------------------------


@pytest.mark.slow
async def test_many_idle_connections():
    """BP-10: 10 000 idle connections cost little memory, and the next client is served at once."""
    async with in_memory(limits=Limits(requests=20_000)).serving() as server:
        before = resident_kib()
        clients = [await server.connect() for _ in range(10_000)]
        while len(server.requests) < 10_000:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        cost = (resident_kib() - before) / 10_000
        latencies = []
        for _ in range(5):
            began = time.perf_counter()
            async with await server.connect() as client:
                await client.send_all(b"hello\n")
                assert await client.receive_some() == b"HELLO\n"
            latencies.append(time.perf_counter() - began)
        latency = min(latencies)  # what else the machine does is not the server's doing
        for client in clients:
            await client.aclose()
    print(f"{cost:.1f} KiB an idle connection, both ends; {latency * 1000:.2f} ms for the next")
    assert cost < 20
    assert latency < 0.05


def resident_kib():
    """Memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("VmRSS")
