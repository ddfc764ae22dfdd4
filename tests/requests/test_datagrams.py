"""Datagrams, in memory and on the virtual clock: each is one request, with one way back."""

import errno
import os
import random
from functools import partial

import pytest
import trio
from support import hold, memory
from support.datagrams import ask, echo, exchange, handler_of, receive
from support.pipes import does
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramClient, MemoryDatagramServer

LARGEST = 65_507
CLASSES = [
    trioserver.BaseRequestHandler,
    trioserver.DatagramRequestHandler,
    trioserver.StreamRequestHandler,
]
with_files = pytest.mark.parametrize("base", CLASSES[1:])


@pytest.mark.parametrize("size", [0, 1, 8193, 65_506, LARGEST])
async def test_datagram_of_any_size(size, autojump_clock):
    """UD-01, UD-02: a datagram is delivered whole, also an empty one, and sent back whole."""
    data = random.Random(size).randbytes(size)
    async with exchange(echo, data) as it:
        assert it.client.received() == [data]
        counts = it.server.statistics()
    assert (counts.accepted, counts.bytes_received, counts.bytes_sent) == (1, size, size)


async def test_oversized_datagrams_are_counted_and_dropped(autojump_clock):
    """UD-01: what is too large is never cut; those behind it are served."""
    sizes = [11, 10, LARGEST, 11, 9, 0, 11]
    async with exchange(echo, *map(bytes, sizes), max_packet_size=10) as it:
        assert sorted(map(len, it.client.received())) == [0, 9, 10]
        assert it.server.statistics().accept_errors == 4
    failed = [event for event in it.witness.events if event[0] == "accept_failed"]
    assert [(event[1], event[2].errno) for event in failed] == [(("memory", 1), errno.EMSGSIZE)] * 4
    names = it.witness.names
    assert names.count("request_started") == names.count("request_finished") == 3


@pytest.mark.parametrize("base", CLASSES)
@pytest.mark.parametrize("data", [b"", b"data"])
async def test_no_reply_unless_written(base, data, autojump_clock):
    """UD-02: nothing is sent that the handler did not write, to an empty datagram either."""
    async with exchange(base, data) as it:
        assert it.client.received() == []
    [record] = it.witness.records
    assert (record.outcome, record.bytes_sent) == ("completed", 0)
    assert it.witness.names[1:3] == ["request_started", "request_finished"]


@with_files
@pytest.mark.parametrize("wbufsize", [-1, 0, 1, 5])
@pytest.mark.parametrize("more", ["", "; flush; sleep 1; write b''; write b' four' -> 5"])
async def test_what_was_written_is_one_datagram(base, wbufsize, more, autojump_clock):
    """All that is written to wfile leaves as one datagram at the end; a flush sends nothing."""
    steps = f"write b'one' -> 3; writelines [b' ', b'two', b' three']{more}"
    async with exchange(does(steps, base, wbufsize=wbufsize), b"?") as it:
        early = it.client.received()
        await trio.sleep(2)
        late = it.client.received()
    assert (early, late) == (([], [b"one two three four"]) if more else ([b"one two three"], []))


READS_OF_LINES = r"""
    peek -> b'a\nb\nabab'; readline 1 -> b'a'; readline -> b'\n'; more -> True; read1 1 -> b'b';
    readuntil b'ab' -> b'\nab'; readlines 100 -> [b'ab']; more -> False; read -> b''; at_eof -> True
"""
READS_OF_WORDS = r"""
    read -> LimitExceeded; readline -> LimitExceeded; readuntil b'-' -> LimitExceeded;
    readexactly 8 -> b'12345678'; __anext__ -> b'9012\n'; readexactly 9 -> IncompleteRead b'end';
    readuntil b'-' -> IncompleteRead; readlines -> []; at_eof -> True
"""


@table(
    "data, steps",
    {
        "lines": (b"a\nb\nabab", READS_OF_LINES),
        "more than the limits": (b"123456789012\nend", READS_OF_WORDS),
    },
)
async def test_reads_like_a_stream(data, steps, autojump_clock):
    """One class serves both: it reads of a datagram what it reads of a connection."""
    handler = does(" ".join(steps.split()))
    limits = trioserver.Limits(line=8, read=12)
    async with memory.memory(handler, limits=limits).serving() as server:
        await memory.ask(server, data)
    async with exchange(handler, data, limits=limits) as it:
        assert server.witness.outcomes == it.witness.outcomes == ["completed"]


def test_what_does_not_fit_a_server():
    """A DatagramRequestHandler of connections, and wrong sizes, are refused when it is built."""
    with pytest.raises(TypeError, match=r"derive it from trioserver\.StreamRequestHandler"):
        trioserver.TCPServer(("127.0.0.1", 0), trioserver.DatagramRequestHandler)
    for wrong, error in [(0, ValueError), (2**31, ValueError), (True, TypeError)]:
        with pytest.raises(error, match="max_packet_size"):
            trioserver.UDPServer(("127.0.0.1", 0), echo, max_packet_size=wrong)


async def test_request_is_the_classic_pair(autojump_clock):
    """`data, socket = request`, and more: every fact of the datagram."""
    credentials = trioserver.PeerCredentials(pid=1, uid=2, gid=3)

    async def look(request, client_address, server):
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

    async with exchange(look) as it:
        client = it.server.client("me", credentials=credentials)
        await client.send(b"facts")
        assert await receive(client) == b"right"


@pytest.mark.parametrize("data", ["text", None, 5, [1], memoryview(bytes(8))[::2]])
async def test_sendto_takes_bytes(data, autojump_clock):
    """What is not bytes is a TypeError, and nothing is sent; an empty datagram is one."""

    async def send(request, client_address, server):
        with pytest.raises(TypeError):
            await request.socket.sendto(data, client_address)
        items = memoryview(b"12345678").cast("I")
        assert await request.socket.sendto(items, client_address) == 8
        await request.reply(b"")

    async with exchange(send, b"?") as it:
        assert it.client.received() == [b"12345678", b""]


@pytest.mark.parametrize("steps", ["reply {}", "write {}; write b'!'"])
async def test_reply_too_large(steps, autojump_clock):
    """UD-03: a reply of more than 65 507 bytes is EMSGSIZE, and the handler's own error."""
    data = bytes(LARGEST + steps.startswith("reply"))
    async with exchange(does(steps.format(data)), b"?") as it:
        assert it.client.received() == []
    assert [error.errno for error in it.server.errors] == [errno.EMSGSIZE]
    assert it.witness.outcomes == ["failed"]


@with_files
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("reply 'text'", "failed"),
        ("cancels", "cancelled"),
        ("cancel_request 1, 'by id'; sleep_forever", "cancelled"),
        ("sleep_forever", "timed_out"),
        ("sleep_forever -> Cancelled", "timed_out"),
        ("close", "completed"),
    ],
)
async def test_nothing_is_sent_after_a_bad_end(base, end, outcome, autojump_clock):
    """UD-04: what was written before an error or a cancellation is not sent."""
    cancels = lambda self: self.cancel_scope.cancel(reason="enough")  # noqa: E731
    handler = does(f"write b'half of it'; {end}", base, cancels=cancels)
    async with exchange(handler, b"?", timeouts=trioserver.Timeouts(request=7)) as it:
        await trio.sleep(10)
        assert it.client.received() == []
    [record] = it.witness.records
    assert (record.outcome, record.bytes_sent) == (outcome, 0)
    assert record.duration == (7 if outcome == "timed_out" else 0)


each_sender = pytest.mark.parametrize(
    "handler",
    [
        does("reply b'!'"),
        handler_of(lambda self: self.request[1].sendto(b"!", self.client_address)),
        does("write b'!'"),
    ],
    ids=["reply", "sendto", "wfile"],
)


@each_sender
@pytest.mark.parametrize("address", ["", ("10.0.0.1", 0), ("fe80::1", 0, 0, 2)])
async def test_client_without_a_way_back(handler, address, autojump_clock):
    """UD-09: a reply to port 0, or to an unbound Unix client, ends that request alone."""
    async with exchange(handler, b"?", client=address) as it:
        assert it.witness.outcomes == ["disconnected"]
        assert "cannot be reached" not in it.witness.records[0].reason  # it was not even tried
        assert await ask(it.server) == b"!"
    assert it.server.errors == []


@each_sender
@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        *(("disconnected", name) for name in ["ECONNREFUSED", "ECONNRESET", "ENOENT", "EPIPE"]),
        *(("disconnected", name) for name in ["EPERM", "EACCES", "EHOSTUNREACH", "EPROTOTYPE"]),
        *(("failed", name) for name in ["ENOBUFS", "ENOMEM", "EINVAL", "EMSGSIZE", "EBADF"]),
    ],
)
async def test_errors_of_a_send_are_contained(handler, name, outcome, autojump_clock):
    """UD-13, UX-12: what a send meets ends its request, and is the client's doing or an error."""
    code = getattr(errno, name)

    class Gone(MemoryDatagramClient):
        def take_in(self, data):
            raise OSError(code, os.strerror(code))

    async with exchange(handler) as it:
        it.server.listener.clients["gone"] = client = Gone("gone", it.server.listener)
        client.send_now(b"?")
        await wait_all_tasks_blocked()
        assert it.witness.outcomes == [outcome]
        assert await ask(it.server) == b"!"
    assert [error.errno for error in it.server.errors] == [code] * (outcome == "failed")


@pytest.mark.parametrize(
    ("capacity", "kind", "duration"), [(None, ConnectionRefusedError, 0), (1, TimeoutError, 30)]
)
async def test_somebody_else_is_the_handlers_affair(capacity, kind, duration, autojump_clock):
    """UX-12: a third party that is absent, or does not read, is the handler's own plain error."""
    async with exchange(does("sendto b'x', 'friend'; sendto b'x', 'friend'")) as it:
        if capacity is not None:
            it.server.client("friend", capacity=capacity)
        await it.sends(b"?")
        await trio.sleep(40)
    assert [type(error) for error in it.server.errors] == [kind]
    assert [(it.outcome, it.duration) for it in it.witness.records] == [("failed", duration)]


async def test_caught_peer_gone_lets_the_handler_go_on(autojump_clock):
    """A handler that catches PeerGone goes on, and may tell somebody else."""
    steps = "reply b'you' -> PeerGone; reply b'you' -> ConnectionError; sendto b'them', 'friend'"
    async with exchange(does(steps), client="") as it:
        friend = it.server.client("friend")
        await it.sends(b"?")
        assert friend.received() == [b"them"]


@pytest.mark.parametrize(
    "name", ["ECONNREFUSED", "ECONNRESET", "EMSGSIZE", "ENETDOWN", "EPERM", "ENOBUFS", "ENOMEM"]
)
async def test_errors_of_a_receive_are_contained(name, autojump_clock):
    """UD-13: what an earlier reply met, told by a receive, is counted; the server goes on."""
    async with exchange(echo) as it:
        for count in (1, 2, 3):
            it.server.listener.fail(*[OSError(getattr(errno, name), "injected")] * count)
            assert await ask(it.server, b"%d" % count) == b"%d" % count
        assert it.server.statistics().accept_errors == 6


async def test_broken_listener_stops_the_server(autojump_clock):
    """An error of a receive that is nobody's own is raised, and every request closed."""
    error = OSError(errno.EBADF, "injected")
    server = MemoryDatagramServer(("memory", 1), hold)
    async with memory.ending_by(error, server):
        server.client().send_now(b"?")
        await wait_all_tasks_blocked()
        server.listener.fail(error)
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1


# A client that does not receive ------------------------------------------------


@each_sender
async def test_full_client_blocks_its_own_request_alone(handler, autojump_clock):
    """UD-14: who never reads is given timeouts.write; everybody else is served meanwhile."""
    async with exchange(handler, *[b"?"] * 4, capacity=1) as it:
        assert it.witness.outcomes == ["completed"]
        assert {request.state for request in it.server.snapshot().requests} == {"writing"}
        for _ in range(10):
            assert await ask(it.server) == b"!"
            await trio.sleep(1)
        assert it.client.received() == [b"!"]  # makes room for one of the three
        await trio.sleep(100)
        assert it.client.received() == [b"!"]
    late = [record for record in it.witness.records if record.outcome == "timed_out"]
    assert [record.duration for record in late] == [30, 30]
    assert all("(write)" in record.reason for record in late)
    assert it.server.errors == []


@pytest.mark.parametrize("in_time", [True, False])
async def test_last_look_when_the_time_is_up(in_time, autojump_clock):
    """A send looks once more when its time is up: room made in time counts."""
    async with exchange(echo, b"?", capacity=0) as it:
        await trio.sleep(29)
        it.client.capacity = int(in_time)  # nobody is woken by that
        await trio.sleep(2)
        assert it.client.received() == [b"?"] * in_time
    assert it.witness.outcomes == ["completed" if in_time else "timed_out"]


async def test_cancelled_wait_has_sent_nothing(autojump_clock):
    """CX-09: a send that was cancelled while it waited has sent nothing, and can be repeated."""

    async def insist(request, client_address, server):
        with trio.move_on_after(1) as scope:
            await request.reply(b"first")
        assert scope.cancelled_caught
        assert (request.bytes_sent, request.state) == (0, "working")
        await request.reply(b"second")

    async with exchange(insist, b"?", capacity=0) as it:
        await trio.sleep(2)
        it.client.capacity = 5
        it.client.received()
        await wait_all_tasks_blocked()
        assert it.client.received() == [b"second"]


@pytest.mark.parametrize("capacity", [0, 1])
async def test_close_ends_the_sends_that_wait(capacity, autojump_clock):
    """A send that waits when its request is closed raises at once, and sends nothing later."""
    ended = []

    async def send(request):
        with pytest.raises(trio.ClosedResourceError):
            await request.reply(b"x")
        ended.append(trio.current_time())

    async def handle(request, client_address, server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, request)
            await wait_all_tasks_blocked()
            it.client.capacity = capacity
            request.close()

    async with exchange(handle, capacity=0) as it:
        await it.sends(b"?")
        await trio.sleep(50)
        assert (ended, it.client.received()) == ([0] * 3, [])
    assert it.witness.outcomes == ["completed"]


@pytest.mark.parametrize("end", ["", "; write 'text'"])
async def test_nothing_leaves_after_the_request(end, autojump_clock):
    """When the request is over, every send and read raises ClosedResourceError."""
    old = []

    def keep(self):
        old.append(self)

    handler = does(f"keep; write b'!'{end}", CLASSES[2], keep=keep)
    async with exchange(handler, b"left") as it:
        [handler] = old
        request = handler.request
        for late in [
            partial(request.reply, b"late"),
            partial(request.socket.sendto, b"late", it.client.address),
            partial(handler.wfile.write, b"late"),
            *(handler.wfile.flush, handler.rfile.read, handler.rfile.readline, handler.rfile.more),
        ]:
            with pytest.raises(trio.ClosedResourceError):
                await late()
        assert (request.state, handler.rfile.closed, handler.wfile.closed) == ("closed", True, True)
        request.close()
        await request.aclose()
        assert it.client.received() == [b"!"] * (not end)
