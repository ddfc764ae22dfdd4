"""Clients behind a proxy: who they are is known when the PROXY header is, in every mode."""

import logging
import socketserver
import struct
from functools import partial

import attrs
import pytest
import trio
from support import Upper, Witness, connect, read_to_end, running
from support.scenes import Scene, Visit, end, reset, table

import trioserver
from trioserver import Limits, ProxyProtocol, Timeouts, current_request
from trioserver._sockets.proxy_protocol import SIGNATURE
from trioserver.testing import MemoryServer

HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n"
LOCAL = SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
DRIPS = {number / 2 + 0.25: HEADER[number : number + 1] for number in range(5)}
CLIENT, PROXY = ("192.0.2.7", 5000), ("127.0.0.1", 9)
BEHIND = {"proxy_protocol": ProxyProtocol()}


async def tells(request, client_address, server):
    """Says who the client is, as everybody has it, and what it has sent."""
    info = current_request()
    assert info is request.info
    assert (info.peer_address, request.client_address) == (PROXY, info.client_address)
    version = request.proxy and request.proxy.version
    await request.sendall(f"{client_address[0]} {version}: ".encode() + await request.recv())


class Elsewhere(MemoryServer):
    """Knows better who its clients are."""

    def get_request(self, listener):
        got = super().get_request(listener)
        return got and (got[0], ("elsewhere", 1))


class OnlyKnown(MemoryServer):
    """Lets in whom it knows."""

    async def verify_request(self, request, client_address):
        return client_address == CLIENT


behind = partial(Scene, tells, address=PROXY, fields=BEHIND)
REFUSED = {"outcomes": ["refused"], "report": {"arrivals_failed": 1, "bytes_received": 0}}


@table(
    {
        "what the header says": behind({0: [HEADER + b"a", end]}).gives(
            b"192.0.2.7 1: a", 0, "completed", bytes_received=1
        ),
        "in portions, and what comes with it is left": behind(
            {0: HEADER[:3], 1: HEADER[3:40], 2: HEADER[40:] + b"ab"}
        ).gives(b"192.0.2.7 1: ab", 2, "completed", bytes_received=2),
        "the proxy's own, if it speaks for itself": behind({0: [LOCAL + b"a", end]}).gives(
            b"127.0.0.1 2: a", 0, "completed"
        ),
        "what get_request says wins": behind({0: [HEADER + b"a", end]}, kind=Elsewhere).gives(
            b"elsewhere 1: a", 0, "completed"
        ),
        "verify_request decides by it": behind({0: [HEADER + b"a"]}, kind=OnlyKnown).gives(
            b"192.0.2.7 1: a", 0, "completed"
        ),
        "and lets others not in": behind({0: [LOCAL + b"a"]}, kind=OnlyKnown).gives(
            b"", 0, **REFUSED
        ),
    }
)
async def test_client_address(scene, autojump_clock):
    """It is the client's for the handler, the hooks, the connection, and `current_request`."""
    await scene.play()


@table(
    {
        "a peer that is not trusted, whatever it says": behind(
            {0: HEADER + b"a"}, address=("192.0.2.66", 1), breaks=True
        ).gives(reason="PROXY: the peer is not trusted", **REFUSED),
        "no header": behind({0: b"GET / HTTP/1.1\r\n"}, breaks=True).gives(
            reason="PROXY: it does not begin with a header", **REFUSED
        ),
        "one that is forged": behind({0: HEADER.replace(b"192", b"992")}).gives(
            reason="PROXY: a wrong address", **REFUSED
        ),
        "silence": behind(timeouts=Timeouts(proxy=2)).gives(
            b"", 2, "timed_out", reason="no PROXY header came in time (proxy)"
        ),
        "a byte now and then": behind(DRIPS).gives(b"", 3, "timed_out", reason="(proxy)"),
        "an end in its midst": behind({0: [HEADER[:9], end]}).gives(
            b"", 0, "disconnected", reason="in the middle of a header"
        ),
        "a reset in its midst": behind({0: HEADER[:9], 1: reset}).gives(
            None, None, "disconnected", reason="in the middle of a header"
        ),
    }
)
async def test_header_that_fails(scene, autojump_clock, caplog):
    """NW-08: it is that client's affair: one record, no error, and nobody is served."""
    caplog.set_level(logging.INFO, "trioserver")
    played = await scene.play()
    [record] = played.witness.records
    assert played.witness.names.count("arrival_failed") == 1
    assert str(record) in caplog.messages
    assert not [it for it in caplog.records if it.levelno > logging.INFO]


@pytest.mark.parametrize("leaves", [end, reset])
async def test_port_check(leaves, autojump_clock, caplog):
    """A peer that leaves without a byte is a line at DEBUG: balancers do so all the time."""
    caplog.set_level(logging.DEBUG, "trioserver.access")
    await behind({1: leaves}, outcomes=["disconnected"]).play()
    [line] = [it for it in caplog.records if "without a byte" in it.getMessage()]
    assert line.levelno == logging.DEBUG


@table(
    {
        "before its header it is no request": behind(drain_at=2).gives(b"", 2, "drained"),
        "a new one has half a second": behind({2.4: HEADER + b"a"}, comes_at=2, drain_at=2).gives(
            b"192.0.2.7 1: a", 2.4, "completed"
        ),
        "and no more": behind(comes_at=2, drain_at=2).gives(b"", 2.5, "drained"),
        "half a header is a request that has begun": behind(
            {0: HEADER[:20], 3: HEADER[20:] + b"a"}, drain_at=1, timeouts=Timeouts(proxy=9)
        ).gives(b"192.0.2.7 1: a", 3, "completed"),
        "after it the first request has half a second": behind(
            {2: HEADER, 2.4: b"a"}, comes_at=2, drain_at=2
        ).gives(b"192.0.2.7 1: a", 2.4, "completed"),
    }
)
async def test_drain(scene, autojump_clock):
    """In a drain, who has begun with a header is served, and nobody waits for others."""
    await scene.play()


async def test_per_client(autojump_clock):
    """One client counts as one by what the header says, not by the proxy's address."""
    one, another = HEADER + b"a", HEADER.replace(b"192.0.2.7", b"192.0.2.8") + b"a"
    visit = partial(Visit, address=PROXY)
    scene = Scene(
        Upper, {0: one}, address=PROXY, fields=BEHIND, limits=Limits(per_client=1), drain_at=9
    ).beside(
        visit({1: one}, breaks=True, ends_at=1), visit({2: another}), visit({2.5: LOCAL + b"a"})
    )
    played = await scene.play()
    reasons = [it.reason for it in played.witness.records if it.outcome == "refused"]
    assert reasons == ["too many of this client (per_client)"]
    assert played.report.statistics.arrivals_failed == 1


async def test_full_server_tells(autojump_clock):
    """BP-02: who finds no slot is told so as who it is; one without a header holds up nobody."""

    async def says_busy(connection):
        assert current_request() is connection.info
        await connection.sendall(f"busy, {connection.client_address[0]}".encode())

    limits = Limits(requests=1, when_full=says_busy)
    async with MemoryServer(("m", 1), Upper, limits=limits, **BEHIND).serving() as server:
        first, silent = await server.connect(PROXY), await server.connect(PROXY)
        await first.send_all(HEADER)
        began = trio.current_time()
        for _ in range(2):
            told = await server.connect(PROXY)
            await told.send_all(HEADER)
            assert await read_to_end(told) == b"busy, 192.0.2.7"
        assert trio.current_time() == began
        assert await read_to_end(silent) == b""
        assert trio.current_time() == began + server.timeouts.write


class TellsInThread(socketserver.BaseRequestHandler):
    """The same, in a thread or a worker."""

    def handle(self):
        info = current_request()
        said = [self.client_address[0], info.client_address[0], str(info.proxy.version)]
        self.request.sendall(" ".join(said).encode() + self.request.recv(100))


@pytest.mark.parametrize(
    "kind", [trioserver.ThreadingTCPServer, trioserver.ProcessTCPServer], ids=["thread", "process"]
)
async def test_other_modes(kind):
    """The header is read before a handler is called, wherever it runs."""
    server = kind(("127.0.0.1", 0), TellsInThread, **BEHIND)
    async with running(server), await connect(server) as client:
        await client.send_all(HEADER + b" hello")
        assert await read_to_end(client) == b"192.0.2.7 192.0.2.7 1 hello"


async def test_per_client_over_a_unix_socket(tmp_path):
    """Clients of whom the header speaks are not all the one who runs the proxy."""
    header = SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216)
    limits = Limits(per_client=1)
    server = trioserver.UnixStreamServer(
        str(tmp_path / "s"), Upper, proxy_protocol=ProxyProtocol(("unix",)), limits=limits
    )
    async with running(server), await connect(server) as one, await connect(server) as another:
        for client, path in ((one, b"/a"), (another, b"/b")):
            await client.send_all(header + path.ljust(108, b"\0") + b"/".ljust(108, b"\0") + b"x\n")
            assert await client.receive_some() == b"X\n"


async def test_over_a_unix_socket(tmp_path):
    """A proxy on this machine connects by a Unix socket; it is believed by its user."""
    witness = Witness()

    async def told(request, client_address, server):
        await request.sendall(repr((client_address, request.info.peer_address)).encode())

    for trusted, says in [(("unix",), repr((CLIENT, "")).encode()), ((), b"")]:
        server = trioserver.UnixStreamServer(
            str(tmp_path / "s"),
            told,
            proxy_protocol=ProxyProtocol(trusted),
            observers=[witness],
        )
        async with running(server), await connect(server) as client:
            await client.send_all(HEADER)
            try:
                assert await read_to_end(client) == says
            except trio.BrokenResourceError:
                assert not says
    assert witness.outcomes == ["completed", "refused"]


def test_field_is_checked():
    """What is no `ProxyProtocol` is refused by name."""
    with pytest.raises(TypeError, match=r"TCPServer.proxy_protocol must be a trioserver.ProxyP"):
        trioserver.TCPServer(("127.0.0.1", 0), Upper, proxy_protocol=True)
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper, **BEHIND)
    assert attrs.evolve(server).proxy_protocol == ProxyProtocol()
