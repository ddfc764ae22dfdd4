"""Shutdown: the drain, the waiting room, the grace, the cut, the clean-up, and lingering."""

import errno
import hashlib
import logging
import math
import resource
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, hold, plain_client, read_to_end, running
from support.scenes import (
    Scene,
    Visit,
    close,
    counts,
    does,
    end,
    heard_by,
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
from trioserver import Connection, Draining, Limits, Timeouts
from trioserver._sockets.stream_sockets import SocketListener
from trioserver.testing import MemoryMixIn, MemoryServer

a_second = does(sleep(1), b"done")


async def recv_forever(request, client_address, server):
    """Reads with plain ``recv`` and sends back what it gets, to the end of input."""
    while data := await request.recv():
        await request.sendall(data)


def shutdown(grace):
    """What shuts a server down."""
    return lambda server: server.shutdown(grace)


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


class Stubborn(trioserver.StreamRequestHandler):
    """Asks three times whether there is more, and tells the answers."""

    async def handle(self):
        await self.rfile.readline()
        for _ in range(3):
            more = await self.rfile.more()
            await self.wfile.write(b"%r at %g, " % (more, trio.current_time()))


class Doubles(trioserver.StreamRequestHandler):
    """Leaves it to more() to send its replies."""

    wbufsize = -1

    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(2 * line)


async def polite(request, client_address, server):
    """Catches what ends the wait for the first byte."""
    with pytest.raises(Draining):
        await request.recv()
    await request.sendall(b"goodbye")


class Narrow(MemoryServer):
    """A longer reply than four bytes has to wait for its reader."""

    memory_capacity = 4


@table(
    {
        "GS-03: a keep-alive connection that is idle at the drain is closed at once": Scene(
            Upper, {0: b"one\n"}, 60
        ).gives(b"ONE\n", outcomes=["drained"], closed_at=60),
        "a request whose first byte is there is read to its end, and answered": Scene(
            Upper, {0: b"one\ntw", 14: b"o\n"}, 10
        ).gives(b"ONE\nTWO\n", 14),
        "a byte that arrived in the very step of the drain begins a request": Scene(
            Upper, {0: b"one\n", 60: b"t", 64: b"wo\n"}, 60
        ).gives(b"ONE\nTWO\n", 64),
        "pipelined requests that came in one piece are all answered, then it ends": Scene(
            Slow, {0: b"one\ntwo\nthree\n"}, 0.5
        ).gives(b"ONE\nTWO\nTHREE\n", 3),
        "a request that waits in the kernel when more() is called is served": Scene(
            Slow, {0: b"one\n", 0.75: b"two\n"}, 0.5
        ).gives(b"ONE\nTWO\n", 2),
        "asked again, it says the same, at once": Scene(Stubborn, {0: b"one\n"}, 60).gives(
            b"False at 60, " * 3, 60
        ),
        "a request that arrives while more() flushes a reply is not lost": Scene(
            Doubles,
            {0: b"one\n", 1: b"two\n"},
            1,
            kind=Narrow,
            reads_from=2,
            meanwhile={0.5: states("writing")},
        ).gives(b"one\none\ntwo\ntwo\n"),
        "a plain recv() says nothing of requests: in the middle it waits on": Scene(
            recv_forever, {0: b"one", 64: b"two"}, 60
        ).gives(b"onetwo", 65, "cancelled", closed_at=65),
        "the wait of recv() for the first byte can be caught, to say goodbye": Scene(
            polite, {}, 1, 60
        ).gives(b"goodbye", 1, "drained"),
        "who ends its input in the step of the drain has ended it": Scene(
            Upper, {0: b"one\n", 10: end}, 10
        ).gives(outcomes=["completed"]),
        "who closes in the step of the drain has closed": Scene(
            Upper, {0: b"one\n", 10: close}, 10
        ).gives(b"ONE\n", outcomes=["completed"]),
        "who resets in the step of the drain has reset": Scene(
            Upper, {0: b"one\n", 10: reset}, 10
        ).gives(b"ONE\n", outcomes=["disconnected"]),
    }
)
async def test_more_between_requests(scene, autojump_clock):
    """A drain ends the wait for a request that has not begun, and no other."""
    await scene.play()


async def test_more_has_a_last_look_at_the_kernel_on_tcp():
    """For many clients at once, with whole, half and pipelined requests."""
    async with running(server := on_tcp()) as address:
        clients = [plain_client(address) for _ in range(30)]
        for client in clients:
            client.sendall(b"one\n")
            await trio.to_thread.run_sync(client.recv, 4)
        for number, client in enumerate(clients):
            client.sendall((b"two\n", b"tw", b"two\nthree\n")[number % 3])
        server.shutdown(8)
        await wait_all_tasks_blocked()
        for number, client in enumerate(clients):
            with client:
                if number % 3 == 1:
                    client.sendall(b"o\n")
                await wait_all_tasks_blocked()
                expected = b"TWO\nTHREE\n" if number % 3 == 2 else b"TWO\n"
                assert await heard_by(client) == expected


# A new connection ---------------------------------------------------------------


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


async def waits(request, client_address, server):
    """Waits in an idle block, and says so if it falls through."""
    with request.idle():
        await trio.sleep_forever()
    await request.sendall(b"fell through")


async def looks_at_draining(request, client_address, server):
    """Checks that what it lets out is about its request."""
    with pytest.raises(Draining) as caught:
        await waits(request, client_address, server)
    assert caught.value.info is request.info
    raise caught.value


async def says_goodbye(request, client_address, server):
    """Takes its time for it."""
    await request.sendall(b"job ")
    try:
        await waits(request, client_address, server)
    except Draining:
        await trio.sleep(2)
        await request.sendall(b"goodbye")


async def comes_late(request, client_address, server):
    """Comes to its idle block after two seconds, and tells how far it got."""
    await trio.sleep(2)
    came = b"not inside"
    try:
        with request.idle():
            came = b"inside"
            await trio.lowlevel.checkpoint()
            came = b"after the wait"
    finally:
        await request.sendall(came)


async def finds_at_once(request, client_address, server):
    """Has what it wanted without waiting."""
    await trio.sleep(2)
    with request.idle():
        answer = b"found"
    await request.sendall(answer)


async def fails_in_a_drain(request, client_address, server):
    """Tells what came out of its block."""
    try:
        with request.idle():
            server.shutdown(60)
            raise KeyError("mine")
    except Exception as error:  # noqa: BLE001  (whatever it is)
        await request.sendall(repr(error).encode())


async def nests(request, client_address, server):
    """Has a block in a block."""
    with pytest.raises(Draining):
        with request.idle():
            await waits(request, client_address, server)
            await request.sendall(b"fell through the inner one")
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


async def buffers_much(request, client_address, server):
    """Leaves a long reply in the buffer."""
    await trioserver.RequestWriter(request, 1_000_000).write(bytes(999_999))
    await waits(request, client_address, server)


class Either(trioserver.StreamRequestHandler):
    """Is idle in the way that its client asks for, or works."""

    async def handle(self):
        match await self.rfile.readline():
            case b"more\n":
                await self.rfile.more()
            case b"idle\n":
                await waits(self.request, self.client_address, self.server)
            case _:
                await trio.sleep_forever()


class BuffersThenIdles(trioserver.StreamRequestHandler):
    """Leaves its reply in the buffer, and lets `Draining` out of the wait for the next request."""

    wbufsize = -1

    async def handle(self):
        await self.wfile.write(await self.rfile.readline())
        await waits(self.request, self.client_address, self.server)


class BuffersThenIdlesAndHasAFinish(BuffersThenIdles):
    async def finish(self):
        """Its own, which knows nothing of the buffer."""


async def buffers_then_idles(request, client_address, server):
    """The same as a function."""
    await trioserver.RequestWriter(request, -1).write(await request.recv())
    await waits(request, client_address, server)


@table(
    {
        "the block raises, with the request's facts; nothing falls through": Scene(
            looks_at_draining, {}, 1, 60
        ).gives(b"", outcomes=["drained"], reason="drain", closed_at=1),
        "GS-07: what is written after it reaches the client, before its end of input": Scene(
            says_goodbye, {}, 1, 60
        ).gives(b"job goodbye", 3, "drained"),
        "a block that is entered in a drain raises at its first wait": Scene(
            comes_late, {}, 1, 60
        ).gives(b"inside", 2, "drained"),
        "a block that does not wait ends as if nothing were": Scene(finds_at_once, {}, 1, 60).gives(
            b"found", outcomes=["completed"]
        ),
        "what the block raises by itself leaves it unchanged, in a drain, too": Scene(
            fails_in_a_drain, {}
        ).gives(b"KeyError('mine')"),
        "nested blocks end all of them, by the outermost": Scene(nests, {}, 1, 60).gives(
            b"goodbye", 1
        ),
        "tasks that let it out, in a group, have ended properly all the same": Scene(
            waits_in_two_tasks, {}, 1, 60
        ).gives(b"", outcomes=["drained"]),
        "a time-out inside the block is the block's own; a drain goes past it": Scene(
            polls, {}, 2, 60
        ).gives(b"timed out", 2, "drained"),
        "somebody's cancellation passes through the block as what it is": Scene(
            waits, {}, meanwhile={1: cancel_the_first}
        ).gives(outcomes=["cancelled"], reason="because"),
        **{
            f"a reply in the buffer is sent ({handler.__name__})": Scene(
                handler, {0: b"one\n"}, 1, 60
            ).gives(b"one\n", 1, "drained")
            for handler in (BuffersThenIdles, BuffersThenIdlesAndHasAFinish, buffers_then_idles)
        },
        **{
            f"without grace, who is idle is drained; who works is cancelled ({line})": Scene(
                Either, {0: line.encode() + b"\n"}, 60, 0
            ).gives(b"", 60, outcome, closed_at=60)
            for line, outcome in {"more": "drained", "idle": "drained", "work": "cancelled"}.items()
        },
        "the last flush keeps to the write time-out": Scene(
            buffers_much, {}, 1, 60, reads_from=50
        ).gives(outcomes=["timed_out"], breaks=True, report={"duration": Timeouts().write}),
    }
)
async def test_idle_raises_draining(scene, autojump_clock):
    """When the server drains, a handler's own wait between requests is ended."""
    await scene.play()


async def test_draining_let_out_is_no_error(autojump_clock, caplog):
    """A handler that lets it out has ended properly: no handle_error, one INFO line."""
    caplog.set_level(logging.INFO, "trioserver")
    await Scene(waits, {}, 1, 60).play()
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert sum(" drained " in record.getMessage() for record in caplog.records) == 1


class Parser(trioserver.BaseRequestHandler):
    """Waits for four-byte commands in an idle block, with ``recv`` and a parser of its own."""

    async def handle(self):
        parsed = bytearray()
        while True:
            with self.idle():
                while len(parsed) < 4:
                    data = await self.request.recv(4 - len(parsed))
                    if not data:
                        return
                    parsed += data
            await self.request.sendall(parsed.upper())
            parsed.clear()


class Mixed(Parser):
    async def handle(self):
        assert await trioserver.RequestReader(self.request).peek() == b"on"
        await super().handle()


class SlowParser(Parser):
    async def handle(self):
        await trio.sleep(0.125)  # half a request arrives, and then the drain
        await super().handle()


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
            Parser, {0: b"one.", 60: b"tw", 64: b"o."}, 60
        ).gives(b"ONE.TWO."),
        "bytes that were received in the block": Scene(Parser, {0: b"one.tw", 64: b"o."}, 60).gives(
            b"ONE.TWO."
        ),
        "bytes that were in the buffer, and were taken in the block": Scene(
            Mixed, {0: b"on", 64: b"e."}, 60
        ).gives(b"ONE."),
        "bytes that the drain's look found, and that were taken in the block": Scene(
            SlowParser, {0.0625: b"on", 4: b"e."}, 0.0625
        ).gives(b"ONE."),
        "bytes that are in the buffer, whatever the block waits for": Scene(
            peeks, {0: b"one\n"}, 1, 60
        ).gives(b"one\n", 2),
        "GS-04: none, of a new connection whose first request may be on its way": Scene(
            Parser, {}, 0.125, 60
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

    async def server_bind(self):
        self.offers, self.jobs = trio.open_memory_channel[bytes](1)
        return await super().server_bind()


class Jobs(trioserver.BaseRequestHandler):
    """Sends its client every job that is offered, and waits for the next in an idle block."""

    async def handle(self):
        while True:
            with self.idle():
                job = await self.server.jobs.receive()
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


def offer_and_drain(server):
    """Both in one step."""
    server.offers.send_nowait(b"job")
    server.shutdown(60)


def drain_and_offer(server):
    """The other way round."""
    server.shutdown(60)
    server.offers.send_nowait(b"job")


def is_offered_still(server):
    """Nobody has taken the job."""
    assert server.jobs.receive_nowait() == b"job"


def is_alone(server):
    """Nobody waits for a job."""
    assert server.jobs.statistics().tasks_waiting_receive == 0


@table(
    {
        "a job that is handed over in the step of the drain is done, once": Scene(
            Jobs, {}, meanwhile={1: offer_and_drain, 2: is_alone}
        ).gives(b"job", 1),
        "a job that is offered right after the drain stays where it is": Scene(
            Jobs, {}, meanwhile={1: drain_and_offer, 2: is_offered_still}
        ).gives(b"", 1),
        "a task that waits for others, while its neighbour has served, is idle": Scene(
            Chat, {0: b"one\n"}, 10
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


def gone(server):
    """The next accept finds a client that has gone away."""
    server.listener.errors.append(ConnectionAbortedError(errno.ECONNABORTED, "gone"))


def exhausted(server):
    """The next accept finds no descriptor."""
    server.listener.errors.append(OSError(errno.EMFILE, "too many"))


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
            greets, HELLO, 0.5, limits=ONE_SLOT, meanwhile={0.25: gone}
        )
        .beside(Visit(HELLO).gives(b"2"))
        .gives(b"1", accept_errors=1),
        "when no more can be accepted, shutdown() does not raise": Scene(
            a_second, {}, 0.5, meanwhile={0.25: exhausted}
        ).gives(b"done", outcomes=["completed"], accept_errors=1),
        "nor does it raise what get_request raises while the rest is turned away": Scene(
            a_second, {}, 0.5, kind=RaisesInADrain, meanwhile={0.25: exhausted}
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


class OnlyOne(MemoryServer):
    def get_request(self, listener):
        accepted = super().get_request(listener)
        if accepted is not None:
            self.shutdown(5)
        return accepted


class EnoughAfterOne(MemoryServer):
    calls = 0

    def get_request(self, listener):
        self.calls += 1
        if self.calls == 3:  # the second found that there was nobody else
            self.shutdown(5)
        return super().get_request(listener)


class Enough(trioserver.TCPServer):
    def get_request(self, listener):
        self.shutdown(5)
        return super().get_request(listener)


class OneIsEnough(trioserver.Observer):
    server: Any = None

    def request_started(self, info):
        self.server.shutdown(5)


class Observed(MemoryServer):
    async def server_bind(self):
        self.observers[0].server = self
        return await super().server_bind()


class StopsAfterOne(trioserver.TCPServer):
    """Shuts itself down when a request has given its slot back, before anybody else has run."""

    async def shutdown_request(self, request):
        self.shutdown(5)
        await super().shutdown_request(request)


class StopsAfterOneInMemory(MemoryMixIn, StopsAfterOne):
    """The same, in memory."""


THREE_DONE = {"gets": b"done", "others": [Visit().gives(b"done")] * 2}


@table(
    {
        "a hook, in the middle of an accept": Scene(a_second, kind=OnlyOne, **THREE_DONE).gives(
            accepted=3
        ),
        "a hook, before the accept; the drain takes in whom it was called for": Scene(
            a_second, kind=EnoughAfterOne
        )
        .beside(Visit(comes_at=0.5).gives(b"done"))
        .gives(
            b"done",
            outcomes=["completed", "completed"],
            accept_errors=0,
            report={"reason": "shutdown() was called"},
        ),
        "an observer, at the first event of a kind": Scene(
            a_second, kind=Observed, fields={"observers": [OneIsEnough()]}, **THREE_DONE
        ),
        "a hook, when the slot that the accept loop waited for falls free": Scene(
            a_second, kind=StopsAfterOneInMemory, limits=ONE_SLOT
        ).gives(b"done", clean=True),
    }
)
async def test_shutdown_called_from_within(scene, autojump_clock):
    """Whoever shuts the server down in the middle of its work, nobody is lost."""
    await scene.play()


@pytest.mark.parametrize("kind", [Enough, StopsAfterOne])
async def test_shutdown_called_from_within_on_tcp(kind):
    """The listening socket is closed by then, and that is no broken listener."""
    async with running(server := on_tcp(kind=kind, limits=ONE_SLOT)) as address:
        with plain_client(address) as client:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            assert await heard_by(client) == b"HELLO\n"
        report = await server.wait_closed()
    assert report.clean
    assert report.statistics.outcomes["completed"] == 1
    assert report.statistics.accept_errors == 0


@pytest.mark.parametrize("requests", [3, 1024])
@pytest.mark.parametrize("over", ["tcp", "reuse_port", "unix"])
async def test_clients_in_the_kernel_s_queue_are_served(requests, over, tmp_path):
    """Who had connected before the drain is served, with or without a free slot.

    With ``allow_reuse_port`` each socket has a queue of its own.
    """
    limits, path = Limits(requests=requests), tmp_path / "socket"
    server = on_tcp(limits=limits, allow_reuse_port=over == "reuse_port")
    if over == "unix":
        server = trioserver.UnixStreamServer(path, Upper, limits=limits)
    async with running(server) as address:
        inside = [plain_client(address) for _ in range(3)]
        for client in inside:
            client.sendall(b"one\n")
            assert await trio.to_thread.run_sync(client.recv, 100) == b"ONE\n"
        queued = [plain_client(address) for _ in range(3)]
        for client in queued:
            client.sendall(b"one\ntwo\n")
        server.shutdown(8)
        assert refuses(address)
        assert not path.exists()
        for client in queued:
            with client:
                assert await heard_by(client) == b"ONE\nTWO\n"
        for client in inside:
            with client:
                assert await heard_by(client) == b""
        report = await server.wait_closed()
    assert report.statistics.accepted == 6
    assert report.clean


def refuses(address):
    """Whether nobody can connect there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(address) != 0


async def test_clients_beyond_the_waiting_room_are_reset_on_tcp():
    """They see a reset at once, as from a server that is gone, and are counted."""
    async with running(server := on_tcp(hold, limits=ONE_SLOT)) as address:
        clients = [plain_client(address) for _ in range(4)]
        await wait_all_tasks_blocked()
        server.shutdown(600)
        for client in clients[2:]:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        server.shutdown(0)
        report = await server.wait_closed()
        for client in clients[:2]:
            client.close()
    assert len(report.unaccepted) == 3
    assert len(report.cancelled) == 1


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


def share(server):
    """Have the listener say that it is shared."""
    server.listener.shared = True


def closed(server):
    """Nobody can connect any more."""
    assert server.listener.closed
    with pytest.raises(ConnectionRefusedError):
        server.listener.connect_now()


def taken_in(server):
    """All that happens when a server with one client, and one in the queue, is shut down."""
    assert server.draining
    assert server.statistics().waiting == 1
    snapshot = server.snapshot()
    assert snapshot.state == "draining"
    assert [listener.accepting for listener in snapshot.listeners] == [False]


@table(
    {
        "GS-06: nobody can connect; who is inside is served": Scene(
            a_second, {}, 0.5, meanwhile={0.5: closed}
        ).gives(b"done", 1),
        "a listener that says it is shared is only closed": Scene(
            a_second, {}, 0.5, limits=ONE_SLOT, meanwhile={0.25: share, 0.5: closed}
        )
        .beside(Visit().gives(ends_at=0.5, breaks=True))
        .gives(b"done", accepted=1, unaccepted=()),
        "who waited for a slot has been taken in when shutdown() returns": Scene(
            Upper, {}, 1, 60, limits=ONE_SLOT, meanwhile={1: taken_in, 1.0625: closed}
        ).beside(Visit(comes_at=1)),
    }
)
async def test_listener_in_the_step_of_the_drain(scene, autojump_clock):
    """From that instant it accepts nobody."""
    await scene.play()


async def test_all_listeners_stop_before_any_is_waited_for(tmp_path):
    """GS-06, GS-10: TCP on all families and Unix refuse clients while requests are in flight."""
    path = str(tmp_path / "socket")

    class Everywhere(trioserver.TCPServer):
        async def server_bind(self):
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(path)
            return [*await super().server_bind(), SocketListener(unix)]

    server = Everywhere(("", 0), Upper)
    async with running(server) as address:
        places = [("127.0.0.1", address[1]), path]
        clients = [plain_client(place) for place in places]
        for client in clients:
            client.sendall(b"on")
        await wait_all_tasks_blocked()
        server.shutdown(8)
        assert [refuses(place) for place in places] == [True, True]
        for client in clients:
            with client:
                client.sendall(b"e\n")
                assert await heard_by(client) == b"ONE\n"


# The grace -----------------------------------------------------------------------


class SlowToVerify(MemoryServer):
    async def verify_request(self, request, client_address):
        await trio.sleep(1)
        return True


async def last_one(request, client_address, server):
    """Shuts its server down."""
    server.shutdown(5)
    await a_second(request, client_address, server)


CLEAN = {"duration": 0.5, "clean": True, "drained": (), "cancelled": (), "unaccepted": ()}


@table(
    {
        "GS-01: 100 requests that need a second get it, and the end comes then": Scene(
            a_second, {}, 0.5
        )
        .beside(*[Visit().gives(b"done", 1)] * 99)
        .gives(b"done", 1, *["completed"] * 100, closed_at=1, report=CLEAN),
        "a client that is looked at when the drain begins is let in, and served": Scene(
            Upper, {0: b"one\n"}, 0.5, kind=SlowToVerify
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


async def as_told(request, client_address, server):
    """Works for as many seconds as the client says."""
    await trio.sleep(float(await trioserver.RequestReader(request).readline()))
    await request.sendall(b"done")


async def swallows(request, client_address, server):
    """Is not impressed by its cancellation, and returns."""
    with suppress(trio.Cancelled):
        await trio.sleep_forever()


@table(
    {
        "GS-02: at exactly that instant, with the reason; others are unharmed": Scene(
            as_told, {0: b"60\n"}, 1
        )
        .beside(Visit({0: b"4.5\n"}).gives(b"done", 4.5))
        .gives(b"", 6, "completed", "cancelled", reason="the grace is over", duration=6),
        "the grace is timeouts.shutdown unless it is given": Scene(
            hold, timeouts=Timeouts(shutdown=7), meanwhile={1: MemoryServer.shutdown}
        ).gives(closed_at=8, grace=7),
        "a grace of zero cuts whoever works, at once": Scene(hold, {}, 1, 0).gives(
            b"", outcomes=["cancelled"], reason="the grace is over", closed_at=1
        ),
        "a handler that swallowed its cancellation and returned is completed": Scene(
            swallows, {}, 1
        ).gives(outcomes=["completed"], duration=6),
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
    report = {"grace": grace, "duration": grace}
    await Scene(hold, {}, 1, 5, meanwhile={3: shutdown(second)}).gives(report=report).play()


async def test_report_of_a_cancelled_run_has_no_grace(autojump_clock):
    """A shutdown that comes during the clean-up gives nobody a grace any more."""

    async def cleans_up(request, client_address, server):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    server = in_memory(cleans_up)
    with trio.CancelScope() as scope:
        async with server.serving():
            await server.connect()
            await trio.sleep(1)
            scope.cancel(reason="enough")
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                server.shutdown(15)
    report = await server.wait_closed()
    assert (report.grace, report.duration, report.reason) == (0, 2, "enough")


async def test_shutdown_by_another_thread():
    """From a thread that Trio knows nothing of, it returns at once and the drain begins."""
    async with running(server := on_tcp()) as address:
        async with await trio.open_tcp_stream(*address) as client:
            await client.send_all(b"one\n")
            assert await client.receive_some() == b"ONE\n"
            thread = threading.Thread(target=server.shutdown, args=(60,))
            thread.start()
            assert await read_to_end(client) == b""
            thread.join()


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


async def test_draining_event_comes_once(autojump_clock):
    """Observers are told of the drain when it begins, and of the end when nothing is left."""
    played = await Scene(a_second, {}, 0.25, 5, meanwhile={0.5: shutdown(4)}).play()
    assert played.witness.names == [
        "server_listening",
        "request_started",
        "draining",
        "request_finished",
        "server_closed",
    ]


# The cut -------------------------------------------------------------------------


async def unwinds(request, client_address, server):
    """Needs three seconds to end after it was cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)


async def shields_itself(request, client_address, server):
    """Cannot be cancelled for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


class SlowToFinish(trioserver.BaseRequestHandler):
    async def handle(self):
        await trio.sleep_forever()

    async def finish(self):
        await trio.sleep(1)


@table(
    ("handler", "reason", "ends_at"),
    {
        "whoever cancels it is quoted in every record, and in the report": (hold, "lunch", 1),
        "without a reason, it is said by what kind of thing": (hold, None, 1),
        "a deadline around the server is no time-out of the request": (hold, "deadline", 1),
        "nor is it of one that takes its time to end": (unwinds, "deadline", 4),
        "TO-09: nor in the time that finish takes": (SlowToFinish, "deadline", 2),
        "who will not end is waited for, and named": (shields_itself, "lunch", 60),
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
    if handler is shields_itself:
        assert [it.text.count("shields_itself") for it in log] == [1]
        return
    assert log == []
    [record] = witness.records
    assert record.outcome == "cancelled"
    quoted = "lunch" if reason == "lunch" else "cancelled"
    assert quoted in record.reason
    assert quoted in str((await server.wait_closed()).reason)


async def test_block_that_fails_cuts_its_server(autojump_clock):
    """An error in a ``serving`` block cancels the requests, with a reason, and leaves it bare."""
    witness = Witness()

    async def fails_while_serving():
        async with in_memory(hold, observers=[witness]).serving() as server:
            await server.connect()
            await wait_all_tasks_blocked()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fails_while_serving()
    assert witness.outcomes == ["cancelled"]
    assert "serving()" in witness.records[0].reason


async def test_cancel_request_ends_one(autojump_clock):
    """``cancel_request`` ends that request, in a drain, too, and says why in its record."""

    def cancel(server):
        assert server.cancel_request(2, "out of favour")

    def cancel_again(server):
        assert not server.cancel_request(2, "gone already")
        assert [info.id for info in server.requests] == [1]

    others = [Visit().gives(b"", 2)]
    looks = {2: cancel, 3: cancel_again, 4: shutdown(0)}
    played = await Scene(hold, {}, 1, 60, meanwhile=looks).beside(*others).play()
    assert [(it.info.id, it.reason) for it in played.report.cancelled] == [
        (2, "out of favour"),
        (1, "the grace is over"),
    ]


# The clean-up --------------------------------------------------------------------


async def swallows_every_cancellation(request, client_address, server):
    """Goes on for a minute, whoever wants it to end."""
    until = trio.current_time() + 60
    while trio.current_time() < until:
        try:
            await trio.sleep_until(until)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)


class WillNotEnd(trioserver.BaseRequestHandler):
    """The same, as a class."""

    async def handle(self):
        await shields_itself(self.request, self.client_address, self.server)


@pytest.mark.parametrize(
    ("handler", "stuck_in"),
    [
        (shields_itself, "shields_itself"),
        (swallows_every_cancellation, "swallows_every_cancellation"),
        (WillNotEnd, "shields_itself"),
    ],
)
async def test_handler_that_will_not_end_is_named_and_waited_for(
    handler, stuck_in, autojump_clock, caplog
):
    """GS-02: at the cleanup limit it is named with its stack; nothing outlives the server."""
    scene = Scene(handler, {}, 1, timeouts=Timeouts(cleanup=4), address=("client", 7)).gives(
        outcomes=["completed"], closed_at=60, logs=[f"in {stuck_in}\n"]
    )
    [named] = (await scene.play()).log
    assert named.at == 1 + 5 + 4
    assert "client:7" in named.text
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trioserver.error", "ERROR")


class Finishes(trioserver.BaseRequestHandler):
    async def handle(self):
        await trio.sleep_forever()

    async def finish(self):
        await trio.sleep(2)
        await self.request.sendall(b"at %g" % trio.current_time())
        await trio.sleep_forever()


async def by_turns(request, client_address, server):
    """The first will not end."""
    await (shields_itself if request.info.id == 1 else hold)(request, client_address, server)


class WillNotClose(MemoryServer):
    async def shutdown_request(self, request):
        await shields_itself(request, None, self)


class TakesLong(MemoryServer):
    async def shutdown_request(self, request):
        await trio.sleep(60)


@attrs.frozen(eq=False)
class Wrapped:
    """What get_request makes of the connection."""

    connection: Connection

    async def linger(self):
        await trio.sleep(60)

    async def aclose(self):
        """Nothing."""


class Wraps(MemoryServer):
    def get_request(self, listener):
        answer = super().get_request(listener)
        return answer and (Wrapped(answer[0]), answer[1])


async def replies_to_wrapped(request, client_address, server):
    """Replies, and does not close."""
    await request.connection.sendall(b"hello")


@table(
    {
        "GS-02: one who will not end holds nobody else up": Scene(by_turns, {}, 1)
        .beside(*[Visit().gives(b"", 6)] * 2)
        .gives(closed_at=60, logs=["shields_itself"]),
        "after the grace, `finish` has timeouts.cleanup seconds": Scene(Finishes, {}, 1).gives(
            b"at 8", outcomes=["cancelled"], closed_at=10
        ),
        "one who takes less time than timeouts.cleanup is nobody's business": Scene(
            unwinds, {}, 1
        ).gives(closed_at=9),
        "a request whose outcome is decided, and which does not close, is named": Scene(
            greets, HELLO, 0.5, 0, address=("client", 7), kind=WillNotClose
        ).gives(closed_at=60.5, logs=["client:7.*in shields_itself\n"]),
        "EX-07: a shutdown_request that takes too long is ended, and named": Scene(
            a_second, kind=TakesLong
        ).gives(b"done", 7, logs=["shutdown_request did not end within 6 s"]),
        "the same of a request that was cancelled, and does not linger": Scene(
            a_second, kind=TakesLong, meanwhile={0.5: cancel_the_first}
        ).gives(b"", 4.5, logs=["shutdown_request did not end within 4 s"]),
        "what get_request made of the connection closes itself in bounds, too": Scene(
            replies_to_wrapped, kind=Wraps
        ).gives(b"hello", 6, logs=["within 6 s"]),
    }
)
async def test_clean_up_is_bounded(scene, autojump_clock):
    """Whatever does not end is bounded, or, if it cannot be, named."""
    await attrs.evolve(scene, timeouts=Timeouts(cleanup=4, linger=2)).play()


# Servers inside servers ----------------------------------------------------------


def nest_of_three(innermost):
    """Three servers, each in a handler of the one before; only the first is to be served."""

    async def serves(request, client_address, server):
        async with servers[servers.index(server) + 1].serving():
            await trio.sleep_forever()

    patient = Timeouts(shutdown=1000)
    servers = [in_memory(it, timeouts=patient) for it in (serves, serves, innermost)]
    return servers


@table(
    ("innermost", "drains", "ends_at"),
    {
        "the innermost request ends with the outermost grace": (hold, [(0, 0, 5)], 5),
        "an inner drain with more grace does not outlast the outer one": (
            hold,
            [(0, 2, 100), (1, 1, 50), (2, 0, 5)],
            7,
        ),
        "the innermost can end by itself; the others go on": (hold, [(0, 2, 5), (6, 0, 0)], 6),
        "nothing outlives who will not end, and is named": (shields_itself, [(0, 0, 5)], 60),
    },
)
async def test_nested_servers(
    innermost,
    drains,
    ends_at,
    autojump_clock,
):
    """Three servers, each in a handler of the one before: each lives no longer than the outer."""
    servers = nest_of_three(innermost)
    with logged() as log:
        async with servers[0].serving():
            for server in servers:
                await server.connect()
                await wait_all_tasks_blocked()
            for instant, level, grace in drains:
                await trio.sleep_until(instant)
                assert [bool(it.requests) for it in servers] == [True, True, instant < 5]
                servers[level].shutdown(grace)
            await servers[0].wait_closed()
    assert trio.current_time() == ends_at
    assert [server.snapshot().state for server in servers] == ["unbound"] * 3
    if innermost is shields_itself:
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
        "as many linger as there are slots; beyond it, the oldest is closed": Scene(
            replies_early,
            ASKED,
            limits=TWO_SLOTS,
            meanwhile={0.25: ONE, 0.5: counts(lingering=2), 0.75: counts(lingering=2)},
        )
        .beside(*[Visit({n: b"what?"}, comes_at=n, stays=True) for n in (0.25, 0.5)])
        .gives(outcomes=["completed"] * 3),
    }
)
async def test_linger(scene, autojump_clock):
    """The server waits for a client that has not read its reply; the request is completed."""
    outcomes = scene.outcomes or ["completed"]
    await attrs.evolve(scene, gets=bytes(1000), stays=True, outcomes=outcomes).play()


# The report ------------------------------------------------------------------------


async def test_report_says_who_ended_how(autojump_clock):
    """Who was drained, who completed, who was cut, who never got in; how long each took."""

    class AsTold(trioserver.StreamRequestHandler):
        async def handle(self):
            async for line in self.rfile:
                if line == b"bye\n":
                    return
                await trio.sleep(float(line))

    scene = Scene(AsTold, {0: b"bye\n"}, 2, limits=Limits(requests=4)).beside(
        *[
            Visit({1: says}, address=(name, 1), comes_at=1)
            for name, says in (
                ("idle", b"0\n"),
                ("completes", b"4\nbye\n"),
                ("slow", b"60\n"),
                ("drains", b"3\n"),
            )
        ],
        *[
            Visit({2: b"bye\n"}, address=("queued", number), comes_at=2).gives(breaks=number > 3)
            for number in range(6)
        ],
    )
    report = (await scene.play()).report
    ended = {it.info.client_address: (str(it.outcome), it.duration) for it in report.requests}
    assert list(ended.items()) == [
        (("idle", 1), ("drained", 1)),
        (("queued", 0), ("completed", 0)),
        (("queued", 1), ("completed", 0)),
        (("queued", 2), ("completed", 0)),
        (("queued", 3), ("completed", 0)),
        (("drains", 1), ("drained", 3)),
        (("completes", 1), ("completed", 4)),
        (("slow", 1), ("cancelled", 6)),
    ]
    assert report.unaccepted == (("queued", 4), ("queued", 5))
    assert report.reason == "shutdown() was called"
    assert (report.grace, report.duration) == (5, 5)
    assert not report.clean
    assert report.summary == (
        "shutdown() was called: ended in 5.000 s of 5 s grace,"
        " 5 completed, 2 drained, 1 cancelled, 2 unaccepted"
    )
    assert str(report).splitlines()[0] == report.summary
    assert len(str(report).splitlines()) == 1 + 8 + 2
    assert report.statistics.accepted == 9


# Many at once ------------------------------------------------------------------------


@pytest.fixture
def many_descriptors():
    """Room for 1000 connections, both ends of which are ours."""
    needed = 2500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        pytest.skip(f"needs {needed} descriptors, and may have {hard}")
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reply_to(number):
    """A reply that no other request gets, of up to 100 kB."""
    return hashlib.shake_128(b"%d" % number).digest(number**2 % 100_000 + 1)


@pytest.mark.slow
async def test_a_thousand_requests_in_flight_lose_nothing(many_descriptors):
    """GS-01: over TCP, ``shutdown(grace=5)`` loses no reply that was begun and took up to a second.

    Every other client has sent more than its handler reads. Each reply is
    checked byte for byte, and each connection for an end without an error.
    """
    in_flight, all_in_flight, drained = 0, trio.Event(), trio.Event()

    async def replies_late(request, client_address, server):
        nonlocal in_flight
        number = int(await trioserver.RequestReader(request).readline())
        in_flight += 1
        if in_flight == 1000:
            all_in_flight.set()
        await drained.wait()
        await trio.sleep(number % 10 / 10)
        await request.sendall(reply_to(number))

    got = {}

    async def ask(number):
        async with await trio.open_tcp_stream(*server.server_address) as client:
            await client.send_all(b"%d\n%s" % (number, b"and more" * (number % 2)))
            got[number] = await read_to_end(client)

    server = on_tcp(replies_late)
    with trio.fail_after(30):
        async with server.serving(), trio.open_nursery() as clients:
            for number in range(1000):
                clients.start_soon(ask, number)
            await all_in_flight.wait()
            server.shutdown(grace=5)
            drained.set()
            assert len(server.requests) == 1000
            report = await server.wait_closed()
    assert len(report.completed) == 1000
    assert report.clean
    assert report.duration < 5
    wrong = [number for number in range(1000) if got[number] != reply_to(number)]
    assert wrong == []
