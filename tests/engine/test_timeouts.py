"""Time-outs: which wait each of them bounds, from when, and to the instant when it ends.

Almost everything runs in memory on a virtual clock, so instants are compared
with ``==``. The last section does the same once for each time-out on real
sockets, where only the lower bound is exact.
"""

import math
import socket
import time

import pytest
import trio
from support import Upper, Witness, plain_client, read_to_end, running
from support.memory import server_over
from support.pipes import does as steps
from support.scenes import Narrow, Scene, Visit, counts, does, drip, end, in_memory, on_tcp, table

import trioserver
from trioserver import Timeouts
from trioserver.testing import MemoryServer, MemoryTransport

FIELDS = ["handshake", "idle", "line", "write", "request", "linger", "shutdown", "cleanup"]


def timed(handler, does=None, **fields):
    """A scene; keywords that are time-outs are taken as such."""
    seconds = {name: fields.pop(name) for name in FIELDS if name in fields}
    return Scene(handler, does or {}, timeouts=Timeouts(**seconds), **fields)


receive = does(read_to_end)
flood = does(b"z" * 40)  # more than a narrow pipe holds


async def chatter(request, client_address, server):
    """Talks while it listens."""

    async def talk():
        for _ in range(10):
            await request.sendall(b"x")
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await read_to_end(request)


@table(
    {
        "TO-01: twenty clients that never send are ended at the very same instant": timed(
            Upper, idle=300, meanwhile={299.999: counts(active=20)}
        )
        .beside(*[Visit().gives(b"", 300)] * 19)
        .gives(b"", 300, *["timed_out"] * 20, reason="idle", duration=300),
        "TO-03: each byte starts it anew, in whichever line or request it comes": timed(
            Upper, {9: b"one\n", 18: b"tw", 27: b"o\n", 36: b"t"}, idle=10, line=math.inf
        ).gives(b"ONE\nTWO\n", 36 + 10),
        "TO-03: it is not extended by what we send": timed(chatter, idle=10).gives(
            b"x" * 10, 10, "timed_out"
        ),
        "TO-04: a handler that computes for ten times the limit is not timed out": timed(
            steps("recv; sleep 100; recv"), {0: b"?", 109.999: b"!"}, idle=10
        ).gives(b"", 109.999, "completed"),
        "TO-03: a long read goes on as long as no gap between its bytes reaches it": timed(
            steps("readexactly 20; write b'all'"), drip(9, 9 * 19), idle=10
        ).gives(b"all", 9 * 19),
        "TO-07: with inf a connection may be silent for a year": timed(
            Upper, {365 * 86_400: [b"still here\n", end]}, idle=math.inf
        ).gives(b"STILL HERE\n", 365 * 86_400),
    }
)
async def test_idle(scene, autojump_clock):
    """The wait for a byte is bounded, from the accept or the byte before."""
    await scene.play()


@table(
    {
        "TO-02, CM-03: a byte now and then does not keep a line unfinished beyond it": timed(
            Upper, drip(15, 200, start=100), idle=300, line=60
        ).gives(b"", 160, "timed_out", reason="line"),
        "TO-11: each line has the limit anew": timed(
            Upper, {0: b"a", **{59 * n: b"b\na" for n in range(1, 5)}, 59 * 5: [b"b\n", end]}
        ).gives(b"AB\n" * 5, 59 * 5),
        "TO-03: before the first byte of a line it is the idle limit that counts": timed(
            Upper, {299: [b"late\n", end]}, idle=300, line=60
        ).gives(b"LATE\n", 299),
        "TO-02: what had arrived of a line is not lost when its limit is caught": timed(
            steps("readline -> IdleTimeout 'line'; readline -> b'first second\\n'; write b'all'"),
            does={0: b"first ", 70: b"second\n"},
            line=60,
        ).gives(b"all", 70),
        **{
            f"TO-02: so is {read}, as every read up to a delimiter": timed(
                steps(read), drip(10, 100, start=5), line=60
            ).gives(b"", 65, "timed_out")
            for read in ("readline 1000", r"readuntil b'\r\n\r\n'", "readlines 1")
        },
    }
)
async def test_line(scene, autojump_clock):
    """A line is bounded from its first byte to its end."""
    await scene.play()


async def take_one(client):
    """Receive a byte."""
    assert await client.receive_some(1) == b"z"


FLOODS = f"write {b'z' * 40!r}"


@table(
    {
        "TO-06: it counts from the last byte that the reader took; half a reply ends in an error": (
            timed(flood, {29: take_one}, reads_from=60).gives(
                b"z" * 10, outcomes=["timed_out"], reason="write", duration=59, breaks=True
            )
        ),
        "TO-06: a reader that takes one byte shortly before each limit gets everything": timed(
            flood, {29 * n: take_one for n in range(1, 31)}, reads_from=871
        ).gives(b"z" * 10, outcomes=["completed"], duration=870),
        "TO-06: after a caught time-out every later send raises the same, at once": timed(
            steps(
                f"{FLOODS} -> WriteTimeout; write b'x' -> WriteTimeout; send_eof -> WriteTimeout"
            ),
            reads_from=31,
            meanwhile={29: counts(active=1)},
        ).gives(outcomes=["completed"], duration=30, breaks=True),
        "TO-06: reading goes on; room that comes later does not mend a reply that was cut": timed(
            steps(f"{FLOODS} -> WriteTimeout; recv -> b'back'; write b'x' -> WriteTimeout"),
            does={32: b"back"},
            reads_from=31,
        ).gives(b"z" * 10, 32, "completed", breaks=True),
        "TO-06: what a buffered wfile still holds after handle() is sent under it": timed(
            steps(FLOODS, wbufsize=-1), reads_from=31
        ).gives(outcomes=["timed_out"], duration=30, breaks=True),
    }
)
async def test_write(scene, autojump_clock):
    """The wait for a reader is bounded."""
    await scene.gives(kind=Narrow, timeouts=Timeouts(write=30)).play()


replies_late = steps("sleep 8; write b'done'; send_eof")


class PerRequest(Upper):
    async def handle(self):
        async for line in self.rfile:
            self.cancel_scope.deadline = trio.current_time() + 10
            await self.wfile.write(line.upper())


class Tells(trioserver.BaseRequestHandler):
    async def handle(self):
        await self.request.sendall(b"until %g, " % self.cancel_scope.deadline)
        await trio.sleep(4)
        [request] = self.server.snapshot().requests
        await self.request.sendall(b"%g left" % request.time_left)


@table(
    {
        "TO-02: a client that sends a byte every now and then is ended at the limit": timed(
            Upper, drip(0.375, 12), request=10
        ).gives(b"", 10, "timed_out", reason="request", duration=10),
        "TO-02: without the limit a busy connection may last for days": timed(
            Upper, {**drip(299, 299_000, data=b"tick\n"), 299_000: end}
        ).gives(b"TICK\n" * 1000, 299_000),
        "TO-02: it holds in a send, too": timed(
            flood, request=10, kind=Narrow, reads_from=11
        ).gives(breaks=True, outcomes=["timed_out"], reason="request", duration=10),
        "TO-02: it lasts until the close, so a client that lingers is cut by it": timed(
            replies_late,
            request=10,
            linger=100,
            stays=True,
            meanwhile={9.999: counts(lingering=1), 10.001: counts(lingering=0)},
        ).gives(b"done", 8, "completed"),
        "TO-11: a handler of many requests may give each of them the time anew": timed(
            PerRequest, drip(9, 45, start=9, data=b"again\n"), request=10
        ).gives(b"AGAIN\n" * 5, 45 + 10, "timed_out"),
        "TO-11: the scope says until when the request may last, and so does the snapshot": timed(
            Tells, comes_at=5, request=10
        ).gives(b"until 15, 6 left", 9),
        "TO-02: a handler that swallowed its deadline and returned has completed": timed(
            steps("sleep_forever -> Cancelled"), request=10
        ).gives(b"", 10, "completed", duration=10),
        "TO-02: linger bounds the wait for a client that goes on instead of ending": timed(
            flood,
            drip(0.375, 3),
            linger=2,
            stays=True,
            meanwhile={1.999: counts(lingering=1), 2.001: counts(lingering=0)},
        ).gives(b"z" * 40, 0),
    }
)
async def test_request(scene, autojump_clock):
    """The whole of a request is bounded, from accept to close; and so is its last part."""
    await scene.play()


class Guarded(MemoryServer):
    """Takes its time to verify: as long as the client's address says."""

    async def verify_request(self, request, client_address):
        await trio.sleep(client_address[1])
        return True


NEVER = ("slow", math.inf)
ASKS = [b"hello\n", end]


@table(
    {
        "EX-08: a verification that never decides is ended, and nobody else waits": timed(
            Upper, address=NEVER
        )
        .beside(Visit({0: ASKS}, address=("fast", 0)).gives(b"HELLO\n", 0))
        .gives(b"", 10, "completed", "timed_out", reason="handshake", duration=10),
        "EX-08: the limit ends with the verification": timed(
            Upper, {250: ASKS}, address=("slow", 9)
        ).gives(b"HELLO\n", 250),
        "EX-08: a drain waits for verifications as long as they may last": timed(
            Upper, drain_at=1, grace=20, address=NEVER
        )
        .beside(*[Visit(address=NEVER)] * 2)
        .gives(closed_at=10, outcomes=["timed_out"] * 3, duration=10),
        "EX-08: a drain waits for verifications as long as it may last": timed(
            Upper, drain_at=1, grace=4, address=NEVER
        )
        .beside(*[Visit(address=NEVER)] * 2)
        .gives(closed_at=5, outcomes=["cancelled"] * 3, duration=5),
        "TO-02: the shorter limit of the whole request ends a verification, too": timed(
            Upper, request=4, address=NEVER
        ).gives(b"", 4, "timed_out", reason="request"),
    }
)
async def test_handshake(scene, autojump_clock):
    """The handshake's limit bounds verify_request; nobody lingers to whom nothing was sent."""
    await scene.gives(kind=Guarded).play()


def fails_after(seconds):
    """A handler with a time-out of its own."""

    async def handler(request, client_address, server):
        with trio.fail_after(seconds):
            await request.recv()

    return handler


async def moves_on(request, client_address, server):
    """Has a time-out of its own at the instant of ours."""
    with trio.move_on_after(10) as scope:
        await request.recv()
    assert scope.cancelled_caught
    await request.sendall(b"moved on")


@table(
    {
        "TO-03: a handler that catches the time-out can say so, and even read on": timed(
            steps("recv -> IdleTimeout; sendall b'are you there? '; recv -> b'yes'"),
            does={19: b"yes"},
            idle=10,
        ).gives(b"are you there? ", 19, "completed"),
        "TO-09: code written for the built-in TimeoutError catches ours": timed(
            steps(f"recv -> TimeoutError; {FLOODS} -> TimeoutError"),
            kind=Narrow,
            reads_from=16,
            idle=10,
            write=5,
        ).gives(breaks=True, outcomes=["completed"], duration=15),
        "TO-09: a TooSlowError of the handler's own scope is its error": timed(
            fails_after(5), idle=10
        ).gives(b"", 5, "failed", logs=["TooSlowError"]),
        "TO-09: when our limit comes first it is a time-out, and no error is logged": timed(
            fails_after(15), idle=10
        ).gives(b"", 10, "timed_out"),
        "TO-09: of two limits at one instant the handler's, which is around ours, decides": timed(
            moves_on, idle=10
        )
        .beside(*[Visit().gives(b"moved on")] * 4)
        .gives(b"moved on", 10),
    }
)
async def test_handlers_own_limits(scene, autojump_clock):
    """A handler may have other limits than the server, and limits of its own."""
    await scene.play()


# The very tick of the deadline -----------------------------------------------------


def server_where(arrive):
    """One where this happens between the instant when a limit strikes and what is done about it."""

    def struck(name):
        async def wait(self):
            try:
                await getattr(MemoryTransport, name)(self)
            except trio.Cancelled:
                arrive(self)
                raise

        return wait

    def wake(self):
        arrive(self)
        MemoryTransport.wake_reader(self)

    waits = {name: struck(name) for name in ("wait_readable", "wait_writable")}
    LastInstant = type("LastInstant", (MemoryTransport,), {**waits, "wake_reader": wake})  # noqa: N806

    return server_over(LastInstant, Narrow.memory_capacity)


def a_line(transport):
    """The rest of a line arrives."""
    transport._incoming.data += b"in time\n"


def the_end(transport):
    """The peer ends its input."""
    transport._incoming.ended = True


def room(transport):
    """The peer takes four bytes."""
    del transport._outgoing.data[:4]


class Echo(trioserver.StreamRequestHandler):
    async def handle(self):
        await self.wfile.write(await self.rfile.readline())


@table(
    {
        "TO-01: what arrived is received": timed(Echo, idle=10, kind=server_where(a_line)).gives(
            b"in time\n", 10, "completed"
        ),
        "TO-01: what arrived of a line is received": timed(
            Echo, {0: b".."}, line=10, kind=server_where(a_line)
        ).gives(b"..in time\n", 10, "completed"),
        "TO-01, CX-13: a peer that ended its input has done so": timed(
            receive, idle=10, kind=server_where(the_end)
        ).gives(b"", 10, "completed"),
        "TO-06: room that was made is used, and is progress": timed(
            flood, write=10, reads_from=81, kind=server_where(room)
        ).gives(outcomes=["completed"], duration=10 * math.ceil(30 / 4)),
        "TO-01: the last look takes nothing that is not there": timed(
            receive, idle=10, kind=server_where(bool)
        ).gives(b"", 10, "timed_out"),
    }
)
async def test_tick_of_the_deadline(scene, autojump_clock):
    """What happens in the very tick in which a limit strikes counts."""
    await scene.play()


# handle_request and the server's own waits -----------------------------------------


def handling(handle_timeout, timeout):
    """A server for one request after the other, with this hook."""
    kind = type("Lonely", (MemoryServer,), {"handle_timeout": handle_timeout})
    return in_memory(
        steps("sleep 8; write b'done'"), kind, timeout=timeout, timeouts=Timeouts(linger=0)
    )


async def is_served(server):
    """The next client is, however long it takes."""
    client = await server.connect()
    await server.handle_request()
    assert await read_to_end(client) == b"done"


@pytest.mark.parametrize("patience", [4, 0])
async def test_handle_request_waits_for_its_timeout(patience, autojump_clock):
    """TO-07, TO-10: without a client it calls handle_timeout after exactly `timeout` seconds.

    0 takes who is there already. Once a client was accepted, it says nothing any more.
    """
    instants = []

    async def note(self):
        instants.append(trio.current_time())

    async with handling(note, patience) as server:
        await server.handle_request()
        await is_served(server)
        await server.handle_request()
        assert instants == [patience, 2 * patience + 8]


async def test_handle_timeout_raises_or_sleeps(autojump_clock):
    """TO-10: an error in handle_timeout leaves handle_request, bare; the server goes on.

    One that waits holds nobody but its caller, who can cancel it.
    """
    errors = [error := ValueError("nobody came")]

    async def sulk(self):
        for it in errors:
            raise it
        await trio.sleep_forever()

    async with handling(sulk, 4) as server:
        with pytest.raises(ValueError, match="nobody came") as caught:
            await server.handle_request()
        assert caught.value is error
        errors.clear()
        with trio.move_on_after(10):
            await server.handle_request()
        assert trio.current_time() == 4 + 10
        await is_served(server)


# Values (what is refused is in test_config.py), and clocks ------------------------------


@pytest.mark.parametrize("huge", [1e308, 2**62, 10**400], ids=["1e308", "2**62", "10**400"])
@pytest.mark.parametrize("name", FIELDS)
async def test_timeouts_of_huge_values(name, huge, autojump_clock):
    """TO-07: a huge value is a very long time, or it is refused when it is given."""
    try:
        scene = timed(Upper, {0: b"hel", 2: [b"lo\n", end]}, address=("huge", 1), **{name: huge})
    except ValueError:
        return
    await scene.gives(b"HELLO\n", 2, kind=Guarded).play()


def test_timeouts_defaults():
    """TO-07: every wait on a client is bounded by default; the whole request is not."""
    given = Timeouts()
    assert [getattr(given, name) for name in FIELDS] == [10, 300, 60, 30, math.inf, 2, 15, 5]


@pytest.mark.parametrize("step", [3600, -3600])
async def test_system_clock_stepped(step, autojump_clock, monkeypatch):
    """TO-12: an hour more or less on the system's clock neither ends nor prolongs a wait."""
    stepped = time.time() + step

    def set_clock(server):
        monkeypatch.setattr(time, "time", lambda: stepped)

    dripping = Visit({0: b"x"}).gives(b"", 60)
    scene = timed(Upper, idle=300, line=60, meanwhile={30: set_clock}).beside(dripping)
    played = await scene.gives(b"", 300).play()
    assert [record.duration for record in played.witness.records] == [60, 300]


# On real sockets, where the kernel's buffers count (the rest is in test_everywhere.py) ---


@pytest.mark.slow
async def test_write_lets_a_slow_reader_of_a_socket_finish():
    """TO-06: through the kernel's buffers, too, it is progress that counts and not the whole."""
    size = 40 * 8192

    async def send(request, client_address, server):
        request.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        await request.sendall(bytes(size))

    witness, received = Witness(), 0
    server = on_tcp(send, timeouts=Timeouts(write=0.6), observers=[witness])
    async with running(server) as address:
        client = trio.socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        await client.connect(address)
        while received < size:
            await trio.sleep(0.02)
            received += len(await client.recv(8192))
        client.close()
    assert witness.outcomes == ["completed"]
    assert witness.records[0].duration > 0.6


async def test_stall_of_the_program_is_not_the_clients_fault():
    """TO-01: bytes that came while the whole program stood still past the limit are served."""
    waits = trio.Event()

    class Announced(Upper):
        async def setup(self):
            waits.set()

    server = on_tcp(Announced, timeouts=Timeouts(idle=0.1), observers=[witness := Witness()])
    async with running(server) as address:
        client = plain_client(address)
        await waits.wait()
        client.sendall(b"in time\n")
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # noqa: ASYNC251  (the stall)
        assert await trio.to_thread.run_sync(client.recv, 100) == b"IN TIME\n"
        client.close()
    assert witness.outcomes == ["completed"]
