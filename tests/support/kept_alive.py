"""Keep-alive connections, and a drain: no request may be lost, none executed twice.

At the instant of the drain every connection is somewhere else: not accepted yet, in the middle of
a handshake, silent, idle, with a request in the kernel, half received, pipelined, or at work. One
task plays all the clients, with plain calls, so that it is known exactly what had been sent at
that instant.
"""

import socket
import ssl
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer

from . import IdlesMixIn
from .tls import SERVER, Peer

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

    def recv(self, size, flags=0):
        return self.transport.receive_now(size)

    def close(self):
        self.transport.close()


CONTEXT = SERVER.client_context()


@attrs.define(eq=False)
class TLSSocket:
    """One of both, by TLS, with what is needed here of a socket."""

    beneath: Any
    rest: bytes = b""  # of a record of which half has gone
    agreed: bool = False
    peer: Peer = attrs.field(factory=lambda: Peer(context=CONTEXT))

    def shake_hands(self):
        """Do of the handshake what can be done at once."""
        with suppress(BlockingIOError):
            while ciphertext := self.beneath.recv(65_536, socket.MSG_DONTWAIT):
                self.peer.takes(ciphertext)
        self.agreed = self.peer.shakes()
        self.beneath.send(self.peer.output())

    def send(self, data):
        """Send it; of what was `begun`, the rest."""
        if not self.agreed:
            raise ConnectionResetError("the server drains, and has agreed on nothing")
        self.beneath.send(self.rest or self.peer.says(data))
        self.rest = b""
        return len(data)

    def begin(self, data):
        """Send half a record of it."""
        record = self.peer.says(data)
        self.beneath.send(record[:10])
        self.rest = record[10:]

    def shutdown(self, how):
        self.beneath.send(self.peer.ends())
        self.beneath.shutdown(how)

    def recv(self, size):
        """All that has come, up to the end, which has to be an orderly one."""
        while ciphertext := self.beneath.recv(65_536):
            self.peer.takes(ciphertext)
        text, is_orderly = self.peer.text()
        assert is_orderly or not text, f"{text} was cut"
        return text

    def close(self):
        self.beneath.close()


def dialler(server):
    """What connects to this run of a server."""
    if isinstance(server, MemoryServer):
        listener = server.listener
        dial = lambda: MemorySocket(listener.connect_now()._transport)  # noqa: E731
    else:
        dial = partial(socket.create_connection, server.server_address)
    return dial if server.ssl_context is None else lambda: TLSSocket(dial())


@attrs.frozen
class HalfARecord:
    """A request that is sent with the next one; half a TLS record of it goes before."""

    text: bytes


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

    def shake_hands(self):
        """Do of a handshake what can be done, if one is asked for."""
        if isinstance(self.socket, TLSSocket):
            with suppress(OSError, ssl.SSLError):  # the server has ended it
                self.socket.shake_hands()

    def say(self, data, *, in_time):
        """Send all of this in one segment, if somebody is there."""
        if self.socket is not None and data:
            with suppress(ConnectionError):
                if isinstance(data, HalfARecord):
                    self.socket.begin(data.text)
                    self.due += in_time
                    return
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
    """Clients of six kinds, or of seven by TLS, and one drain."""

    make: Any
    handler: Any
    connections: int
    by_tls: bool = False

    async def __call__(self, trial):
        """Run it."""
        server = self.make(self.handler, ssl_context=SERVER.context if self.by_tls else None)
        server.executed = Counter()
        trial.arm(server=server)
        clients = [Client(name) for name in range(self.connections)]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            dial = dialler(server)
            for stage in ["connect", *["shake"] * 2 * self.by_tls, 0, 1, 2]:
                for client in clients:
                    self._act(client, stage, dial, in_time=not trial.is_harmed)
                    if client.name % 10 == 9:  # the server runs now and then
                        await trio.lowlevel.checkpoint()
                if stage != "connect":
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

    def _act(self, client, stage, dial, *, in_time):
        """Do what a client does in a stage."""
        if stage == "connect":
            client.connect(dial, in_time=in_time)
        elif stage == "shake":
            client.shake_hands()
        else:
            client.say(self.said_by(client.name)[stage], in_time=in_time)

    def said_by(self, name):
        """What a client sends in one stage after the other."""
        zero, one, two, three = (request(name, number) for number in range(4))
        kinds = [
            [zero, one, b""],
            [zero, one[:3], one[3:]],
            [zero, one + two + three, b""],
            [zero, one + two[:5], two[5:]],
            [zero, b"", one],
            [b"", b"", zero],
            [zero, HalfARecord(one), one],
        ]
        return kinds[name % (6 + self.by_tls)]
