"""TLS on real sockets, wherever handlers run: in tasks, in threads, and in worker processes."""

import math
import re
import ssl
from contextlib import suppress
from functools import partial

import pytest
import trio
import trustme
from support import read_to_end, until
from support.scenes import table
from support.tls import SERVER, Peer
from support.tls_handlers import (
    NUMBERS,
    Alarmed,
    AsyncDies,
    AsyncTalks,
    BothWays,
    BuffersBefore,
    ClosesNumber,
    DetachesAndCloses,
    Dies,
    DiesByTLS,
    DoesNotWait,
    EndsOutput,
    FillsAndCloses,
    FillsAndClosesAtOnce,
    FillsAndEnds,
    GivesUp,
    GivesUpAndCloses,
    Hides,
    LeavesThread,
    LooksAhead,
    ReadsSlowly,
    RefusedThenPlain,
    Selects,
    SelectsRecords,
    SendsBesideAReader,
    SendsWhileItReads,
    ShutsBoth,
    Talks,
    TriesAgain,
    TriesOnce,
    WakesReader,
    context_of,
    own_context,
)

import trioserver
from trioserver import Timeouts
from trioserver.testing import TLSClient, open_test_server

MODES = {
    "task": (trioserver.TCPServer, AsyncTalks),
    "thread": (trioserver.ThreadingTCPServer, Talks),
    "process": (trioserver.ProcessTCPServer, Talks),
    "process, async": (trioserver.ProcessTCPServer, AsyncTalks),
}
LATE = r"TLS: no handshake in time \(handshake\)"
in_every_mode = table("mode", {name: name for name in MODES})


def serving(mode, handler=None, *, tls=True, **fields):
    """A test server by TLS, in a mode; with one worker, if there are any."""
    kind, own = MODES[mode]
    handler = handler or own
    if kind is trioserver.ProcessTCPServer:
        fields["min_children"] = 1
    server = kind(("127.0.0.1", 0), handler, **fields)
    server.own_context = own_context(SERVER.tls)
    return open_test_server(server, transport="tcp", tls=tls)


async def asks(client, line, answer=None):
    """Says a line, and hears an answer of one line."""
    await client.send_all(line + b"\n")
    heard = b""
    while not heard.endswith(b"\n"):
        heard += await client.receive_some()
    assert answer is None or heard == answer + b"\n"
    return heard


def waits(server):
    """Whether the first request waits for its client."""
    return server.snapshot().requests[0].state in {"reading", "idle"}


async def only(server):
    """The record of the only request, when it has ended."""
    [exchange] = await server.wait_requests()
    return exchange.record


@in_every_mode
async def test_conversation(mode):
    """TL-12: all comes through, whole and counted, and both ends are orderly."""
    async with serving(mode) as server:
        client = await server.connect()
        assert await asks(client, b"agreed") == b'[true, "TLSv1.3", null]\n'
        await client.send_all(b"one\ntwo\nsend 300000\nread\n" + b"x" * 200_000)
        await client.send_eof()
        assert await read_to_end(client) == b"ONE\nTWO\n" + bytes(300_000) + b"200000\n"
        record = await only(server)
    assert (str(record.outcome), record.reason) == ("completed", "")
    assert record.bytes_received == 7 + 8 + 12 + 5 + 200_000
    assert record.bytes_sent == 24 + 8 + 300_000 + 7


@in_every_mode
@table(
    ("says", "outcome", "reason"),
    {
        "nothing": (None, "timed_out", LATE),
        "half a record": (b"\x16\x03\x01\x02\x00\x01\x00", "timed_out", LATE),
        "a whole record with half a hello": (b"\x16\x03\x01\x00\x01\x01", "timed_out", LATE),
        "plain text": (b"GET / HTTP/1.0\r\n\r\n", "refused", "TLS: the peer speaks no TLS"),
        "and leaves at once": (b"", "disconnected", "TLS: the peer left without a byte"),
        "and leaves then": (
            b"\x16\x03\x01",
            "disconnected",
            "TLS: the peer left in the middle of the handshake",
        ),
        "nonsense in a record": (b"\x16\x03\x01\x00\x04abcd", "refused", "TLS: .+"),
    },
)
async def test_handshake_that_fails(mode, says, outcome, reason):
    """Nobody is served, nobody else notices, and no worker ends by it."""
    async with serving(mode, timeouts=Timeouts(handshake=0.2)) as server:
        before = getattr(server.server, "active_children", None)
        client = await server.connect(tls=False)
        if says:
            await client.send_all(says)
        if outcome == "disconnected":
            await client.send_eof()
        await read_to_end(client)
        record = await only(server)
        assert str(record.outcome) == outcome
        assert re.fullmatch(reason, record.reason), record.reason
        await asks(await server.connect(), b"one", b"ONE")
        assert getattr(server.server, "active_children", None) == before
        assert server.server.statistics().arrivals_failed == 1


@in_every_mode
async def test_client_that_does_not_like_us(mode):
    """It says so in the middle of the handshake, when a worker has it already."""
    async with serving(mode) as server:
        client = TLSClient(await server.connect(tls=False), ssl.create_default_context())
        with pytest.raises(trio.BrokenResourceError):
            await client.do_handshake()
        record = await only(server)
        assert (str(record.outcome), record.reason) == ("refused", "TLS: tlsv1 alert unknown ca")


@in_every_mode
@table(
    ("last", "leaves_by", "outcome"),
    {
        "between two requests": (b"one\n", "transport", "completed"),
        "in the middle of one": (b"one\ntw", "transport", "disconnected"),
        "in the middle of one, in order": (b"one\ntw", "close_notify", "completed"),
    },
)
async def test_client_that_leaves(mode, last, leaves_by, outcome):
    """TL-06: without a close_notify it is an end between two requests only."""
    async with serving(mode) as server:
        client = await server.connect()
        await client.send_all(last)
        assert (await client.receive_some()).startswith(b"ONE\n")
        if leaves_by == "close_notify":
            await client.send_eof()
        await client.transport_stream.send_eof()
        assert str((await only(server)).outcome) == outcome


@in_every_mode
@table(
    ("order", "orderly"),
    {
        "returns": (None, True),
        "closes": (b"close\n", True),
        "is cancelled": (b"wait\n", False),
    },
)
async def test_own_end(mode, order, orderly):
    """TL-07: in order with a close_notify, else without."""
    async with serving(mode) as server:
        client = await server.connect()
        await asks(client, b"one", b"ONE")
        if order is None:
            await client.send_eof()
        else:
            await client.send_all(order)
        if not orderly:
            await until(partial(waits, server.server))
            assert server.server.cancel_request(1, "enough")
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
        else:
            assert await read_to_end(client) == b""
        await only(server)


@in_every_mode
async def test_start_tls(mode):
    """TL-09: in the middle, by the same files; what was injected before is never read."""
    async with serving(mode, tls=False) as server:
        for injected in (b"", b"evil\n"):
            client = await server.connect()
            await asks(client, b"one", b"ONE")
            await client.send_all(b"starttls\n" + injected)
            if injected:
                with pytest.raises((trio.BrokenResourceError, ConnectionResetError)):
                    await read_to_end(client)
                continue
            assert await client.receive_some() == b"go on\n"
            secure = TLSClient(client, SERVER.client_context())
            await secure.do_handshake()
            assert await asks(secure, b"agreed") == b'[true, "TLSv1.3", null]\n'
            await secure.send_all(b"send 100000\n")
            await secure.send_eof()
            assert await read_to_end(secure) == bytes(100_000)
        records = [exchange.record for exchange in await server.wait_requests(2)]
    assert [str(record.outcome) for record in records] == ["completed", "refused"]
    assert records[1].reason == "TLS: input came before the handshake, in plain text"


@in_every_mode
@table(
    ("texts", "now", "answer"),
    {
        "nothing": ([], 0, b""),
        "a request": ([b"two\n"], math.inf, b"TWO\n"),
        "half a record": ([b"two\n"], 9, b"TWO\n"),
        "half a request": ([b"tw", b"o\n"], 24, b"TWO\n"),
        "two requests in one record": ([b"two\n2\n"], math.inf, b"TWO\n2\n"),
        "two requests": ([b"two\n", b"2\n"], math.inf, b"TWO\n2\n"),
    },
)
async def test_drain_of_a_kept_connection(mode, texts, now, answer):
    """GS-03: what has begun is answered, and once; an idle connection is let go."""
    async with serving(mode) as server:
        client = await server.connect()
        await asks(client, b"one", b"ONE")
        await until(partial(waits, server.server))
        for text in texts:
            client.ssl_object.write(text)
        ciphertext = client._outgoing.read()
        now = min(now, len(ciphertext))
        await client.transport_stream.send_all(ciphertext[:now])
        server.server.shutdown(60)
        if now < len(ciphertext):
            await trio.sleep(0.1)
            await client.transport_stream.send_all(ciphertext[now:])
        assert await read_to_end(client) == answer
        await client.aclose()
        report = await server.server.wait_closed()
    assert report.clean
    assert report.duration < 2


@in_every_mode
async def test_silent_handshakes_keep_nobody_waiting(mode):
    """TL-01: 40 clients who say nothing, or half of something; the next one is served at once."""
    sizes = {"limits": trioserver.Limits(requests=100)}
    if mode != "task":
        sizes |= {"max_threads": 100} if mode == "thread" else {"max_children": 100}
    async with serving(mode, **sizes) as server:
        hello = Peer()
        hello.shakes()
        said = [b"", hello.output()[:60], b"\x16\x03\x01\x00\x01\x01"]
        for number in range(40):
            client = await server.connect(tls=False)
            await client.send_all(said[number % 3])
        with trio.fail_after(5):
            await asks(await server.connect(), b"one", b"ONE")
        if mode.startswith("process"):
            assert len(server.server.active_children) <= 3


async def says_busy(connection):
    """What a client is told who finds no slot."""
    await connection.sendall(b"busy by %s\n" % connection.tls.version.encode())


@in_every_mode
async def test_full_server_tells_by_tls(mode):
    """BP-02: who finds no slot is told so by TLS, too; one that is silent holds up nobody."""
    limits = trioserver.Limits(requests=1, when_full=says_busy)
    async with serving(mode, limits=limits, timeouts=Timeouts(write=0.5)) as server:
        first = await server.connect()
        await asks(first, b"one", b"ONE")
        silent = await server.connect(tls=False)
        for _ in range(3):
            assert await read_to_end(await server.connect()) == b"busy by TLSv1.3\n"
        assert await read_to_end(silent) == b""
        await asks(first, b"two", b"TWO")
        await first.aclose()
        outcomes = sorted(str(one.outcome) for one in await server.wait_requests(5))
        assert outcomes == ["completed", *["refused"] * 4]
        await until(lambda: not server.server.requests)
        await asks(await server.connect(), b"one", b"ONE")


OUTSIDE = pytest.mark.parametrize("mode", ["thread", "process"])


@OUTSIDE
async def test_nothing_goes_in_clear(mode):
    """After a half-close a send fails, and the client gets TLS to the last byte."""
    async with serving(mode, EndsOutput) as server:
        client = await server.connect()
        seen = b""
        receive = client.transport_stream.receive_some

        async def watched(size=None):
            nonlocal seen
            seen += (data := await receive(size))
            return data

        client.transport_stream.receive_some = watched
        assert await read_to_end(client) == b"said"
        await client.send_all(b"heard")
        seen += await read_to_end(client.transport_stream)
        assert str((await only(server)).outcome) == "completed"
    assert b"clear" not in seen
    at = 0
    while at < len(seen):  # nothing but records
        assert seen[at] in {21, 22, 23}
        at += 5 + int.from_bytes(seen[at + 3 : at + 5])
    assert at == len(seen)


@OUTSIDE
async def test_file_that_may_hide_input(mode):
    """TL-09: with a file of text, nobody could tell what was injected; it is a mistake in words."""
    async with serving(mode, Hides, tls=False) as server:
        client = await server.connect()
        await client.send_all(b"one\nevil\n")
        assert await client.receive_some() == b"refused"


@OUTSIDE
async def test_both_ways_at_once(mode):
    """One thread of a handler reads while another writes, and nothing is mixed up."""
    async with serving(mode, BothWays) as server, trio.open_nursery() as nursery:
        client = await server.connect()

        async def send():
            for _ in range(100):
                await client.send_all(b"x" * 20_000)
            await client.send_eof()

        nursery.start_soon(send)
        heard = await read_to_end(client)
    assert heard == bytes(2_000_000) + b"2000000"


@OUTSIDE
@pytest.mark.parametrize("handler", [Selects, SelectsRecords])
async def test_who_waits_for_the_descriptor(handler, mode):
    """All that has come is seen there, or is ``pending``, in however few segments it came."""
    async with serving(mode, handler) as server:
        client = await server.connect()
        for line in (b"one\n", b"two\n", b"three\n"):
            client.ssl_object.write(line)
        await client.transport_stream.send_all(client._outgoing.read())
        assert await read_to_end(client) == b"one\ntwo\nthree\n"


@OUTSIDE
async def test_who_does_not_wait(mode):
    """What `ssl` raises is raised, and has its defaults."""
    async with serving(mode, DoesNotWait) as server:
        client = await server.connect()
        assert await client.receive_some() == b"go on"
        await client.send_all(b"at last")
        assert await client.receive_some() == b"at last"


@OUTSIDE
@pytest.mark.parametrize("handler", [FillsAndEnds, FillsAndCloses])
async def test_end_that_finds_no_room(handler, mode):
    """It waits for some as a write does, and is an orderly one; nobody waits for anything else."""
    async with serving(mode, handler) as server:
        client = await server.connect()
        await trio.sleep(0.2)
        with trio.fail_after(5):
            assert set(await read_to_end(client)) == {ord("x")}
            if handler is FillsAndEnds:
                await client.send_all(b"heard")
            assert str((await only(server)).outcome) == "completed"


@OUTSIDE
@pytest.mark.parametrize("handler", [SendsWhileItReads, SendsBesideAReader])
async def test_reading_does_not_disturb_what_is_sent(handler, mode):
    """Nothing is sent twice, and nothing is lost, where a read comes in the middle of a send."""
    async with serving(mode, handler) as server, trio.open_nursery() as nursery:
        client = await server.connect()

        async def talk():
            for _ in range(300):
                await client.send_all(b"more?")
            await client.send_eof()

        nursery.start_soon(talk)
        await trio.sleep(0.2)
        got = await read_to_end(client)
    is_what_was_sent = got == NUMBERS  # pytest would compare them for a minute
    assert is_what_was_sent, len(got)


@OUTSIDE
async def test_record_that_is_wrong_is_no_end(mode):
    """Also where `pending` has seen it first, between two requests."""
    async with serving(mode, LooksAhead) as server:
        client = await server.connect()
        client.ssl_object.write(b"one")
        first = client._outgoing.read()
        client.ssl_object.write(b"two")
        second = bytearray(client._outgoing.read())
        second[-1] ^= 1
        await client.transport_stream.send_all(first + second)
        assert await client.receive_some() == b"go on"
        with suppress(trio.BrokenResourceError):  # it has been told off already
            await client.transport_stream.send_eof()
        record = await only(server)
    assert str(record.outcome) == "disconnected"
    assert "decryption failed or bad record mac" in record.reason


@OUTSIDE
@pytest.mark.parametrize("handler", [GivesUp, GivesUpAndCloses])
async def test_half_a_reply(handler, mode):
    """It does not look like a whole one, though only a part of its first record has gone."""
    async with serving(mode, handler) as server:
        client = await server.connect()
        await trio.sleep(0.3)
        with pytest.raises((trio.BrokenResourceError, ConnectionResetError)):
            await read_to_end(client)
        await only(server)


@OUTSIDE
@table(
    ("handler", "says", "pause", "size"),
    {
        "before an end of both directions": (ShutsBoth, b"", 0.1, 300_000),
        "by a send that is tried again after a time-out": (TriesAgain, b"", 0.5, 300_000),
        "although a reader is woken by this side": (WakesReader, b"go on", 0.2, 200_000),
    },
)
async def test_whole_reply(handler, says, pause, size, mode):
    """All of it comes to a client that is slow to read, and nobody is blamed for anything."""
    async with serving(mode, handler) as server:
        client = await server.connect()
        await client.send_all(says)
        await trio.sleep(pause)
        assert await read_to_end(client) == b"x" * size
        assert str((await only(server)).outcome) == "completed"


@OUTSIDE
async def test_close_that_finds_no_room(mode):
    """Of a handler that never waits: what it was told has gone goes, and the end is orderly."""
    async with serving(mode, FillsAndClosesAtOnce) as server:
        client = await server.connect()
        await trio.sleep(0.2)
        assert set(await read_to_end(client)) == {ord("x")}


@OUTSIDE
async def test_record_that_comes_slowly(mode):
    """TO-01: as long as something comes, a read is not out of time."""
    async with serving(mode, ReadsSlowly, timeouts=Timeouts(idle=0.4)) as server:
        client = await server.connect()
        client.ssl_object.write(b"x" * 10_000)
        ciphertext = client._outgoing.read()
        for at in range(0, len(ciphertext), 1500):
            await client.transport_stream.send_all(ciphertext[at : at + 1500])
            await trio.sleep(0.1)
        assert await client.receive_some() == b"10000"


async def test_signals_in_the_middle_of_its_use():
    """An exception of a signal handler's leaves no lock behind."""
    async with serving("process", Alarmed) as server:
        assert await read_to_end(await server.connect()) == b"still here"


@OUTSIDE
async def test_start_tls_that_is_refused(mode):
    """The connection is a plain one, as before."""
    async with serving(mode, RefusedThenPlain, tls=False) as server:
        client = await server.connect()
        await trio.sleep(0.1)
        assert await read_to_end(client) == bytes(1_000_000)


@OUTSIDE
async def test_one_try_is_enough(mode):
    """A whole record that is there is read, as by any socket that does not wait."""
    async with serving(mode, TriesOnce) as server:
        client = await server.connect()
        await trio.sleep(0.1)
        await client.send_all(b"a whole record")
        assert await client.receive_some() == b"a whole record"


async def test_thread_that_was_left_behind():
    """What it has of the socket is of no use any more, and nothing of it is on the wire."""

    class Waits(trioserver.ThreadingTCPServer):
        async def shutdown_request(self, request):
            self.over.set()
            await until(lambda: self.told[-1:] == ["done"])
            await super().shutdown_request(request)

    server = Waits(("127.0.0.1", 0), LeavesThread)
    server.told = []
    async with open_test_server(server, transport="tcp", tls=True) as running:
        client = await running.connect()
        await client.send_all(b"unread")
        assert await read_to_end(client) == b"in time"
        assert (await only(running)).bytes_sent == len(b"in time")
    assert server.told == ["done"]


class SaysMore(trioserver.ProcessTCPServer):
    """Its hooks, in the server's process, know no TLS."""

    async def handle_error(self, request, client_address):
        await self.say(request)

    async def shutdown_request(self, request):
        await self.say(request)
        await super().shutdown_request(request)

    async def say(self, request):
        self.refused.append(True)
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await request.sendall(b"in clear")


@pytest.mark.parametrize("handler", [Dies, AsyncDies, DetachesAndCloses, ClosesNumber, DiesByTLS])
async def test_nothing_follows_a_workers_tls_in_clear(handler):
    """However the worker has left the connection."""
    server = SaysMore(("127.0.0.1", 0), handler, min_children=1)
    server.own_context = own_context(SERVER.tls)
    by_handler = handler is DiesByTLS
    seen = b""
    options = {"transport": "tcp", "tls": not by_handler, "strict": False}
    async with open_test_server(server, **options) as running:
        server.refused = []
        client = await running.connect()
        await client.send_all(b"x\n")
        wire = client if by_handler else client.transport_stream
        if by_handler:
            assert await client.receive_some() == b"go on\n"
            secure = TLSClient(client, SERVER.client_context())
            with pytest.raises(trio.BrokenResourceError):
                await secure.do_handshake()
                await secure.receive_some()
        with suppress(trio.BrokenResourceError):
            seen = await read_to_end(wire)
        await only(running)
        await until(lambda: server.refused)
    assert b"in clear" not in seen


@OUTSIDE
async def test_buffered_answer_to_starttls(mode):
    """TL-09: it goes out before the handshake, in clear, and what comes after does not."""
    async with serving(mode, BuffersBefore, tls=False) as server:
        client = await server.connect()
        await client.send_all(b"starttls\n")
        assert await client.receive_some() == b"go on\n"
        secure = TLSClient(client, SERVER.client_context())
        await secure.do_handshake()
        assert await read_to_end(secure) == b"secret\n"


@OUTSIDE
async def test_starttls_that_nobody_answers(mode):
    """TL-09: that is what is said of it, although files are flushed at the end of the handler."""
    async with serving(mode, BuffersBefore, tls=False, timeouts=Timeouts(handshake=0.2)) as server:
        client = await server.connect()
        await client.send_all(b"starttls\n")
        assert await client.receive_some() == b"go on\n"
        record = await only(server)
    assert (str(record.outcome), record.reason) == (
        "timed_out",
        "TLS: no handshake in time (handshake)",
    )


@in_every_mode
async def test_reload(mode, tmp_path):
    """TL-11: new connections get the new certificate, and the others notice nothing."""
    kind, handler = MODES[mode]
    fields = {"min_children": 3} if kind is trioserver.ProcessTCPServer else {}
    authority = trustme.CA()

    def issue():
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")

    async def connect():
        client = TLSClient(await server.connect(), context)
        await client.do_handshake()
        await asks(client, b"one", b"ONE")
        return client, client.ssl_object.getpeercert(binary_form=True)

    issue()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    made = partial(context_of, str(tmp_path))
    served = kind(("127.0.0.1", 0), handler, ssl_context=made, **fields)
    async with open_test_server(served, transport="tcp") as server:
        old, first = await connect()
        (tmp_path / "cert.pem").write_text("half of it")
        with pytest.raises(ValueError, match="must have a certificate in PEM, and has none"):
            served.reload()
        again, second = await connect()
        await again.aclose()
        assert second == first
        issue()
        served.reload()
        new, third = await connect()
        assert third != first
        for client in (old, new):
            await asks(client, b"two", b"TWO")
            await client.aclose()
