"""Shutdown: the drain, the waiting room, the grace, the cut, the clean-up, and lingering."""

import errno
import hashlib
import logging
import math
import signal
import socket
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, hold, plain_client, running, stubborn
from support.memory import noting
from support.pipes import does as steps
from support.scenes import (
    Scene,
    Visit,
    close,
    counts,
    does,
    end,
    heard_by,
    idle,
    in_memory,
    logged,
    on_tcp,
    reset,
    sleep,
    states,
    table,
)
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver import Draining, Limits, Timeouts
from trioserver._sockets.stream_sockets import SocketListener
from trioserver.testing import MemoryServer

ONE_LINE = {0: b"one\n"}
a_second = does(sleep(1), b"done")


async def recv_forever(request, client_address, server):
    """Reads with plain ``recv`` and sends back what it gets, to the end of input."""
    while data := await request.recv():
        await request.sendall(data)


def cancel_the_first(server):
    """Cancel the first request."""
    assert server.cancel_request(1, "because")


# The wait between two requests: more() and recv() ---------------------------------


class Slow(trioserver.StreamRequestHandler):
    """Works on each line for a second."""

    async def handle(self):
        async for line in self.rfile:
            await trio.sleep(1)
            await self.wfile.write(line.upper())


polite = steps("recv -> Draining; sendall b'goodbye'")
Buffers = type("Buffers", (Upper,), {"wbufsize": -1})
Narrow = type("Narrow", (MemoryServer,), {"memory_capacity": 4})  # less than a reply
unmoved = steps(r"readline; more -> False; more -> False; more -> False; write b'no'")


@table(
    {
        "GS-03: a keep-alive connection that is idle at the drain is closed at once": Scene(
            Upper, ONE_LINE, 60
        ).gives(b"ONE\n", outcomes=["drained"], closed_at=60),
        "a request whose first byte is there is read to its end, and answered": Scene(
            Upper, {0: b"one\ntw", 14: b"o\n"}, 10
        ).gives(b"ONE\nTWO\n", 14),
        "a byte that arrived in the very step of the drain begins a request": Scene(
            Upper, {0: b"one\n", 60: b"t", 64: b"wo\n"}, 60
        ).gives(b"ONE\nTWO\n", 64),
        "CM-16: pipelined requests that came in one piece are all answered, then it ends": Scene(
            Slow, {0: b"one\ntwo\nthree\n"}, 0.5
        ).gives(b"ONE\nTWO\nTHREE\n", 3),
        "a request that waits in the kernel when more() is called is served": Scene(
            Slow, {0: b"one\n", 0.75: b"two\n"}, 0.5
        ).gives(b"ONE\nTWO\n", 2),
        "asked again, it says the same, at once": Scene(unmoved, ONE_LINE, 60).gives(b"no", 60),
        "a request that arrives while more() flushes a reply is not lost": Scene(
            Buffers, {0: b"first\n", 1: b"two\n"}, 1, kind=Narrow, reads_from=2
        ).gives(b"FIRST\nTWO\n", report={"clean": True}, meanwhile={0.5: states("writing")}),
        "a plain recv() says nothing of requests: in the middle it waits on": Scene(
            recv_forever, {0: b"one", 64: b"two"}, 60
        ).gives(b"onetwo", 65, "cancelled", closed_at=65),
        "the wait of recv() for the first byte can be caught, to say goodbye": Scene(
            polite, {}, 1, 60
        ).gives(b"goodbye", 1, "drained"),
        **{
            f"who ends in the step of the drain has ended ({how.__name__})": Scene(
                Upper, {0: b"one\n", 10: how}, 10
            ).gives(b"ONE\n", outcomes=["disconnected" if how is reset else "completed"])
            for how in (end, close, reset)
        },
    }
)
async def test_more_between_requests(scene, autojump_clock):
    """A drain ends the wait for a request that has not begun, and no other."""
    await scene.play()


@pytest.mark.parametrize("handler", [Upper, recv_forever])
@table(
    {
        "GS-04: who has never sent a byte is ended half a second after its accept": Scene(
            None, {}, 0.125, 60
        ).gives(b"", 0.5, "drained", closed_at=0.5),
        "GS-04: who has been silent for longer is ended by the drain itself": Scene(
            None, {}, 0.5, 60
        ).gives(b"", 0.5, closed_at=0.5),
        "GS-04: a first byte that comes within that half second is in time": Scene(
            None, {0.4375: [b"42\n", end]}, 0.125, 60
        ).gives(b"42\n", 0.4375),
        "GS-04: the half second is each connection's own": Scene(None, {}, 0.4375, 60)
        .beside(*[Visit(comes_at=n / 8).gives(ends_at=0.5 + n / 8) for n in (1, 2, 3)])
        .gives(ends_at=0.5),
        "GS-04: who is accepted by the drain can still send its first request": Scene(
            None, {0.375: [b"one\n", end]}, 0, 60
        )
        .beside(Visit().gives(b"", 0.5))
        .gives(ends_at=0.375),
    }
)
async def test_new_connection(scene, handler, autojump_clock):
    """A first request may be on its way when the drain begins."""
    await attrs.evolve(scene, handler=handler).play()


# Other waits between requests: idle() --------------------------------------------


buffers_much = does(lambda it: trioserver.RequestWriter(it, 1_000_000).write(bytes(999_999)))
waits = does(idle(sleep(math.inf)), b"fell through")


async def oops(connection):
    """Raise."""
    raise KeyError("mine")


async def says_goodbye(request, client_address, server):
    """Has a block in a block, and takes its time for it."""
    with pytest.raises(Draining) as caught:
        with request.idle():
            await waits(request, client_address, server)
            await request.sendall(b"fell through the inner one")
    assert caught.value.info is request.info
    await trio.sleep(2)
    await request.sendall(b"goodbye")


async def waits_in_two_tasks(request, client_address, server):
    """Lets it out in a group."""
    async with trio.open_nursery() as tasks:
        for _ in range(2):
            tasks.start_soon(waits, request, client_address, server)


async def polls(request, client_address, server):
    """Has time-outs inside its block."""
    with request.idle():
        with trio.move_on_after(1):
            await trio.sleep_forever()
        await request.sendall(b"timed out")
        with trio.move_on_after(10):
            await trio.sleep_forever()
        await request.sendall(b"stale")


class BuffersThenIdles(trioserver.StreamRequestHandler):
    """Leaves its reply in the buffer, and lets `Draining` out of the wait for the next request."""

    wbufsize = -1

    async def handle(self):
        await self.wfile.write(await self.rfile.readline())
        await waits(self.request, self.client_address, self.server)


async def buffers_then_idles(request, client_address, server):
    """The same as a function."""
    await trioserver.RequestWriter(request, -1).write(await request.recv())
    await waits(request, client_address, server)


@table(
    {
        "GS-07: what is written after it reaches the client, before its end of input": Scene(
            says_goodbye, {}, 1, 60
        ).gives(b"goodbye", 3, "drained"),
        "a block that is entered in a drain raises at its first wait": Scene(
            does(sleep(2), idle(sleep(0), b"after the wait")), {}, 1, 60
        ).gives(b"", 2, "drained"),
        "a block that does not wait ends as if nothing were": Scene(
            does(sleep(2), idle(), b"found"), {}, 1, 60
        ).gives(b"found", outcomes=["completed"]),
        "what the block raises by itself leaves it unchanged, in a drain, too": Scene(
            does(sleep(2), idle(oops)), {}, 1, 60
        ).gives(b"", 2, "failed", reason="KeyError: 'mine'"),
        "several tasks that wait, in a group": Scene(waits_in_two_tasks, {}, 1, 60).gives(
            b"", outcomes=["drained"]
        ),
        "a time-out inside the block is the block's own; a drain goes past it": Scene(
            polls, {}, 2, 60
        ).gives(b"timed out", 2, "drained"),
        "somebody's cancellation passes through the block as what it is": Scene(
            waits, {}, meanwhile={1: cancel_the_first}
        ).gives(outcomes=["cancelled"], reason="because"),
        **{
            f"a reply in the buffer is sent ({handler.__name__})": Scene(
                handler, ONE_LINE, 1, 60
            ).gives(b"one\n", 1, "drained")
            for handler in (BuffersThenIdles, buffers_then_idles)
        },
        **{
            f"without grace, too, who is idle is drained ({handler.__name__})": Scene(
                handler, {}, 60, 0
            ).gives(ends_at=60, outcomes=["drained"], closed_at=60)
            for handler in (Upper, waits)
        },
        "the last flush keeps to the write time-out": Scene(buffers_much, reads_from=50).gives(
            outcomes=["timed_out"], breaks=True, duration=Timeouts().write
        ),
    }
)
async def test_idle_raises_draining(scene, autojump_clock):
    """When the server drains, a handler's own wait between requests is ended."""
    await scene.play()


async def parse(connection):
    """Wait for four-byte commands in an idle block, with a parser of its own."""
    parsed = bytearray()
    while True:
        with connection.idle():
            while len(parsed) < 4:
                data = await connection.recv(4 - len(parsed))
                if not data:
                    return
                parsed += data
        await connection.sendall(parsed.upper())
        parsed.clear()


parses, slow_parses = does(parse), does(sleep(0.125), parse)
peeks_and_parses = does(lambda connection: trioserver.RequestReader(connection).peek(), parse)


async def peeks(request, client_address, server):
    """Has a request in its buffer while it waits for something else."""
    reader = trioserver.RequestReader(request)
    await reader.peek()
    with request.idle():
        await trio.sleep(2)
    await request.sendall(await reader.readline())


@table(
    {
        "bytes that are in the kernel at the instant of the drain": Scene(
            parses, {0: b"one.", 60: b"tw", 64: b"o."}, 60
        ).gives(b"ONE.TWO."),
        "bytes that were received in the block": Scene(parses, {0: b"one.tw", 64: b"o."}, 60).gives(
            b"ONE.TWO."
        ),
        "bytes that were in the buffer, and were taken in the block": Scene(
            peeks_and_parses, {0: b"on", 64: b"e."}, 60
        ).gives(b"ONE."),
        "bytes that the drain's look found, and that were taken in the block": Scene(
            slow_parses, {0.0625: b"on", 4: b"e."}, 0.0625
        ).gives(b"ONE."),
        "bytes that are in the buffer, whatever the block waits for": Scene(
            peeks, ONE_LINE, 1, 60
        ).gives(b"one\n", 2),
        "GS-04: none, of a new connection whose first request may be on its way": Scene(
            parses, {}, 0.125, 60
        )
        .beside(Visit({0.375: b"one."}).gives(b"ONE.", 0.375))
        .gives(b"", 0.5),
    }
)
async def test_idle_is_inert_once_a_request_has_begun(scene, autojump_clock):
    """A parser that is in the middle of a request is not interrupted."""
    await scene.play()


class Employer(MemoryServer):
    """Offers jobs."""

    jobs: Any = attrs.field(factory=lambda: trio.open_memory_channel(1))


class Jobs(trioserver.BaseRequestHandler):
    """Sends its client every job that is offered, and waits for the next in an idle block."""

    async def handle(self):
        while True:
            with self.idle():
                job = await self.server.jobs[1].receive()
            await self.request.sendall(job)


class Chat(Jobs):
    """Reads lines in one task, and passes on what others say in another."""

    async def handle(self):
        try:
            async with trio.open_nursery() as both:
                both.start_soon(self.listen)
                both.start_soon(super().handle)
        except* Draining:
            await self.request.sendall(b"goodbye\n")

    async def listen(self):
        async for line in trioserver.RequestReader(self.request):
            await self.request.sendall(line.upper())


def offer(server):
    """Offer one job."""
    server.jobs[0].send_nowait(b"job")


def offer_and_drain(server):
    """Both in one step."""
    offer(server)
    server.shutdown(60)


@table(
    {
        "a job that is handed over in the step of the drain is done, once": Scene(
            Jobs, meanwhile={1: offer_and_drain}
        ).gives(b"job", 1),
        "a job that is offered right after the drain stays where it is": Scene(
            Jobs, {}, 1, meanwhile={1: offer, 2: lambda server: server.jobs[1].receive_nowait()}
        ).gives(b"", 1),
        "a task that waits for others, while its neighbour has served, is idle": Scene(
            Chat, ONE_LINE, 10
        ).gives(b"ONE\ngoodbye\n", 10),
        "such a task ends when its neighbour has finished its request": Scene(
            Chat, {0: b"on", 12: b"e\n"}, 10
        ).gives(b"ONE\ngoodbye\n", 12),
    }
)
async def test_idle_for_other_things_than_bytes(scene, autojump_clock):
    """What arrives in the step of the drain is neither lost nor repeated."""
    await attrs.evolve(scene, kind=Employer).play()


# The waiting room ----------------------------------------------------------------

HELLO = {0: b"hello\n"}
LATE = tuple(("late", number) for number in range(3))
ONE_SLOT, TWO_SLOTS = Limits(requests=1), Limits(requests=2)


async def greets(request, client_address, server):
    """Reads a line, works for a second, and answers with when it was done."""
    await trioserver.RequestReader(request).readline()
    await trio.sleep(1)
    await request.sendall(b"%g" % trio.current_time())


def next_accept(error):
    """Have it end so."""
    return lambda server: server.listener.errors.append(error)


GONE = ConnectionAbortedError(errno.ECONNABORTED, "gone")
EXHAUSTED = OSError(errno.EMFILE, "too many")


class RaisesInADrain(MemoryServer):
    def get_request(self, listener):
        answer = super().get_request(listener)
        if answer is not None and self.draining:
            raise ValueError("its own")
        return answer


@table(
    {
        "who waited for a slot gets one, in the order of arrival": Scene(
            greets, HELLO, 0.5, limits=ONE_SLOT, meanwhile={0.5: counts(waiting=1)}
        )
        .beside(Visit(HELLO).gives(b"2"))
        .gives(b"1", outcomes=["completed", "completed"], accepted=2, waiting=0),
        "who never got a slot is reset when the grace is over, and reported": Scene(
            hold, {}, 1, limits=ONE_SLOT
        )
        .beside(Visit(address=("client", 2)).gives(ends_at=6, breaks=True))
        .gives(outcomes=["cancelled"], unaccepted=(("client", 2),), accepted=1),
        "per_client holds, too; who is over it is turned away unserved": Scene(
            greets, HELLO, 0.5, limits=Limits(requests=2, per_client=1), address=("a", 1)
        )
        .beside(
            Visit(HELLO, address=("b", 1)).gives(b"1"),
            Visit(HELLO, address=("c", 2)).gives(b"2"),
            Visit(HELLO, address=("c", 2)).gives(breaks=True),
        )
        .gives(b"1", outcomes=["completed"] * 3, unaccepted=(("c", 2),)),
        "an accept error of one client is counted; those behind it are served": Scene(
            greets, HELLO, 0.5, limits=ONE_SLOT, meanwhile={0.25: next_accept(GONE)}
        )
        .beside(Visit(HELLO).gives(b"2"))
        .gives(b"1", accept_errors=1),
        "when no more can be accepted, who comes behind the error is turned away": Scene(
            a_second, {}, 0.5, meanwhile={0.25: next_accept(EXHAUSTED)}
        )
        .beside(Visit(comes_at=0.5).gives(breaks=True))
        .gives(b"done", accept_errors=1),
        "shutdown() does not raise what get_request raises while the rest is turned away": Scene(
            a_second, {}, 0.5, kind=RaisesInADrain, meanwhile={0.25: next_accept(EXHAUSTED)}
        )
        .beside(Visit(comes_at=0.5).gives(breaks=True))
        .gives(b"done", logs=["its own"]),
        "one who went away while it waited gets its turn, and is over at once": Scene(
            greets, HELLO, 0.5, limits=TWO_SLOTS
        )
        .beside(
            Visit({0.25: b"hello\n"}).gives(b"1.25"),
            Visit({0.75: reset}).gives(b""),
            Visit(HELLO).gives(b"2"),
        )
        .gives(b"1", 1, "completed", "disconnected", "completed", "completed"),
        "it is as large as the server; beyond it they are reset at once, and counted": Scene(
            greets, HELLO, 0.5, limits=TWO_SLOTS, meanwhile={0.5: counts(waiting=2, unaccepted=3)}
        )
        .beside(*[Visit(HELLO).gives(reply) for reply in (b"1", b"2", b"2")])
        .beside(*[Visit(address=late).gives(b"", 0.5, breaks=True) for late in LATE])
        .gives(
            b"1", unaccepted=LATE, clean=False, refusals=[(it, "the server drains") for it in LATE]
        ),
    }
)
async def test_waiting_room(scene, autojump_clock):
    """Clients who are in the queue when the drain begins are served as slots fall free."""
    await scene.play()


class ShutsDownFirst(MemoryServer):
    def get_request(self, listener):
        self.shutdown(5)
        return super().get_request(listener)


async def test_free_slot_is_no_place_to_wait(autojump_clock):
    """Of two clients one is served at once, so the other has the only place in the room."""
    server = ShutsDownFirst(("memory", 1), steps("sleep 1; sendall b'bye'"), limits=ONE_SLOT)
    async with server:
        clients = [server.listener.connect_now() for _ in range(2)]
        await server.serve_forever()
        assert [await client.receive_some() for client in clients] == [b"bye", b"bye"]


class OnlyOne(trioserver.TCPServer):
    def get_request(self, listener):
        accepted = super().get_request(listener)
        if accepted is not None:
            self.shutdown(5)
        return accepted


class Enough(trioserver.TCPServer):
    def get_request(self, listener):
        self.shutdown(5)
        return super().get_request(listener)


class StopsAfterOne(trioserver.TCPServer):
    """Shuts itself down when a request has given its slot back, before anybody else has run."""

    async def shutdown_request(self, request):
        self.shutdown(5)
        await super().shutdown_request(request)


@pytest.mark.parametrize(("kind", "slots"), [(OnlyOne, 2), (Enough, 2), (StopsAfterOne, 1)])
async def test_shutdown_called_from_within(kind, slots):
    """The listening socket is closed by then, which is no broken listener; and nobody is lost."""
    async with running(server := on_tcp(kind=kind, limits=Limits(requests=slots))) as address:
        clients = [plain_client(address) for _ in range(2)]
        for client in clients:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
        for client in clients:
            with client:
                assert await heard_by(client) == b"HELLO\n"
        report = await server.wait_closed()
    assert report.clean
    assert report.statistics.outcomes["completed"] == 2
    assert report.statistics.accept_errors == 0


@pytest.mark.parametrize("requests", [3, 1024])
@pytest.mark.parametrize("over", ["tcp", "reuse_port", "unix", "everywhere"])
async def test_clients_in_the_kernel_s_queue_are_served(requests, over, tmp_path):
    """GS-06, GS-10: who had connected before the drain is served, with or without a free slot.

    All listeners refuse clients at once, while requests are in flight: TCP on all families and
    Unix. With ``allow_reuse_port`` each socket has a queue of its own.
    """

    class Everywhere(trioserver.TCPServer):
        async def server_bind(self):
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(path)
            return [*await super().server_bind(), SocketListener(unix)]

    limits, path = Limits(requests=requests), str(tmp_path / "socket")
    server = on_tcp(limits=limits, allow_reuse_port=over == "reuse_port")
    if over == "unix":
        server = trioserver.UnixStreamServer(path, Upper, limits=limits)
    elif over == "everywhere":
        server = Everywhere(("", 0), Upper, limits=limits)
    async with running(server) as address:
        places = [("127.0.0.1", address[1]), path] if over == "everywhere" else [address]
        inside = [plain_client(places[number % len(places)]) for number in range(3)]
        for client in inside:
            client.sendall(b"one\n")
            assert await trio.to_thread.run_sync(client.recv, 100) == b"ONE\n"
            client.sendall(b"tw")
        queued = [plain_client(places[number % len(places)]) for number in range(3)]
        for client in queued:
            client.sendall(b"one\ntwo\n")
        server.shutdown(8)
        for place in places:
            with pytest.raises(OSError):  # noqa: PT011  (refused, or the file is gone)
                plain_client(place)
        for client in inside:
            client.sendall(b"o\n")
        for clients, answer in ((inside, b"TWO\n"), (queued, b"ONE\nTWO\n")):
            for client in clients:
                with client:
                    assert await heard_by(client) == answer
        report = await server.wait_closed()
    assert report.statistics.accepted == 6
    assert report.clean


async def test_adopted_listener_is_only_closed():
    """What waits in a queue that others share stays there, for them."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        server = trioserver.TCPServer(ours.dup(), hold, limits=ONE_SLOT)
        async with running(server) as address:
            with plain_client(address) as held, plain_client(address) as waiting:
                await wait_all_tasks_blocked()
                server.shutdown(0)
                report = await server.wait_closed()
                assert report.statistics.accepted == 1
                assert report.unaccepted == ()
                with plain_client(address):  # the port is still open, thanks to the other
                    taken_over, peer = ours.accept()
                with taken_over:
                    assert peer == waiting.getsockname()
                    taken_over.sendall(b"from the other one")
                    assert waiting.recv(100) == b"from the other one"
                assert held.recv(1) == b""


# The grace -----------------------------------------------------------------------


class SlowToVerify(MemoryServer):
    async def verify_request(self, request, client_address):
        await trio.sleep(1)
        return True


last_one = steps("shutdown 5; sleep 1; sendall b'done'")
CLEAN = {"duration": 0.5, "clean": True, "drained": (), "cancelled": (), "unaccepted": ()}


@table(
    {
        "GS-01: 100 requests that need a second get it, and the end comes then": Scene(
            a_second, {}, 0.5
        )
        .beside(*[Visit().gives(b"done", 1)] * 99)
        .gives(b"done", 1, *["completed"] * 100, closed_at=1, report=CLEAN),
        "a client that is looked at when the drain begins is let in, and served": Scene(
            Upper, ONE_LINE, 0.5, kind=SlowToVerify
        ).gives(b"ONE\n", 1),
        "a handler that shuts its server down is a request in flight": Scene(last_one, {}).gives(
            b"done", outcomes=["completed"]
        ),
        "a grace without end lasts as long as it takes": Scene(
            does(sleep(70_000), b"done"), {}, 1, math.inf
        ).gives(b"done", 70_000),
    }
)
async def test_requests_in_flight_finish(scene, autojump_clock):
    """Whoever was being served is served to the end, and nothing takes longer."""
    await scene.play()


class AsTold(trioserver.StreamRequestHandler):
    """Works for as many seconds as each line says, until one says goodbye."""

    async def handle(self):
        async for line in self.rfile:
            if line == b"bye\n":
                return
            await trio.sleep(float(line))


@table(
    {
        "GS-02: at exactly that instant, with the reason; others are unharmed": Scene(
            AsTold, {0: b"60\n"}, 1
        )
        .beside(Visit({0: b"4.5\nbye\n"}).gives(b"", 4.5))
        .gives(b"", 6, "completed", "cancelled", reason="the grace is over", duration=6),
        "the grace is timeouts.shutdown unless it is given": Scene(
            hold, timeouts=Timeouts(shutdown=7), meanwhile={1: MemoryServer.shutdown}
        ).gives(closed_at=8, grace=7),
        "a grace of zero cuts whoever works, at once": Scene(hold, {}, 1, 0).gives(
            b"", outcomes=["cancelled"], reason="the grace is over", closed_at=1
        ),
        "timeouts.request still counts in a drain": Scene(
            hold, {}, 1, 60, timeouts=Timeouts(request=3)
        ).gives(b"", 3, "timed_out"),
    }
)
async def test_request_is_cut_when_the_grace_is_over(scene, autojump_clock):
    """A request that needs longer than the grace is cancelled at its end."""
    await scene.play()


@pytest.mark.parametrize(
    ("second", "grace"), [(1.0, 3.0), (0.0, 2.0), (2.5, 4.5), (3.0, 5.0), (60.0, 5.0)]
)
async def test_second_shutdown_only_shortens(second, grace, autojump_clock):
    """GS-12: called twice, the earlier deadline holds; the report says what they were given."""
    scene = Scene(hold, {}, 1, 5, meanwhile={3: lambda server: server.shutdown(second)})
    await scene.gives(report={"grace": grace, "duration": grace}).play()


async def test_report_of_a_cancelled_run_has_no_grace(autojump_clock):
    """A shutdown that comes during the clean-up gives nobody a grace any more."""
    server = in_memory(stubborn)
    with trio.CancelScope() as scope:
        async with server.serving():
            await server.connect()
            await trio.sleep(1)
            scope.cancel(reason="enough")
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                server.shutdown(15)
    report = await server.wait_closed()
    assert (report.grace, report.duration, report.reason) == (0, 59, "enough")


def test_ctrl_c_in_the_middle_of_the_drain_waits_for_its_end():
    """It strikes when the step is whole: the listener closed, the queued client taken in."""
    steps = []

    class Interrupted(MemoryServer):
        def get_request(self, listener):
            accepted = super().get_request(listener)
            if accepted is not None:
                signal.raise_signal(signal.SIGINT)
            return accepted

    async def main():
        async with in_memory(hold, Interrupted).serving() as server:
            server.listener.connect_now()
            server.shutdown(5)
            steps.extend([server.listener.closed, len(server.requests)])
            await trio.lowlevel.checkpoint()
            steps.append("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert steps == [True, 1]


sleeps_a_second = staticmethod(partial(trio.sleep, 1))
SlowToFinish = steps("sleep_forever", trioserver.BaseRequestHandler, finish=sleeps_a_second)


@table(
    ("handler", "reason", "ends_at"),
    {
        "whoever cancels it is quoted in every record, and in the report": (hold, "lunch", 1),
        "without a reason, it is said by what kind of thing": (hold, None, 1),
        "a deadline around the server is no time-out of the request": (hold, "deadline", 1),
        "TO-09: nor of one that takes its time to finish": (SlowToFinish, "deadline", 2),
    },
)
async def test_cancelled_server(handler, reason, ends_at, autojump_clock):
    """A request that ends with a scope around its server was cancelled."""
    server = in_memory(handler, observers=[witness := Witness()])
    with logged() as log:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await server.connect()
            await trio.sleep(1)
            if reason == "deadline":
                nursery.cancel_scope.deadline = 1
            else:
                nursery.cancel_scope.cancel(reason=reason)
    assert trio.current_time() == ends_at
    assert log == []
    assert ("draining", 0) in witness.events
    assert sorted(witness.names[-3:-1]) == ["draining", "request_finished"]
    assert witness.names[-1] == "server_closed"
    [record] = witness.records
    assert record.outcome == "cancelled"
    quoted = "lunch" if reason == "lunch" else "cancelled"
    assert quoted in record.reason
    assert quoted in str((await server.wait_closed()).reason)


async def test_cancel_request_ends_one(autojump_clock):
    """``cancel_request`` ends that request, in a drain, too, and says why in its record."""
    cancelled = []

    def cancel(server):
        cancelled.append(server.cancel_request(2, "out of favour"))

    looks = {2: cancel, 3: cancel, 4: lambda server: server.shutdown(0)}
    scene = Scene(hold, {}, 1, 60, meanwhile=looks).beside(Visit().gives(b"", 2))
    reasons = [(it.info.id, it.reason) for it in (await scene.play()).report.cancelled]
    assert reasons == [(2, "out of favour"), (1, "the grace is over")]
    assert cancelled == [True, False]


async def by_turns(request, client_address, server):
    """The first will not end."""
    await (stubborn if request.info.id == 1 else hold)(request, client_address, server)


async def test_handler_that_will_not_end_is_named_and_waited_for(autojump_clock, caplog):
    """GS-02: at the cleanup limit it is named with its stack; nothing outlives the server.

    It holds nobody else up.
    """
    scene = Scene(by_turns, {}, 1, timeouts=Timeouts(cleanup=4), address=("client", 7))
    scene = scene.beside(*[Visit().gives(b"", 6)] * 2)
    [named] = (await scene.gives(closed_at=60, logs=["in stubborn: "]).play()).log
    assert named.at == 1 + 5 + 4
    assert "client:7" in named.text
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trioserver.error", "ERROR")


@pytest.mark.parametrize(("grace", "clients", "listed"), [(4, 2, 2), (4, 12, 10), (0, 2, 0)])
async def test_cut_requests_are_shown(grace, clients, listed, autojump_clock, caplog):
    """When a grace is over, the log has where the requests wait; of more than 10, that of 10."""
    caplog.set_level(logging.INFO, "trioserver.access")
    async with in_memory(hold).serving(grace=grace) as server:
        for _ in range(clients):
            await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(grace)
        await server.wait_closed()
    told = [it.getMessage() for it in caplog.records if "which are here" in it.getMessage()]
    assert len(told) == bool(grace)
    for text in told:
        assert text.startswith(f"the grace of 4 s is over, and {clients} requests are cancelled,")
        assert text.count("in hold: await trio.sleep_forever()") == listed
        assert text.endswith("and 2 more") == (listed < clients)


class Finishes(trioserver.BaseRequestHandler):
    async def handle(self):
        await trio.sleep_forever()

    async def finish(self):
        await trio.sleep(2)
        await self.request.sendall(b"at %g" % trio.current_time())
        await trio.sleep_forever()


WillNotClose = noting(MemoryServer, ["shutdown_request"], stubborn)
TakesLong = noting(MemoryServer, ["shutdown_request"], does(sleep(60)))


@table(
    {
        "after the grace, `finish` has timeouts.cleanup seconds": Scene(Finishes, {}, 1).gives(
            b"at 8", outcomes=["cancelled"], closed_at=10
        ),
        "one who takes less time than timeouts.cleanup is nobody's business": Scene(
            SlowToFinish, {}, 1
        ).gives(closed_at=7),
        "a request whose outcome is decided, and which does not close, is named": Scene(
            greets, HELLO, 0.5, 0, address=("client", 7), kind=WillNotClose
        ).gives(closed_at=60.5, logs=["client:7.*in stubborn: "]),
        "EX-07: a shutdown_request that takes too long is ended, and named": Scene(
            a_second, kind=TakesLong
        ).gives(b"done", 7, logs=["shutdown_request did not end within 6 s"]),
        "the same of a request that was cancelled, and does not linger": Scene(
            a_second, kind=TakesLong, meanwhile={0.5: cancel_the_first}
        ).gives(b"", 4.5, logs=["shutdown_request did not end within 4 s"]),
    }
)
async def test_clean_up_is_bounded(scene, autojump_clock):
    """Whatever does not end is bounded, or, if it cannot be, named."""
    await attrs.evolve(scene, timeouts=Timeouts(cleanup=4, linger=2)).play()


@table(
    ("innermost", "drains", "ends_at"),
    {
        "the innermost request ends with the outermost grace": (hold, [(0, 0, 5)], 5),
        "an inner drain with more grace does not outlast the outer one": (
            *(hold, [(0, 2, 100), (1, 1, 50), (2, 0, 5)], 7),
        ),
        "nothing outlives who will not end, and is named": (stubborn, [(0, 0, 5)], 60),
    },
)
async def test_nested_servers(innermost, drains, ends_at, autojump_clock):
    """Three servers, each in a handler of the one before: each lives no longer than the outer."""

    async def serves(request, client_address, server):
        async with servers[servers.index(server) + 1].serving():
            await trio.sleep_forever()

    patient = Timeouts(shutdown=1000)
    servers = [in_memory(it, timeouts=patient) for it in (serves, serves, innermost)]
    with logged() as log:
        async with servers[0].serving():
            for server in servers:
                await server.connect()
                await wait_all_tasks_blocked()
            for instant, level, grace in drains:
                await trio.sleep_until(instant)
                assert [bool(it.requests) for it in servers] == [True] * 3
                servers[level].shutdown(grace)
            await servers[0].wait_closed()
    assert trio.current_time() == ends_at
    assert [server.snapshot().state for server in servers] == ["unbound"] * 3
    if innermost is stubborn:
        named = ["has not ended 5 s after it was cancelled" in it.text for it in log]
        assert named == [True] * 3  # at each level
    else:
        reports = [await server.wait_closed() for server in servers]
        assert [len(report.cancelled) for report in reports] == [1, 1, 1]
        assert {reports[level].cancelled[0].reason for level in (0, 2)} == {"the grace is over"}
        assert log == []


# Lingering: the reply gets through ------------------------------------------------


@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 65_536, 200_000, 500_000, 1_000_000])
async def test_reply_survives_unread_input_on_tcp(size, drains):
    """GS-14: a slow client that sent a byte too many gets every byte of its reply, and its end."""
    reply = hashlib.shake_128(b"%d" % size).digest(size)
    replied = trio.Event()

    async def replies_early(request, client_address, server):
        assert await request.recv(4) == b"what"
        await request.sendall(reply)
        replied.set()

    # As large as it gets, so that much of the reply still waits in the server's
    # kernel when the handler returns, behind a client that has no room for it.
    much = (socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
    async with running(server := on_tcp(replies_early, socket_options=[much])) as address:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
            client.settimeout(10)
            client.connect(address)
            client.sendall(b"what?")
            got = bytearray()
            while not replied.is_set():
                with trio.move_on_after(0.01):
                    await replied.wait()
                if not replied.is_set():
                    got += await trio.to_thread.run_sync(client.recv, 4096)
            if drains:
                server.shutdown(8)
            await wait_all_tasks_blocked()
            got += await heard_by(client)
    assert bytes(got) == reply


replies_early = does(lambda connection: connection.recv(4), bytes(1000))
ASKED = {0: b"what?"}
ONE, NONE = counts(lingering=1), counts(lingering=0)


@table(
    {
        "TO-02: it ends with the client's input": Scene(
            replies_early, {**ASKED, 1: end}, 0.5, 60
        ).gives(closed_at=1),
        "it ends after timeouts.linger": Scene(
            replies_early, ASKED, 1, 60, timeouts=Timeouts(linger=3), meanwhile={0.5: ONE}
        ).gives(closed_at=3),
        "GS-14: it is part of the drain, and ends with the grace": Scene(
            replies_early, ASKED, 1, timeouts=Timeouts(linger=60)
        ).gives(closed_at=6),
        "it ends after limits.linger bytes": Scene(
            replies_early,
            {0: b"what" + bytes(99), 1: b"!"},
            limits=Limits(linger=100),
            meanwhile={0.5: ONE, 1.5: NONE},
        ),
        "TO-07: with no time for it, the connection is closed at once": Scene(
            replies_early, {0: b"what"}, timeouts=Timeouts(linger=0), meanwhile={0.5: NONE}
        ),
        "with no bytes for it, the connection is closed at once": Scene(
            replies_early, {0: b"what"}, limits=Limits(linger=0), meanwhile={0.5: NONE}
        ),
        "there is nothing to discard after an end of input": Scene(
            replies_early, {0: [b"what", end]}, meanwhile={0.5: NONE}
        ),
        "it holds no slot": Scene(replies_early, ASKED, limits=ONE_SLOT)
        .beside(Visit({0.5: b"what?"}, comes_at=0.5).gives(bytes(1000), 0.5))
        .gives(outcomes=["completed"] * 2),
    }
)
async def test_linger(scene, autojump_clock):
    """The server waits for a client that has not read its reply; the request is completed."""
    outcomes = scene.outcomes or ["completed"]
    await attrs.evolve(scene, gets=bytes(1000), stays=True, outcomes=outcomes).play()


async def test_report_says_who_ended_how(autojump_clock):
    """Who was drained, who completed, who was cut, who never got in; how long each took."""
    says = {"idle": b"0\n", "completes": b"4\nbye\n", "slow": b"60\n", "drains": b"3\n"}
    bye = b"bye\n"
    scene = Scene(AsTold, {0: bye}, 2, limits=Limits(requests=4)).beside(
        *[Visit({1: line}, address=(name, 1), comes_at=1) for name, line in says.items()],
        *[Visit({2: bye}, address=("late", n), comes_at=2).gives(breaks=n > 3) for n in range(6)],
    )
    report = (await scene.play()).report
    ends = [(it.info.client_address, str(it.outcome), it.duration) for it in report.requests]
    assert ends == [
        (("idle", 1), "drained", 1),
        *[(("late", number), "completed", 0) for number in range(4)],
        (("drains", 1), "drained", 3),
        (("completes", 1), "completed", 4),
        (("slow", 1), "cancelled", 6),
    ]
    assert report.unaccepted == (("late", 4), ("late", 5))
    assert report.reason == "shutdown() was called"
    assert (report.grace, report.duration, report.clean) == (5, 5, False)
    assert report.summary == (
        "shutdown() was called: ended in 5.000 s of 5 s grace,"
        " 5 completed, 2 drained, 1 cancelled, 2 unaccepted"
    )
    assert str(report).splitlines()[0] == report.summary
    assert len(str(report).splitlines()) == 1 + 8 + 2
    assert report.statistics.accepted == len(report.completed) + 4 == 9
