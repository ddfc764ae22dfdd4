"""Datagrams on real sockets: what the kernel does to them, and tells of them."""

import array
import errno
import itertools
import os
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import pytest
import trio
from support import Witness, descriptors, hold, until
from support.datagrams import echo
from support.listening import LOOPBACK, Later, Looks, bound, is_there, needs_ipv6, on_linux
from support.scenes import table

import trioserver
from trioserver import Limits, Timeouts, UDPServer, UnixDatagramServer
from trioserver.testing import open_descriptors

SO_TIMESTAMP, IP_RECVERR, IPV6_RECVERR = 29, 11, 25  # of Linux; not in the socket module

UDP = (UDPServer, LOOPBACK)
"""The class of a server, and the address to give it."""

PLACES = ["ipv4", pytest.param("ipv6", marks=needs_ipv6), "unix", "abstract"]

on_unix = pytest.mark.parametrize("where", ["unix"], indirect=True)


@pytest.fixture(params=PLACES)
def where(request, folder):
    """Every kind of place to serve at, in turn."""
    return {
        "ipv4": UDP,
        "ipv6": (UDPServer, ("::1", 0)),
        "unix": (UnixDatagramServer, str(folder / "server")),
        "abstract": (UnixDatagramServer, b"\0" + os.fsencode(folder)),
    }[request.param]


_numbers = itertools.count()


def own_address(server):
    """One that a client of the server can have."""
    address, number = server.server_address, f"-{next(_numbers)}"
    if isinstance(address, tuple):
        return (address[0], 0)
    return address + (os.fsencode(number) if isinstance(address, bytes) else number)


@contextmanager
def client_of(server):
    """A client's socket, of Trio's, with an address."""
    with trio.socket.socket(server.socket.family, socket.SOCK_DGRAM) as client:
        client._sock.bind(own_address(server))
        yield client


def tell(client, data, server):
    """Send a datagram, now."""
    client._sock.sendto(data, server.server_address)


async def ask(server, data=b"still there?"):
    """What a new client is answered."""
    with trio.fail_after(10), client_of(server) as client:
        tell(client, data, server)
        answer, sender = await client.recvfrom(100_000)
        assert sender == server.server_address
        return bytes(answer)


async def turns_in(seconds):
    """How often Trio comes round while this waits."""
    turns = []
    counts = {"before_io_wait": lambda _self, timeout: turns.append(timeout)}
    instrument = type("Counts", (trio.abc.Instrument,), counts)()
    trio.lowlevel.add_instrument(instrument)
    await trio.sleep(seconds)
    trio.lowlevel.remove_instrument(instrument)
    return len(turns)


@asynccontextmanager
async def serving(where, handler, **fields):
    """Serve there, with a client; nothing may be left afterwards, and an error ends it all."""
    (kind, address), before = where, descriptors()
    if isinstance(address, socket.socket):
        before.discard(address.fileno())  # adopted, and closed at the end
    server = kind(address, handler, propagate_errors=True, **fields)
    server.witness = Witness()
    server.observers = [server.witness]
    with trio.fail_after(30):
        async with server.serving():
            with client_of(server) as client:
                yield server, client
    assert open_descriptors() == before


async def test_datagram_of_any_size(where):
    """UD-01, UD-02: datagrams of every size, an empty one too, arrive whole and are answered.

    UD-03: a reply that IP cannot carry is EMSGSIZE, and the handler can go on.
    """
    largest = 65_507 + 20 * (where[1] == ("::1", 0))  # the header that limits it is IPv4's

    async def handle(request, client_address, server):
        if where[0] is UDPServer:
            with pytest.raises(OSError, match="too long") as caught:
                await request.reply(bytes(largest + 1))
            assert caught.value.errno == errno.EMSGSIZE
            assert not isinstance(caught.value, trioserver.PeerGone)
        await request.reply(request.data)

    async with serving(where, handle) as (server, _):
        for size in [0, 1, 8193, largest]:
            data = os.urandom(size)
            assert await ask(server, data) == data


async def test_oversized_datagrams_are_dropped_whole(where):
    """UD-01: one byte too many is detected, in serving and in the drain, and those behind live."""
    seen = []

    async def look(request, client_address, server):
        seen.append(request.data)
        if request.data == b"last":
            for data in [b"12345678", b"123456789", b"12345670"]:
                tell(client, data, server)
            server.shutdown()

    async with serving(where, look, max_packet_size=8) as (server, client):
        for data in [b"123456789", b"87654321", b"x" * 5000, b"", b"last"]:
            tell(client, data, server)
        report = await server.wait_closed()
    assert sorted(seen) == [b"", b"12345670", b"12345678", b"87654321", b"last"]
    errors = [event[2] for event in server.witness.events if event[0] == "accept_failed"]
    assert [error.errno for error in errors] == [errno.EMSGSIZE] * 3
    assert report.statistics.accept_errors == 3


async def asked_at(host, port):
    """The address that a reply comes from, which is the one that was asked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
        await client.sendto(b"?", (host, port))
        data, sender = await client.recvfrom(10)
        assert (data, sender[:2]) == (b"!", (host, port))
        return sender


@needs_ipv6
@on_linux
@pytest.mark.parametrize("options", [(), ((socket.SOL_SOCKET, SO_TIMESTAMP, 1),)])
async def test_replies_from_the_address_asked(options):
    """UD-12: bound to every interface, a reply comes from the address that was asked.

    So it does of one adopted socket that serves both families.
    """
    look = Looks(lambda it: [it.server_address, it.socket.getsockname(), it.info.server_address])
    async with serving((UDPServer, ("", 0)), look, socket_options=options) as (server, _):
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
        [port] = {sock.getsockname()[1] for sock in server.sockets}
        for host in ["127.0.0.2", "127.0.0.1", "::1", "127.9.8.7"]:
            sender = await asked_at(host, port)
            assert look.seen.pop() == [sender] * 3
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    async with serving((UDPServer, sock), look) as (server, _):
        await asked_at("127.0.0.2", server.server_address[1])


def unbound(server):
    """Has no address."""
    with socket.socket(server.socket.family, socket.SOCK_DGRAM) as client:
        client.sendto(b"?", server.server_address)


def gone(server, then=id):
    """Has closed its socket, and left its file, unless something is done to that then."""
    with client_of(server) as client:
        tell(client, b"?", server)
        return then(client.getsockname())


def replaced(name):
    """A stream socket is there by now, and stays."""
    os.unlink(name)  # noqa: PTH108
    return [bound(address=name)]


def busy_elsewhere(server):
    """Has connected its socket to somebody else, and stays."""
    client, other = (bound(socket.SOCK_DGRAM, own_address(server)) for _ in range(2))
    client.sendto(b"?", server.server_address)
    client.connect(other.getsockname())
    return [client, other]


@table(
    "leave",
    {
        "it has no address": unbound,
        "it is dead (ECONNREFUSED)": gone,
        "its file is gone (ENOENT)": partial(gone, then=os.unlink),
        "another socket is there (EPROTOTYPE)": partial(gone, then=replaced),
        "it has connected elsewhere (EPERM)": busy_elsewhere,
    },
)
@on_unix
async def test_unix_client_that_cannot_be_reached(leave, where):
    """UX-12, UD-09: a Unix client that is gone, or never was there, ends its request alone."""
    async with serving(where, echo) as (server, _):
        stay = leave(server)
        await until(lambda: server.witness.records)
        for sock in stay if isinstance(stay, list) else ():
            sock.close()
        assert await ask(server) == b"still there?"
    assert server.witness.outcomes == ["disconnected", "completed"]


@on_linux
@pytest.mark.parametrize("where", PLACES[:2], indirect=True)
async def test_refusals_that_the_kernel_keeps(where):
    """UX-12: with IP_RECVERR a refused reply is told to the next receive, which survives it."""
    option = (socket.IPPROTO_IP, IP_RECVERR, 1)
    if ":" in where[1][0]:
        option = (socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    async with serving(where, echo, socket_options=[option]) as (server, _):
        for _ in range(5):
            with client_of(server) as one, client_of(server) as two:
                for _ in range(5):
                    # Both are answered in one tick: no refusal may meet the other one's reply.
                    gone(server)
                    for client in (one, two):
                        tell(client, b"?", server)
                for client in (one, two):
                    assert [await client.recv(9) for _ in range(5)] == [b"?"] * 5
        await until(lambda: not server.requests)
        assert await turns_in(0.1) < 10  # it waits, and does not turn in circles
    assert server.witness.outcomes == ["completed"] * 75


async def flood(request, client_address, server):
    """Replies as often as it is asked to."""
    for number in range(int(request.data)):
        await request.reply(b"%d" % number)


@pytest.mark.parametrize("where", ["unix", "abstract"], indirect=True)
async def test_unix_client_that_never_reads(where):
    """UD-14: it is given timeouts.write, and nobody else waits for it."""
    async with serving(where, flood, timeouts=Timeouts(write=0.5)) as (server, client):
        for _ in range(3):
            tell(client, b"10000", server)
        await until(lambda: server.statistics().accepted == 3)
        for _ in range(20):
            assert await ask(server, b"1") == b"0"
        assert await turns_in(0.1) < 100  # longer pauses each time
        await until(lambda: server.witness.outcomes.count("timed_out") == 3)
    assert server.witness.outcomes.count("completed") == 20


@on_unix
async def test_unix_client_that_reads_slowly(where):
    """UD-14: one that reads now and then gets everything, in good time."""
    async with serving(where, flood) as (server, client):
        tell(client, b"1000", server)
        received = []
        began = trio.current_time()
        while len(received) < 1000:
            await trio.lowlevel.checkpoint()
            await until(lambda: [r.state for r in server.snapshot().requests] != ["working"])
            with suppress(BlockingIOError):
                while True:
                    received.append(client._sock.recv(9, socket.MSG_DONTWAIT))
        assert received == [b"%d" % number for number in range(1000)]
        # Some 90 waits; were each to begin where the last one ended, 100 ms each.
        assert trio.current_time() - began < 5


class Full(socket.socket):
    """A UDP socket whose output can be full."""

    is_full = True

    def sendto(self, *arguments):
        if self.is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return super().sendto(*arguments)


@pytest.mark.parametrize("in_time", [True, False])
async def test_many_wait_for_one_full_socket(in_time):
    """UD-13: many requests can wait for room in one UDP socket; each has its own time-out."""
    sock, later = Full(type=socket.SOCK_DGRAM), Later()
    sock.bind(LOOPBACK)
    words = {b"%d" % number for number in range(30)}
    timeouts = Timeouts(write=20 if in_time else 0.2)
    async with serving((UDPServer, sock), later, timeouts=timeouts) as (server, client):
        for word in words:
            tell(client, word, server)
        await until(lambda: len(server.requests) == 30)
        server.shutdown()  # from here on, nobody receives from it
        later.go.set()
        await until(lambda: "working" not in {r.state for r in server.snapshot().requests})
        if in_time:
            sock.is_full = False
            assert {await client.recv(9) for _ in range(30)} == words
        await server.wait_closed()
    assert server.witness.outcomes == ["completed" if in_time else "timed_out"] * 30


@on_linux
async def test_drops_of_the_kernel_are_counted():
    """What the kernel drops while all slots are taken is in Statistics.dropped, to the last one."""
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)]
    later, limits = Later(), Limits(requests=1)
    async with serving(UDP, later, socket_options=options, limits=limits) as (server, client):
        for _ in range(200):
            tell(client, bytes(200), server)
        assert server.statistics().dropped == 0  # nobody has received since
        later.go.set()
        await until(lambda: later.seen and not server.requests)
        tell(client, b"last", server)
        await until(lambda: later.seen[-1] == b"last")
        assert 0 < server.statistics().dropped == 201 - len(later.seen)
    assert server.statistics().dropped == 201 - len(later.seen)


@on_linux
async def test_unix_clients_credentials(path):
    """Each datagram says who sent it, and limits.per_client counts by it.

    One that was sent before anybody asked says nothing.
    """
    seen, place = [], (UnixDatagramServer, bound(socket.SOCK_DGRAM, path))

    async def look(request, client_address, server):
        seen.append((request.data, client_address, request.peer_credentials, request.user_id()))
        await trio.sleep_forever()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"early", path)
        async with serving(place, look, limits=Limits(per_client=2)) as (server, _):
            for _ in range(4):
                client.sendto(b"late", path)
            await until(lambda: server.statistics().refused == 2)
            assert len(server.requests) == 3
            server.shutdown(grace=0)
    me = trioserver.PeerCredentials(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    assert sorted(seen) == [(b"early", "", None, None), *[(b"late", "", me, os.getuid())] * 2]


@on_linux
@pytest.mark.parametrize("let_in", [False, True])
@on_unix
async def test_passed_descriptors_do_not_stay(let_in, where):
    """UX-14: descriptors that a client passes unasked are closed, or never come in."""
    look = Looks(lambda request: request.data)
    async with serving(where, look, max_packet_size=5) as (server, _):
        if let_in:  # as where there are no credentials to fill the room for notes
            [listener] = server._run.listeners
            listener._room_for_notes += 512
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            before = descriptors()
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2] * 4))]
            for turn in range(50):
                client.sendmsg([b"%d" % turn], passed, 0, server.server_address)
                client.sendmsg([b"too large"], passed, 0, server.server_address)
                await until(lambda turn=turn: len(look.seen) == turn + 1)
            await until(lambda: server.statistics().accept_errors == 50)
            assert open_descriptors() == before


@pytest.mark.parametrize("end", ["drains", "drains and cuts", "fails", "is cancelled"])
@pytest.mark.usefixtures("nothing_stays_open")
async def test_nothing_is_left(end, where):
    """LK-03: however it ends, with requests and a full queue, no descriptor and no file is left."""

    async def handle(request, client_address, server):
        await trio.sleep(0.05 if end == "drains" else 60)
        await request.reply(request.data)

    server = where[0](where[1], handle, limits=Limits(requests=2))
    with trio.fail_after(20), suppress(KeyError), trio.CancelScope() as scope:
        async with server.serving():
            for _ in range(6):
                unbound(server)
            await until(lambda: server.statistics().accepted >= 2)
            match end:
                case "fails":
                    raise KeyError("the block's")
                case "is cancelled":
                    scope.cancel()
                case _:
                    server.shutdown(5 if end == "drains" else 0)
            await server.wait_closed()
    assert not is_there(where[1])


async def test_drain_replies_through_a_socket_that_receives_no_more(where):
    """UD-11: replies leave during the grace; the file is gone, and senders are told, where told."""
    later, words = Later(), {b"%d" % number for number in range(5)}
    async with serving(where, later, limits=Limits(requests=2)) as (server, client):
        for word in words:
            tell(client, word, server)
        await until(lambda: len(server.requests) == 2)
        server.shutdown()
        if server.socket.family == socket.AF_UNIX:
            with pytest.raises((FileNotFoundError, BrokenPipeError)):
                tell(client, b"late", server)
        else:
            tell(client, b"late", server)
        assert not is_there(server.server_address)
        later.go.set()
        assert {await client.recv(9) for _ in words} == words
        report = await server.wait_closed()
    assert (len(report.completed), len(report.unaccepted)) == (5, 0)


async def test_drain_takes_in_all_that_is_queued(where):
    """UD-11: however much the kernel was made to hold, and whenever, the drain takes it in."""
    number, limits = 0, Limits(requests=1)
    # So small for Unix, where what counts is how many, and larger than that for UDP.
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)]
    async with serving(where, hold, socket_options=options, limits=limits) as (server, client):
        tell(client, b"first", server)
        await until(lambda: len(server.requests) == 1)
        if server.socket.family != socket.AF_UNIX:
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        with suppress(BlockingIOError):
            while number < 100:
                client._sock.sendto(b"", socket.MSG_DONTWAIT, server.server_address)
                number += 1
        server.shutdown()
        statistics = server.statistics()
        assert (statistics.waiting, statistics.unaccepted) == (number, 0)
        assert number > 9
        server.shutdown(grace=0)


@pytest.mark.slow
async def test_ten_thousand_datagrams(where):
    """LK-03: after 10 000 datagrams there are as many descriptors and tasks as before."""
    left = []
    async with serving(where, echo) as (server, client):
        for turns in (1, 2000):
            for _ in range(turns):
                for _ in range(5):
                    tell(client, b"x", server)
                for _ in range(5):
                    await client.recv(9)
            await until(lambda: not server.statistics().lingering)
            left.append([open_descriptors(), trio.lowlevel.current_statistics().tasks_living])
        assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 10_005
    assert left[0] == left[1]
