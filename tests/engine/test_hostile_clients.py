"""Clients that misbehave: they vanish, trickle, flood, stall and lie, and harm nobody else."""

import contextlib
import math
import random
import socket

import pytest
import trio
from support import Upper, Witness, descriptors, plain_client, read_to_end, running, until
from support import reset as vanish
from support.protocols import Delimited, Framed
from support.scenes import (
    Scene,
    Visit,
    close,
    does,
    drip,
    end,
    heard_by,
    in_memory,
    logged,
    on_tcp,
    reset,
    sleep,
    table,
)
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Connection, Timeouts
from trioserver.testing import MemoryServer, open_descriptors

ASKS = [b"hello\n", end]


async def ask(address, request=b"hello\n"):
    """What a well-behaved client gets for a request, up to the end."""
    with plain_client(address) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return await heard_by(client)


@pytest.fixture
def nothing_is_logged():
    """Neither an error nor a warning."""
    with logged() as log:
        yield
    assert log == []


leave, talk = does(Connection.recv), does(bytes(50_000_000))


# They vanish -------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize(
    "says", [b"", b"half a li", b"hello\nhello\n"], ids=["nothing", "half", "lines"]
)
@pytest.mark.usefixtures("nothing_stays_open", "nothing_is_logged")
async def test_clients_that_connect_and_vanish(says, unix, folder):
    """CM-01: after 500 clients that reset their connections, everything is as before.

    Over a Unix socket, leaving unread input behind is a reset.
    """
    ends, before = Witness(), descriptors()
    if unix:
        server = trioserver.UnixStreamServer(str(folder / "s"), Upper, observers=[ends])
    else:
        server = on_tcp(observers=[ends])
    async with running(server) as address:
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(500):
            client = plain_client(address)
            client.sendall(says)
            if unix or number % 50 == 0:
                await trio.lowlevel.checkpoint()
            vanish(client)
        assert await ask(address) == b"HELLO\n"
        await until(lambda: len(ends.records) == 501)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert len(open_descriptors() - before) == 2  # the listener, and the reserve
    assert sorted(record.info.id for record in ends.records) == list(range(1, 502))
    assert ends.names.count("request_started") == 501
    assert set(ends.outcomes) <= {"completed", "disconnected"}


async def test_clients_that_vanish_in_setup():
    """CM-19: clients that reset while `setup` runs have their `finish` run, once each."""
    calls = []

    class Slow(trioserver.StreamRequestHandler):
        async def setup(self):
            calls.append("setup")
            if calls.count("setup") == 100:
                everybody_here.set()
            await everybody_gone.wait()

        async def handle(self):
            calls.append("handle")
            await self.rfile.readline()

        async def finish(self):
            calls.append("finish")

    everybody_here, everybody_gone, ends = trio.Event(), trio.Event(), Witness()
    async with running(on_tcp(Slow, observers=[ends])) as address:
        clients = [plain_client(address) for _ in range(100)]
        await everybody_here.wait()
        for client in clients:
            vanish(client)
        everybody_gone.set()
        await until(lambda: len(ends.records) == 100)
    assert [calls.count(name) for name in ("setup", "handle", "finish")] == [100, 100, 100]
    assert set(ends.outcomes) == {"disconnected"}


@pytest.mark.usefixtures("nothing_stays_open", "nothing_is_logged")
async def test_clients_that_close_while_the_server_does():
    """CM-17: 1000 connections that both sides close in one instant have one record each."""
    ends = Witness()
    async with in_memory(leave, observers=[ends]).serving() as server:
        for _ in range(1000):
            client = await server.connect()
            await wait_all_tasks_blocked()
            client._transport.send_now(b"x")  # the handler returns in the next tick...
            await client.aclose()  # ...and so does this
        await until(lambda: len(ends.records) == 1000)
    assert sorted(record.info.id for record in ends.records) == list(range(1, 1001))
    assert set(ends.outcomes) == {"completed"}


# They trickle, or stop half-way ---------------------------------------------------


@table(
    ("handler", "sent", "reply"),
    {
        "lines": (Upper, b"hello\nworld\n\nlast", b"HELLO\nWORLD\n\nLAST"),
        "frames": (Framed, b"\x00\x05hello\x00\x00\x00\x01x", b"<hello><><x>"),
        "delimited": (Delimited, b"a\r\r\n\r\nb\n\r\n\r\n", b"A\r\r\n\r\nB\n\r\n\r\n"),
    },
)
async def test_request_in_single_bytes(handler, sent, reply, autojump_clock):
    """CM-04: where a network holds a single byte, the reply is that to a request in one piece.

    How else a request is cut does not matter either: that is in test_promises.py.
    """
    kind = type("Single", (MemoryServer,), {"memory_capacity": 1})
    await Scene(handler, {0: [sent, end]}, kind=kind).gives(reply, 0).play()


class Greeted(trioserver.StreamRequestHandler):
    async def setup(self):
        await self.rfile.readline()

    async def finish(self):
        raise AssertionError("not set up")


class Careful(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(b"<%s>" % line)
        assert [await self.rfile.readline() for _ in range(3)] == [b""] * 3
        assert self.rfile.at_eof()


class TalksOn(trioserver.StreamRequestHandler):
    async def handle(self):
        for _ in range(2):
            with pytest.raises(trioserver.WriteTimeout):
                await self.wfile.write(bytes(1_000_000))
            assert trio.current_time() == 9
        await self.wfile.write(bytes(1_000_000))


class Steps(trio.abc.Instrument):
    """Counts how often any task runs."""

    count = 0

    def after_task_step(self, task):
        self.count += 1


ANNOUNCES = b"\x00\x0a123456789"  # ten bytes, and sends nine
TAKEN = bytes(MemoryServer.memory_capacity)
STUCK = Visit(reads_from=99)


@table(
    {
        "CM-19: where `setup` itself meets the reset and fails, `finish` is not run": Scene(
            Greeted, {1: reset}
        ).gives(b"", outcomes=["disconnected"]),
        "CM-03: 500 clients that send a byte every 5 s are cut; others notice nothing": Scene(
            Upper, drip(5, 60), timeouts=Timeouts(request=62, line=math.inf)
        )
        .beside(*[Visit(drip(5, 60)).gives(b"", 62)] * 499)
        .beside(*[Visit({n: ASKS}, comes_at=n).gives(b"HELLO\n", n) for n in range(10, 61, 10)])
        .gives(b"", 62, *["completed"] * 6, *["timed_out"] * 500, reason="(request)"),
        "CM-16: the beginning of a second request waits in the buffer for its rest": Scene(
            Upper, {0: b"first\nsec", 30: [b"ond\n", end]}
        ).gives(b"FIRST\nSECOND\n", 30),
        "CM-07: a line cut short by the end of input is read once, then the end": Scene(
            Careful, {0: [b"line\nhalf a li", end]}
        ).gives(b"<line\n><half a li>", 0, "completed"),
        "CM-07, CM-08: a frame cut short ends the request at once": Scene(
            Framed, {0: [ANNOUNCES, end]}
        ).gives(b"", 0, "disconnected"),
        "CM-07, CM-08: a line cut short does so where a protocol asks for more": Scene(
            Delimited, {0: [ANNOUNCES, end]}
        ).gives(b"", 0, "disconnected"),
        "CM-06: a client that ends its output gets the whole of a large reply": Scene(
            does(read_to_end, b"z" * 1_000_000), {0: [b"hello\n", end]}
        ).gives(b"z" * 1_000_000, 0, "completed"),
        "CM-13: one that closes in the middle of a large reply ends its request quietly": Scene(
            talk, {1: close}, reads_from=2
        ).gives(b"", outcomes=["disconnected"], duration=1),
        "CM-08: a client that announces more and falls silent is cut when idle": Scene(
            Framed, {3: ANNOUNCES}, timeouts=Timeouts(idle=40)
        ).gives(b"", 43, "timed_out", reason="(idle)"),
        "CM-07: a handler that is busy elsewhere costs nothing after the end of input": Scene(
            does(Connection.recv, sleep(3600)), {0: [b"x", end]}
        ).gives(b"", 3600, "completed"),
        "CM-10: who never reads is cut, and nothing is sent after that": Scene(
            TalksOn, timeouts=Timeouts(write=9), reads_from=10
        ).gives(TAKEN, 10, "timed_out", breaks=True, reason="(write)", duration=9),
        "CM-10: a drain is over with its grace, whatever is stuck in a send": Scene(
            talk, {}, 1, 4, timeouts=Timeouts(write=1000), reads_from=99
        )
        .beside(*[STUCK.gives(breaks=True)] * 19)
        .gives(breaks=True, outcomes=["cancelled"] * 20, report={"duration": 4}),
        "CM-03, CM-10: beside a hundred of each kind, a polite client waits for nothing": Scene(
            Upper, {0: b"no end"}, 2, 0
        )
        .beside(*[Visit({0: b"no end"})] * 99)
        .beside(*[Visit({0: (b"x" * 4_999 + b"\n") * 14}, reads_from=99).gives(breaks=True)] * 100)
        .beside(*[Visit({0: reset})] * 100)
        .beside(Visit({1: ASKS}, comes_at=1).gives(b"HELLO\n", 1)),
    }
)
async def test_nobody_else_is_harmed(scene, autojump_clock):
    """Each is ended as its protocol, or a limit, says; nobody spins, and nothing is logged."""
    trio.lowlevel.add_instrument(steps := Steps())
    await scene.play()
    assert steps.count < 100 * len(scene.visits)


@pytest.mark.parametrize("handler", [Upper, Framed, Delimited])
@pytest.mark.usefixtures("nothing_is_logged")
async def test_garbage(handler):
    """CM-11: random bytes of any length end as a protocol says, never as an error of the server."""
    rng = random.Random(11)
    async with in_memory(handler, observers=[ends := Witness()]).serving() as server:
        for _ in range(150):
            async with await server.connect() as client:
                with contextlib.suppress(trio.BrokenResourceError):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(drop_all, client)
                        await client.send_all(rng.randbytes(rng.choice((0, 1, 100, 64_000))))
                        await client.send_eof()
        assert server.statistics().active == 0
    assert len(ends.records) == 150
    assert set(ends.outcomes) <= {"completed", "disconnected", "refused"}


async def drop_all(client):
    """Read, and throw away."""
    with contextlib.suppress(trio.BrokenResourceError):
        await read_to_end(client)
