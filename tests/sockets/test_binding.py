"""Where servers for IP listen: addresses, families, ports, options, and sockets they are given."""

import errno
import math
import os
import pickle
import re
import socket
import struct
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio
from support import Upper, hold, plain_client, read_to_end, until
from support.listening import (
    LOOPBACK,
    Looks,
    answered,
    asked,
    bound,
    fails_to_listen,
    is_there,
    needs_ipv6,
    on_linux,
    tcp,
    told,
)
from support.scenes import table

import trioserver
from trioserver import Limits, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6
OUR_IPV6 = ("::1", 0, 0, 0)
# Reserved for documentation (RFC 5737, RFC 3849): no machine has them.
NOBODYS, NOBODYS_IPV6 = ("192.0.2.1", 0), ("2001:db8::1", 0, 0, 0)
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
UNIX = {UnixStreamServer, UnixDatagramServer}
UNKNOWN = (99, LOOPBACK)  # a family that no kernel has, as IPv6 where it was left out


def resolving_to(*found):
    """Have every name resolve to these, for the rest of the test: addresses, or with a family."""

    async def getaddrinfo(self, *arguments, **options):
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        pairs = (it if it[0] == 99 else (AF_INET6 if ":" in it[0] else AF_INET, it) for it in found)
        return [(family, STREAM, 6, "", address) for family, address in pairs]

    names = {"getaddrinfo": getaddrinfo, "getnameinfo": None}
    resolver = type("Resolver", (trio.abc.HostnameResolver,), names)()
    trio.socket.set_custom_hostname_resolver(resolver)


def told_by_linux(name):
    """The words of each line of a file in ``/proc``."""
    return map(str.split, Path("/proc", name).read_text(encoding="ascii").splitlines())


async def addresses(server):
    """What a server binds to."""
    async with server:
        return [sock.getsockname() for sock in server.sockets]


def v6(*row):
    """A row for machines that have IPv6."""
    return pytest.param(*row, marks=needs_ipv6)


IPV4, IPV6 = {"address_family": AF_INET}, {"address_family": AF_INET6}
BOTH = ["0.0.0.0", "::"]
OURS = ["127.0.0.1", "::1"]
TEN = [f"127.0.0.{number}" for number in range(1, 11)]


@table(
    "host, found, fields, hosts",
    {
        "NW-03, NW-04: every interface of both families": v6("", None, {}, BOTH),
        "NW-03, NW-04: the same of None": v6(None, None, {}, BOTH),
        "NW-03: with `address_family`, that alone": ("", None, IPV4, ["0.0.0.0"]),
        "NW-03: the same of IPv6": v6("", None, IPV6, ["::"]),
        "an IPv6 address stands as it is": v6("::1", None, {}, ["::1"]),
        "IPv4 is first, however it resolves": v6("it", [OUR_IPV6, LOOPBACK], {}, OURS),
        "NW-07: of a name with ten addresses, all": ("it", [(it, 0) for it in TEN], {}, TEN),
        "NW-07: one that it has twice, once": ("it", [LOOPBACK] * 2, {}, OURS[:1]),
        "NW-03: no family that the kernel lacks": ("it", [UNKNOWN, LOOPBACK], {}, OURS[:1]),
        "NW-03: nor one switched off": v6("it", [NOBODYS_IPV6, LOOPBACK], {}, OURS[:1]),
        "NW-03: without IPv4, IPv6": v6("it", [UNKNOWN, OUR_IPV6], {}, OURS[1:]),
    },
)
async def test_where_it_listens(host, found, fields, hosts):
    """LC-02: with port 0, `start` returns with addresses on one port that answer at once."""
    if found is not None:
        resolving_to(*found)
    server = TCPServer((host, 0), Upper, **fields)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        addresses = [sock.getsockname() for sock in server.sockets]
        assert [address[0] for address in addresses] == hosts
        [port] = {address[1] for address in addresses}
        assert port != 0
        assert server.server_address == addresses[0]
        assert server.socket is server.sockets[0]
        assert server.fileno() == server.socket.fileno()
        for address in addresses:
            assert await asked(address) == b"ASKED\n"
        server.shutdown()


@needs_ipv6
async def test_ipv6_socket():
    """NW-03: it leaves the IPv4 port to others, and refuses IPv4 clients, unless it is told not to.

    If `socket_options` say so, it takes them, with the addresses that the system then gives.
    """
    async with TCPServer(("", 0), Upper, **IPV6) as server:
        port = server.server_address[1]
        with pytest.raises(ConnectionRefusedError):
            plain_client(("127.0.0.1", port))
        assert await addresses(TCPServer(("0.0.0.0", port), Upper))
    options = [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)]
    look = Looks(lambda request: request.client_address[0])
    async with TCPServer(("", 0), look, socket_options=options, **IPV6).serving() as server:
        assert await asked(("127.0.0.1", server.server_address[1])) == b"!"
    assert look.seen == ["::ffff:127.0.0.1"]


@on_linux
@needs_ipv6
async def test_ipv6_address_with_a_scope():
    """NW-03: a scope id is kept, on `::1` as on the link-local address of an interface."""
    assert (await addresses(TCPServer(("::1%1", 0), Upper)))[0][0] == "::1"
    for digits, index, _prefix, scope, _flags, interface in told_by_linux("net/if_inet6"):
        if scope == "20":  # link-local
            host, number = ":".join(re.findall("....", digits)), int(index, 16)
            named = (f"{host}%{interface}", 0)
            [address] = await addresses(TCPServer(named, Upper))
            for again in (named, address, (host, 0, 0, number), (*named, 0, 0)):
                [found] = await addresses(TCPServer(again, Upper))
                assert found[3] == number


ABSENT = "EADDRNOTAVAIL"


@table(
    "address, found, error, fault",
    {
        "NW-07: it resolves to nothing": (("no", 8), [], "EAI_NONAME", "cannot resolve no:8"),
        "NW-03: no family is left": (("it", 0), [UNKNOWN], "EAFNOSUPPORT", "127.0.0.1:0"),
        "NW-03: an IPv6 address of nobody's": v6(NOBODYS_IPV6, None, ABSENT, "[2001:db8::1]:0"),
        "LC-03: one of nobody's": (("it", 0), [LOOPBACK, NOBODYS], ABSENT, "192.0.2.1:"),
        "a service's name": (("192.0.2.1", "domain"), None, ABSENT, "192.0.2.1:53"),
    },
)
async def test_where_it_cannot_listen(address, found, error, fault):
    """It is said where, in the error of the kernel or the resolver; nothing stays open."""
    if found is not None:
        resolving_to(*found)
    number = getattr(errno, error, None) or getattr(socket, error)
    await fails_to_listen(TCPServer(address, Upper), number, re.escape(fault))


async def test_bad_address_many_times():
    """LC-04: 1024 starts that fail leave no descriptor behind."""
    server = TCPServer(NOBODYS, Upper)
    for _ in range(1024):
        await fails_to_listen(server, errno.EADDRNOTAVAIL, r"192\.0\.2\.1:0")


both = pytest.mark.parametrize("kind", [TCPServer, UDPServer])


@pytest.mark.parametrize("others", [[], ["127.0.0.2"]])
@both
async def test_port_taken(kind, others):
    """LC-03, NW-02: a port that is taken raises, bare, with the address; the first one goes on.

    When one of a name's addresses is taken, the others are closed.
    """
    async with kind(LOOPBACK, Looks(str)).serving() as first:
        port = first.server_address[1]
        resolving_to(*((host, port) for host in others), first.server_address)
        second = first.evolve(server_address=("it", port))
        await fails_to_listen(second, errno.EADDRINUSE, rf"cannot listen on 127\.0\.0\.1:{port}")
        for host in others:
            bound(DATAGRAM if kind is UDPServer else STREAM, (host, port)).close()
        assert await answered(first) == b"!"


@pytest.mark.parametrize("times", [2, math.inf])
async def test_port_taken_in_the_second_family(times, monkeypatch):
    """NW-04: an ephemeral port is given up for the next, until none is to be had in both.

    What was asked for is not tried again: it is taken.
    """
    tried, bind = [], socket.socket.bind

    def maybe_bind(sock, address):
        if address[0] == "127.0.0.2":
            tried.append(address[1])
            if len(tried) <= times:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        bind(sock, address)

    [(_, port)] = await addresses(TCPServer(LOOPBACK, Upper))
    monkeypatch.setattr(socket.socket, "bind", maybe_bind)
    resolving_to(LOOPBACK, ("127.0.0.2", 0))
    server = TCPServer(("both", 0), Upper)
    if times == 2:
        assert [bound[1] for bound in await addresses(server)] == [tried[2]] * 2
    else:
        await fails_to_listen(server, errno.EADDRINUSE, r"127\.0\.0\.2:[1-9]")
        assert 1 < len(tried) < 1000
        tried.clear()
        resolving_to(("127.0.0.1", port), ("127.0.0.2", port))
        await fails_to_listen(TCPServer(("both", port), Upper), errno.EADDRINUSE)
        assert tried == [port]


@pytest.mark.parametrize("reuse", [True, False])
async def test_restart_while_old_connections_wait(reuse):
    """NW-01: with an old connection in TIME_WAIT a server binds at once, unless told not to."""
    server = TCPServer(LOOPBACK, Looks(id), timeouts=trioserver.Timeouts(linger=0))
    async with server.serving():
        address = server.server_address
        with plain_client(address) as client:
            assert [await told(client), await told(client)] == [b"!", b""]
    again = server.evolve(server_address=address, allow_reuse_address=reuse)
    if reuse:
        assert await addresses(again) == [address]
    else:
        await fails_to_listen(again, errno.EADDRINUSE)


@on_linux
async def test_socket_options_are_set_before_bind():
    """`socket_options` are set before bind: with IP_FREEBIND, nobody's address can be bound."""
    options = [(socket.IPPROTO_IP, 15, 1)]
    assert (await addresses(TCPServer(NOBODYS, Upper, socket_options=options)))[0][0] == NOBODYS[0]


@needs_ipv6
@pytest.mark.parametrize("reuse", [True, False])
async def test_options_are_set_on_every_socket(reuse):
    """`socket_options`, whose values may be bytes, `allow_reuse_address` and `allow_reuse_port`."""
    linger, level = struct.pack("ii", 1, 7), socket.SOL_SOCKET
    options = [(level, socket.SO_KEEPALIVE, 1), (level, socket.SO_LINGER, linger)]
    fields = {"allow_reuse_address": reuse, "allow_reuse_port": reuse}
    expected = {socket.SO_REUSEADDR: reuse, socket.SO_REUSEPORT: reuse, socket.SO_KEEPALIVE: 1}
    async with TCPServer(("", 0), Upper, socket_options=options, **fields) as server:
        for sock in server.sockets:
            assert {name: sock.getsockopt(level, name) for name in expected} == expected
            assert sock.getsockopt(level, socket.SO_LINGER, 8) == linger
        assert len(server.sockets) == 2


@on_linux
@pytest.mark.parametrize("kind", [TCPServer, UDPServer, UnixStreamServer, UnixDatagramServer])
async def test_socket_option_that_is_refused(kind, path):
    """An option that the kernel refuses is told of, not the address, and nothing stays open."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, 9999, 1)]
    server = kind(path if kind in UNIX else LOOPBACK, Upper, socket_options=options)
    family = "AF_UNIX" if kind in UNIX else "AF_INET"
    fault = rf": cannot set \(1, 9999, 1\) of socket_options on an {family} socket$"
    await fails_to_listen(server, errno.ENOPROTOOPT, fault)


@needs_ipv6
async def test_socket_option_that_is_not_permitted(monkeypatch):
    """Its error is of the class that it always has, and does not mean a missing family."""

    def refuse(sock, level, name, *value):
        if name == 9999:
            raise OSError(errno.EPERM if sock.family == AF_INET else errno.EADDRNOTAVAIL, "no")
        socket.SocketType.setsockopt(sock, level, name, *value)

    monkeypatch.setattr(socket, "socket", type("Refuses", (socket.socket,), {"setsockopt": refuse}))
    for host, kind in (("127.0.0.1", PermissionError), ("::1", OSError)):
        server = TCPServer((host, 0), Upper, socket_options=[(socket.SOL_SOCKET, 9999, 1)])
        await fails_to_listen(server, match="no: cannot set", kind=kind)


@on_linux
@pytest.mark.parametrize("size", [1, None])
async def test_request_queue_size(size):
    """`request_queue_size` is the kernel's queue; None is as large as the kernel takes.

    It is `tcpi_sacked` of TCP_INFO (sock_diag(7)).
    """
    [[most]] = told_by_linux("sys/net/core/somaxconn")
    async with TCPServer(LOOPBACK, Upper, request_queue_size=size) as server:
        info = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        assert struct.unpack_from("=I", info, 28) == (min(size or 65_535, int(most)),)


@both
async def test_two_servers_share_a_port(kind):
    """NW-05: with `allow_reuse_port` two servers share a port, and both get clients."""
    first = kind(LOOPBACK, Looks(str), allow_reuse_port=True)
    with trio.fail_after(10):
        async with first.serving():
            async with first.evolve(server_address=first.server_address).serving() as second:
                while not (first.statistics().accepted and second.statistics().accepted):
                    assert await answered(first) == b"!"


async def test_server_on_a_shared_port_stops():
    """NW-05: when one of a port's servers stops, its own queue is taken in, and nobody hangs."""
    server = TCPServer(LOOPBACK, hold, allow_reuse_port=True, limits=Limits(requests=1))
    with trio.fail_after(10):
        async with server.serving():
            clients = [plain_client(server.server_address) for _ in range(4)]
            await until(lambda: server.requests)
            server.shutdown(grace=0)
            report = await server.wait_closed()
        for client in clients:
            with client:
                assert await told(client) in {b"", b"ConnectionResetError"}
    assert (report.statistics.accepted, len(report.unaccepted)) == (1, 3)


@pytest.mark.parametrize(
    ("host", "source", "length"),
    [("127.0.0.1", "127.0.0.1", 2), v6("::1", "::1", 4), v6("", "127.0.0.1", 2)],
)
async def test_client(host, source, length):
    """NW-06: its address is a pair for IPv4, four for IPv6, and never the one for the other.

    UX-09: over TCP there are no credentials to be had. Accepted sockets have
    TCP_NODELAY, which they inherit.
    """
    option = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    look = Looks(lambda it: [it.peer_credentials, it.socket.getsockopt(*option), it.client_address])
    async with TCPServer((host, 0), look).serving() as server:
        async with await trio.open_tcp_stream(source, server.server_address[1]) as client:
            address = client.socket.getsockname()
            assert await read_to_end(client) == b"!"
    assert (look.seen, len(address)) == ([[None, 1, address]], length)


@table(
    "kind, make",
    {
        "LC-11: that is bound": (TCPServer, lambda _: bound()),
        "LC-11: that listens": (TCPServer, tcp),
        "LC-11: inherited": (TCPServer, lambda _: socket.socket(fileno=bound().detach())),
        "LC-11: for datagrams": (UDPServer, lambda _: bound(DATAGRAM)),
        "UX-04: whose file is left": (UnixStreamServer, partial(bound, STREAM)),
        "UX-04: left, for datagrams": (UnixDatagramServer, partial(bound, DATAGRAM)),
    },
)
async def test_adopted_socket_is_served(kind, make, path):
    """A socket is served, alone or in a list, and closed with the run, which is its last."""
    for given in ("alone",) if kind in UNIX else ("alone", "in a list"):
        sock = make(path)
        server = kind(sock if given == "alone" else [sock], Looks(str))
        async with server.serving():
            assert server.sockets == (sock,)
            assert server.server_address == sock.getsockname()
            assert await answered(server) == b"!"
        assert sock.fileno() == -1
        assert is_there(path) == (kind in UNIX)
        await fails_to_listen(server, match="is closed", kind=ValueError)


@needs_ipv6
async def test_adopted_sockets_are_sorted_and_taken_over_when_bound():
    """LC-11: of adopted sockets, too, the IPv4 ones come first.

    A server that never ran has taken nothing over; it cannot be pickled.
    """
    ipv6, ipv4 = socket.create_server(OUR_IPV6[:2], family=AF_INET6), tcp()
    server = TCPServer([ipv6, ipv4], Upper)
    assert ipv4.getblocking()
    with pytest.raises(TypeError, match="socket"):
        pickle.dumps(server)
    async with server:
        assert server.sockets == (ipv4, ipv6)


def connected(sock):
    """Both ends of a connection: a socket may be connected to itself."""
    sock.connect(sock.getsockname())
    return sock


@table(
    "kind, make, fault",
    {
        "no address": (TCPServer, socket.socket, "not bound"),
        "of datagrams": (TCPServer, lambda: bound(DATAGRAM), "SOCK_DGRAM"),
        "of Unix": (TCPServer, lambda: bound(address="\0" + os.urandom(8).hex()), "AF_UNIX"),
        "connected": (TCPServer, lambda: connected(bound()), "is connected"),
        "not as configured": v6(partial(TCPServer, **IPV6), bound, "AF_INET6 was expected"),
        "of streams": (UDPServer, bound, "SOCK_DGRAM one was expected"),
        "no address, UDP": (UDPServer, lambda: socket.socket(type=DATAGRAM), "is not bound"),
        "connected, UDP": (UDPServer, lambda: connected(bound(DATAGRAM)), "is connected"),
        "of UDP": (UnixDatagramServer, lambda: bound(DATAGRAM), "AF_UNIX was"),
    },
)
async def test_adopted_socket_that_is_unfit(kind, make, fault):
    """LC-11: an unfit socket is a ValueError that says why, before anything is served.

    It is left alone, and so is the good one beside it.
    """
    good = bound(DATAGRAM if kind in {UDPServer, UnixDatagramServer} else STREAM)
    with closing(make()) as unfit, good:
        numbers = (unfit.fileno(), good.fileno())
        sockets = unfit if kind is UnixDatagramServer else [good, unfit]
        await fails_to_listen(kind(sockets, Upper), match=fault, kind=ValueError)
        assert (unfit.fileno(), good.fileno()) == numbers
