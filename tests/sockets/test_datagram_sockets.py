"""Datagrams on real sockets: what the kernel does to them, and tells of them."""

from __future__ import annotations

import array
import errno
import itertools
import os
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Witness, until

import trioserver
from trioserver.testing import open_descriptors


def has_ipv6() -> bool:
    """Whether this machine has IPv6, switched on."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

SO_TIMESTAMP, IP_RECVERR, IPV6_RECVERR = 29, 11, 25  # of Linux; not in the socket module

Where = tuple[Any, Any]
"""The class of a server, and the address to give it."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as socket addresses are short."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name)


PLACES = ["ipv4", pytest.param("ipv6", marks=needs_ipv6), "unix", "abstract"]


@pytest.fixture(params=PLACES)
def where(request: pytest.FixtureRequest, folder: Path) -> Where:
    """Every kind of place to serve at, in turn."""
    return place(request.param, folder)


def place(kind: str, folder: Path) -> Where:
    """A place to serve at."""
    match kind:
        case "ipv4":
            return trioserver.UDPServer, ("127.0.0.1", 0)
        case "ipv6":
            return trioserver.UDPServer, ("::1", 0)
        case "unix":
            return trioserver.UnixDatagramServer, str(folder / "server")
    return trioserver.UnixDatagramServer, b"\0" + os.fsencode(folder)


_numbers = itertools.count()


@contextmanager
def client_of(server: Any, *, bound: bool = True) -> Iterator[Any]:
    """A client's socket, of Trio's, that sends to the server unless told otherwise."""
    address = server.server_address
    family = server.socket.family
    with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
        if bound:
            if family != socket.AF_UNIX:
                client._sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            elif isinstance(address, bytes):
                client._sock.bind(address + b"-%d" % next(_numbers))
            else:
                client._sock.bind(f"{address}-{next(_numbers)}")
        yield client


def tell(client: Any, data: bytes, server: Any) -> None:
    """Send a datagram, now."""
    client._sock.sendto(data, server.server_address)


async def ask(server: Any, data: bytes = b"still there?") -> bytes:
    """What a new client is answered."""
    with trio.fail_after(10), client_of(server) as client:
        tell(client, data, server)
        answer, sender = await client.recvfrom(100_000)
        assert sender == server.server_address
        return bytes(answer)


def is_there(address: Any) -> bool:
    """Whether the address is a path, and anything is at it."""
    return isinstance(address, str) and os.path.lexists(address)


async def turns_in(seconds: float) -> int:
    """How often Trio comes round while this waits."""
    count = _Turns()
    trio.lowlevel.add_instrument(count)
    await trio.sleep(seconds)
    trio.lowlevel.remove_instrument(count)
    return count.number


class _Turns(trio.abc.Instrument):
    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def echo(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends back what came."""
    await request.reply(request.data)


class Loud:
    """A mix-in that keeps the errors that `handle_error` is told of."""

    errors: tuple[Any, ...] = ()

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors += (sys.exception(),)


@asynccontextmanager
async def serving(where: Where, handler: Any, **fields: Any) -> AsyncIterator[Any]:
    """Serve there; nothing may be left afterwards, and no error may have been reported."""
    kind, address = where
    before = open_descriptors()
    if isinstance(address, socket.socket):
        before.discard(address.fileno())  # adopted, and closed at the end
    server = type(f"Loud{kind.__name__}", (Loud, kind), {})(address, handler, **fields)
    with trio.fail_after(30):
        async with server.serving():
            yield server
    assert open_descriptors() == before
    assert server.errors == ()


# Bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8193, 65_507])
async def test_datagram_of_any_size(where: Where, size: int) -> None:
    """UD-01, UD-02: datagrams of every size, an empty one too, arrive whole and are answered."""
    data = os.urandom(size)
    if where[1] == ("::1", 0) and size == 65_507:
        data = os.urandom(65_507 + 20)  # the header that limits it is IPv4's
    async with serving(where, echo) as server:
        assert await ask(server, data) == data


async def test_oversized_datagrams_are_dropped_whole(where: Where) -> None:
    """UD-01: one byte too many is detected, in serving and in the drain, and those behind live."""
    seen, witness = [], Witness()

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.append(request.data)
        if request.data == b"last":
            for data in [b"12345678", b"123456789", b"12345670"]:
                tell(client, data, server)
            server.shutdown()

    fields = {"max_packet_size": 8, "observers": [witness]}
    async with serving(where, look, **fields) as server:
        with client_of(server) as client:
            for data in [b"123456789", b"87654321", b"x" * 5000, b"", b"last"]:
                tell(client, data, server)
            report = await server.wait_closed()
    assert sorted(seen) == [b"", b"12345670", b"12345678", b"87654321", b"last"]
    errors = [event[2] for event in witness.events if event[0] == "accept_failed"]
    assert [error.errno for error in errors] == [errno.EMSGSIZE] * 3
    assert report.statistics.accept_errors == 3


@pytest.mark.parametrize("kind", PLACES[:2])
async def test_reply_too_large(kind: str, folder: Path) -> None:
    """UD-03: what IP cannot carry is EMSGSIZE, and the handler can go on."""

    async def handle(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        with pytest.raises(OSError, match="too long") as caught:
            await request.reply(bytes(65_528))
        assert caught.value.errno == errno.EMSGSIZE
        assert not isinstance(caught.value, trioserver.PeerGone)
        await request.reply(b"less")

    async with serving(place(kind, folder), handle) as server:
        assert await ask(server) == b"less"


# Where it was sent to -----------------------------------------------------------


@pytest.mark.parametrize("options", [(), ((socket.SOL_SOCKET, SO_TIMESTAMP, 1),)])
@needs_ipv6
@on_linux
async def test_wildcard_replies_from_the_address_asked(options: Any) -> None:
    """UD-12: bound to every interface, a reply comes from the address that was asked."""
    seen = []

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.extend([request.server_address, request.socket.getsockname(), request.info])
        await request.reply(b"!")

    wildcard = (trioserver.UDPServer, ("", 0))
    async with serving(wildcard, look, socket_options=options) as server:
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
        [port] = {sock.getsockname()[1] for sock in server.sockets}
        for host in ["127.0.0.2", "127.0.0.1", "::1", "127.9.8.7"]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
                await client.sendto(b"?", (host, port))
                data, sender = await client.recvfrom(10)
                assert (data, sender[:2]) == (b"!", (host, port))
                asked, name, info = seen
                assert asked == name == info.server_address == sender
                seen.clear()


@needs_ipv6
@on_linux
async def test_dual_stack_socket_replies_from_the_address_asked() -> None:
    """UD-12: so does one adopted socket that serves both families."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    async with trioserver.UDPServer(sock, echo).serving() as server:
        port = server.server_address[1]
        with trio.fail_after(10), trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.sendto(b"?", ("127.0.0.2", port))
            assert await client.recvfrom(10) == (b"?", ("127.0.0.2", port))


# Clients that cannot be reached ---------------------------------------------------


def unbound(server: Any) -> None:
    """Has no address."""
    with client_of(server, bound=False) as client:
        tell(client, b"?", server)


def removed(server: Any) -> None:
    """Has removed its file (ENOENT)."""
    with client_of(server) as client:
        tell(client, b"?", server)
        Path(client.getsockname()).unlink()


def dead(server: Any) -> None:
    """Has closed its socket, and left its file (ECONNREFUSED)."""
    with client_of(server) as client:
        tell(client, b"?", server)


def replaced(server: Any) -> None:
    """Has a stream socket there by now (EPROTOTYPE)."""
    with client_of(server) as client, socket.socket(socket.AF_UNIX) as other:
        name = client.getsockname()
        tell(client, b"?", server)
        Path(name).unlink()
        other.bind(name)
        other.listen()
        os.link(name, name + "-kept")


def busy_elsewhere(server: Any) -> None:
    """Has connected its socket to somebody else (EPERM)."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    kept.extend([client, other])
    name = f"{server.server_address}-{next(_numbers)}"
    client.bind(name)
    other.bind(name + "-other")
    client.sendto(b"?", server.server_address)
    client.connect(name + "-other")


kept: list[socket.socket] = []


@pytest.fixture
def _keeping() -> Iterator[None]:
    yield
    while kept:
        kept.pop().close()


@pytest.mark.usefixtures("_keeping")
@pytest.mark.parametrize("leave", [unbound, removed, dead, replaced, busy_elsewhere])
async def test_unix_client_that_cannot_be_reached(leave: Any, folder: Path) -> None:
    """UX-12, UD-09: a Unix client that is gone, or never was there, ends its request alone."""
    witness = Witness()
    async with trio.open_nursery() as nursery:
        kind, path = place("unix", folder)
        server = type("Server", (Loud, kind), {})(path, echo, observers=[witness])
        await nursery.start(server.serve_forever)
        leave(server)
        await until(lambda: bool(witness.records))
        assert await ask(server) == b"still there?"
        server.shutdown()
    assert sorted(witness.outcomes) == ["completed", "disconnected"]
    assert server.errors == ()


@on_linux
async def test_source_port_0() -> None:
    """UD-09: nobody can reply to port 0; that is the client's doing."""
    witness = Witness()
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("only root can send from port 0")
    with raw:
        where = (trioserver.UDPServer, ("127.0.0.1", 0))
        async with serving(where, echo, observers=[witness]) as server:
            port = server.server_address[1]
            raw.sendto(struct.pack("!4H", 0, port, 9, 0) + b"?", ("127.0.0.1", 0))
            await until(lambda: bool(witness.records))
            assert await ask(server) == b"still there?"
    assert witness.outcomes == ["disconnected", "completed"]
    assert witness.records[0].info.client_address == ("127.0.0.1", 0)


@on_linux
@pytest.mark.parametrize("kind", PLACES[:2])
async def test_refusals_that_the_kernel_keeps(kind: str, folder: Path) -> None:
    """UX-12: with IP_RECVERR a refused reply is told to the next receive, which survives it."""
    where = place(kind, folder)
    option = (socket.IPPROTO_IP, IP_RECVERR, 1)
    if kind == "ipv6":
        option = (socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    witness = Witness()
    async with serving(where, echo, socket_options=[option], observers=[witness]) as server:
        for _ in range(5):
            with client_of(server) as one, client_of(server) as two:
                for _ in range(5):
                    # Both are answered in one tick: no refusal may meet the other one's reply.
                    with client_of(server) as dead:
                        tell(dead, b"?", server)
                    for client in (one, two):
                        tell(client, b"?", server)
                for client in (one, two):
                    assert [await client.recv(9) for _ in range(5)] == [b"?"] * 5
        await until(lambda: not server.requests)
        assert await turns_in(0.1) < 10  # it waits, and does not turn in circles
    assert witness.outcomes == ["completed"] * 75


# Clients that do not read, sockets that are full ------------------------------------


@pytest.mark.parametrize("kind", ["unix", "abstract"])
async def test_unix_client_that_never_reads(kind: str, folder: Path) -> None:
    """UD-14: it is given timeouts.write, and nobody else waits for it."""
    witness, timeouts = Witness(), trioserver.Timeouts(write=0.5)

    async def flood(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        if request.data == b"flood":
            for _ in range(10_000):
                await request.reply(b"x")
        await request.reply(b"done")

    fields = {"observers": [witness], "timeouts": timeouts}
    async with serving(place(kind, folder), flood, **fields) as server:
        with client_of(server) as client:
            for _ in range(3):
                tell(client, b"flood", server)
            await until(lambda: server.statistics().accepted == 3)
            for _ in range(20):
                assert await ask(server) == b"done"
            assert await turns_in(0.1) < 100  # longer pauses each time
            await until(lambda: witness.outcomes.count("timed_out") == 3)
    assert witness.outcomes.count("completed") == 20


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux counts what was not read")
@pytest.mark.parametrize("connected", [True, False])
async def test_unix_replies_that_nobody_reads(connected: bool, folder: Path) -> None:
    """UD-14: they fill the buffer that all share, if their client is connected; till it reads."""
    witness, timeouts = Witness(), trioserver.Timeouts(write=0.2)

    async def reply(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await request.reply(bytes(4096))

    fields = {"observers": [witness], "timeouts": timeouts}
    async with serving(place("unix", folder), reply, **fields) as server:
        with client_of(server) as client:
            if connected:
                await client.connect(server.server_address)
            for asked in range(1, 60):
                tell(client, b"?", server)
                await until(lambda asked=asked: len(witness.outcomes) == asked)
                if "timed_out" in witness.outcomes:
                    break
            with client_of(server) as other:
                tell(other, b"?", server)
                await until(lambda: len(witness.outcomes) == asked + 1)
                assert witness.outcomes[-1] == ("timed_out" if connected else "completed")
                with suppress(BlockingIOError):
                    while True:
                        client._sock.recv(9, socket.MSG_DONTWAIT)
            assert len(await ask(server)) == 4096


async def test_unix_client_that_reads_slowly(folder: Path) -> None:
    """UD-14: one that reads now and then gets everything, in good time."""

    async def flood(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        for number in range(1000):
            await request.reply(b"%d" % number)

    async with serving(place("unix", folder), flood) as server:
        with client_of(server) as client:
            tell(client, b"?", server)
            received: list[bytes] = []
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
    """A UDP socket whose output is full until somebody reads at the other end of a pair."""

    def __init__(self, *errors: OSError) -> None:
        super().__init__(type=socket.SOCK_DGRAM)
        self.bind(("127.0.0.1", 0))
        self.errors = list(errors)
        self.pair: tuple[socket.socket, socket.socket] | None = None

    def fill(self) -> None:
        """Have it full from now on."""
        self.pair = socket.socketpair()
        self.pair[0].setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.pair[0].send(bytes(65_536))

    def drain(self) -> None:
        """Have room from now on."""
        assert self.pair is not None
        self.pair[1].setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.pair[1].recv(65_536)
        self.room = True

    room = False

    def fileno(self) -> int:
        return super().fileno() if self.pair is None else self.pair[0].fileno()

    def sendto(self, *arguments: Any) -> int:  # type: ignore[override]
        if self.pair is not None and not self.room:
            raise BlockingIOError(errno.EAGAIN, "full")
        return super().sendto(*arguments)

    def recvmsg_into(self, *arguments: Any) -> Any:
        if self.errors:
            raise self.errors.pop()
        return super().recvmsg_into(*arguments)

    def close(self) -> None:
        for sock in self.pair or ():
            sock.close()
        self.pair = None
        super().close()


@pytest.mark.parametrize("in_time", [True, False])
async def test_many_wait_for_one_full_socket(in_time: bool) -> None:
    """UD-13: many requests can wait for room in one UDP socket; each has its own time-out."""
    sock, go = Full(), trio.Event()

    async def later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await go.wait()
        await request.reply(request.data)

    timeouts = trioserver.Timeouts(write=20 if in_time else 0.2)
    async with serving((trioserver.UDPServer, sock), later, timeouts=timeouts) as server:
        server_address, number = server.server_address, 30
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            for turn in range(number):
                await client.sendto(b"%d" % turn, server_address)
            await until(lambda: len(server.requests) == number)
            server.shutdown()  # from here on, nobody receives from it
            sock.fill()
            go.set()
            await until(lambda: "working" not in {r.state for r in server.snapshot().requests})
            if in_time:
                sock.drain()
                received = {await client.recv(9) for _ in range(number)}
                assert received == {b"%d" % turn for turn in range(number)}
            report = await server.wait_closed()
    outcome = "completed" if in_time else "timed_out"
    assert [str(record.outcome) for record in report.requests] == [outcome] * number


@pytest.mark.parametrize("name", ["ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENOBUFS"])
async def test_errors_of_a_receive(name: str) -> None:
    """UD-13: a receive that is told of an earlier reply's fate is counted; the next one works."""
    errors = [OSError(getattr(errno, name), "injected") for _ in range(3)]
    async with serving((trioserver.UDPServer, Full(*errors)), echo) as server:
        assert await ask(server) == b"still there?"
        assert server.statistics().accept_errors == 3


@on_linux
async def test_drops_of_the_kernel_are_counted() -> None:
    """What the kernel drops while all slots are taken is in Statistics.dropped, to the last one."""
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)]
    release, seen = trio.Event(), []

    async def slow(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await release.wait()
        seen.append(request.data)

    where = (trioserver.UDPServer, ("127.0.0.1", 0))
    limits = trioserver.Limits(requests=1)
    async with serving(where, slow, socket_options=options, limits=limits) as server:
        with client_of(server) as client:
            for _ in range(200):
                tell(client, bytes(200), server)
            assert server.statistics().dropped == 0  # nobody has received since
            release.set()
            await until(lambda: len(seen) >= 1 and not server.requests)
            tell(client, b"last", server)
            await until(lambda: seen[-1] == b"last")
            assert 0 < server.statistics().dropped == 201 - len(seen)
    assert server.statistics().dropped == 201 - len(seen)


# What a Unix socket says of its clients ---------------------------------------------


@on_linux
async def test_unix_clients_credentials(folder: Path) -> None:
    """Each datagram says who sent it, and limits.per_client counts by it."""
    seen = []

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.append((client_address, request.peer_credentials, request.user_id()))
        await trio.sleep_forever()

    fields = {
        "limits": trioserver.Limits(per_client=2),
        "timeouts": trioserver.Timeouts(shutdown=0),
    }
    async with serving(place("unix", folder), look, **fields) as server:
        for _ in range(4):
            unbound(server)
        await until(lambda: server.statistics().refused == 2)
        assert len(server.requests) == 2
        server.shutdown(grace=0)
    me = trioserver.PeerCredentials(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    assert seen == [("", me, os.getuid())] * 2


@on_linux
async def test_unknown_credentials(folder: Path) -> None:
    """A datagram that was sent before anybody asked says nothing of who sent it."""
    seen = []

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.append((request.data, request.user_id()))

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(folder / "server"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"early", sock.getsockname())
        async with serving((trioserver.UnixDatagramServer, sock), look) as server:
            client.sendto(b"late", server.server_address)
            await until(lambda: len(seen) == 2)
    assert sorted(seen) == [(b"early", None), (b"late", os.getuid())]


@on_linux
@pytest.mark.parametrize("let_in", [False, True])
async def test_passed_descriptors_do_not_stay(let_in: bool, folder: Path) -> None:
    """UX-14: descriptors that a client passes unasked are closed, or never come in."""
    seen = []

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.append(request.data)

    async with serving(place("unix", folder), look, max_packet_size=5) as server:
        if let_in:  # as where there are no credentials to fill the room for notes
            [listener] = server._run.listeners
            listener._room_for_notes += 512
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            before = open_descriptors()
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2] * 4))]
            for turn in range(50):
                client.sendmsg([b"%d" % turn], passed, 0, server.server_address)
                client.sendmsg([b"too large"], passed, 0, server.server_address)
                await until(lambda turn=turn: len(seen) == turn + 1)
            await until(lambda: server.statistics().accept_errors == 50)
            assert open_descriptors() == before


# The end of a run ---------------------------------------------------------------------


async def ends_in_order(server: Any) -> None:
    """The server drains."""
    server.shutdown()


async def ends_by_the_grace(server: Any) -> None:
    """The server drains, and cuts."""
    server.shutdown(grace=0)


async def ends_by_an_error(server: Any) -> None:
    """The block fails."""
    raise KeyError("the block's")


async def ends_by_cancellation(server: Any) -> None:
    """The caller has enough."""
    raise trio.TooSlowError


@pytest.mark.parametrize(
    "end", [ends_in_order, ends_by_the_grace, ends_by_an_error, ends_by_cancellation]
)
async def test_nothing_is_left(end: Callable[[Any], Awaitable[None]], where: Where) -> None:
    """LK-03: however it ends, with requests and a full queue, no descriptor and no file is left."""
    kind, address = where
    before = open_descriptors()

    async def handle(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await trio.sleep(0.05 if end is ends_in_order else 60)
        await request.reply(request.data)

    async def run() -> None:
        server = kind(address, handle, limits=trioserver.Limits(requests=2))
        with trio.fail_after(20):
            async with server.serving():
                for _ in range(6):
                    with client_of(server, bound=False) as client:
                        tell(client, b"?", server)
                await until(lambda: server.statistics().accepted >= 2)
                await end(server)
                await server.wait_closed()

    try:
        await run()
    except (KeyError, trio.TooSlowError):
        assert end in {ends_by_an_error, ends_by_cancellation}
    assert open_descriptors() == before
    assert not is_there(address)


async def test_drain_replies_through_a_socket_that_receives_no_more(where: Where) -> None:
    """UD-11: replies leave during the grace; the file is gone, and senders are told, where told."""
    go = trio.Event()

    async def later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await go.wait()
        await request.reply(request.data)

    async with serving(where, later, limits=trioserver.Limits(requests=2)) as server:
        address, unix = server.server_address, server.socket.family == socket.AF_UNIX
        with client_of(server) as client:
            for turn in range(5):
                tell(client, b"%d" % turn, server)
            await until(lambda: len(server.requests) == 2)
            server.shutdown()
            if unix:
                with pytest.raises((FileNotFoundError, BrokenPipeError)):
                    tell(client, b"late", server)
            else:
                tell(client, b"late", server)
            assert not is_there(address)
            go.set()
            assert {await client.recv(9) for _ in range(5)} == {b"%d" % turn for turn in range(5)}
            report = await server.wait_closed()
    assert (len(report.completed), len(report.unaccepted)) == (5, 0)


@pytest.mark.parametrize("size", [0, 100])
async def test_drain_takes_in_all_that_is_queued(where: Where, size: int) -> None:
    """UD-11: however much the kernel was made to hold, and whenever, the drain takes it in."""
    go, number = trio.Event(), 0

    async def later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await go.wait()

    # So small for Unix, where what counts is how many, and larger than that for UDP.
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)]
    limits = trioserver.Limits(requests=1)
    async with serving(where, later, socket_options=options, limits=limits) as server:
        with client_of(server) as client:
            tell(client, b"first", server)
            await until(lambda: len(server.requests) == 1)
            if server.socket.family != socket.AF_UNIX:
                server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            with suppress(BlockingIOError):
                while number < 100:
                    client._sock.sendto(bytes(size), socket.MSG_DONTWAIT, server.server_address)
                    number += 1
            server.shutdown()
            statistics = server.statistics()
            assert (statistics.waiting, statistics.unaccepted) == (number, 0)
            assert number > 9
            go.set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACES)
async def test_ten_thousand_datagrams(kind: str, folder: Path) -> None:
    """LK-03: after 10 000 datagrams there are as many descriptors and tasks as before."""
    async with serving(place(kind, folder), echo) as server:
        with client_of(server) as client:
            tell(client, b"first", server)
            await client.recv(9)
            await until(lambda: not server.statistics().lingering)
            before, tasks = open_descriptors(), trio.lowlevel.current_statistics().tasks_living
            for _ in range(2000):
                for _ in range(5):
                    tell(client, b"x", server)
                for _ in range(5):
                    await client.recv(9)
            await until(lambda: not server.statistics().lingering)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            assert open_descriptors() == before
        assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 10_001
