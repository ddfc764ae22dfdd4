"""Datagrams, in memory and on the virtual clock: each is one request, with one way back."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Upper, Witness, hold
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramClient, MemoryDatagramServer, MemoryServer

LARGEST = 65_507
CLASSES = [
    trioserver.BaseRequestHandler,
    trioserver.DatagramRequestHandler,
    trioserver.StreamRequestHandler,
]


class OopsError(Exception):
    """What these tests raise."""


def memory(handler: Any, **fields: Any) -> MemoryDatagramServer:
    """A datagram server in memory."""
    return MemoryDatagramServer(("memory", 1), handler, **fields)


async def echo(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends back what came."""
    await request.reply(request.data)


async def receive(client: MemoryDatagramClient) -> bytes:
    """The next reply, which may take its time."""
    with trio.fail_after(100):
        return await client.receive()


async def ask(server: MemoryDatagramServer, data: bytes = b"still there?") -> bytes:
    """What a new client is answered."""
    client = server.client()
    await client.send(data)
    return await receive(client)


def handler_of(body: Callable[[Any], Awaitable[object]], base: type) -> type:
    """A handler class with this ``handle``."""
    return type("Handler", (base,), {"handle": body})


class Loud(MemoryDatagramServer):
    """Keeps the errors that `handle_error` is told of."""

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors = [*getattr(self, "errors", []), sys.exception()]


# Bytes -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8193, 65_506, LARGEST])
async def test_datagram_of_any_size(size: int, autojump_clock: Any) -> None:
    """UD-01, UD-02: a datagram is delivered whole, also an empty one, and sent back whole."""
    data = random.Random(size).randbytes(size)
    server = memory(echo)
    async with server.serving():
        assert await ask(server, data) == data
    counts = server.statistics()
    assert (counts.accepted, counts.bytes_received, counts.bytes_sent) == (1, size, size)


async def test_oversized_datagrams_are_counted_and_dropped(autojump_clock: Any) -> None:
    """UD-01: what is too large is never cut; those behind it are served."""
    witness, seen = Witness(), []

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        seen.append(request.data)

    server = memory(look, max_packet_size=10, observers=[witness])
    async with server.serving():
        client = server.client()
        for size in [11, 10, LARGEST, 11, 9, 0, 11]:
            client.send_now(bytes(size))
        await wait_all_tasks_blocked()
        assert sorted(map(len, seen)) == [0, 9, 10]
        assert server.statistics().accept_errors == 4
    failed = [event for event in witness.events if event[0] == "accept_failed"]
    assert [(event[1], event[2].errno) for event in failed] == [(("memory", 1), errno.EMSGSIZE)] * 4
    assert witness.names.count("request_started") == witness.names.count("request_finished") == 3


@pytest.mark.parametrize("base", CLASSES)
@pytest.mark.parametrize("data", [b"", b"data"])
async def test_no_reply_unless_written(base: type, data: bytes, autojump_clock: Any) -> None:
    """UD-02: nothing is sent that the handler did not write, to an empty datagram either."""
    witness = Witness()
    server = memory(base, observers=[witness])
    async with server.serving():
        client = server.client()
        await client.send(data)
        await wait_all_tasks_blocked()
        assert client.received() == []
    [record] = witness.records
    assert (record.outcome, record.bytes_sent) == ("completed", 0)
    assert witness.names[1:3] == ["request_started", "request_finished"]


async def writes(handler: Any) -> None:
    """Writes in portions."""
    assert await handler.wfile.write(b"one") == 3
    await handler.wfile.writelines([b" ", bytearray(b"two"), memoryview(b" three")])


async def flushes(handler: Any) -> None:
    """Flushes in between."""
    await writes(handler)
    await handler.wfile.flush()
    await trio.sleep(1)
    await handler.wfile.write(b"")
    await handler.wfile.write(b" four")


@pytest.mark.parametrize("base", CLASSES[1:])
@pytest.mark.parametrize("wbufsize", [-1, 0, 1, 5])
@pytest.mark.parametrize(
    ("body", "reply"), [(writes, b"one two three"), (flushes, b"one two three four")]
)
async def test_what_was_written_is_one_datagram(
    base: type, wbufsize: int, body: Any, reply: bytes, autojump_clock: Any
) -> None:
    """All that is written to wfile leaves as one datagram at the end; a flush sends nothing."""
    handler = handler_of(body, base)
    handler.wbufsize = wbufsize  # type: ignore[attr-defined]
    server = memory(handler)
    async with server.serving():
        client = server.client()
        await client.send(b"?")
        await wait_all_tasks_blocked()
        early = client.received()
        await trio.sleep(2)
        assert early + client.received() == [reply]
        assert (early == []) == (body is flushes)


async def test_empty_reply_can_be_sent(autojump_clock: Any) -> None:
    """An empty datagram is a datagram: who sends one, sends one."""

    async def empty(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        assert await request.socket.sendto(b"", client_address) == 0

    server = memory(empty)
    async with server.serving():
        assert await ask(server) == b""


READS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "all": lambda rfile: rfile.read(),
    "some": lambda rfile: rfile.read(3),
    "one": lambda rfile: rfile.read1(2),
    "nothing": lambda rfile: rfile.read(0),
    "exactly": lambda rfile: rfile.readexactly(4),
    "line": lambda rfile: rfile.readline(),
    "short line": lambda rfile: rfile.readline(2),
    "lines": lambda rfile: rfile.readlines(),
    "some lines": lambda rfile: rfile.readlines(3),
    "until": lambda rfile: rfile.readuntil(b"ab"),
    "until in time": lambda rfile: rfile.readuntil(b"\n", limit=2),
    "peek": lambda rfile: rfile.peek(),
    "more": lambda rfile: rfile.more(),
    "next": lambda rfile: anext(rfile, None),
}


async def read_as_told(rfile: Any, reads: list[str], results: list[Any]) -> None:
    """Reads, and writes down what it gets."""
    for name in reads:
        try:
            results.append(await READS[name](rfile))
        except (trioserver.IncompleteRead, trioserver.LimitExceeded) as error:
            results.append((type(error), str(error), getattr(error, "partial", None)))
    rest = [await rfile.read(100), await rfile.read(1), rfile.at_eof()]
    results.append(rest)


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"b", b"\n", b"\r\n", b"abc"]), max_size=12).map(b"".join),
    reads=st.lists(st.sampled_from(sorted(READS)), max_size=6),
)
def test_reads_like_a_stream(data: bytes, reads: list[str]) -> None:
    """A handler reads of a datagram what it reads of a connection with the same bytes."""
    results: list[Any] = []

    class Read(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await read_as_told(self.rfile, reads, results)

    async def results_of(server: Any, send: Callable[[Any], Awaitable[None]]) -> list[Any]:
        results.clear()
        async with server.serving():
            await send(server)
            await wait_all_tasks_blocked()
        return list(results)

    async def stream(server: MemoryServer) -> None:
        client = await server.connect()
        await client.send_all(data)
        await client.send_eof()

    async def datagram(server: MemoryDatagramServer) -> None:
        await server.client().send(data)

    async def both() -> None:
        limits = trioserver.Limits(line=8, read=12)
        connected = await results_of(MemoryServer(("memory", 1), Read, limits=limits), stream)
        assert await results_of(memory(Read, limits=limits), datagram) == connected
        assert len(connected) == len(reads) + 1

    trio.run(both, clock=MockClock(autojump_threshold=0))


async def test_one_class_serves_both(autojump_clock: Any) -> None:
    """One class body serves connections and datagrams."""
    packets, streams = memory(Upper), MemoryServer(("memory", 1), Upper)
    async with packets.serving(), streams.serving():
        assert await ask(packets, b"a\nb\nc") == b"A\nB\nC"
        client = await streams.connect()
        await client.send_all(b"a\nb\nc")
        await client.send_eof()
        received = b"".join([data async for data in client])
        assert received == b"A\nB\nC"


def test_datagram_handler_of_a_stream_server() -> None:
    """DatagramRequestHandler on a server of connections is refused when it is built."""
    with pytest.raises(TypeError, match=r"derive it from trioserver\.StreamRequestHandler"):
        trioserver.TCPServer(("127.0.0.1", 0), trioserver.DatagramRequestHandler)


async def test_request_is_the_classic_pair(autojump_clock: Any) -> None:
    """`data, socket = request`, and more: every fact of the datagram."""
    credentials = trioserver.PeerCredentials(pid=1, uid=2, gid=3)

    async def look(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        data, way_back = request
        assert isinstance(request, tuple)
        assert request[0] is request.data is data
        assert request[1] is request.socket is way_back
        assert data == b"facts"
        assert client_address == request.client_address == request.info.client_address == "me"
        assert request.server_address == way_back.getsockname() == ("memory", 1)
        assert (request.peer_credentials, request.user_id()) == (credentials, 2)
        assert (request.bytes_received, request.bytes_sent, request.state) == (5, 0, "working")
        assert request.fileno() == way_back.fileno() == -1
        assert str(request.info) in repr(request)
        assert str(request.info) in repr(way_back)
        assert trioserver.current_request() is request.info
        with pytest.raises(ValueError, match="write"):
            request.write_timeout = 0
        await request.reply(b"right")
        assert request.bytes_sent == 5

    server = memory(look)
    async with server.serving():
        client = server.client("me", credentials=credentials)
        await client.send(b"facts")
        assert await receive(client) == b"right"


@pytest.mark.parametrize("kind", [trioserver.UDPServer, trioserver.UnixDatagramServer])
def test_servers_are_values(kind: Any) -> None:
    """The two servers pickle, copy, evolve, and show their fields."""
    address = ("127.0.0.1", 0) if kind is trioserver.UDPServer else "/run/x"
    server = kind(address, echo, max_packet_size=100)
    for other in (pickle.loads(pickle.dumps(server)), copy.copy(server)):  # noqa: S301
        assert repr(other) == repr(server)
    assert server.evolve(max_packet_size=5).max_packet_size == 5
    assert "max_packet_size=100" in repr(server)
    for wrong, error in [(0, ValueError), (2**31, ValueError), (True, TypeError)]:
        with pytest.raises(error, match="max_packet_size"):
            kind(address, echo, max_packet_size=wrong)


# Sending ---------------------------------------------------------------------


async def too_large(handler: Any) -> None:
    """Sends too much, in either way."""
    await handler.request.reply(bytes(LARGEST + 1))


async def too_large_at_the_end(handler: Any) -> None:
    """Leaves too much in wfile."""
    await handler.wfile.write(bytes(LARGEST))
    await handler.wfile.write(b"!")


@pytest.mark.parametrize("body", [too_large, too_large_at_the_end])
async def test_reply_too_large(body: Any, autojump_clock: Any) -> None:
    """UD-03: a reply of more than 65 507 bytes is EMSGSIZE, and the handler's own error."""
    witness = Witness()
    server = Loud(("memory", 1), handler_of(body, CLASSES[1]), observers=[witness])
    async with server.serving():
        client = server.client()
        await client.send(b"?")
        await wait_all_tasks_blocked()
        assert client.received() == []
    assert [error.errno for error in server.errors] == [errno.EMSGSIZE]
    assert witness.outcomes == ["failed"]


async def raises(handler: Any) -> None:
    """Has an error."""
    raise OopsError


async def is_cancelled(handler: Any) -> None:
    """Cancels itself."""
    handler.cancel_scope.cancel(reason="enough")


async def is_cancelled_by_id(handler: Any) -> None:
    """Is cancelled by its id."""
    handler.server.cancel_request(handler.info.id, "by id")
    await trio.sleep_forever()


async def is_slow(handler: Any) -> None:
    """Takes longer than a request may."""
    await trio.sleep_forever()


async def swallows(handler: Any) -> None:
    """Swallows the end of its time."""
    with contextlib.suppress(trio.Cancelled):
        await trio.sleep_forever()


async def closes(handler: Any) -> None:
    """Gives up its way back."""
    handler.request.close()


@pytest.mark.parametrize("base", CLASSES[1:])
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (raises, "failed"),
        (is_cancelled, "cancelled"),
        (is_cancelled_by_id, "cancelled"),
        (is_slow, "timed_out"),
        (swallows, "timed_out"),
        (closes, "completed"),
    ],
)
async def test_nothing_is_sent_after_a_bad_end(
    base: type, end: Any, outcome: str, autojump_clock: Any
) -> None:
    """UD-04: what was written before an error or a cancellation is not sent."""

    async def body(handler: Any) -> None:
        await handler.wfile.write(b"half of it")
        await end(handler)

    witness = Witness()
    server = Loud(
        ("memory", 1),
        handler_of(body, base),
        observers=[witness],
        timeouts=trioserver.Timeouts(request=7),
    )
    async with server.serving():
        client = server.client()
        await client.send(b"?")
        await trio.sleep(10)
        assert client.received() == []
    [record] = witness.records
    assert (record.outcome, record.bytes_sent) == (outcome, 0)
    assert record.duration == (7 if outcome == "timed_out" else 0)


async def replies(handler: Any) -> None:
    """Replies by `reply`."""
    await handler.request.reply(b"!")


async def sends(handler: Any) -> None:
    """Replies as ever."""
    _, way_back = handler.request
    await way_back.sendto(b"!", handler.client_address)


async def leaves_it_in_wfile(handler: Any) -> None:
    """Replies at its end."""
    await handler.wfile.write(b"!")


SENDERS = [replies, sends, leaves_it_in_wfile]


@pytest.mark.parametrize("body", SENDERS)
@pytest.mark.parametrize("address", ["", ("10.0.0.1", 0), ("fe80::1", 0, 0, 2)])
async def test_client_without_a_way_back(body: Any, address: Any, autojump_clock: Any) -> None:
    """UD-09: a reply to port 0, or to an unbound Unix client, ends that request alone."""
    witness = Witness()
    server = Loud(("memory", 1), handler_of(body, CLASSES[1]), observers=[witness])
    async with server.serving():
        server.client(address).send_now(b"?")
        await wait_all_tasks_blocked()
        assert witness.outcomes == ["disconnected"]
        assert "cannot be reached" not in witness.records[0].reason  # it was not even tried
        assert await ask(server) == b"!"
    assert not hasattr(server, "errors")


@attrs.define(eq=False)
class Gone(MemoryDatagramClient):
    """Meets every reply with an error."""

    error: OSError = attrs.field(factory=OSError)

    def take_in(self, data: bytes) -> bool:
        raise self.error


@pytest.mark.parametrize("body", SENDERS)
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        *((name, "disconnected") for name in ["ECONNREFUSED", "ECONNRESET", "ENOENT", "EPIPE"]),
        *((name, "disconnected") for name in ["EPERM", "EACCES", "EHOSTUNREACH", "EPROTOTYPE"]),
        *((name, "failed") for name in ["ENOBUFS", "ENOMEM", "EINVAL", "EMSGSIZE", "EBADF"]),
    ],
)
async def test_errors_of_a_send_are_contained(
    body: Any, name: str, outcome: str, autojump_clock: Any
) -> None:
    """UD-13, UX-12: what a send meets ends its request, and is the client's doing or an error."""
    witness, code = Witness(), getattr(errno, name)
    server = Loud(("memory", 1), handler_of(body, CLASSES[1]), observers=[witness])
    async with server.serving():
        client = Gone("gone", server.listener, error=OSError(code, os.strerror(code)))
        server.listener.clients["gone"] = client
        client.send_now(b"?")
        await wait_all_tasks_blocked()
        assert witness.outcomes == [outcome]
        assert await ask(server) == b"!"
    assert [error.errno for error in getattr(server, "errors", [])] == [code] * (
        outcome == "failed"
    )


async def test_somebody_elses_absence_is_the_handlers_error(autojump_clock: Any) -> None:
    """UX-12: a datagram to a third party that fails is the handler's affair, not the client's."""
    witness = Witness()

    async def relay(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await request.socket.sendto(request.data, "nobody")

    server = Loud(("memory", 1), relay, observers=[witness])
    async with server.serving():
        server.client().send_now(b"?")
        await wait_all_tasks_blocked()
    assert [type(error) for error in server.errors] == [ConnectionRefusedError]
    assert witness.outcomes == ["failed"]


async def test_caught_peer_gone_lets_the_handler_go_on(autojump_clock: Any) -> None:
    """A handler that catches PeerGone goes on, and may tell somebody else."""

    async def tell(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        with pytest.raises(trioserver.PeerGone) as caught:
            await request.reply(b"you")
        assert isinstance(caught.value, ConnectionError)
        await request.socket.sendto(b"somebody else", "friend")

    server = memory(tell)
    async with server.serving():
        friend = server.client("friend")
        server.client("").send_now(b"?")
        assert await receive(friend) == b"somebody else"


@pytest.mark.parametrize(
    "name", ["ECONNREFUSED", "ECONNRESET", "EMSGSIZE", "ENETDOWN", "EPERM", "ENOBUFS", "ENOMEM"]
)
async def test_errors_of_a_receive_are_contained(name: str, autojump_clock: Any) -> None:
    """UD-13: what an earlier reply met, told by a receive, is counted; the server goes on."""
    server = memory(echo)
    async with server.serving():
        await wait_all_tasks_blocked()
        for count in (1, 2, 3):
            server.listener.fail(*[OSError(getattr(errno, name), "injected")] * count)
            assert await ask(server, b"%d" % count) == b"%d" % count
        assert server.statistics().accept_errors == 6


async def test_broken_listener_stops_the_server(autojump_clock: Any) -> None:
    """An error of a receive that is nobody's own is raised, and every request closed."""
    server = memory(hold)

    async def break_it() -> None:
        async with server.serving():
            server.client().send_now(b"?")
            await wait_all_tasks_blocked()
            server.listener.fail(OSError(errno.EBADF, "injected"))
            await trio.sleep_forever()

    with pytest.raises(OSError, match="injected"):
        await break_it()
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1


# A client that does not receive ------------------------------------------------


@pytest.mark.parametrize("body", SENDERS)
async def test_full_client_blocks_its_own_request_alone(body: Any, autojump_clock: Any) -> None:
    """UD-14: who never reads is given timeouts.write; everybody else is served meanwhile."""
    witness = Witness()
    server = Loud(("memory", 1), handler_of(body, CLASSES[1]), observers=[witness])
    async with server.serving():
        client = server.client(capacity=1)
        for _ in range(4):
            client.send_now(b"?")
        await wait_all_tasks_blocked()
        assert witness.outcomes == ["completed"]
        assert {request.state for request in server.snapshot().requests} == {"writing"}
        for _ in range(10):
            assert await ask(server) == b"!"
            await trio.sleep(1)
        assert client.received() == [b"!"]  # makes room for one of the three
        await trio.sleep(100)
        assert client.received() == [b"!"]
    late = [record for record in witness.records if record.outcome == "timed_out"]
    assert [record.duration for record in late] == [30, 30]
    assert all("(write)" in record.reason for record in late)
    assert not hasattr(server, "errors")


async def test_full_third_party_is_the_handlers_error(autojump_clock: Any) -> None:
    """A third party that does not read is a plain TimeoutError, and the handler's own."""

    async def flood(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        request.write_timeout = 3
        for _ in range(2):
            await request.socket.sendto(b"x", "friend")

    witness = Witness()
    server = Loud(("memory", 1), flood, observers=[witness])
    async with server.serving():
        server.listener.client("friend", capacity=1)
        server.client().send_now(b"?")
        await trio.sleep(4)
    assert [type(error) for error in server.errors] == [TimeoutError]
    assert [record.duration for record in witness.records] == [3]


@attrs.define(eq=False)
class Mute(MemoryDatagramClient):
    """Gives no sign when it has room again."""

    async def wait_for_room(self) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("in_time", [True, False])
async def test_last_look_when_the_time_is_up(in_time: bool, autojump_clock: Any) -> None:
    """A send looks once more when its time is up: room made in time counts."""
    server = memory(echo)
    async with server.serving():
        client = Mute("mute", server.listener, capacity=0)
        server.listener.clients["mute"] = client
        client.send_now(b"?")
        await trio.sleep(29)
        client.capacity = int(in_time)
        await trio.sleep(2)
        assert client.received() == [b"?"] * in_time
        assert server.statistics().outcomes[trioserver.Outcome.TIMED_OUT] == (not in_time)


async def test_cancelled_wait_has_sent_nothing(autojump_clock: Any) -> None:
    """CX-09: a send that was cancelled while it waited has sent nothing, and can be repeated."""

    async def insist(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        with trio.move_on_after(1) as scope:
            await request.reply(b"first")
        assert scope.cancelled_caught
        assert (request.bytes_sent, request.state) == (0, "working")
        await request.reply(b"second")

    server = memory(insist)
    async with server.serving():
        client = server.client(capacity=0)
        client.send_now(b"?")
        await trio.sleep(2)
        client.capacity = 5
        client.received()
        assert await receive(client) == b"second"
        await wait_all_tasks_blocked()
        assert client.received() == []


@pytest.mark.parametrize("capacity", [0, 1])
async def test_close_ends_the_sends_that_wait(capacity: int, autojump_clock: Any) -> None:
    """A send that waits when its request is closed raises at once, and sends nothing later."""
    ended = []

    async def send(request: trioserver.Datagram) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await request.reply(b"x")
        ended.append(trio.current_time())

    async def handle(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, request)
            await wait_all_tasks_blocked()
            server.listener.clients["slow"].capacity = capacity
            request.close()
        assert ended == [began] * 3

    server = memory(handle)
    async with server.serving():
        client = server.client("slow", capacity=0)
        client.send_now(b"?")
        await trio.sleep(50)
        assert client.received() == []
        assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 1


@pytest.mark.parametrize("kept", ["cut", "file"])
async def test_nothing_leaves_after_the_request(kept: str, autojump_clock: Any) -> None:
    """When the request is over, every send and read raises ClosedResourceError."""
    old: list[Any] = []

    async def keep(handler: Any) -> None:
        old.append(handler)
        await handler.wfile.write(b"!")
        if kept == "cut":
            raise OopsError

    server = Loud(("memory", 1), handler_of(keep, CLASSES[2]))
    async with server.serving():
        client = server.client()
        client.send_now(b"left")
        await wait_all_tasks_blocked()
        [handler] = old
        request = handler.request
        for late in [
            partial(request.reply, b"late"),
            partial(request.socket.sendto, b"late", client.address),
            partial(handler.wfile.write, b"late"),
            handler.wfile.flush,
            handler.rfile.read,
            handler.rfile.readline,
            handler.rfile.more,
        ]:
            with pytest.raises(trio.ClosedResourceError):
                await late()
        assert (request.state, handler.rfile.closed, handler.wfile.closed) == ("closed", True, True)
        request.close()
        await request.aclose()
        assert client.received() == [b"!"] * (kept == "file")


@pytest.mark.parametrize("data", ["text", None, 5, [1], memoryview(bytes(8))[::2]])
async def test_sendto_takes_bytes(data: Any, autojump_clock: Any) -> None:
    """What is not bytes is a TypeError, and nothing is sent."""

    async def send(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        for _ in range(2):
            with pytest.raises(TypeError):
                await request.socket.sendto(data, client_address)
        items = memoryview(b"12345678").cast("I")
        assert await request.socket.sendto(items, client_address) == 8

    server = memory(send)
    async with server.serving():
        assert await ask(server) == b"12345678"
