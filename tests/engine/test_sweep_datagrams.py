"""A datagram server, with a fault after every step: handled completely or not at all.

One task plays all the clients, with plain calls, so that it is known exactly
what had been sent when the fault struck. Every datagram is another one, and so
is its reply.
"""

import itertools
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import attrs
import pytest
import trio
from support import sweeping
from support.scenes import table
from support.sweeping import Serving, WatchedMixIn, cancel, ctrl_c, shut_down
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramServer

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


# Servers and their clients -----------------------------------------------------------


class Contains(WatchedMixIn):
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


class InMemory(Contains, MemoryDatagramServer):
    PLACE = ("memory", 1)
    JUMP_AFTER = 0.0


class OnUDP(OnSockets, trioserver.UDPServer):
    PLACE = ("127.0.0.1", 0)
    JUMP_AFTER = 0.01


class OnWildcard(OnUDP):
    PLACE = ("0.0.0.0", 0)


class OnUnix(sweeping.LeavesNoFile, OnSockets, trioserver.UnixDatagramServer): ...


all_kinds = pytest.mark.parametrize("kind", [InMemory, OnUDP, OnUnix])
both_handlers = pytest.mark.parametrize("handler", [Writes, Sends])


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
class Setting(Serving):
    """A scenario of datagrams, sent by several clients."""

    HANDLER = Writes

    drains: bool = False  # what is sent after the fault must not be handled
    stages: Sequence[Sequence[Sequence[bytes]]] = attrs.field(default=STAGES, repr=False)
    _all: list[Correspondent] = attrs.field(factory=list)

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
                if self.drains and data not in one_of_them.due and handled[data]:
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


# Faults ------------------------------------------------------------------------------


@pytest.mark.slow
@both_handlers
@all_kinds
def test_cancelled_after_every_step(kind, handler):
    """CX-09: wherever it is cancelled, each datagram has its one reply, or none and a record."""
    assert Setting(kind, [cancel], handler).sweep(every=3) > 100


@pytest.mark.slow
@pytest.mark.parametrize("serve", [sweeping.serve_in_a_block, sweeping.serve_one_by_one])
@all_kinds
def test_block_cancelled_after_every_step(kind, serve):
    """CX-09: the same around a ``serving`` block, and around ``handle_request`` in a loop."""
    assert Setting(kind, [cancel], serve=serve).sweep(seeds=(0,), every=3) > 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "requests"),
    [(Writes, 1000), (Sends, 1000), (Writes, 2)],
    ids=["Writes", "Sends", "few slots"],
)
@all_kinds
def test_shut_down_after_every_step(kind, handler, requests):
    """CX-09, UD-11: what was sent before the drain is handled, in full; what comes later is not.

    With few slots, datagrams wait for one, or are dropped and counted.
    """
    limits = trioserver.Limits(requests=requests)
    setting = Setting(kind, [shut_down], handler, gentle=True, drains=True, limits=limits)
    assert setting.sweep(every=3) > 100


@pytest.mark.slow
@all_kinds
def test_ctrl_c_after_every_step(kind):
    """CX-09: wherever it strikes, `KeyboardInterrupt` comes out, and everything is closed first."""
    assert Setting(kind, [ctrl_c]).sweep(every=5) > 50


@pytest.mark.parametrize(
    "second", [cancel, ctrl_c, sweeping.shut_down_at_once], ids=sweeping.NAMES.get
)
@all_kinds
def test_second_fault_during_a_shutdown(kind, second):
    """Whenever somebody loses patience with a drain, no datagram is answered by half.

    A sample of the pairs; soak/sweeps.py tries them all.
    """
    setting = Setting(kind, [shut_down, second], drains=True, stages=FEWER)
    assert setting.sweep(seeds=(0,), every=7) > 30


@pytest.mark.slow
@all_kinds
def test_client_leaves_after_every_step(kind):
    """CX-09, UX-12: whenever a client is gone, the others get their replies, and it its records."""
    assert Setting(kind, [sweeping.leave], gentle=True).sweep(every=3) > 100


@both_handlers
@all_kinds
def test_one_request_cancelled_after_every_step_of_its_own(kind, handler):
    """CX-04, CX-09: wherever one request is cancelled, all the other datagrams are answered."""
    assert Setting(kind, [shut_down], handler).sweep_one_request() >= 9


# What is planted is found ---------------------------------------------------------------


class Hasty(Sends):
    async def handle(self):
        half = reply_to(self.packet)[:2]
        try:
            await super().handle()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self.request.reply(half)
            raise


class Repeats(Sends):
    async def handle(self):
        try:
            await super().handle()
        except trio.Cancelled:
            if self.server.books.written[self.packet]:
                with trio.CancelScope(shield=True):
                    await self.request.reply(reply_to(self.packet))
            raise


class Forgetful(InMemory):
    def get_request(self, listener):
        if self.draining:
            listener.accept_now()
        return super().get_request(listener)


@table(
    "setting, complaint",
    {
        "A handler that sends what it has so far when it is cancelled": (
            *(Setting(InMemory, [cancel], Hasty), "got Counter({b'<"),
        ),
        "A handler that replies once more when it is cancelled": (
            *(Setting(InMemory, [cancel], Repeats), "got Counter({b'<"),
        ),
        "A server that forgets one of what the drain takes in": (
            *(Setting(Forgetful, [shut_down], gentle=True), "sent in time, and not handled"),
        ),
    },
)
def test_a_planted_bug_is_found(setting, complaint):
    """A client hears what it must not, or not what it must, and it is told."""
    assert complaint in setting.complaint()
