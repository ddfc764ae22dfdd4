"""What can be wrong with a network: each fault, in memory to the second, and on real sockets."""

from __future__ import annotations

import errno
import itertools
import math
import socket
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from support import Upper, read_to_end
from trio.testing import MockClock

import trioserver
from trioserver.testing import (
    AcceptError,
    Bandwidth,
    Duplicate,
    Faults,
    Latency,
    LimitData,
    Loss,
    LossyListener,
    MemoryDatagramClient,
    MemoryDatagramListener,
    Refuse,
    Reorder,
    Reset,
    Slice,
    SlowClose,
    Stall,
    open_test_server,
)

REAL = ["tcp", "unix"]
RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
PATIENT = trioserver.Timeouts(idle=math.inf, line=math.inf, write=math.inf)


class Notes:
    """Notes what it receives, piece by piece, and when each byte; answers it all at the end."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.times: list[float] = []

    async def __call__(self, request: trioserver.Connection, address: Any, server: Any) -> None:
        while data := await request.recv():
            self.pieces.append(data)
            self.times += [trio.current_time()] * len(data)
        await request.sendall(b"".join(self.pieces).upper())


def patient(handler: Any) -> trioserver.TCPServer:
    """A server without time-outs."""
    return trioserver.TCPServer(("127.0.0.1", 0), handler, timeouts=PATIENT)


async def pieces_of(stream: trio.abc.ReceiveStream) -> list[bytes]:
    """All that comes, as it comes."""
    return [piece async for piece in stream]


# Nothing wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", *REAL])
async def test_without_faults_nothing_is_different(where: Any) -> None:
    """Megabytes both ways at once, half-close, and the end."""
    data = bytes(range(256)) * 8192

    async def echo(request: trioserver.Connection, address: Any, server: Any) -> None:
        async for piece in request:
            await request.sendall(piece)

    async with open_test_server(echo, transport=where, faults=Faults()) as server:
        client = await server.connect()

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_to_end(client) == data
        [exchange] = await server.wait_requests()
    assert exchange.outcome is trioserver.Outcome.COMPLETED


@pytest.mark.parametrize("where", ["memory", *REAL])
async def test_reset_of_a_client_reaches_the_server(where: Any) -> None:
    """As an error, not as an end."""
    async with open_test_server(Notes(), transport=where, faults=Faults()) as server:
        client = await server.connect()
        await client.send_all(b"hello")
        await trio.testing.wait_all_tasks_blocked(0.01)
        if where == "memory":
            assert isinstance(client, trioserver.Connection)
            client.reset()
        else:
            assert isinstance(client, trio.SocketStream)
            client.socket.setsockopt(*RESET)
            client.socket.close()
        [exchange] = await server.wait_requests()
    expected = "completed" if where == "unix" else "disconnected"  # Unix sockets have no reset
    assert str(exchange.outcome) == expected


async def test_who_does_not_read_is_noticed(autojump_clock: MockClock) -> None:
    """CK-02: each way has a bounded store, so the server's write waits, and times out."""

    async def floods(request: trioserver.Connection, address: Any, server: Any) -> None:
        while True:
            await request.sendall(bytes(100_000))

    quick = trioserver.TCPServer(("", 0), floods, timeouts=trioserver.Timeouts(write=7))
    async with open_test_server(quick) as server:
        await server.connect()
        [exchange] = await server.wait_requests()
        assert exchange.record is not None
        assert exchange.record.reason == "the peer took no byte for 7 s (write)"
        assert exchange.record.bytes_sent < 400_000
        assert trio.current_time() == 7


# Latency ------------------------------------------------------------------------------


async def test_half_an_hour_of_latency(autojump_clock: MockClock) -> None:
    """Exactly, each way, in no time."""
    async with open_test_server(patient(Upper), faults=[Latency(900)]) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() == 1800


@pytest.mark.slow
def test_a_thousand_times_the_same() -> None:
    """Not one of a thousand is different."""

    async def once() -> None:
        async with open_test_server(patient(Upper), faults=[Latency(900, jitter=300)]) as server:
            client = await server.connect()
            await client.send_all(b"hello\n")
            await client.receive_some()
            times.append(trio.current_time())

    times: list[float] = []
    for _ in range(1000):
        trio.run(once, clock=MockClock(autojump_threshold=0))
    assert len(set(times)) == 1
    assert 1200 < times[0] < 2400


async def test_latency_delays_what_follows_no_further(autojump_clock: MockClock) -> None:
    """Ten pieces a second apart arrive a second apart."""
    notes = Notes()
    async with open_test_server(patient(notes), faults=[Latency(60, towards="server")]) as server:
        client = await server.connect()
        for _ in range(10):
            await client.send_all(b"x")
            await trio.sleep(1)
        await client.send_eof()
        await read_to_end(client)
    assert notes.times == [60 + number for number in range(10)]
    assert trio.current_time() == 70  # nothing is late the other way


async def test_jitter_keeps_the_order(autojump_clock: MockClock) -> None:
    """On a stream; by chance, which the seed decides."""

    async def times(seed: int) -> list[float]:
        notes, began = Notes(), trio.current_time()
        faults = Faults(Latency(10, jitter=10, towards="server"), seed=seed)
        async with open_test_server(patient(notes), faults=faults) as server:
            client = await server.connect()
            for number in range(20):
                await client.send_all(b"%02d" % number)
                await trio.sleep(1)
            await client.send_eof()
            await read_to_end(client)
        assert b"".join(notes.pieces) == b"".join(b"%02d" % number for number in range(20))
        return [round(time - began, 6) for time in notes.times]

    first, again, other = await times(1), await times(1), await times(2)
    assert first == again
    assert first != other


async def test_clearing_a_latency_has_everything_arrive(autojump_clock: MockClock) -> None:
    """In the middle of a test."""
    async with open_test_server(patient(Upper), faults=[Latency(1000)]) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await trio.sleep(10)
        server.faults.clear()
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() == 10
        with server.faults.during(Latency(5)):
            await client.send_all(b"again\n")
            assert await client.receive_some() == b"AGAIN\n"
        assert trio.current_time() == 20
        assert len(server.faults) == 0


@pytest.mark.parametrize("where", REAL)
async def test_latency_on_a_real_socket(where: Any) -> None:
    """At least so long, by the real clock."""
    async with open_test_server(Upper, transport=where, faults=[Latency(0.05)]) as server:
        client = await server.connect()
        began = trio.current_time()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() - began >= 0.1


# Bandwidth and slices -------------------------------------------------------------------


async def test_bandwidth(autojump_clock: MockClock) -> None:
    """A thousand bytes at a hundred a second are ten seconds; each way has its own."""
    notes = Notes()
    async with open_test_server(patient(notes), faults=[Bandwidth(100)]) as server:
        client = await server.connect()
        await client.send_all(bytes(1000))
        await client.send_eof()
        await read_to_end(client)
    assert notes.times[-1] == pytest.approx(10)
    assert trio.current_time() == pytest.approx(20)


async def test_slices_of_a_byte(autojump_clock: MockClock) -> None:
    """Every receive gets one byte, whoever receives; without a delay it takes no time."""
    notes = Notes()
    async with open_test_server(notes, faults=[Slice()]) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await client.send_eof()
        assert await pieces_of(client) == [b"H", b"E", b"L", b"L", b"O", b"\n"]
    assert notes.pieces == [b"h", b"e", b"l", b"l", b"o", b"\n"]
    assert trio.current_time() == 0


async def test_slices_with_a_delay(autojump_clock: MockClock) -> None:
    """Six bytes, half a minute between two: exactly 180 seconds with the last delay."""
    notes = Notes()
    slices = Slice(1, delay=30, towards="server")
    async with open_test_server(patient(notes), faults=[slices]) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await client.send_eof()
        assert await pieces_of(client) == [b"HELLO\n"]
    assert notes.times == [0, 30, 60, 90, 120, 150]
    assert trio.current_time() == 180


@pytest.mark.parametrize("where", REAL)
async def test_slices_on_a_real_socket(where: Any) -> None:
    """Towards the server one by one in any case; towards a client with a delay."""
    notes = Notes()
    faults = [Slice(1, towards="server"), Slice(2, delay=0.02, towards="client")]
    async with open_test_server(notes, transport=where, faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"hello!")
        await client.send_eof()
        assert await pieces_of(client) == [b"HE", b"LL", b"O!"]
    assert notes.pieces == [b"h", b"e", b"l", b"l", b"o", b"!"]


# Ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", *REAL])
@pytest.mark.parametrize(("size", "got"), [(3, b"HEL"), (6, b"HELLO\n")])
async def test_limit_of_data(where: Any, size: int, got: bytes) -> None:
    """The connection is closed when so many bytes have passed, in order."""
    faults = [LimitData(size, towards="client")]
    async with open_test_server(Upper, transport=where, faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await read_to_end(client) == got


@pytest.mark.parametrize("where", ["memory", *REAL])
async def test_limit_of_no_data(where: Any) -> None:
    """Then it is closed at once."""
    async with open_test_server(Upper, transport=where, faults=[LimitData(0)]) as server:
        assert await read_to_end(await server.connect()) == b""


@pytest.mark.parametrize("where", ["memory", "tcp"])
async def test_reset_after_some_bytes(where: Any) -> None:
    """For both sides."""
    faults = [Reset(after=3, towards="server")]
    async with open_test_server(Notes(), transport=where, faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
        [exchange] = await server.wait_requests()
    assert str(exchange.outcome) == "disconnected"


@pytest.mark.parametrize("where", ["memory", "tcp"])
async def test_reset_in_the_middle_of_a_test(where: Any) -> None:
    """Connections that are idle notice it at once; new ones are not better off."""
    async with open_test_server(Notes(), transport=where, faults=Faults()) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.faults.add(Reset())
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
            client = await server.connect()


async def test_stall(autojump_clock: MockClock) -> None:
    """Nothing arrives; when it is gone, everything does."""
    async with open_test_server(patient(Upper), faults=[stall := Stall()]) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        with trio.move_on_after(3600):
            await client.receive_some()
            raise AssertionError("something has arrived")
        server.faults.remove(stall)
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() == 3600


async def test_stall_that_gives_up(autojump_clock: MockClock) -> None:
    """From the first byte that was held up."""
    faults = [Stall(10, towards="client")]
    async with open_test_server(patient(Upper), faults=faults) as server:
        client = await server.connect()
        await trio.sleep(100)
        await client.send_all(b"hello\n")
        assert await read_to_end(client) == b""
        assert trio.current_time() == 110


async def test_slow_close(autojump_clock: MockClock) -> None:
    """What was said before is not late."""
    faults = [SlowClose(30, towards="client")]
    async with open_test_server(patient(Upper), faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await client.send_eof()
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() == 0
        assert await client.receive_some() == b""
        assert trio.current_time() == 30


# Accepting ------------------------------------------------------------------------------


async def test_refuse(autojump_clock: MockClock) -> None:
    """For as long as it is there."""
    async with open_test_server(Upper) as server:
        with server.faults.during(Refuse()), pytest.raises(ConnectionRefusedError):
            await server.connect()
        await server.connect()


@pytest.mark.parametrize("where", ["memory", "tcp"])
async def test_accept_error(where: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The server survives it; the client is served when it is over."""
    faults = Faults(AcceptError(errno.EMFILE, times=2))
    async with open_test_server(Upper, transport=where, faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        assert server.server.statistics().accept_errors == 2
        assert len(server.faults) == 0
        await client.send_eof()
    assert "again, after 2 errors" in caplog.text


async def test_fatal_accept_error_ends_the_server(autojump_clock: MockClock) -> None:
    """And the test, with that error."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        async with open_test_server(Upper, faults=[AcceptError(errno.EBADF)]) as server:
            await server.connect()
            await trio.sleep_forever()


# Datagrams ------------------------------------------------------------------------------


class Numbers(trioserver.DatagramRequestHandler):
    """Notes what arrives, and when; replies with it."""

    seen: ClassVar[list[tuple[bytes, float]]] = []

    async def handle(self) -> None:
        data = await self.rfile.read()
        self.seen.append((data, trio.current_time()))
        await self.wfile.write(data)


@pytest.fixture
def seen() -> list[tuple[bytes, float]]:
    """What `Numbers` has seen in this test."""
    Numbers.seen.clear()
    return Numbers.seen


async def exchange_ten(*faults: Any, seed: int = 0) -> list[bytes]:
    """Send ten, one a second; what is replied."""
    async with open_test_server(Numbers, faults=Faults(*faults, seed=seed)) as server:
        client = await server.client()
        for number in range(10):
            await client.send(b"%d" % number)
            await trio.sleep(1)
        await trio.sleep(100)
        assert isinstance(client, MemoryDatagramClient)
        return client.received()


async def test_datagrams_without_faults(seen: Any, autojump_clock: MockClock) -> None:
    """Arrive in their order, at once."""
    assert await exchange_ten() == [b"%d" % number for number in range(10)]
    assert seen == [(b"%d" % number, number) for number in range(10)]


async def test_loss(seen: Any, autojump_clock: MockClock) -> None:
    """Of all, of none, of some: which, the seed decides."""
    assert await exchange_ten(Loss(1, towards="server")) == []
    assert seen == []
    assert len(await exchange_ten(Loss(0))) == 10
    some = await exchange_ten(Loss(0.5), seed=1)
    assert 0 < len(some) < 10
    assert await exchange_ten(Loss(0.5), seed=1) == some
    assert await exchange_ten(Loss(0.5), seed=2) != some


async def test_lost_replies(seen: Any, autojump_clock: MockClock) -> None:
    """The server does not know."""
    assert await exchange_ten(Loss(towards="client")) == []
    assert len(seen) == 10


async def test_duplicates(seen: Any, autojump_clock: MockClock) -> None:
    """Each way by itself."""
    assert len(await exchange_ten(Duplicate())) == 40
    assert len(seen) == 20


async def test_duplicates_that_have_no_room(autojump_clock: MockClock) -> None:
    """A copy for which there is none is lost; the reply is not sent again for its sake."""
    async with trio.open_nursery() as nursery:
        beneath = MemoryDatagramListener(("memory", 1))
        listener = LossyListener(beneath, Faults(Duplicate(towards="client")), nursery)
        client = beneath.client(capacity=1)
        client.send_now(b"1")
        accepted = listener.accept_now()
        assert accepted is not None
        datagram, address = accepted
        assert datagram.send_now(b"A", address)
        assert client.received() == [b"A"]
        nursery.cancel_scope.cancel()


async def test_datagrams_overtake(seen: Any, autojump_clock: MockClock) -> None:
    """By chance; all arrive."""
    await exchange_ten(Reorder(0.5, seconds=5, towards="server"))
    arrived = [data for data, _ in seen]
    assert sorted(arrived) == [b"%d" % number for number in range(10)]
    assert arrived != sorted(arrived)
    assert {time - int(data) for data, time in seen} == {0, 5}


async def test_late_datagrams(seen: Any, autojump_clock: MockClock) -> None:
    """Each way; the reply comes though the request has ended long ago."""
    assert len(await exchange_ten(Latency(30))) == 10
    assert seen[0] == (b"0", 30)


@pytest.mark.parametrize("where", ["udp", "unix"])
async def test_faults_of_real_datagrams(where: Any, seen: Any) -> None:
    """Twice there, late back."""
    faults = [Duplicate(towards="server"), Latency(0.05, towards="client")]
    async with open_test_server(Numbers, transport=where, faults=faults) as server:
        client = await server.client()
        began = trio.current_time()
        await client.send(b"1")
        assert [await client.receive(), await client.receive()] == [b"1", b"1"]
        assert trio.current_time() - began >= 0.05
        await server.wait_requests(2)


async def test_receive_error(autojump_clock: MockClock) -> None:
    """As of an accept."""
    async with open_test_server(Numbers, faults=[AcceptError(errno.ENOBUFS)]) as server:
        client = await server.client()
        await client.send(b"1")
        assert await client.receive() == b"1"
        assert server.server.statistics().accept_errors == 1


# Together ---------------------------------------------------------------------------------


async def test_faults_compose(autojump_clock: MockClock) -> None:
    """Latency of two kinds adds up, of two rates the lower one counts, of slices the smaller."""
    notes = Notes()
    faults = [
        Latency(10),
        Latency(5, towards="server"),
        Bandwidth(2),
        Bandwidth(1),
        Slice(3),
        Slice(2),
    ]
    async with open_test_server(patient(notes), faults=faults) as server:
        client = await server.connect()
        await client.send_all(b"abcd")
        await client.send_eof()
        await read_to_end(client)
    assert notes.pieces == [b"a", b"b", b"c", b"d"]
    assert notes.times == [16, 17, 18, 19]


async def test_seed_and_connection_decide_all_that_is_left_to_chance(
    autojump_clock: MockClock,
) -> None:
    """CK-03: what one connection does changes nothing for another."""

    async def arrivals(busy: int) -> float:
        notes, faults = Notes(), Faults(Latency(10, jitter=5), seed=3)
        began = trio.current_time()
        async with open_test_server(patient(notes), faults=faults) as server:
            first = await server.connect()
            second = await server.connect()
            for _ in range(busy):
                await first.send_all(b"x")
            await second.send_all(b"y")
            await second.send_eof()
            await read_to_end(second)
            return trio.current_time() - began

    assert await arrivals(0) == await arrivals(7)


# What is no fault ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Latency(-1), ValueError, "Latency.seconds must be a number of seconds of at"),
        (lambda: Latency("1"), TypeError, "Latency.seconds must be a number of seconds, not '1'"),
        (lambda: Latency(True), TypeError, "not True"),
        (lambda: Latency(math.inf), ValueError, "not inf"),
        (lambda: Latency(math.nan), ValueError, "not nan"),
        (
            lambda: Latency(1, towards="up"),
            ValueError,
            "Latency.towards must be 'server', 'client'",
        ),
        (lambda: Bandwidth(0), ValueError, "Bandwidth.rate must be a number of bytes a second"),
        (lambda: Slice(0), ValueError, "Slice.size must be at least 1 bytes, not 0"),
        (lambda: Slice(1.5), TypeError, "Slice.size must be a whole number bytes, not 1.5"),
        (lambda: LimitData(-1), ValueError, "LimitData.size"),
        (lambda: Reset("x"), TypeError, "Reset.after"),
        (lambda: Stall(-1), ValueError, "Stall.seconds"),
        (lambda: SlowClose(None), TypeError, "SlowClose.seconds"),
        (lambda: AcceptError(0), ValueError, "AcceptError.errno"),
        (lambda: AcceptError(times=0), ValueError, "AcceptError.times"),
        (lambda: Loss(1.5), ValueError, "Loss.share must be from 0 to 1, not 1.5"),
        (lambda: Duplicate("x"), TypeError, "Duplicate.share must be a number from 0 to 1"),
        (lambda: Reorder(seconds=-1), ValueError, "Reorder.seconds"),
        (lambda: Faults("latency"), TypeError, "a fault is one of Latency, .* not 'latency'"),
        (lambda: Faults(Latency), TypeError, "a fault is one of"),
        (lambda: Faults().remove(Refuse()), ValueError, r"Refuse\(\) is not there: there are \[\]"),
    ],
)
def test_what_is_no_fault(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Says which field, what was expected, and what it was."""
    with pytest.raises(error, match=message):
        make()


def test_faults_show_what_they_are() -> None:
    """And can be looked through while they change."""
    faults = Faults(Latency(1), Refuse())
    assert repr(faults).startswith("<trioserver.testing.Faults: Latency(")
    for fault in faults:
        faults.remove(fault)
    assert repr(faults) == "<trioserver.testing.Faults: none>"
    assert list(itertools.chain(faults)) == []


# What cannot apply --------------------------------------------------------------------


class Back(trioserver.DatagramRequestHandler):
    """Answers every datagram with its bytes in reverse."""

    async def handle(self) -> None:
        await self.wfile.write((await self.rfile.read())[::-1])


OF_STREAMS = [
    *(Bandwidth(1), Slice(1), LimitData(1), Stall(), SlowClose(9), Reset(), Refuse()),
]
OF_DATAGRAMS = [Loss(), Duplicate(), Reorder()]


@pytest.mark.parametrize("transport", ["memory", "real"])
@pytest.mark.parametrize(
    ("handler", "fault"),
    [*((Back, fault) for fault in OF_STREAMS), *((Upper, fault) for fault in OF_DATAGRAMS)],
    ids=lambda it: type(it).__name__,
)
async def test_fault_that_cannot_apply(transport: Any, handler: Any, fault: Any) -> None:
    """It would do nothing, and a test believe that it had tried it: refused, whenever it comes."""
    where: Any = {"memory": "memory", "real": "udp" if handler is Back else "tcp"}[transport]
    message = "is a fault of (streams|datagrams), and this server has (datagrams|streams)"
    with pytest.raises(TypeError, match=message):
        async with open_test_server(handler, transport=where, faults=[fault]):
            pass
    with trio.fail_after(10):
        async with open_test_server(handler, transport=where, faults=Faults()) as server:
            with pytest.raises(TypeError, match=message):
                server.faults.add(fault)
            with pytest.raises(TypeError, match=message), server.faults.during(fault):
                pass
            assert len(server.faults) == 0


async def test_faults_that_are_shared(autojump_clock: MockClock) -> None:
    """They are for whichever of their networks they apply to, and afterwards for any."""
    faults = Faults()
    async with (
        open_test_server(Upper, faults=faults) as streams,
        open_test_server(Back, faults=faults) as datagrams,
    ):
        faults.add(Loss(), Slice(1))
        client = await datagrams.client()
        await client.send(b"lost")
        assert await pieces_of_hello(streams) == [b"H", b"E", b"L", b"L", b"O", b"\n"]
        assert datagrams.exchanges == []
    faults.add(Loss())


async def pieces_of_hello(server: Any) -> list[bytes]:
    """What comes back, as it comes."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.send_eof()
    return await pieces_of(client)


@pytest.mark.parametrize("fault", [Loss(0), Duplicate(0), Reorder(0)], ids=repr)
async def test_share_of_nothing(fault: Any, autojump_clock: MockClock) -> None:
    """It does nothing anywhere, and so is refused nowhere."""
    async with open_test_server(Upper, faults=[fault]) as server:
        assert b"".join(await pieces_of_hello(server)) == b"HELLO\n"


@pytest.mark.parametrize("fault", [Reset(), LimitData(0)], ids=repr)
async def test_fault_that_is_there_for_no_step(fault: Any, autojump_clock: MockClock) -> None:
    """What ends every connection there is at once ends it at once."""
    async with open_test_server(Upper, strict=False) as server:
        client = await server.connect()
        await client.send_all(b"x\n")
        await client.receive_some()
        with server.faults.during(fault):
            pass
        if isinstance(fault, Reset):
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        else:
            assert await client.receive_some() == b""


async def test_faults_that_need_not_apply(autojump_clock: MockClock) -> None:
    """Where nothing is strict, they may do nothing."""
    async with open_test_server(Upper, faults=OF_DATAGRAMS, strict=False) as server:
        assert b"".join(await pieces_of_hello(server)) == b"HELLO\n"


@pytest.mark.parametrize(
    "fault",
    [Latency(0), Slice(10**9), Bandwidth(math.inf), Bandwidth(1e300), LimitData(10**30)],
    ids=repr,
)
async def test_fault_that_changes_nothing(fault: Any, autojump_clock: MockClock) -> None:
    """A limit that is not reached, be it infinite, takes no time and loses nothing."""
    async with open_test_server(Upper, faults=[fault]) as server:
        assert await pieces_of_hello(server) == [b"HELLO\n"]
        assert trio.current_time() < 1e-9
