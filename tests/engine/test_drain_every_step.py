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
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import Finding, MemoryServer, ShutDown, sweep

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
            await self.execute(line)

    async def execute(self, line):
        self.server.executed[line] += 1
        await trio.lowlevel.checkpoint()
        await self.request.sendall(line.upper())


class More(Lines):
    """Asks for more, and replies when it must wait for it."""

    wbufsize = -1

    async def handle(self):
        while await self.rfile.more():
            line = await self.rfile.readline()
            self.server.executed[line] += 1
            await self.wfile.write(line.upper())


class Idle(Lines):
    """Has a wait of its own, around a read of the library."""

    async def handle(self):
        while True:
            with self.idle():
                line = await self.rfile.readline()
            if not line:
                return
            await self.execute(line)


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
            await self.execute(line)


# Servers and clients -----------------------------------------------------------------


class InMemory(MemoryServer):
    """A server in memory."""

    PLACE = ("memory", 1)
    JUMP_AFTER = 0.0

    def dialler(self):
        """What connects to this run of it."""
        listener = self.listener
        return lambda: MemoryLine(listener.connect_now()._transport)


class OnTCP(trioserver.TCPServer):
    """A server on the loopback interface."""

    PLACE = ("127.0.0.1", 0)
    JUMP_AFTER = 0.02

    def dialler(self):
        """What connects to this run of it."""
        address = self.server_address
        return lambda: TCPLine(socket.create_connection(address))


@attrs.frozen(eq=False)
class MemoryLine:
    """A client's end of a connection in memory; what it does, it does at once."""

    transport: Any

    def send(self, data):
        assert self.transport.send_now(data) == len(data)

    def end(self):
        self.transport.send_eof()

    def close(self):
        """Close it; gives all that had arrived."""
        got = b"".join(iter(lambda: self.transport.receive_now(1000), b""))
        self.transport.close()
        return got


@attrs.frozen(eq=False)
class TCPLine:
    """The same on TCP."""

    socket: socket.socket

    def send(self, data):
        assert self.socket.send(data) == len(data)

    def end(self):
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        """Close it; gives all that had arrived."""
        with self.socket:
            return b"".join(iter(lambda: self.socket.recv(1000), b""))


@attrs.define(eq=False)
class Client:
    """One keep-alive connection.

    Attributes:
      name: its number.
      line: its connection, None if it was refused.
      sent: all that it has sent.
      due: how many bytes of it belong to requests that had begun in time.
    """

    name: int
    line: Any = None
    sent: bytes = b""
    due: int = 0

    def connect(self, dial, *, in_time):
        """Connect, if somebody listens."""
        try:
            self.line = dial()
        except ConnectionRefusedError:
            assert not in_time
        if in_time:
            self.due = 1  # as good as sent: a new connection has half a second for it

    def say(self, data, *, in_time):
        """Send all of this in one segment, if somebody is there."""
        if self.line is not None and data:
            with suppress(ConnectionError):
                self.line.send(data)
                self.sent += data
        if in_time:
            self.due = max(self.due, len(self.sent))

    def end(self):
        """End the output."""
        if self.line is not None:
            with suppress(OSError):
                self.line.end()

    def faults(self, executed):
        """What went wrong, when all is over."""
        got = b"" if self.line is None else self.line.close()
        requests = [self.sent[at : at + SIZE] for at in range(0, len(self.sent), SIZE)]
        for number, line in enumerate(requests):
            if executed[line] > 1:
                yield f"{line!r} was executed {executed[line]} times"
            if number * SIZE < self.due and not executed[line]:
                yield f"{line!r} had begun in time, and was lost"
        if got != b"".join(line.upper() for line in requests if executed[line]):
            yield f"client {self.name} sent {self.sent!r} and got {got!r}"


# The scenario --------------------------------------------------------------------------


@attrs.define(eq=False)
class KeptAlive:
    """Clients of six kinds, and one drain."""

    kind: type[InMemory | OnTCP]
    handler: Any
    connections: int

    async def __call__(self, trial):
        """Run it."""
        server = self.kind(self.kind.PLACE, self.handler)
        server.executed = Counter()
        trial.arm(server=server)
        clients = [Client(name) for name in range(self.connections)]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            dial = server.dialler()
            for client in clients:
                client.connect(dial, in_time=not trial.is_harmed)
                await now_and_then(client)
            for stage in STAGES:
                for client in clients:
                    client.say(stage(client.name), in_time=not trial.is_harmed)
                    await now_and_then(client)
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


def swept(scenario, **options):
    """Drain it after every step; how many runs that took."""
    return sweep(scenario, faults=[ShutDown(5)], **options).runs


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


@pytest.mark.slow
@all_handlers
def test_drain_after_every_step(handler):
    """Twelve connections: what had begun in time is executed once and answered, all of it."""
    assert swept(KeptAlive(InMemory, handler, 12), seeds=(0,)) > 100


@all_handlers
@pytest.mark.slow
def test_drain_of_fifty_after_every_step(handler):
    """The same with fifty, and every one of some 700 steps."""
    assert swept(KeptAlive(InMemory, handler, 50), seeds=(0,)) > 400


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drain_of_fifty_after_some_steps(seed):
    """The same, and a sample of the steps, for those who cannot wait."""
    assert swept(KeptAlive(InMemory, Lines, 50), seeds=(seed,), every=61) > 10


@all_handlers
def test_drain_of_fifty_after_some_steps_on_tcp(handler):
    """The same on real sockets."""
    assert swept(KeptAlive(OnTCP, handler, 50), seeds=(1,), every=61, jump_after=0.02) > 5


class Forgetful(Lines):
    """A handler that forgets what is buffered when the server drains."""

    async def handle(self):
        while not self.server.draining and await self.rfile.more():
            await self.execute(await self.rfile.readline())


class Repeating(Lines):
    """A handler that takes the end of its wait for the end of a read."""

    async def handle(self):
        line = b""
        while not self.server.draining or not line:
            with suppress(trioserver.Draining):
                with self.idle():
                    line = await self.rfile.readline()
            if not line:
                return
            await self.execute(line)


@pytest.mark.parametrize(("handler", "fault"), [(Forgetful, "was lost"), (Repeating, "2 times")])
def test_sweep_finds_what_is_planted(handler, fault):
    """The scenario is able to fail."""
    with pytest.raises(Finding, match=fault):
        swept(KeptAlive(InMemory, handler, 12), seeds=(0,))
