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


class Lines(trioserver.StreamRequestHandler):
    """Waits for the next request as most do, and works on it for a step."""

    async def handle(self):
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line):
        self.server.executed[line] += 1
        await trio.lowlevel.checkpoint()
        await self.wfile.write(line.upper())


class More(Lines):
    """Asks for more, and replies when it must wait for it."""

    wbufsize = -1

    async def handle(self):
        while await self.rfile.more():
            await self.answer(await self.rfile.readline())


class Idle(IdlesMixIn, Lines):
    """Has a wait of its own, around a read of the library."""


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
    """One keep-alive connection."""

    name: int
    socket: Any = None  # if it was not refused
    sent: bytes = b""
    due: int = 0  # how many bytes of it belong to requests that had begun in time

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

    def end(self):
        """End the output."""
        if self.socket is not None:
            with suppress(OSError):  # the server has ended it
                self.socket.shutdown(socket.SHUT_WR)

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
            for stage in range(4):
                for client in clients:
                    in_time = not trial.is_harmed
                    if stage:
                        client.say(said_by(client.name)[stage - 1], in_time=in_time)
                    else:
                        client.connect(dial, in_time=in_time)
                    if client.name % 10 == 9:  # the server runs now and then
                        await trio.lowlevel.checkpoint()
                if stage:
                    await wait_all_tasks_blocked()
            for client in clients:
                client.end()
            server.shutdown(5)
        report = await server.wait_closed()
        for client in clients:
            for fault in client.faults(server.executed):
                trial.complain(fault)
        if not report.clean or len(report.completed + report.drained) < len(report.requests):
            trial.complain(str(report))


def said_by(name):
    """What a client sends in one stage after the other."""
    zero, one, two, three = (request(name, number) for number in range(4))
    return [
        [zero, one, b""],
        [zero, one[:3], one[3:]],
        [zero, one + two + three, b""],
        [zero, one + two[:5], two[5:]],
        [zero, b"", one],
        [b"", b"", zero],
    ][name % 6]


all_handlers = pytest.mark.parametrize("handler", [Lines, More, Idle])
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
