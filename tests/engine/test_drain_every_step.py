"""Keep-alive connections, drained after every step: no request is lost, none is executed twice.

At the instant of the drain every connection is somewhere else: not accepted
yet, silent, idle, with a request in the kernel, half received, pipelined, or at
work. One task plays all the clients, with plain calls, so that it is known
exactly what had been sent at that instant.
"""

import socket
from collections import Counter
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from support import IdlesMixIn
from support.scenes import in_memory, on_tcp
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer, ShutDown, sweep

# A request is eight bytes that nobody else sends, and its answer is the same in
# upper case: "a07.002\n" is the second one of client 7.
SIZE = 8


def request(client, number):
    """The request of that number."""
    return b"a%02d.%03d\n" % (client, number)


# Handlers --------------------------------------------------------------------------


class Lines(trioserver.StreamRequestHandler):
    """Waits for the next request as most do, and works on it for a step."""

    async def handle(self):
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line):
        self.server.executed[line] += 1
        await trio.lowlevel.checkpoint()
        await self.request.sendall(line.upper())


class More(Lines):
    """Asks for more, and replies when it must wait for it."""

    wbufsize = -1

    async def handle(self):
        while await self.rfile.more():
            await self.answer(await self.rfile.readline())

    async def answer(self, line):
        self.server.executed[line] += 1
        await self.wfile.write(line.upper())


class Idle(IdlesMixIn, Lines):
    """Has a wait of its own, around a read of the library."""


class Parser(Lines):
    """Has a parser of its own; what waits for the rest of a request is not idle."""

    async def handle(self):
        parsed = b""
        while True:
            if not parsed:
                with self.idle():
                    parsed = await self.request.recv()
                if not parsed:
                    return
            while len(parsed) < SIZE:
                parsed += await self.request.recv()
            line, parsed = parsed[:SIZE], parsed[SIZE:]
            await self.answer(line)


# Servers and clients -----------------------------------------------------------------


@attrs.frozen(eq=False)
class MemorySocket:
    """A client's end in memory, with what is needed of a socket; what it does, it does at once."""

    transport: Any

    def send(self, data):
        return self.transport.send_now(data)

    def shutdown(self, how):
        self.transport.send_eof()

    def recv(self, size):
        return self.transport.receive_now(size)

    def close(self):
        self.transport.close()


def dialler(server):
    """What connects to this run of a server."""
    if isinstance(server, MemoryServer):
        listener = server.listener
        return lambda: MemorySocket(listener.connect_now()._transport)
    address = server.server_address
    return lambda: socket.create_connection(address)


@attrs.define(eq=False)
class Client:
    """One keep-alive connection.

    Attributes:
      name: its number.
      socket: its connection, None if it was refused.
      sent: all that it has sent.
      due: how many bytes of it belong to requests that had begun in time.
    """

    name: int
    socket: Any = None
    sent: bytes = b""
    due: int = 0

    def connect(self, dial, *, in_time):
        """Connect, if somebody listens."""
        try:
            self.socket = dial()
        except ConnectionRefusedError:
            assert not in_time
        if in_time:
            self.due = 1  # as good as sent: a new connection has half a second for it

    def say(self, data, *, in_time):
        """Send all of this in one segment, if somebody is there."""
        if self.socket is not None and data:
            with suppress(ConnectionError):
                assert self.socket.send(data) == len(data)
                self.sent += data
        if in_time:
            self.due = max(self.due, len(self.sent))

    def faults(self, executed):
        """What went wrong, when all is over."""
        got = b""
        if self.socket is not None:
            got = b"".join(iter(lambda: self.socket.recv(1000), b""))
            self.socket.close()
        requests = [self.sent[at : at + SIZE] for at in range(0, len(self.sent), SIZE)]
        for number, line in enumerate(requests):
            if executed[line] > 1:
                yield f"{line!r} was executed {executed[line]} times"
            if number * SIZE < self.due and not executed[line]:
                yield f"{line!r} had begun in time, and was lost"
        if got != b"".join(line.upper() for line in requests if executed[line]):
            yield f"client {self.name} sent {self.sent!r} and got {got!r}"


# The scenario --------------------------------------------------------------------------


@attrs.frozen(eq=False)
class KeptAlive:
    """Clients of six kinds, and one drain."""

    make: Any
    handler: Any
    connections: int

    async def __call__(self, trial):
        """Run it."""
        server = self.make(self.handler)
        server.executed = Counter()
        trial.arm(server=server)
        clients = [Client(name) for name in range(self.connections)]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            dial = dialler(server)
            for client in clients:
                client.connect(dial, in_time=not trial.is_harmed)
                await now_and_then(client)
            for stage in STAGES:
                for client in clients:
                    client.say(stage(client.name), in_time=not trial.is_harmed)
                    await now_and_then(client)
                await wait_all_tasks_blocked()
            for client in clients:
                with suppress(AttributeError, OSError):  # refused, or ended by the server
                    client.socket.shutdown(socket.SHUT_WR)
            server.shutdown(5)
        report = await server.wait_closed()
        for client in clients:
            for fault in client.faults(server.executed):
                trial.complain(fault)
        if not report.clean or len(report.completed + report.drained) < len(report.requests):
            trial.complain(str(report))


async def now_and_then(client):
    """Let the server run after every tenth client."""
    if client.name % 10 == 9:
        await trio.lowlevel.checkpoint()


def first(name):
    """All but the silent ones send a request."""
    return b"" if name % 6 == 5 else request(name, 0)


def second(name):
    """A request, half a request, three requests, one and a half, or none."""
    one, two, three = (request(name, number) for number in (1, 2, 3))
    return [one, one[:3], one + two + three, one + two[:5], b"", b""][name % 6]


def rest(name):
    """The other halves; and who has been quiet so far sends a request."""
    one, two = request(name, 1), request(name, 2)
    return [b"", one[3:], b"", two[5:], one, request(name, 0)][name % 6]


STAGES = (first, second, rest)


# Every step ------------------------------------------------------------------------------

all_handlers = pytest.mark.parametrize("handler", [Lines, More, Idle, Parser])
drained = {"faults": [ShutDown(5)]}


@pytest.mark.slow
@all_handlers
def test_drain_after_every_step(handler):
    """Twelve connections: what had begun in time is executed once and answered, all of it."""
    assert sweep(KeptAlive(in_memory, handler, 12), seeds=(0,), **drained).runs > 100


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drain_of_fifty_after_some_steps(seed):
    """The same with fifty, and a sample of some 700 steps."""
    assert sweep(KeptAlive(in_memory, Lines, 50), seeds=(seed,), every=61, **drained).runs > 10


@all_handlers
def test_drain_of_fifty_after_some_steps_on_tcp(handler):
    """The same on real sockets."""
    scenario = KeptAlive(on_tcp, handler, 50)
    assert sweep(scenario, seeds=(1,), every=61, jump_after=0.02, **drained).runs > 5
