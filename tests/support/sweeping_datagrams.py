"""Datagram servers, and their clients, for a fault after every step: see `sweeping`.

One task plays all the clients, with plain calls, so that it is known exactly
what had been sent when the fault struck. Every datagram is another one, and so
is its reply.
"""

import itertools
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramServer, ShutDown

from . import sweeping

LARGEST = 50


def reply_to(data):
    """The one right reply, which is never empty."""
    return b"<%b>" % data.upper()


class Writes(sweeping.KeepsBooks, trioserver.DatagramRequestHandler):
    """Writes the reply in two pieces, which leave as one datagram."""

    async def handle(self):
        self.server.books.calls[self.packet] += 1
        reply = reply_to(self.packet)
        await self.wfile.write(reply[:2])
        await trio.lowlevel.checkpoint()
        await self.wfile.write(reply[2:])
        if b"fail" in self.packet:
            raise ValueError("asked for")


class Sends(Writes):
    """Sends the reply itself, and goes on for a while."""

    async def handle(self):
        self.server.books.calls[self.packet] += 1
        if b"fail" in self.packet:
            raise ValueError("asked for")
        await self.request.reply(reply_to(self.packet))
        self.server.books.written[self.packet] += 1
        await trio.lowlevel.checkpoint()


class Contains(sweeping.WatchedMixIn):
    FIELDS: ClassVar[Mapping[str, Any]] = {"max_packet_size": LARGEST}

    async def handle_error(self, request, client_address):
        await trio.lowlevel.checkpoint()


class KernelClient(socket.socket):
    """Sends and receives at once, as clients in memory do."""

    def __init__(self, server):
        super().__init__(server.address_family or socket.AF_INET, socket.SOCK_DGRAM)
        self.setblocking(False)
        self.to = server.server_address
        self.bind(("127.0.0.1", 0) if isinstance(self.to, tuple) else "")
        self.address = self.getsockname()

    def send_now(self, data):
        self.sendto(data, self.to)

    def received(self):
        with suppress(BlockingIOError):
            while self.fileno() != -1:
                yield self.recv(1000)


class OnSockets(Contains):
    def client(self, *, capacity):
        return KernelClient(self)  # who has the room that the kernel gives it


class PacketsInMemory(Contains, MemoryDatagramServer):
    PLACE = ("memory", 1)
    JUMP_AFTER = 0.0


class OnUDP(OnSockets, trioserver.UDPServer):
    PLACE = ("127.0.0.1", 0)
    JUMP_AFTER = 0.01


class OnWildcard(OnUDP):
    PLACE = ("0.0.0.0", 0)


class PacketsOnUnix(sweeping.LeavesNoFile, OnSockets, trioserver.UnixDatagramServer): ...


KINDS = [PacketsInMemory, OnUDP, PacketsOnUnix]


def some(client, letters):
    """So many datagrams, each of them another one."""
    return [f"{client}.{letter}".encode() for letter in letters]


# By client and stage. The first client does not receive as fast as it should.
STAGES = [
    [some("zero", "abc"), some("zero", "defg"), some("zero", "hijk")],
    [some("one", "a"), [b"one." + b"x" * LARGEST], some("one", "bc")],
    [some("two", "a"), [b""], [b"two.fail", b"two.b"]],
    [[b"three.fail"], [], some("three", "abc")],
]
# Fewer, where every pair of steps is tried.
FEWER = [
    [some("zero", "abc"), []],
    [some("one", "a"), [b"one." + b"x" * LARGEST]],
    [[b"two.fail"], [b""]],
]


@attrs.define(eq=False)
class Correspondent:
    """A client, and what it has to do with."""

    client: Any
    sent: list[bytes] = attrs.field(factory=list)
    due: list[bytes] = attrs.field(factory=list)  # what of it was sent before the fault
    got: Counter[bytes] = attrs.field(factory=Counter)
    has_left: bool = False

    def say(self, data, *, in_time):
        if self.has_left:
            return
        with suppress(OSError):  # nobody is there
            self.client.send_now(data)
            self.sent.append(data)
            if in_time and len(data) <= LARGEST:
                self.due.append(data)

    def listen(self):
        self.got.update(self.client.received())

    def leave(self):
        """Close the socket, and whatever was received in it is lost."""
        self.has_left = True
        self.client.close()


@attrs.define(eq=False)
class Setting(sweeping.Serving):
    """A scenario of datagrams, sent by several clients."""

    HANDLER = Writes

    _all: list[Correspondent] = attrs.field(factory=list)

    @property
    def stages(self):
        return FEWER if len(self.faults) > 1 else STAGES

    def sweep(self, *, every=3, **options):
        """There are many steps."""
        return super().sweep(every=every, **options)

    async def __call__(self, trial):
        self._all = []
        trial.afterwards(partial(self._faults, must_reply=self.gentle or not trial.at))
        await super().__call__(trial)

    def let_in(self, server):
        """All the clients come; the second one may leave."""
        capacities = [2, *[100] * (len(self.stages) - 1)]
        self._all = [Correspondent(server.client(capacity=room)) for room in capacities]
        return self._all[1]

    def send_them_away(self):
        for one_of_them in self._all:
            one_of_them.listen()
            one_of_them.client.close()

    async def clients(self, trial, server, listening):
        """They say all of a stage, and listen, until there is nothing more to hear."""
        await listening.wait()
        for number in itertools.count():
            talks = False
            for name, one_of_them in enumerate(self._all):
                datagrams = self.stages[name][number : number + 1]
                for data in itertools.chain(*datagrams):
                    one_of_them.say(data, in_time=self.is_of_a_client or not trial.is_harmed)
                    talks = True
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            before = [it.got.total() for it in self._all]
            for one_of_them in self._all:
                one_of_them.listen()
            if not talks and before == [it.got.total() for it in self._all]:
                break
        server.shutdown(5)

    def _faults(self, *, must_reply):
        """What went wrong."""
        books = self.books
        # What is sent when it drains must not be handled.
        drains = self.faults and isinstance(self.faults[0], ShutDown)
        handled = Counter({what: n for what, n in books.calls.items() if isinstance(what, bytes)})
        sent = [data for one_of_them in self._all for data in one_of_them.sent]
        for data in handled - Counter(sent):
            yield f"{data!r} was sent {sent.count(data)} times, and handled {handled[data]} times"
        for one_of_them in self._all:
            address = one_of_them.client.address
            if wrong := one_of_them.got - Counter(map(reply_to, one_of_them.sent)):
                yield f"{address} got {wrong}"
            unhandled = [data for data in one_of_them.due if not handled[data]]
            excused = books.refused()[address] + books.cut.count(address)
            if must_reply and len(unhandled) > excused:
                yield f"{unhandled} of {address} was sent in time, and not handled"
            for data in one_of_them.sent:
                if len(data) > LARGEST and any(data.startswith(it) for it in handled if it):
                    yield f"a part of {data!r} was handled"
                if drains and data not in one_of_them.due and handled[data]:
                    yield f"{data!r} was sent when the server drained, and handled"
        for datagram in books.accepted:
            yield from self._disagreement(datagram)

    def _disagreement(self, datagram):
        """Whether a record and what its client knows are not the same."""
        [sender] = [it for it in self._all if it.client.address == datagram.client_address]
        records = [it for it in self.books.witness.records if it.info.id == datagram.info.id]
        outcome = records[0].outcome if records else "none"
        replies = sender.got[reply_to(datagram.data)]
        whole = replies == (outcome == "completed")
        if issubclass(self.handler, Sends):
            whole = replies == self.books.written[datagram.data] >= (outcome == "completed")
        if not whole and not sender.has_left:
            yield f"{datagram.data!r} is {outcome}, and had {replies} replies"
        if sender.has_left and outcome == "disconnected":
            return
        if self.gentle and outcome == "failed" and b"fail" not in datagram.data:
            yield f"{datagram.data!r} has failed"
