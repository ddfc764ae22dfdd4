"""What can be wrong with a network: each fault, in memory to the second, and on real sockets."""

import errno
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import Upper, descriptors, read_to_end, reset
from support.scenes import table
from support.speaking import (
    EVERYWHERE,
    ON_SOCKETS,
    ON_THE_INTERNET,
    Back,
    all_wait,
    answer,
    echo,
    pieces,
    says_and_hears,
    speaks,
)

import trioserver
from trioserver.testing import (
    AcceptError,
    Bandwidth,
    Cancel,
    Duplicate,
    Faults,
    Latency,
    LimitData,
    Loss,
    Refuse,
    Reorder,
    Reset,
    ShutDown,
    Slice,
    SlowClose,
    Stall,
    Unmet,
    expect,
    expect_eof,
    open_descriptors,
    open_scripted_server,
    open_test_server,
    pause,
    reply,
    sweep,
)

HELLO = [b"hello\n"[i : i + 1] for i in range(6)]


class Notes:
    """Notes what it receives, piece by piece, and when each byte; answers it all at the end."""

    def __init__(self):
        self.pieces = []
        self.times = []

    async def __call__(self, request, address, server):
        while data := await request.recv():
            self.pieces.append(data)
            self.times += [trio.current_time()] * len(data)
        await request.sendall(b"".join(self.pieces).upper())


def patient(handler):
    """A server without time-outs."""
    patience = trioserver.Timeouts(idle=math.inf, line=math.inf, write=math.inf)
    return trioserver.TCPServer(("127.0.0.1", 0), handler, timeouts=patience)


@EVERYWHERE
async def test_without_faults_nothing_is_different(where):
    """Megabytes both ways at once, half-close, and the end; a client's reset is an error."""
    data = bytes(range(256)) * 8192

    async def send():
        await client.send_all(data)
        await client.send_eof()

    async with open_test_server(echo, transport=where, faults=Faults()) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_to_end(client) == data
        client = await speaks(server)
        assert await client.receive_some() == b"hello\n"
        if where == "memory":
            client.reset()
        else:
            reset(client.socket)
        exchanges = await server.wait_requests(2)
    ends = "completed" if where == "unix" else "disconnected"  # Unix sockets have no reset
    assert [str(one.outcome) for one in exchanges] == ["completed", ends]


@attrs.frozen(eq=False)
class Way:
    """What a client says when, before it ends its output, and what comes of it; None: whatever."""

    faults: list[Any]
    ends_at: Any
    says: Mapping[float, bytes] = attrs.field(factory=lambda: {0: b"hello\n"})
    arrives: list[bytes] | None = attrs.field(default=None, kw_only=True)  # in these pieces...
    times: list[float] | None = attrs.field(default=None, kw_only=True)  # ...each byte then
    comes: list[bytes] | None = attrs.field(default=None, kw_only=True)  # back, in these pieces
    first_at: float | None = attrs.field(default=None, kw_only=True)  # the first of them


NO_TIME = pytest.approx(0, abs=1e-9)
NOTHING = [
    *(Latency(0), Slice(10**9), Bandwidth(math.inf), Bandwidth(1e300)),
    *(LimitData(10**30), Loss(0), Duplicate(0), Reorder(0)),
]
UPPER = [letter.upper() for letter in HELLO]
LETTERS = [b"a", b"b", b"c", b"d"]
XS = dict.fromkeys(range(10), b"x")
SLOWLY = Slice(1, delay=30, towards="server")
RATES = [Bandwidth(2), Bandwidth(1)]
MIXED = [Latency(10), Latency(5, towards="server"), *RATES, Slice(3), Slice(2)]


@table(
    "way",
    {
        "half an hour of latency, exactly, in no time": Way(
            [Latency(900)], 1800, times=[900] * 6, comes=[b"HELLO\n"]
        ),
        "latency delays what follows no further, and nothing the other way": Way(
            [Latency(60, towards="server")], 69, XS, times=[60 + second for second in range(10)]
        ),
        "a byte a second; each way has its own": Way(
            [Bandwidth(1)], 8, {0: b"abcd"}, arrives=LETTERS, times=[1, 2, 3, 4]
        ),
        "a hundred a second": Way([Bandwidth(100)], pytest.approx(20), {0: bytes(1000)}),
        "slices without a delay take no time": Way([Slice()], 0, arrives=HELLO, comes=UPPER),
        "six bytes, half a minute between two, and the last delay": Way(
            [SLOWLY], 180, times=[0, 30, 60, 90, 120, 150], comes=[b"HELLO\n"]
        ),
        "a stall gives up some time after the first byte that was held up": Way(
            [Stall(10, towards="client")], 110, {100: b"hello\n"}, comes=[]
        ),
        "what was said before a slow close is not late": Way(
            [SlowClose(30, towards="client")], 30, comes=[b"HELLO\n"], first_at=0
        ),
        "latencies add up; of rates the lower one counts, of slices the smaller": Way(
            MIXED, 33, {0: b"abcd"}, arrives=LETTERS, times=[16, 17, 18, 19]
        ),
        **{
            f"{fault!r} changes nothing": Way([fault], NO_TIME, comes=[b"HELLO\n"])
            for fault in NOTHING
        },
    },
)
async def test_streams(way, autojump_clock):
    """What a client says arrives as the faults have it, and so does the answer."""
    notes = Notes()
    async with open_test_server(patient(notes), faults=way.faults) as server:
        client = await server.connect()
        for instant, said in way.says.items():
            await trio.sleep_until(instant)
            await client.send_all(said)
        await client.send_eof()
        come = [(piece, trio.current_time()) async for piece in client]
        assert trio.current_time() == way.ends_at
    assert way.arrives in (None, notes.pieces)
    assert way.times in (None, notes.times)
    assert way.comes in (None, [piece for piece, _ in come])
    assert way.first_at is None or way.first_at == come[0][1]


async def test_seed_and_connection_decide_what_is_left_to_chance(autojump_clock):
    """CK-03: what one connection does changes nothing for another; jitter keeps the order."""
    numbers = [b"%02d" % number for number in range(20)]

    async def arrival(seed, busy):
        notes, began = Notes(), trio.current_time()
        faults = Faults(Latency(10, jitter=10, towards="server"), seed=seed)
        async with open_test_server(patient(notes), faults=faults) as server:
            other, client = await server.connect(), await server.connect()
            for number in numbers:
                await other.send_all(b"x" * busy)
                await client.send_all(number)
                await trio.sleep(1)
            await client.send_eof()
            await read_to_end(client)
        came = zip(b"".join(notes.pieces), notes.times, strict=True)
        came = [(byte, round(time - began, 6)) for byte, time in came if byte != ord("x")]
        assert bytes(byte for byte, _ in came) == b"".join(numbers)
        return came

    first, again, another = [await arrival(*it) for it in ((1, 0), (1, 7), (2, 0))]
    assert first == again != another


@pytest.mark.parametrize("fault", [Latency(1000), Stall()], ids=repr)
async def test_what_is_held_up_arrives_when_the_fault_is_gone(fault, autojump_clock):
    """In the middle of a test."""
    async with open_test_server(patient(Upper), faults=[fault]) as server:
        client = await speaks(server)
        with trio.move_on_after(900):
            await client.receive_some()
            raise AssertionError("something has arrived")
        server.faults.remove(fault)
        assert await client.receive_some() == b"HELLO\n"
        assert trio.current_time() == 900
        with server.faults.during(Latency(5)):
            await says_and_hears(client, b"again\n", b"AGAIN\n")
        assert trio.current_time() == 910
        assert len(server.faults) == 0


@ON_SOCKETS
async def test_real_sockets(where):
    """Slices come one by one towards the server, towards a client with a delay; late, at least."""
    notes = Notes()
    faults = [Slice(1, towards="server"), Slice(2, delay=0.02, towards="client"), Latency(0.05)]
    async with open_test_server(notes, transport=where, faults=faults) as server:
        began = trio.current_time()
        assert await pieces(server) == [b"HE", b"LL", b"O\n"]
        assert trio.current_time() - began >= 0.1
    assert notes.pieces == HELLO


@EVERYWHERE
@pytest.mark.parametrize(("size", "got"), [(0, b""), (3, b"HEL"), (6, b"HELLO\n")])
async def test_limit_of_data(where, size, got):
    """The connection is closed when so many bytes have passed, in order; at once if none may."""
    faults = [LimitData(size, towards="client" if size else None)]
    async with open_test_server(Upper, transport=where, faults=faults) as server:
        assert await read_to_end(await speaks(server, b"hello\n" if size else b"")) == got


@ON_THE_INTERNET
async def test_resets(where):
    """After some bytes, for both sides; in mid-test, for old clients and new; and a `Refuse`."""
    faults = [Reset(after=3, towards="server")]
    async with open_test_server(Notes(), transport=where, faults=faults) as server:
        with pytest.raises(trio.BrokenResourceError):
            await answer(server)
        [exchange] = await server.wait_requests()
        assert str(exchange.outcome) == "disconnected"
        server.faults.clear()
        client = await speaks(server)
        await all_wait()
        server.faults.add(Reset())
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
            client = await server.connect()
        server.faults.clear()
        with server.faults.during(Refuse()), pytest.raises((OSError, trio.BrokenResourceError)):
            await read_to_end(await server.connect())


@pytest.mark.parametrize("fault", [Reset(), LimitData(0)], ids=repr)
async def test_fault_that_is_there_for_no_step(fault, autojump_clock):
    """What ends every connection there is at once ends it at once."""
    async with open_test_server(Upper, strict=False) as server:
        client = await server.connect()
        await says_and_hears(client, b"x\n", b"X\n")
        with server.faults.during(fault):
            pass
        resets = isinstance(fault, Reset)
        with pytest.raises(trio.BrokenResourceError) if resets else nullcontext():
            assert await client.receive_some() == b""


@ON_THE_INTERNET
async def test_accept_error(where, caplog):
    """The server survives it; the client is served when it is over."""
    faults = Faults(AcceptError(errno.EMFILE, times=2))
    async with open_test_server(Upper, transport=where, faults=faults) as server:
        assert await answer(server) == b"HELLO\n"
        assert server.server.statistics().accept_errors == 2
        assert len(server.faults) == 0
    assert "again, after 2 errors" in caplog.text


async def test_refusals(autojump_clock):
    """For as long as there is a `Refuse`; a fatal error of an accept ends the test, with that."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        async with open_test_server(Upper) as server:
            with server.faults.during(Refuse()), pytest.raises(ConnectionRefusedError):
                await server.connect()
            await server.connect()
            server.faults.add(AcceptError(errno.EBADF))
            await trio.sleep_forever()


# Datagrams ------------------------------------------------------------------------------

TEN = [b"%d" % number for number in range(10)]


async def exchange_ten(*faults, seed=0):
    """Send ten, one a second: what arrives, and when, and the replies."""
    seen, began = [], trio.current_time()

    async def notes_and_replies(request, address, server):
        seen.append((request.data, trio.current_time() - began))
        await request.reply(request.data)

    server = trioserver.UDPServer(("127.0.0.1", 0), notes_and_replies)
    async with open_test_server(server, faults=Faults(*faults, seed=seed)) as running:
        client = await running.client()
        for data in TEN:
            await client.send(data)
            await trio.sleep(1)
        await trio.sleep(100)
        return seen, client.received()


@table(
    ("faults", "late", "times", "replied"),
    {
        "without faults they arrive in their order, at once": ([], 0, 1, 1),
        "all are lost on their way there": ([Loss(1, towards="server")], 0, 0, 0),
        "none is lost": ([Loss(0)], 0, 1, 1),
        "replies are lost, and the server does not know": ([Loss(towards="client")], 0, 1, 0),
        "each way has its own duplicates": ([Duplicate()], 0, 2, 4),
        "the reply is late, too, though the request ended long ago": ([Latency(30)], 30, 1, 1),
    },
)
async def test_datagrams(faults, late, times, replied, autojump_clock):
    """Each arrives so late, and so many times, and so many replies do."""
    arrived, replies = await exchange_ten(*faults)
    assert arrived == [(data, int(data) + late) for data in TEN for _ in range(times)]
    assert replies == [data for data in TEN for _ in range(replied)]


async def test_chance_of_datagrams(autojump_clock):
    """Which are lost the seed decides; some overtake others, and all arrive."""
    some, again, other = [await exchange_ten(Loss(0.5), seed=seed) for seed in (1, 1, 2)]
    assert 0 < len(some[1]) < 10
    assert some == again != other
    seen, _ = await exchange_ten(Reorder(0.5, seconds=5, towards="server"))
    arrived = [data for data, _ in seen]
    assert sorted(arrived) == TEN != arrived
    assert {time - int(data) for data, time in seen} == {0, 5}


async def test_duplicates_that_have_no_room(autojump_clock):
    """A copy for which there is none is lost; the reply is not sent again for its sake."""
    async with open_test_server(Back, faults=[Duplicate(towards="client")]) as server:
        client = await server.client()
        client.capacity = 1
        await client.send(b"1")
        [exchange] = await server.wait_requests()
        assert (client.received(), str(exchange.outcome)) == ([b"1"], "completed")


@pytest.mark.parametrize("where", ["memory", "udp", "unix"])
async def test_faults_of_real_datagrams(where):
    """Twice there, late back; an error of a receive is as one of an accept."""
    faults = [Duplicate(towards="server"), Latency(0.05, towards="client"), AcceptError()]
    async with open_test_server(Back, transport=where, faults=faults) as server:
        client = await server.client()
        began = trio.current_time()
        await client.send(b"1")
        assert [await client.receive(), await client.receive()] == [b"1", b"1"]
        assert trio.current_time() - began >= 0.05
        await server.wait_requests(2)
        assert server.server.statistics().accept_errors == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Latency(True), TypeError, "not True"),
        (lambda: Latency(0, jitter=math.inf), ValueError, "Latency.jitter .* not inf"),
        (lambda: Latency(math.nan), ValueError, "not nan"),
        (lambda: Latency(1, towards="up"), ValueError, "Latency.towards must be 'server', 'cli"),
        (lambda: Bandwidth(0), ValueError, "Bandwidth.rate must be a number of bytes a second"),
        (lambda: Slice(0), ValueError, "Slice.size must be at least 1 bytes, not 0"),
        (lambda: Reset("x"), TypeError, "Reset.after must be a whole number bytes, not 'x'"),
        (lambda: Stall(-1), ValueError, "Stall.seconds must be a number of seconds of at least 0"),
        (lambda: AcceptError(times=0), ValueError, "AcceptError.times"),
        (lambda: Loss(1.5), ValueError, "Loss.share must be from 0 to 1, not 1.5"),
        (lambda: Duplicate("x"), TypeError, "Duplicate.share must be a number from 0 to 1"),
        (lambda: Reorder(seconds=-1), ValueError, "Reorder.seconds"),
        (lambda: Faults(Latency), TypeError, "a fault is one of Latency, .*, not <class"),
        (lambda: Faults().remove(Refuse()), ValueError, r"Refuse\(\) is not there: there are \[\]"),
    ],
)
def test_what_is_no_fault(make, error, message):
    """Says which field, what was expected, and what it was."""
    with pytest.raises(error, match=message):
        make()


OF_STREAMS = [Bandwidth(1), Slice(1), LimitData(1), Stall(), SlowClose(9), Reset(), Refuse()]
OF_DATAGRAMS = [Loss(), Duplicate(), Reorder()]


@pytest.mark.parametrize("fault", [*OF_STREAMS, *OF_DATAGRAMS], ids=lambda it: type(it).__name__)
async def test_fault_that_cannot_apply(fault, autojump_clock):
    """It would do nothing, and a test believe that it had tried it: refused, whenever it comes."""
    handler = Back if fault in OF_STREAMS else Upper
    message = "is a fault of (streams|datagrams), and this server has (datagrams|streams)"
    with pytest.raises(TypeError, match=message):
        async with open_test_server(handler, faults=[fault]):
            pass
    async with open_test_server(handler) as server:
        with pytest.raises(TypeError, match=message):
            server.faults.add(fault)
        with pytest.raises(TypeError, match=message), server.faults.during(fault):
            pass
        assert len(server.faults) == 0


async def test_faults_that_are_shared(autojump_clock):
    """They are for whichever of their networks they apply to, and afterwards for any.

    The end of a server mends its network for itself alone. Where nothing is strict, they may do
    nothing. They can be looked through while they change.
    """
    faults = Faults(Slice(1))
    async with (
        open_test_server(Upper, faults=faults) as streams,
        open_test_server(Back, faults=faults) as datagrams,
    ):
        faults.add(Loss())
        client = await datagrams.client()
        await client.send(b"lost")
        assert await pieces(streams) == UPPER
        assert datagrams.exchanges == []
    faults.add(Loss())
    async with open_test_server(Upper, faults=faults, strict=False) as server:
        assert await pieces(server) == UPPER
    for fault in faults:
        faults.remove(fault)
    assert repr(faults) == "<trioserver.testing.Faults: none>"


GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a client can meet whose server has ended."""


async def talk(server):
    """All that a client of streams does."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.receive_some()
    await client.send_eof()
    await read_to_end(client)
    await (await server.connect()).aclose()


async def send_datagrams(server, patience=5):
    """All that clients of datagrams do."""
    for _ in range(2):
        client = await server.client()
        for word in (b"one", b"two"):
            await client.send(word)
            with trio.move_on_after(patience):
                await client.receive()


WRONG_STREAMS = [
    *([], [Latency(0.1), Slice(2)], [Bandwidth(100)], [Stall(1)], [SlowClose(1)], [Reset(3)]),
    *([LimitData(3)], [Refuse()], [AcceptError()]),
]
WRONG_DATAGRAMS = [[], [Latency(0.1)], [Duplicate()], [Reorder(1.0)], [Loss()], [AcceptError()]]


async def follow(server):
    """What the script says."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.receive_some()
    await client.send_all(b"bye")
    await client.send_eof()
    await read_to_end(client)


SCRIPT = expect(b"hello\n"), reply(b"hi\n"), pause(1), expect(b"bye"), expect_eof()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "faults"),
    [
        *((talk, faults) for faults in WRONG_STREAMS),
        *((send_datagrams, faults) for faults in WRONG_DATAGRAMS),
        (follow, []),
    ],
    ids=lambda it: str(it) if isinstance(it, list) else it.__name__,
)
def test_server_ends_after_every_step(client, faults):
    """Whatever the client is in the midst of, a shutdown or a cancellation ends all in order."""

    async def scenario(trial):
        if client is follow:
            opened = open_scripted_server(*SCRIPT, guard=math.inf)
        else:
            handler, wrong = (Upper if client is talk else Back), (faults or None)
            opened = open_test_server(handler, faults=wrong, guard=math.inf)
        with suppress(Unmet):
            async with opened as server:
                trial.arm(server=server.server)
                with suppress(*GONE):
                    await client(server)
                with trio.move_on_after(5), suppress(RuntimeError):  # there may have been none
                    await server.wait_requests()
                await server.wait_idle()
                await server.stop()

    sweep(scenario, faults=[ShutDown(), ShutDown(0), Cancel()], seeds=[0])


@pytest.mark.parametrize("faulty", [False, True], ids=["no faults", "faults"])
@pytest.mark.parametrize(
    ("transport", "handler"), [("udp", Back), ("unix", Back), ("tcp", Upper), ("unix", Upper)]
)
async def test_server_ends_after_so_many_checkpoints(transport, handler, faulty):
    """The same on real sockets, whose steps are not the same twice."""
    faults = [Duplicate() if handler is Back else Slice(2)] if faulty else None

    async def visit(server):
        with suppress(*GONE):
            await (talk(server) if handler is Upper else send_datagrams(server, patience=0.02))

    for checkpoints in range(25):
        with trio.fail_after(10):
            async with (
                open_test_server(handler, transport=transport, faults=faults) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(visit, server)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                server.server.shutdown()


@pytest.mark.parametrize(
    "fault", [Loss(), Latency(100, towards="server"), Latency(100, towards="client"), Duplicate()]
)
async def test_no_datagram_keeps_the_socket_open(fault):
    """One that is lost, or still on its way when the server ends, has its way back closed."""
    before = descriptors()
    async with open_test_server(Back, transport="udp", faults=[fault]) as server:
        client = await server.client()
        for _ in range(3):
            await client.send(b"one")
        with trio.move_on_after(0.05):
            await client.receive()
    assert open_descriptors() == before
