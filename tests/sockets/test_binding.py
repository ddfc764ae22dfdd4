"""Where a TCP server listens: addresses, families, ports, options, and sockets it is given."""

from __future__ import annotations

import errno
import os
import pickle
import re
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import Upper, hold, plain_client, read_to_end

import trioserver
from trioserver.testing import open_descriptors

LOOPBACK = ("127.0.0.1", 0)

# Reserved for documentation (RFC 5737, RFC 3849): no machine has them.
NOBODYS = ("192.0.2.1", 0)
NOBODYS_IPV6 = ("2001:db8::1", 0, 0, 0)

# A family that no kernel has, as IPv6 where it was left out.
UNKNOWN = (99, LOOPBACK)


def has_ipv6() -> bool:
    """Whether this machine has IPv6, switched on."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")


@attrs.define
class Resolver(trio.abc.HostnameResolver):
    """Resolves every name to the given ``(family, address)`` pairs."""

    found: list[tuple[int, Any]]

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if not self.found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(kind, socket.SOCK_STREAM, 6, "", address) for kind, address in self.found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


def resolving_to(*found: tuple[int, Any]) -> None:
    """Have every name resolve to these, for the rest of the test."""
    trio.socket.set_custom_hostname_resolver(Resolver(list(found)))


async def addresses(server: trioserver.TCPServer) -> list[Any]:
    """What a server binds to."""
    async with server:
        return [sock.getsockname() for sock in server.sockets]


async def try_to_serve(server: trioserver.TCPServer) -> None:
    """Serve; when nothing keeps it from that, not for long."""
    with trio.fail_after(10):
        await server.serve_forever()


async def asked(address: Any) -> bytes:
    """What a server at ``address`` answers."""
    with trio.fail_after(10):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with trio.socket.socket(family) as client:
            await client.connect(address)
            await client.send(b"asked\n")
            return await client.recv(100)


@pytest.fixture
def taken() -> Iterator[tuple[str, int]]:
    """An address on which somebody else listens."""
    with socket.create_server(LOOPBACK) as somebody:
        yield somebody.getsockname()


# Addresses -------------------------------------------------------------------


@needs_ipv6
async def test_start_gives_the_bound_addresses() -> None:
    """LC-02: with port 0 and two families, `start` returns with addresses that answer at once."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET6, ("::1", 0, 0, 0)))
    server = trioserver.TCPServer(("anywhere", 0), Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        for sock in server.sockets:
            assert await asked(sock.getsockname()) == b"ASKED\n"
        server.shutdown()


@needs_ipv6
@pytest.mark.parametrize("host", ["", None])
async def test_every_interface_on_one_port(host: str | None) -> None:
    """NW-03, NW-04: without a host, every interface of both families, on one port, IPv4 first."""
    server = trioserver.TCPServer((host, 0), Upper)
    async with server:
        first, second = (sock.getsockname() for sock in server.sockets)
        assert (first[0], second[0]) == ("0.0.0.0", "::")
        assert first[1] == second[1] != 0
        assert server.server_address == first


@needs_ipv6
async def test_ipv4_comes_first() -> None:
    """However a name resolves, IPv4 is first, so that `host, port = server_address` works."""
    resolving_to((socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, LOOPBACK))
    server = trioserver.TCPServer(("anywhere", 0), Upper)
    async with server:
        host, _port = server.server_address
        assert host == "127.0.0.1"
        assert server.socket is server.sockets[0]
        assert server.fileno() == server.sockets[0].fileno()


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "0.0.0.0"),
        pytest.param(socket.AF_INET6, "::", marks=needs_ipv6),
    ],
    ids=["IPv4", "IPv6"],
)
async def test_one_family(family: int, host: str) -> None:
    """NW-03: with `address_family`, that family alone."""
    server = trioserver.TCPServer(("", 0), Upper, address_family=family)
    assert [address[0] for address in await addresses(server)] == [host]


@needs_ipv6
async def test_ipv6_socket_is_not_for_ipv4() -> None:
    """NW-03: a server for IPv6 leaves the IPv4 port to others, and refuses IPv4 clients."""
    server = trioserver.TCPServer(("", 0), Upper, address_family=socket.AF_INET6)
    async with server:
        port = server.server_address[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert await addresses(trioserver.TCPServer(("0.0.0.0", port), Upper))


@needs_ipv6
async def test_ipv6_socket_that_is_for_ipv4_too() -> None:
    """NW-03: it is if `socket_options` say so, with the addresses that the system then gives."""
    options = [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)]

    async def tell(request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(client_address[0].encode())

    server = trioserver.TCPServer(
        ("", 0), tell, address_family=socket.AF_INET6, socket_options=options
    )
    async with server.serving():
        assert await asked(("127.0.0.1", server.server_address[1])) == b"::ffff:127.0.0.1"


@needs_ipv6
async def test_ipv6_address() -> None:
    """An IPv6 address is bound and served as it stands."""
    server = trioserver.TCPServer(("::1", 0), Upper)
    async with server.serving():
        assert server.server_address[0] == "::1"
        assert await asked(server.server_address) == b"ASKED\n"


@on_linux
@needs_ipv6
async def test_ipv6_address_with_a_scope() -> None:
    """NW-03: a scope id is kept, on `::1` as on the link-local address of an interface."""
    assert (await addresses(trioserver.TCPServer(("::1%1", 0), Upper)))[0][0] == "::1"
    for host, index, interface in link_local_addresses():
        server = trioserver.TCPServer((f"{host}%{interface}", 0), Upper)
        (address,) = await addresses(server)
        assert address[3] == index
        for again in (address, (host, 0, 0, index), (f"{host}%{interface}", 0, 0, 0)):
            (found,) = await addresses(trioserver.TCPServer(again, Upper))
            assert found[3] == index


def link_local_addresses() -> list[tuple[str, int, str]]:
    """The link-local addresses of this machine, each with its interface."""
    lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    return [
        (":".join(re.findall("....", digits)), int(index, 16), interface)
        for digits, index, _prefix, scope, _flags, interface in map(str.split, lines)
        if scope == "20"
    ]


async def test_localhost() -> None:
    """`localhost` is this machine alone, on one port."""
    bound = await addresses(trioserver.TCPServer(("localhost", 0), Upper))
    assert {address[0] for address in bound} <= {"127.0.0.1", "::1"}
    assert len({address[1] for address in bound}) == 1


async def test_port_by_service_name() -> None:
    """A port may be the name of a service."""
    server = trioserver.TCPServer(("192.0.2.1", "domain"), Upper)
    with pytest.raises(OSError, match=r"192\.0\.2\.1:53"):
        await try_to_serve(server)


async def test_name_with_many_addresses() -> None:
    """NW-07: of a name that resolves to ten addresses, all are bound, on one port."""
    hosts = [f"127.0.0.{number}" for number in range(1, 11)]
    resolving_to(*((socket.AF_INET, (host, 0)) for host in hosts))
    bound = await addresses(trioserver.TCPServer(("ten", 0), Upper))
    assert [address[0] for address in bound] == hosts
    assert len({address[1] for address in bound}) == 1


async def test_name_with_one_address_twice() -> None:
    """NW-07: an address that a name resolves to twice is bound once."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET, LOOPBACK))
    assert len(await addresses(trioserver.TCPServer(("twice", 0), Upper))) == 1


async def test_name_that_does_not_resolve() -> None:
    """NW-07: a name that resolves to nothing is in the message."""
    resolving_to()
    server = trioserver.TCPServer(("no-such-host", 80), Upper)
    with pytest.raises(socket.gaierror, match="cannot resolve no-such-host:80") as caught:
        await try_to_serve(server)
    assert caught.value.errno == socket.EAI_NONAME


# Families that are missing ---------------------------------------------------


@needs_ipv6
@pytest.mark.parametrize(
    "missing", [UNKNOWN, (socket.AF_INET6, NOBODYS_IPV6)], ids=["not built in", "switched off"]
)
async def test_missing_family_is_left_out(missing: tuple[int, Any]) -> None:
    """NW-03: where the kernel lacks a family, or all its addresses, the other one is served."""
    resolving_to(missing, (socket.AF_INET, LOOPBACK))
    before = open_descriptors()
    server = trioserver.TCPServer(("anywhere", 0), Upper)
    async with server.serving():
        assert [sock.family for sock in server.sockets] == [socket.AF_INET]
        assert await asked(server.server_address) == b"ASKED\n"
    assert open_descriptors() == before


@needs_ipv6
async def test_missing_ipv4_is_left_out() -> None:
    """NW-03: without IPv4, IPv6 is served."""
    resolving_to(UNKNOWN, (socket.AF_INET6, ("::1", 0, 0, 0)))
    bound = await addresses(trioserver.TCPServer(("anywhere", 0), Upper))
    assert [address[0] for address in bound] == ["::1"]


async def test_all_families_missing() -> None:
    """NW-03: with no family left, the error of the kernel is raised, and names the address."""
    resolving_to(UNKNOWN)
    before = open_descriptors()
    with pytest.raises(OSError, match=r"127\.0\.0\.1:0") as caught:
        await try_to_serve(trioserver.TCPServer(("anywhere", 0), Upper))
    assert caught.value.errno == errno.EAFNOSUPPORT
    assert open_descriptors() == before


@needs_ipv6
async def test_missing_address_that_was_asked_for() -> None:
    """NW-03: an IPv6 address of nobody's, asked for alone, is an error that names it."""
    with pytest.raises(OSError, match=re.escape("[2001:db8::1]:0")) as caught:
        await try_to_serve(trioserver.TCPServer(("2001:db8::1", 0), Upper))
    assert caught.value.errno == errno.EADDRNOTAVAIL


# Ports that are taken --------------------------------------------------------


async def test_port_taken(taken: tuple[str, int]) -> None:
    """LC-03: a port that is taken raises from `start`, bare, with the address; nothing is left."""
    server = trioserver.TCPServer(taken, Upper)
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{taken[1]}") as caught:
            await nursery.start(server.serve_forever)
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before
    assert server.snapshot().state == "unbound"


async def test_two_servers_on_one_port() -> None:
    """NW-02: of two live servers of ours, the second is refused, and the first goes on."""
    first = trioserver.TCPServer(LOOPBACK, Upper)
    async with first.serving():
        second = first.evolve(server_address=first.server_address)
        with pytest.raises(OSError, match="cannot listen on") as caught:
            await try_to_serve(second)
        assert caught.value.errno == errno.EADDRINUSE
        assert await asked(first.server_address) == b"ASKED\n"


async def test_one_address_taken_closes_the_others(taken: tuple[str, int]) -> None:
    """LC-03: when one of a name's addresses is taken, the others are closed again."""
    port = taken[1]
    resolving_to((socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, taken))
    before = open_descriptors()
    with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}") as caught:
        await try_to_serve(trioserver.TCPServer(("both", port), Upper))
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before
    with socket.create_server(("127.0.0.2", port)):
        pass


async def test_one_address_of_nobodys_closes_the_others() -> None:
    """LC-03: an IPv4 address that is not this machine's is an error, also beside a good one."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET, NOBODYS))
    before = open_descriptors()
    with pytest.raises(OSError, match=r"192\.0\.2\.1:[1-9]") as caught:
        await try_to_serve(trioserver.TCPServer(("both", 0), Upper))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert open_descriptors() == before


async def test_bad_address_many_times() -> None:
    """LC-04: 1024 starts that fail leave no descriptor behind."""
    server = trioserver.TCPServer(NOBODYS, Upper)
    before = open_descriptors()
    for _ in range(1024):
        with pytest.raises(OSError, match=r"192\.0\.2\.1:0"):
            await try_to_serve(server)
    assert open_descriptors() == before


def refusing_binds(
    monkeypatch: pytest.MonkeyPatch, host: str, times: float
) -> list[tuple[str, int]]:
    """Have the first binds to ``host`` fail as if the port were taken; gives the ports tried."""
    tried: list[tuple[str, int]] = []
    bind = socket.socket.bind

    def maybe_bind(sock: socket.socket, address: Any) -> None:
        if address[0] == host:
            tried.append(address)
            if len(tried) <= times:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        bind(sock, address)

    monkeypatch.setattr(socket.socket, "bind", maybe_bind)
    return tried


async def test_port_taken_in_the_second_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """NW-04: an ephemeral port that is taken in another family is given up for the next."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET, ("127.0.0.2", 0)))
    tried = refusing_binds(monkeypatch, "127.0.0.2", times=2)
    before = open_descriptors()
    server = trioserver.TCPServer(("both", 0), Upper)
    async with server:
        assert {sock.getsockname()[1] for sock in server.sockets} == {tried[2][1]}
        assert len(server.sockets) == 2
    assert open_descriptors() == before


async def test_port_never_free_in_the_second_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """NW-04: when no port is to be had in both, the error is raised, and nothing is left."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET, ("127.0.0.2", 0)))
    tried = refusing_binds(monkeypatch, "127.0.0.2", times=float("inf"))
    before = open_descriptors()
    with pytest.raises(OSError, match=r"127\.0\.0\.2:[1-9]") as caught:
        await try_to_serve(trioserver.TCPServer(("both", 0), Upper))
    assert caught.value.errno == errno.EADDRINUSE
    assert len(tried) > 1
    assert open_descriptors() == before


async def test_fixed_port_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was asked for is not tried again: it is taken, and that is the answer."""
    resolving_to((socket.AF_INET, LOOPBACK), (socket.AF_INET, ("127.0.0.2", 0)))
    (free,) = await addresses(trioserver.TCPServer(LOOPBACK, Upper))
    resolving_to((socket.AF_INET, free), (socket.AF_INET, ("127.0.0.2", free[1])))
    tried = refusing_binds(monkeypatch, "127.0.0.2", times=1)
    with pytest.raises(OSError, match=r"127\.0\.0\.2"):
        await try_to_serve(trioserver.TCPServer(("both", free[1]), Upper))
    assert len(tried) == 1


async def say_bye(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Says one byte, and lets the server close first."""
    await request.send_all(b"!")


@pytest.mark.parametrize("reuse", [True, False])
async def test_restart_while_old_connections_wait(reuse: bool) -> None:
    """NW-01: with an old connection in TIME_WAIT a server binds at once, unless told not to."""
    server = trioserver.TCPServer(LOOPBACK, say_bye, timeouts=trioserver.Timeouts(linger=0))
    with trio.fail_after(10):
        async with server.serving():
            address = server.server_address
            with plain_client(address) as client:
                assert await trio.to_thread.run_sync(client.recv, 1) == b"!"
                assert await trio.to_thread.run_sync(client.recv, 1) == b""
    again = server.evolve(server_address=address, allow_reuse_address=reuse)
    if reuse:
        assert await addresses(again) == [address]
    else:
        with pytest.raises(OSError, match="cannot listen on"):
            await try_to_serve(again)


# Options ---------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
async def test_reuse_options(reuse: bool) -> None:
    """`allow_reuse_address` and `allow_reuse_port` are what the sockets have."""
    server = trioserver.TCPServer(
        LOOPBACK, Upper, allow_reuse_address=reuse, allow_reuse_port=reuse
    )
    async with server:
        assert server.socket is not None
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            assert server.socket.getsockopt(socket.SOL_SOCKET, option) == reuse


@on_linux
async def test_socket_options_are_set_before_bind() -> None:
    """`socket_options` are set before bind: with IP_FREEBIND, nobody's address can be bound."""
    options = [(socket.IPPROTO_IP, 15, 1)]
    server = trioserver.TCPServer(NOBODYS, Upper, socket_options=options)
    assert (await addresses(server))[0][0] == NOBODYS[0]


@needs_ipv6
async def test_socket_options_are_set_on_every_socket() -> None:
    """`socket_options` are for the sockets of all families; values may be bytes."""
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7)),
    ]
    server = trioserver.TCPServer(("", 0), Upper, socket_options=options)
    async with server:
        for sock in server.sockets:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == options[1][2]
        assert len(server.sockets) == 2


@on_linux
async def test_socket_option_that_is_refused(tmp_path: Path) -> None:
    """An option that the kernel refuses is told of, not the address, and nothing stays open."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, 9999, 1)]
    for kind, address in (
        (trioserver.TCPServer, LOOPBACK),
        (trioserver.UDPServer, ("", 0)),
        (trioserver.UnixStreamServer, str(tmp_path / "stream")),
        (trioserver.UnixDatagramServer, str(tmp_path / "datagram")),
    ):
        server = kind(address, Upper, socket_options=options)
        before = open_descriptors()
        with pytest.raises(OSError, match="cannot set") as caught:
            await try_to_serve(server)
        assert caught.value.errno == errno.ENOPROTOOPT
        family = "AF_UNIX" if kind.__name__.startswith("Unix") else "AF_INET"
        assert str(caught.value).endswith(
            f": cannot set (1, 9999, 1) of socket_options on an {family} socket"
        )
        assert open_descriptors() == before


@needs_ipv6
async def test_socket_option_that_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is of the class that it always has, and does not mean a missing family."""

    class Refuses(socket.socket):
        def setsockopt(self, level: int, name: int, *value: Any) -> None:
            if name == 9999:
                number = errno.EPERM if self.family == socket.AF_INET else errno.EADDRNOTAVAIL
                raise OSError(number, "no")
            super().setsockopt(level, name, *value)

    monkeypatch.setattr(socket, "socket", Refuses)
    options = [(socket.SOL_SOCKET, 9999, 1)]
    for host, kind in (("127.0.0.1", PermissionError), ("::1", OSError)):
        with pytest.raises(kind, match="no: cannot set"):
            await try_to_serve(trioserver.TCPServer((host, 0), Upper, socket_options=options))


def largest_backlog() -> int:
    """The largest queue that the kernel makes."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))


def backlog_of(sock: socket.socket) -> int:
    """The size of a listening socket's queue: `tcpi_sacked` of TCP_INFO (sock_diag(7))."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 28)[0])


@on_linux
@pytest.mark.parametrize("size", [1, 100, None])
async def test_request_queue_size(size: int | None) -> None:
    """`request_queue_size` is the kernel's queue; None is as large as the kernel takes."""
    server = trioserver.TCPServer(LOOPBACK, Upper, request_queue_size=size)
    async with server:
        assert server.socket is not None
        assert backlog_of(server.socket) == min(size or 65_535, largest_backlog())


async def test_two_servers_share_a_port() -> None:
    """NW-05: with `allow_reuse_port` two servers share a port, and both get clients."""
    served = set()

    async def say_who(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        served.add(server.name)
        await request.send_all(b"!")

    class Named(trioserver.TCPServer):
        name: str = ""

    first = Named(LOOPBACK, say_who, allow_reuse_port=True, name="first")
    with trio.fail_after(10):
        async with first.serving():
            address = first.server_address
            second = first.evolve(server_address=address, name="second")
            async with second.serving():
                while len(served) < 2:
                    assert await asked(address) == b"!"


async def test_server_on_a_shared_port_stops() -> None:
    """NW-05: when one of a port's servers stops, its own queue is taken in, and nobody hangs."""
    server = trioserver.TCPServer(
        LOOPBACK, hold, allow_reuse_port=True, limits=trioserver.Limits(requests=1)
    )
    ended = 0

    async def wait_for_the_end(client: socket.socket) -> None:
        nonlocal ended
        client.setblocking(False)
        await trio.lowlevel.wait_readable(client)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
        ended += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            for _ in range(4):
                nursery.start_soon(wait_for_the_end, plain_client(server.server_address))
            while not server.requests:
                await trio.lowlevel.checkpoint()
            server.shutdown(grace=0)
            report = await server.wait_closed()
    assert ended == 4
    assert report.statistics.accepted == 1
    assert len(report.unaccepted) == 3


# Clients' addresses ----------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "source", "length"),
    [
        ("127.0.0.1", "127.0.0.1", 2),
        pytest.param("::1", "::1", 4, marks=needs_ipv6),
        pytest.param("", "127.0.0.1", 2, marks=needs_ipv6),
    ],
    ids=["IPv4", "IPv6", "IPv4 to both"],
)
async def test_client_address(host: str, source: str, length: int) -> None:
    """NW-06: a pair for IPv4, four for IPv6, and an IPv4 client never looks like an IPv6 one."""
    seen = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        seen.extend([client_address, request.client_address, request.info.client_address])

    server = trioserver.TCPServer((host, 0), look)
    with trio.fail_after(10):
        async with server.serving():
            with socket.create_connection((source, server.server_address[1])) as client:
                address = client.getsockname()
                assert await trio.to_thread.run_sync(client.recv, 1) == b""
    assert seen == [address] * 3
    assert len(address) == length


async def test_accepted_sockets_send_at_once() -> None:
    """Accepted sockets have TCP_NODELAY, which they inherit."""
    nodelay = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        assert request.socket is not None
        nodelay.append(request.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    server = trioserver.TCPServer(LOOPBACK, look)
    with trio.fail_after(10):
        async with server.serving():
            stream = await trio.open_tcp_stream(*server.server_address)
            assert await read_to_end(stream) == b""
            await stream.aclose()
    assert nodelay == [1]


# Adopted sockets -------------------------------------------------------------


@pytest.mark.parametrize("listening", [True, False])
async def test_adopted_socket_is_served(listening: bool) -> None:
    """LC-11: a bound socket is served, whether it listens already or not."""
    sock = socket.socket()
    sock.bind(LOOPBACK)
    if listening:
        sock.listen()
    address = sock.getsockname()
    server = trioserver.TCPServer(sock, Upper)
    async with server.serving():
        assert server.server_address == address
        assert server.sockets == (sock,)
        assert await asked(address) == b"ASKED\n"
    assert sock.fileno() == -1


async def test_adopted_inherited_descriptor() -> None:
    """LC-11: a descriptor from a service manager, made a socket, is served."""
    with socket.create_server(LOOPBACK) as managers:
        inherited = socket.socket(fileno=os.dup(managers.fileno()))
        server = trioserver.TCPServer([inherited], Upper)
        async with server.serving():
            assert await asked(server.server_address) == b"ASKED\n"
        assert managers.fileno() != -1


@needs_ipv6
async def test_adopted_sockets_are_sorted() -> None:
    """LC-11: of adopted sockets, too, the IPv4 ones come first."""
    sockets = [
        socket.create_server(("::1", 0), family=socket.AF_INET6),
        socket.create_server(LOOPBACK),
    ]
    server = trioserver.TCPServer(sockets, Upper)
    async with server:
        assert [sock.family for sock in server.sockets] == [socket.AF_INET, socket.AF_INET6]
        _host, _port = server.server_address


async def test_adopted_socket_runs_once() -> None:
    """LC-11: adopted sockets are closed with the run, and a second run says so."""
    server = trioserver.TCPServer(socket.create_server(LOOPBACK), Upper)
    async with server.serving():
        pass
    with pytest.raises(ValueError, match="is closed"):
        await try_to_serve(server)


async def test_adopted_socket_belongs_to_its_owner_until_bound() -> None:
    """LC-11: building takes nothing over: the socket of a server that never ran is untouched."""
    with socket.create_server(LOOPBACK) as sock:
        trioserver.TCPServer(sock, Upper)
        assert sock.fileno() != -1
        assert sock.getblocking()


def test_adopted_socket_does_not_pickle() -> None:
    """LC-11: a server that was given sockets cannot be pickled."""
    with socket.create_server(LOOPBACK) as sock:
        server = trioserver.TCPServer(sock, Upper)
        with pytest.raises(TypeError, match="socket"):
            pickle.dumps(server)


def unbound() -> socket.socket:
    """A socket without an address."""
    return socket.socket()


def unbound_ipv6() -> socket.socket:
    """The same of IPv6."""
    return socket.socket(socket.AF_INET6)


def closed() -> socket.socket:
    """A socket that was closed."""
    sock = socket.create_server(LOOPBACK)
    sock.close()
    return sock


def of_datagrams() -> socket.socket:
    """A bound socket of the wrong type."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(LOOPBACK)
    return sock


def of_unix() -> socket.socket:
    """A bound socket of the wrong family."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0trioserver-tests-" + os.urandom(8).hex())
    return sock


def connected() -> socket.socket:
    """Both ends of a connection: TCP lets a socket connect to itself."""
    sock = socket.socket()
    sock.bind(LOOPBACK)
    sock.connect(sock.getsockname())
    return sock


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (unbound, "not bound"),
        pytest.param(unbound_ipv6, "not bound", marks=needs_ipv6),
        (closed, "is closed"),
        (of_datagrams, "SOCK_DGRAM"),
        (of_unix, "AF_UNIX"),
        (connected, "is connected"),
    ],
)
async def test_adopted_socket_that_is_unfit(make: Any, fault: str) -> None:
    """LC-11: an unfit socket is a ValueError that says why, before anything is served.

    It is left alone, and so is the good one beside it.
    """
    with closing(make()) as unfit, socket.create_server(LOOPBACK) as good:
        before = open_descriptors()
        with pytest.raises(ValueError, match=fault):
            await try_to_serve(trioserver.TCPServer([good, unfit], Upper))
        assert open_descriptors() == before


@needs_ipv6
async def test_adopted_socket_of_another_family_than_configured() -> None:
    """LC-11: `address_family` holds for adopted sockets, too."""
    with socket.create_server(LOOPBACK) as sock:
        server = trioserver.TCPServer(sock, Upper, address_family=socket.AF_INET6)
        with pytest.raises(ValueError, match="AF_INET6 was expected"):
            await try_to_serve(server)


@pytest.mark.parametrize("address", [[], 3, "localhost", ["localhost", 80, 1], [object()]])
def test_address_of_the_wrong_type(address: Any) -> None:
    """LC-11: what is neither an address nor sockets is refused when the server is built."""
    with pytest.raises((TypeError, ValueError), match=r"TCPServer\.server_address must be"):
        trioserver.TCPServer(address, Upper)


def test_address_of_sockets_and_others() -> None:
    """LC-11: a list that holds something else than sockets is refused when the server is built."""
    with socket.create_server(LOOPBACK) as sock:
        with pytest.raises((TypeError, ValueError), match=r"TCPServer\.server_address must be"):
            trioserver.TCPServer([sock, "localhost"], Upper)


async def test_adopted_queue_is_left_to_others() -> None:
    """LC-11: a drain leaves the clients in an adopted socket's queue to whoever else has it."""
    with trio.fail_after(10), socket.create_server(LOOPBACK) as shared:
        server = trioserver.TCPServer(shared.dup(), hold, limits=trioserver.Limits(requests=1))
        async with server.serving(grace=0):
            first = plain_client(server.server_address)
            with first, plain_client(server.server_address) as queued:
                while not server.requests:
                    await trio.lowlevel.checkpoint()
                server.shutdown(grace=0)
                report = await server.wait_closed()
                assert report.statistics.accepted == 1
                shared.settimeout(10)
                accepted, address = shared.accept()
                accepted.close()
                assert address == queued.getsockname()
