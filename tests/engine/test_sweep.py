"""A server, with a fault after every step: nothing is left, nothing is lost, nothing is silent."""

import fcntl
import gc
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import Any

import attrs
import pytest
import trio
from support import plain_client, sweeping
from support import sweeping_datagrams as datagrams
from support.scenes import table
from support.sweeping import Careful, HangsUp, InMemory, OnTCP, OnUnix, Setting, cancel, shut_down
from support.sweeping_datagrams import Sends, Writes

import trioserver
from trioserver._sockets.stream_sockets import SocketListener
from trioserver.testing import MemoryListener, ResetClient, run_trial

few = trioserver.Limits(requests=2, per_client=2)
STREAMS, PACKETS = [InMemory, OnTCP, OnUnix], datagrams.KINDS
both_handlers = [(kind, handler) for kind in PACKETS for handler in (Writes, Sends)]
all_kinds = pytest.mark.parametrize("kind", [*STREAMS, *PACKETS])


def setting(kind, *arguments, **fields):
    """A scenario of streams, or of datagrams."""
    scenes = datagrams if issubclass(kind, datagrams.Contains) else sweeping
    return scenes.Setting(kind, *arguments, **fields)


def least(kind, streams, datagrams):
    """How many steps a sweep has at least: one that ended early would prove nothing."""
    return datagrams if kind in PACKETS else streams


def each_fault(name, *faults):
    """Each of them in turn, by its name."""
    return pytest.mark.parametrize(name, faults, ids=sweeping.NAMES.get)


# Faults in a server ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "handler"),
    [(InMemory, Careful), *((kind, HangsUp) for kind in STREAMS), *both_handlers],
)
def test_cancelled_after_every_step(kind, handler):
    """CX-01, CX-09: wherever it is cancelled, nothing is left and every request has a record.

    A datagram has its one reply, or none.
    """
    assert setting(kind, [cancel], handler).sweep() > least(kind, 60, 30)


@pytest.mark.slow
def test_cancelled_after_every_step_with_few_slots():
    """CX-03: every slot comes back, of the server's and of the clients', wherever it was held."""
    assert Setting(InMemory, [cancel], limits=few).sweep() > 50


class Sloppy(InMemory):
    async def shutdown_request(self, request):
        await trio.lowlevel.checkpoint()


def test_hooks_that_close_nothing_cancelled_after_every_step():
    """Every connection is closed whatever the hooks do."""
    assert Setting(Sloppy, [cancel]).sweep() > 50


@pytest.mark.parametrize("serve", [sweeping.serve_in_a_block, sweeping.serve_one_by_one])
@pytest.mark.parametrize(
    "kind",
    [InMemory, OnUnix, *(pytest.param(kind, marks=pytest.mark.slow) for kind in PACKETS)],
)
def test_block_cancelled_after_every_step(kind, serve):
    """CX-01, CX-09: the same around a ``serving`` block, or ``handle_request`` in a loop."""
    steps = setting(kind, [cancel], serve=serve).sweep()
    assert steps > least(kind, 50, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        *((InMemory, Careful), (InMemory, sweeping.Idling), (InMemory, sweeping.Buffering)),
        *((kind, HangsUp) for kind in STREAMS),
        *both_handlers,
    ],
)
def test_shut_down_after_every_step(kind, handler):
    """CX-09, UD-11: what was asked before the drain is answered, in full, wherever it begins.

    Datagrams that come later are not handled.
    """
    steps = setting(kind, [shut_down], handler, gentle=True).sweep()
    assert steps > least(kind, 60, 30)


@pytest.mark.slow
@all_kinds
def test_shut_down_after_every_step_with_few_slots(kind):
    """CX-03, UD-11: the same where clients wait for a slot, or are turned away and counted."""
    limits = trioserver.Limits(requests=1)
    assert setting(kind, [shut_down], gentle=True, limits=limits).sweep() > 30


@pytest.mark.slow
@all_kinds
def test_ctrl_c_after_every_step(kind):
    """CX-09, SG-02: wherever it strikes, `KeyboardInterrupt` comes out; all is closed first."""
    assert setting(kind, [sweeping.ctrl_c]).sweep() > least(kind, 60, 30)


@all_kinds
@each_fault("second", cancel, sweeping.ctrl_c, sweeping.shut_down_at_once)
def test_second_fault_during_a_shutdown(kind, second):
    """Whenever somebody loses patience with a drain, everything is closed all the same.

    A sample of the pairs; soak/sweeps.py tries them all.
    """
    steps = setting(kind, [shut_down, second]).sweep(every=7)
    assert steps > least(kind, 50, 30)


@pytest.mark.slow
@all_kinds
def test_client_reset_after_every_step(kind):
    """CX-09, UX-12: whenever a client is gone, the others get their replies, and it its records."""
    fault = sweeping.leave if kind in PACKETS else ResetClient()
    assert setting(kind, [fault], gentle=True).sweep(every=2) > 30


@pytest.mark.parametrize(
    ("kind", "handler"), [*((kind, Careful) for kind in STREAMS), *both_handlers]
)
def test_one_request_cancelled_after_every_step_of_its_own(kind, handler):
    """CX-04, CX-09: wherever one request is cancelled, the others get all their replies."""
    assert setting(kind, handler=handler).sweep_one_request() >= least(kind, 16, 9)


class Stubborn(Careful):
    async def handle(self):
        if self.info.id == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
        await super().handle()


@pytest.mark.slow
@each_fault("fault", cancel, sweeping.shut_down_at_once)
def test_stubborn_request_cut_after_every_step(fault):
    """CX-12: who shields himself is named with its stack, waited for, and holds nobody else up."""
    struck = 0.0

    def timed(trial):
        nonlocal struck
        struck = trio.current_time()
        fault(trial)

    named = 0
    for seed in (0, 1, 2):
        setting = Setting(InMemory, [timed], Stubborn, patience=100)
        for step in range(1, setting.one(seed=seed).steps + 1):
            setting.one(step, seed=seed).check()
            records = setting.books.witness.records
            late = [it.info.id for it in records if it.info.started + it.duration > struck + 5]
            assert late in ([], [1])
            assert len(setting.books.named) == len(late)
            assert all("await trio.sleep(60)" in message for message in setting.books.named)
            named += len(late)
    assert named > 20


# Start-up ---------------------------------------------------------------------------


class TwoAddresses(trio.abc.HostnameResolver):
    """Resolves every name to two addresses, after a while."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        found = [f"127.0.0.{number}" for number in (1, 2)]
        return [(socket.AF_INET, type, proto, "", (address, port)) for address in found]

    getnameinfo = None


class SlowlyMixIn(trioserver.BaseServer):
    """Takes a while to bind and to listen."""

    JUMP_AFTER = 0.0

    async def server_bind(self):
        await trio.lowlevel.checkpoint()
        listeners = await super().server_bind()
        await trio.lowlevel.checkpoint()
        return listeners

    async def server_activate(self):
        await trio.lowlevel.checkpoint()
        await super().server_activate()
        await trio.lowlevel.checkpoint()


class SlowTCP(SlowlyMixIn, trioserver.TCPServer):
    PLACE = ("two.addresses", 0)


class SlowUDP(SlowlyMixIn, trioserver.UDPServer):
    PLACE = ("two.addresses", 0)


class SlowUnix(SlowlyMixIn, trioserver.UnixStreamServer):
    PLACE = sweeping.LeavesNoFile.PLACE


class SlowUnixDatagrams(SlowlyMixIn, trioserver.UnixDatagramServer):
    PLACE = sweeping.LeavesNoFile.PLACE


async def start_by_itself(server, listening):
    """Start in another task, which is told when it listens."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        listening()


@attrs.define(eq=False)
class Start(sweeping.Sweepable):
    """A server that starts, in a directory locked at first, and ends as soon as it listens."""

    kind: Any
    faults: Sequence[sweeping.Fault]
    serve: Any = sweeping.serve_forever

    async def __call__(self, trial):
        trial.afterwards(sweeping.LeavesNoFile.left_behind)
        trio.socket.set_custom_hostname_resolver(TwoAddresses())
        books, server = sweeping.Books(), self.kind(self.kind.PLACE, Careful)
        trial.afterwards(books.faults)
        directory = os.open(".", os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)

        async def unlock():
            try:
                await trio.sleep(0.025)
            finally:
                os.close(directory)

        with books.open():
            async with trio.open_nursery() as others:
                others.start_soon(unlock)
                with trio.CancelScope() as scope:
                    trial.arm(server=server, scope=scope)
                    await self.serve(server, partial(server.shutdown, 0))
        if server.snapshot().state != "unbound" or server.sockets:
            trial.complain(f"{server!r} is bound")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SlowTCP, SlowUDP, SlowUnix, SlowUnixDatagrams])
@pytest.mark.parametrize(
    "serve",
    [sweeping.serve_forever, sweeping.serve_in_a_block, sweeping.serve_one_by_one, start_by_itself],
)
@each_fault("fault", cancel, sweeping.ctrl_c, shut_down)
def test_start_after_every_step(kind, serve, fault):
    """CX-08, LC-13: a start is broken off at any step, also of binding: no socket, no file."""
    assert Start(kind, [fault], serve).sweep() > 15


@each_fault("fault", cancel, sweeping.ctrl_c, shut_down)
def test_start_that_resolves_in_a_thread_after_every_step(fault):
    """CX-08: the same where the system resolves the name."""

    async def scenario(trial):
        server = SlowTCP(("localhost", 0), Careful)
        threads = trio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        try:
            with trio.CancelScope() as scope:
                trial.arm(server=server, scope=scope)
                await sweeping.serve_forever(server, partial(server.shutdown, 0))
        finally:
            # The thread of a look-up that was given up reads /etc/hosts for a moment yet.
            with trio.CancelScope(shield=True):
                async with threads:
                    pass

    # The clock must not jump while the thread is at work.
    assert trioserver.testing.sweep(scenario, faults=[fault], jump_after=5).runs > 25


@pytest.mark.parametrize("kind", [OnTCP, OnUnix])
@pytest.mark.parametrize("client_is_first", [True, False])
@table(
    "act",
    {
        "the request is complete": methodcaller("sendall", b"\n"),
        "the request is all that there is": methodcaller("shutdown", socket.SHUT_WR),
        "nobody is there to answer": methodcaller("close"),
    },
)
def test_cancelled_in_the_tick_of_the_clients_act(kind, client_is_first, act):
    """CX-13: a request that is cancelled in that tick is cancelled, with a reason, and once."""
    all_books = []

    async def scenario(trial):
        books = sweeping.Books()
        all_books.append(books)
        trial.afterwards(books.faults)
        server = kind(kind.PLACE, Careful, observers=[books.witness])
        server.books = books
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve_forever)
                with plain_client(server.server_address) as client:
                    client.sendall(b"one")
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    acts = [partial(act, client), partial(scope.cancel, reason="in this tick")]
                    for do in acts if client_is_first else reversed(acts):
                        do()
                    await server.wait_closed()

    with sweeping.folder_of_its_own():
        for seed in range(5):
            run_trial(scenario, seed=seed, jump_after=0.02).check()
    ends = [(it.outcome, it.reason) for books in all_books for it in books.witness.records]
    assert ends == [("cancelled", "in this tick")] * 5


# What is planted is found ------------------------------------------------------------


class HastyMixIn:
    """A listener that accepts a client, waits a moment, and only then hands it on."""

    held: Any = None

    async def wait_acceptable(self):
        await super().wait_acceptable()
        self.held = super().accept_now()
        await trio.lowlevel.checkpoint()  # the bug

    def accept_now(self):
        held, self.held = self.held, None
        return held


class Hasty(InMemory):
    async def server_bind(self):
        self.listener = type("HastyListener", (HastyMixIn, MemoryListener), {})(self.PLACE)
        return [self.listener]


class HastyOnTCP(OnTCP):
    async def server_bind(self):
        kind = type("HastyListener", (HastyMixIn, SocketListener), {})
        return [kind(it.socket) for it in await super().server_bind()]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", [Hasty, HastyOnTCP])
def test_a_wait_between_accept_and_start_is_found(kind):
    """A client that is lost there leaves an open connection, or a client that waits for ever."""
    complaint = Setting(kind, [cancel]).complaint()
    assert "clients waited" in complaint or "descriptors are still open" in complaint
    gc.collect()  # what was leaked on purpose


async def careless(request, client_address, server):
    """Has no ``finally``, which is the bug."""
    server.books.calls["setup"] += 1
    async for line in trioserver.RequestReader(request):
        await request.sendall(line.upper())
    server.books.calls["finish"] += 1


class Stale(Careful):
    async def handle(self):
        line = b""
        while not self.server.draining:
            with suppress(trioserver.Draining):
                with self.idle():
                    line = await self.rfile.readline()
            if not line:
                return
            await self.answer(line)  # the bug: whose line is it?


class Hurried(Careful):
    async def handle(self):
        while not self.server.draining and await self.rfile.more():  # the bug: not its affair
            await self.answer(await self.rfile.readline())


class Repeats(Sends):
    async def handle(self):
        try:
            await super().handle()
        except trio.Cancelled:
            if self.server.books.written[self.packet]:
                with trio.CancelScope(shield=True):
                    await self.request.reply(datagrams.reply_to(self.packet))
            raise


class Forgetful(datagrams.PacketsInMemory):
    def get_request(self, listener):
        if self.draining:
            listener.accept_now()
        return super().get_request(listener)


@table(
    "setting, complaint",
    {
        "A handler that is not finished when it is cancelled does not balance": (
            *(Setting(InMemory, [cancel], careless), "setup and finish are no pairs"),
        ),
        "A handler that executes a line again when the drain ends its wait for the next": (
            *(Setting(InMemory, [shut_down], Stale), r"got b'ONE\nONE\n"),
        ),
        "A handler that does not look for what has arrived already leaves an answer due": (
            *(Setting(InMemory, [shut_down], Hurried, gentle=True), "replies were due"),
        ),
        "A handler that replies once more when it is cancelled": (
            *(setting(datagrams.PacketsInMemory, [cancel], Repeats), "got Counter({b'<"),
        ),
        "A server that forgets one of what the drain takes in": (
            *(setting(Forgetful, [shut_down], gentle=True), "sent in time, and not handled"),
        ),
    },
)
def test_a_planted_bug_is_found(setting, complaint):
    """Something does not balance, or a client gets too much or too little, and it is told."""
    assert complaint in setting.complaint()
