"""TLS in the arrival of a connection, and in the middle of it: on a virtual clock, in memory."""

import logging
import re
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from operator import methodcaller

import pytest
import trio
import trio.testing
import trustme
from support import Upper, read_to_end
from support.scenes import Scene, does, end, table
from support.scenes import reset as resets
from support.tls import SERVER, Peer

import trioserver
from trioserver import Limits, Outcome, Timeouts, TLSInfo
from trioserver.testing import MemoryServer, TLSClient, open_test_server

BY_TLS = {"ssl_context": SERVER.context}
HELLO = Peer()
HELLO.shakes()
HELLO = HELLO.output()


async def never(request, client_address, server):
    """A handler that nobody may get to."""
    raise AssertionError


by_tls = partial(Scene, never, fields=BY_TLS)
FAILED = {"report": {"arrivals_failed": 1, "bytes_received": 0}}


@table(
    {
        "TL-01: who says nothing has the time of a handshake": by_tls({0: b""}).gives(
            b"",
            10,
            outcomes=["timed_out"],
            reason="TLS: no handshake in time (handshake)",
            **FAILED,
        ),
        "TL-03: a byte now and then does not prolong it": by_tls(
            {number + 0.5: HELLO[number : number + 1] for number in range(12)}
        ).gives(b"", 10, outcomes=["timed_out"], reason="(handshake)", **FAILED),
        "TL-04: plain text": by_tls({0: b"GET / HTTP/1.1\r\n\r\n"}, stays=True).gives(
            b"", 0, outcomes=["refused"], reason="TLS: the peer speaks no TLS", **FAILED
        ),
        "TL-04: one byte of it is enough to tell": by_tls({0: b"E"}, stays=True).gives(
            b"", 0, outcomes=["refused"], reason="TLS: the peer speaks no TLS", **FAILED
        ),
        "a reset before a byte, as of a port check": by_tls({0: [resets]}).gives(
            b"", 0, outcomes=["disconnected"], reason="TLS: the peer left without a byte", **FAILED
        ),
        "half a handshake, and an end": by_tls({0: [HELLO[:100], end]}).gives(
            b"", 0, outcomes=["disconnected"], reason="in the middle of the handshake", **FAILED
        ),
        "TL-05: text that came before the handshake is no input": by_tls(
            {0: [b"evil\n", end]}
        ).gives(b"", 0, outcomes=["refused"], reason="the peer speaks no TLS", **FAILED),
        "GS-09: who has sent nothing has half a second in a drain": by_tls(
            {0: b""}, drain_at=0.25
        ).gives(b"", 0.5, outcomes=["drained"], **FAILED),
        "GS-09: who has said something has the time of the grace": by_tls(
            {0: HELLO[:100]}, drain_at=0.25, grace=4
        ).gives(b"", 4.25, outcomes=["cancelled"], **FAILED),
        "GS-09: who has said hello, too, and was answered": by_tls(
            {0: HELLO}, drain_at=0.25, grace=4
        ).gives(None, 4.25, outcomes=["cancelled"], **FAILED),
    }
)
async def test_arrival_that_fails(scene, autojump_clock, caplog):
    """It has an outcome and a reason in words, and is nobody else's business."""
    with caplog.at_level(logging.DEBUG):
        await scene.play()
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == []


# Who agrees, and on what --------------------------------------------------------------


def required(**attributes):
    """A server's context that asks for client certificates."""
    context = SERVER.context()
    context.verify_mode = ssl.CERT_REQUIRED
    SERVER.tls.authority.configure_trust(context)
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def with_certificate(authority=None, **options):
    """A client's context with a certificate."""
    context = SERVER.client_context()
    authority = authority or SERVER.tls.authority
    authority.issue_cert("ada@example.org", **options).configure_cert(context)
    return context


def unknown_name(tls, name, context):
    """Refuses the name."""
    return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if name == "localhost" else None


def choosy(context):
    """A context that refuses a name."""
    context.sni_callback = unknown_name
    return context


def alpn(context, *protocols):
    """A context that knows these protocols."""
    context.set_alpn_protocols(protocols)
    return context


def only(context, version):
    """A context of one version."""
    context.minimum_version = context.maximum_version = version
    return context


LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@table(
    ("server", "client", "reason"),
    {
        "the client trusts another authority": (
            SERVER.context,
            ssl.create_default_context,
            "TLS: tlsv1 alert unknown ca",
        ),
        "an old version": (
            lambda: only(SERVER.context(), V13),
            lambda: only(SERVER.client_context(), V12),
            "TLS: unsupported protocol",
        ),
        "no certificate": (
            required,
            SERVER.client_context,
            "TLS: peer did not return a certificate",
        ),
        "one of a stranger": (
            required,
            lambda: with_certificate(trustme.CA()),
            "TLS: certificate verify failed: .*",
        ),
        "an expired one": (
            required,
            lambda: with_certificate(not_after=LONG_AGO),
            "TLS: certificate verify failed: certificate has expired",
        ),
        "a name that nobody has": (
            lambda: choosy(SERVER.context()),
            SERVER.client_context,
            "TLS: callback failed",
        ),
        "a context without a certificate": (
            lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
            SERVER.client_context,
            "TLS: no suitable signature algorithm: or the context has no certificate",
        ),
    },
)
async def test_who_does_not_agree(server, client, reason, autojump_clock, caplog):
    """TL-04: it is told by an alert, has one record, and the next one is served."""
    async with open_test_server(MemoryServer(("m", 1), Upper, ssl_context=server)) as running:
        stream = TLSClient(await running.connect(), client())
        caplog.set_level(logging.INFO)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
            await stream.receive_some()
        [exchange] = await running.wait_requests()
    assert exchange.outcome is Outcome.REFUSED
    assert re.fullmatch(reason, exchange.record.reason), exchange.record.reason
    assert {record.levelname for record in caplog.records} == {"INFO"}


@table(
    ("server", "client", "agreed"),
    {
        "the least": (SERVER.context, SERVER.client_context, {"server_name": "localhost"}),
        "version 1.2": (
            SERVER.context,
            lambda: only(SERVER.client_context(), V12),
            {"version": "TLSv1.2"},
        ),
        "by ALPN": (
            lambda: alpn(SERVER.context(), "b", "a"),
            lambda: alpn(SERVER.client_context(), "a"),
            {"alpn": "a"},
        ),
        "no protocol that both have": (
            lambda: alpn(SERVER.context(), "b"),
            lambda: alpn(SERVER.client_context(), "a"),
            {"alpn": None},
        ),
        "a name, of which the context's own callback is told": (
            lambda: choosy_of_nobody(SERVER.context()),
            SERVER.client_context,
            {"server_name": None},
        ),
        "a certificate that was verified": (
            required,
            with_certificate,
            {"peer_certificate": "ada@example.org"},
        ),
    },
)
async def test_what_was_agreed_on(server, client, agreed, autojump_clock):
    """Hooks and handlers see it; it does not change."""
    seen = []

    class Looks(MemoryServer):
        async def verify_request(self, request, client_address):
            seen.append(request.tls)
            return True

        async def process_request(self, request, client_address):
            seen.append(request.tls)
            await super().process_request(request, client_address)
            seen.append(request.tls)

    async with open_test_server(Looks(("m", 1), does(b"x"), ssl_context=server)) as running:
        stream = TLSClient(await running.connect(), client())
        await stream.do_handshake()
        assert await read_to_end(stream) == b"x"
    none, first, second = seen
    assert none is None
    assert first is second
    assert isinstance(first, TLSInfo)
    certificate = agreed.pop("peer_certificate", None)
    assert (first.peer_certificate is None) == (certificate is None)
    assert certificate is None or certificate in repr(first.peer_certificate)
    expected = {"version": "TLSv1.3", "session_reused": False} | agreed
    assert {name: getattr(first, name) for name in expected} == expected


def choosy_of_nobody(context):
    """A context that is told of names."""
    context.sni_callback = lambda *_: None
    return context


# The end ------------------------------------------------------------------------------


WAITS_IN_IDLE = {
    "idle, recv": lambda handler: handler.request.recv(),
    "idle, readline": lambda handler: handler.rfile.readline(),
    "idle, read": lambda handler: handler.rfile.read1(),
}
READS = {
    "more": lambda handler: handler.rfile.more(),
    "for line": lambda handler: anext(handler.rfile, None),
    "readline": lambda handler: handler.rfile.readline(),
    "recv": lambda handler: handler.request.recv(),
    "read": lambda handler: handler.rfile.read(),
}


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("after", [b"", b"half a line"])
@pytest.mark.parametrize("read", [*READS, *WAITS_IN_IDLE])
async def test_end_of_input(read, after, orderly, autojump_clock):
    """TL-06: without a close_notify, it is one between two requests only."""
    got = []
    in_idle = WAITS_IN_IDLE.get(read)

    class Reads(trioserver.StreamRequestHandler):
        async def handle(self):
            await self.rfile.readline()
            await self.wfile.write(b"one\n")
            try:
                if in_idle is not None:
                    with self.request.idle():
                        got.append(await in_idle(self))
                    if got[0]:
                        got[0] = await self.request.recv()
                else:
                    got.append(await READS[read](self))
                    if after and read in {"more", "recv"}:
                        got[0] = await self.rfile.read()
            except trioserver.PeerGone as error:
                got.append(str(error))
                raise

    async with open_test_server(Reads, tls=True) as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        assert await client.receive_some() == b"one\n"
        if after:
            await client.send_all(after)
            await trio.testing.wait_all_tasks_blocked()
        if orderly:
            await client.send_eof()
        await client.transport_stream.send_eof()
        [exchange] = await server.wait_requests()
    between = not after and (in_idle is not None or read in {"more", "for line"})
    if orderly or between:
        assert exchange.outcome is Outcome.COMPLETED
    else:
        assert exchange.outcome is Outcome.DISCONNECTED
        assert got[-1] == "the peer is gone: its output has ended without a TLS close_notify"


async def test_end_in_the_middle_of_a_record(autojump_clock):
    """TL-06: half a record is half a request, of which no wait for the next one makes an end."""
    async with open_test_server(Upper, tls=True) as server:
        client = await server.connect()
        await client.send_all(b"one\n")
        assert await client.receive_some() == b"ONE\n"
        client.ssl_object.write(b"two\n")
        await client.transport_stream.send_all(client._outgoing.read()[:12])
        await client.transport_stream.send_eof()
        [exchange] = await server.wait_requests()
    assert exchange.outcome is Outcome.DISCONNECTED
    assert "in the middle of a record" in exchange.record.reason


async def test_end_of_input_beside_an_idle_block(autojump_clock):
    """TL-06: that of another task says nothing of what this one is in the middle of."""

    async def handle(request, client_address, server):
        async def idles():
            with request.idle():
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(idles)
            assert await request.recv() == b"half"
            with pytest.raises(trioserver.PeerGone, match="without a TLS close_notify"):
                await request.recv()
            nursery.cancel_scope.cancel()

    async with open_test_server(handle, tls=True) as server:
        client = await server.connect()
        await client.send_all(b"half")
        await trio.testing.wait_all_tasks_blocked()
        await client.transport_stream.send_eof()
        [exchange] = await server.wait_requests()
    assert exchange.outcome is Outcome.COMPLETED


class Replies:
    """How a handler ends, and whether its client sees an orderly end."""

    async def returns(self, request):
        await request.sendall(b"done")

    async def ends_output(self, request):
        await request.sendall(b"done")
        await request.send_eof()
        assert await request.recv() == b"more"

    async def closes(self, request):
        await request.sendall(b"done")
        await request.aclose()

    async def fails(self, request):
        await request.sendall(b"done")
        raise trioserver.LimitExceeded("enough", info=request.info)

    async def is_cancelled(self, request):
        await request.sendall(b"done")
        request.cancel_scope.cancel()
        await trio.sleep_forever()

    async def closes_when_cancelled(self, request):
        await request.sendall(b"done")
        request.cancel_scope.cancel()
        async with request:
            await trio.sleep_forever()

    async def resets(self, request):
        await request.sendall(b"done")
        request.reset()


@table(
    ("handler", "orderly"),
    {
        "returns": (Replies.returns, True),
        "ends its output, and reads on": (Replies.ends_output, True),
        "closes": (Replies.closes, True),
        "ends by the client's fault": (Replies.fails, True),
        "is cancelled": (Replies.is_cancelled, False),
        "is cancelled, and closes then": (Replies.closes_when_cancelled, False),
        "resets": (Replies.resets, False),
    },
)
@pytest.mark.parametrize("linger", [0, 2])
async def test_own_end(handler, orderly, linger, autojump_clock):
    """TL-07: a close_notify where it ends in order, whether or not the client has one."""

    async def handle(request, client_address, server):
        await handler(None, request)

    server = MemoryServer(("m", 1), handle, timeouts=Timeouts(linger=linger))
    async with open_test_server(server, tls=True) as running:
        client = await running.connect()
        assert await client.receive_some() == b"done"
        if orderly:
            assert await client.receive_some() == b""
            if handler is Replies.ends_output:
                await client.send_all(b"more")
        else:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        took = trio.current_time()
        [exchange] = await running.wait_requests()
        await running.stop(5)
        assert trio.current_time() - took <= linger
    assert exchange.record.bytes_sent == 4


async def test_close_notify_waits_for_room(autojump_clock):
    """The end comes after all of the reply, also where that fills the network."""
    async with open_test_server(does(bytes(1_000_000)), tls=True) as server:
        client = await server.connect()
        await trio.sleep(1)
        assert len(await read_to_end(client)) == 1_000_000


@pytest.mark.parametrize("tls", [True, False])
async def test_close_beside_a_send(tls, autojump_clock):
    """Half a reply does not look like a whole one, because another task has closed."""

    async def handle(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends, request)
            await trio.testing.wait_all_tasks_blocked()
            request.close()

    async def sends(request):
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await request.sendall(bytes(1_000_000))

    async with open_test_server(handle, tls=tls) as server:
        client = await server.connect()
        await server.wait_requests()
        with pytest.raises((trio.BrokenResourceError, ConnectionResetError)):
            await read_to_end(client)


async def test_send_that_was_cut(autojump_clock):
    """REQ TLS-3: nothing is sent after it, not even of one byte whose record has begun to go."""

    async def cut(request, client_address, server):
        while request._wire.send_now(b"\x00" * 1000):  # what a client takes for ciphertext
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await request.sendall(b"x")
        with pytest.raises(trio.BrokenResourceError, match="cut short"):
            await request.sendall(b"y")

    async with open_test_server(cut, tls=True) as server:
        await server.connect()
        [exchange] = await server.wait_requests()
    assert exchange.outcome is Outcome.COMPLETED


# In the middle of a connection ----------------------------------------------------------


class Upgrades(trioserver.StreamRequestHandler):
    """Says each line again, in capitals; by TLS when it was asked to."""

    wbufsize = -1

    async def handle(self):
        async for line in self.rfile:
            if line == b"starttls\n":
                await self.wfile.write(b"go on\n")
                await self.request.start_tls(SERVER.context())
            else:
                await self.wfile.write(line.upper())


async def asks_for_tls(server, injected=b""):
    """A client that has asked for TLS, and was told to go on."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    assert await client.receive_some() == b"HELLO\n"
    await client.send_all(b"starttls\n" + injected)
    return client


async def test_start_tls(autojump_clock):
    """TL-09: what is buffered goes out before, in clear; then the same files go on by TLS."""
    async with open_test_server(Upgrades) as server:
        client = await asks_for_tls(server)
        assert await client.receive_some() == b"go on\n"
        secure = TLSClient(client, SERVER.client_context())
        await secure.do_handshake()
        await secure.send_all(b"one\ntwo\n")
        await secure.send_eof()
        assert await read_to_end(secure) == b"ONE\nTWO\n"
        [exchange] = await server.wait_requests()
    assert (exchange.outcome, exchange.record.bytes_sent) == (Outcome.COMPLETED, 6 + 6 + 8)


@table(
    ("injected", "then", "outcome", "reason"),
    {
        "TL-09: what comes with the request for it": (
            b"evil\n",
            b"",
            "refused",
            "TLS: input came before the handshake, in plain text",
        ),
        "TL-09: a whole handshake with it, too": (
            HELLO,
            b"",
            "refused",
            "TLS: input came before the handshake, in plain text",
        ),
        "text in its place": (b"", b"evil\n", "refused", "TLS: the peer speaks no TLS"),
        "an end in its place": (
            b"",
            b"",
            "disconnected",
            "TLS: the peer left before the handshake",
        ),
        "half of it, and an end": (
            b"",
            HELLO[:50],
            "disconnected",
            "TLS: the peer left in the middle of the handshake",
        ),
        "nothing": (b"", None, "timed_out", "TLS: no handshake in time (handshake)"),
    },
)
async def test_start_tls_that_fails(injected, then, outcome, reason, autojump_clock):
    """It ends the request, and nothing is read or sent after it."""
    async with open_test_server(Upgrades) as server:
        client = await asks_for_tls(server, injected)
        if not injected:
            assert await client.receive_some() == b"go on\n"
        if then is not None and not injected:
            await client.send_all(then)
            await client.send_eof()
        [exchange] = await server.wait_requests()
    assert (str(exchange.outcome), exchange.record.reason) == (outcome, reason)


@pytest.mark.parametrize("cut", ["out of time", "cancelled"])
async def test_start_tls_is_over_when_it_has_failed(cut, autojump_clock):
    """TL-09: a handshake that comes then is not gone on with, and what is in it is not read."""
    timeouts = Timeouts(handshake=1 if cut == "out of time" else 50, idle=1000)

    class Tries(trioserver.StreamRequestHandler):
        async def handle(self):
            await self.rfile.readline()
            with trio.move_on_after(5), suppress(trioserver.IdleTimeout):
                await self.request.start_tls(SERVER.context())
            with pytest.raises(trioserver.PeerGone, match="TLS: the handshake was cut short"):
                await self.request.recv()
            assert self.request.tls is None

    async with open_test_server(MemoryServer(("m", 1), Tries, timeouts=timeouts)) as server:
        client = await server.connect()
        await client.send_all(b"starttls\n")
        await trio.sleep(20)
        secure = TLSClient(client, SERVER.client_context())
        with pytest.raises(trio.BrokenResourceError):
            await secure.do_handshake()
        [exchange] = await server.wait_requests()
    assert exchange.outcome is Outcome.COMPLETED


async def test_start_tls_has_the_connection_to_itself(autojump_clock):
    """Other tasks can neither read nor write meanwhile; lines that one has in hand are not lost."""
    seen = []

    class Shares(trioserver.StreamRequestHandler):
        async def handle(self):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.request.start_tls, SERVER.context())
                await trio.testing.wait_all_tasks_blocked()
                for use in (self.request.recv, partial(self.request.sendall, b"x")):
                    with pytest.raises(trio.BusyResourceError):
                        await use()
            seen.append(self.request.tls.server_name)
            await self.wfile.write(await self.rfile.readline())

    async with open_test_server(Shares) as server:
        secure = TLSClient(await server.connect(), SERVER.client_context())
        await trio.testing.wait_all_tasks_blocked()
        await secure.do_handshake()
        await secure.send_all(b"line\n")
        assert await read_to_end(secure) == b"line\n"
    assert seen == ["localhost"]


async def test_lines_in_hand_are_no_input_of_a_handshake(autojump_clock):
    """TL-09: lines that another task has read in part are in the way of a handshake."""

    class Reads(trioserver.StreamRequestHandler):
        async def handle(self):
            await self.rfile.readline()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.reads)
                await trio.lowlevel.checkpoint()
                refused = (trioserver.HandshakeFailed, trio.BusyResourceError)  # who comes first
                with pytest.raises(refused):
                    await self.request.start_tls(SERVER.context())
                nursery.cancel_scope.cancel()

        async def reads(self):
            with suppress(trio.ClosedResourceError):
                await self.rfile.readlines(100)

    async with open_test_server(Reads) as server:
        client = await server.connect()
        await client.send_all(b"starttls\nevil\n")
        await server.wait_requests()


class Misuses(trioserver.StreamRequestHandler):
    """Begins TLS where that is a mistake of the program's."""

    async def handle(self):
        await self.rfile.readline()
        for context, kind in ((None, TypeError), (SERVER.client_context(), ValueError)):
            with pytest.raises(kind, match=r"context must be an ssl\.SSLContext for servers"):
                await self.request.start_tls(context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.request.recv)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await self.request.start_tls(SERVER.context())
            nursery.cancel_scope.cancel()
        await self.request.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await self.request.start_tls(SERVER.context())


async def test_start_tls_misused(autojump_clock):
    """An error in words, and the connection is as it was."""
    async with open_test_server(Misuses) as server:
        client = await server.connect()
        await client.send_all(b"x\n")
        assert await read_to_end(client) == b""

    async def twice(request, client_address, server):
        with pytest.raises(RuntimeError, match="TLS has begun on this connection"):
            await request.start_tls(SERVER.context())
        await request.sendall(b"x")

    async with open_test_server(twice, tls=True) as server:
        assert await read_to_end(await server.connect()) == b"x"


@pytest.mark.parametrize("cut", ["cancelled", "drained"])
async def test_start_tls_that_is_cut(cut, autojump_clock):
    """A request has begun: a drain waits for it. Cancelled, it can only be closed."""

    class Cut(trioserver.StreamRequestHandler):
        async def handle(self):
            await self.rfile.readline()
            if cut == "cancelled":
                with trio.move_on_after(1):
                    await self.request.start_tls(SERVER.context())
                with pytest.raises(trio.BrokenResourceError, match="TLS: the handshake was cut"):
                    await self.request.sendall(b"in clear")
            else:
                await self.request.start_tls(SERVER.context())
                await self.request.sendall(b"x")

    async with open_test_server(Cut) as server:
        client = await server.connect()
        await client.send_all(b"x\n")
        await trio.testing.wait_all_tasks_blocked()
        secure = TLSClient(client, SERVER.client_context())
        if cut == "drained":
            server.server.shutdown(60)
            await trio.sleep(5)
            await secure.do_handshake()
            assert await read_to_end(secure) == b"x"
        assert (await server.wait_requests())[0].outcome is Outcome.COMPLETED


# A full server, a drain, a new certificate ------------------------------------------------


async def busy(connection):
    """What a client is told who finds no slot."""
    await connection.sendall(b"busy\n")


begins_then_waits = does(b"x", methodcaller("recv", 1))


async def test_full_server_tells_by_tls(autojump_clock):
    """A client that is slow to arrive for that holds up no other, and has the time of a write."""
    limits = Limits(requests=1, when_full=busy)
    server = MemoryServer(("m", 1), begins_then_waits, limits=limits)
    async with open_test_server(server, tls=True, strict=False) as running:
        first = await running.connect()
        assert await first.receive_some() == b"x"
        slow = await running.connect(tls=False)
        await slow.send_all(HELLO[:50])
        began = trio.current_time()
        assert await read_to_end(await running.connect()) == b"busy\n"
        assert trio.current_time() == began
        assert await slow.receive_some() == b""
        assert trio.current_time() == began + server.timeouts.write
        outcomes = [str(one.outcome) for one in await running.wait_requests(2)]
        assert outcomes == ["refused", "refused"]
        assert server.statistics().arrivals_failed == 1


@table(
    ("says", "after", "answer"),
    {
        "nothing": ([], 0, b""),
        "a request": ([b"two\n"], 0, b"TWO\n"),
        "half a record": ([b"two\n"], 9, b"TWO\n"),
        "half a request": ([b"tw", b"o\n"], 24, b"TWO\n"),
        "two requests": ([b"two\n", b"2\n"], 0, b"TWO\n2\n"),
    },
)
async def test_drain_of_a_kept_connection(says, after, answer, autojump_clock):
    """A request that has begun, be it half a record, is answered; an idle connection is let go."""
    async with MemoryServer(("m", 1), Upper, **BY_TLS).serving() as server:
        client = TLSClient(await server.connect(), SERVER.client_context())
        await client.do_handshake()
        await client.send_all(b"one\n")
        assert await client.receive_some() == b"ONE\n"
        for text in says:
            client.ssl_object.write(text)
        ciphertext = client._outgoing.read()
        now = after or len(ciphertext)
        await client.transport_stream.send_all(ciphertext[:now])
        server.shutdown(60)
        await trio.sleep(5)
        await client.transport_stream.send_all(ciphertext[now:])
        assert await read_to_end(client) == answer
        report = await server.wait_closed()
    assert report.clean
