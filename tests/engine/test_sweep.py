"""A server, with a fault after every step: nothing is left, nothing is lost, nothing is silent."""

import fcntl
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import plain_client
from support.sweeping import (
    NAMES,
    Books,
    Buffering,
    Careful,
    Fault,
    HangsUp,
    Idling,
    InMemory,
    LeavesNoFile,
    OnTCP,
    OnUnix,
    Setting,
    Sloppy,
    Sweepable,
    all_kinds,
    cancel,
    ctrl_c,
    folder_of_its_own,
    serve_forever,
    serve_in_a_block,
    serve_one_by_one,
    shut_down,
    shut_down_at_once,
)

import trioserver
from trioserver._sockets.stream_sockets import SocketListener
from trioserver.testing import (
    MemoryListener,
    ResetClient,
    run_trial,
    sweep,
)

# Faults in a server ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "handler"),
    [(InMemory, Careful), (InMemory, HangsUp), (OnTCP, HangsUp), (OnUnix, HangsUp)],
)
def test_cancelled_after_every_step(kind, handler):
    """CX-01: wherever it is cancelled, nothing is left and every request has a record."""
    assert Setting(kind, [cancel], handler).sweep() > 200


@pytest.mark.slow
def test_cancelled_after_every_step_with_few_slots():
    """CX-03: every slot comes back, of the server's and of the clients', wherever it was held."""
    setting = Setting(InMemory, [cancel], limits=trioserver.Limits(requests=2, per_client=2))
    assert setting.sweep() > 150


def test_hooks_that_close_nothing_cancelled_after_every_step():
    """Every connection is closed whatever the hooks do."""
    assert Setting(Sloppy, [cancel]).sweep(seeds=(0,)) > 50


@pytest.mark.parametrize("serve", [serve_in_a_block, serve_one_by_one])
@pytest.mark.parametrize("kind", [InMemory, OnUnix])
def test_block_cancelled_after_every_step(kind, serve):
    """CX-01: the same around a ``serving`` block, and around ``handle_request`` in a loop."""
    assert Setting(kind, [cancel], serve=serve).sweep(seeds=(0,)) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        (InMemory, Careful),
        (InMemory, HangsUp),
        (InMemory, Idling),
        (InMemory, Buffering),
        (OnTCP, HangsUp),
        (OnUnix, HangsUp),
    ],
)
def test_shut_down_after_every_step(kind, handler):
    """Wherever the drain begins, what was asked before it is answered, in full."""
    assert Setting(kind, [shut_down], handler, gentle=True).sweep() > 200


@pytest.mark.slow
@all_kinds
def test_shut_down_after_every_step_with_few_slots(kind):
    """CX-03: the same where clients wait for a slot, or are turned away and counted."""
    limits = trioserver.Limits(requests=1)
    assert Setting(kind, [shut_down], gentle=True, limits=limits).sweep(seeds=(0, 1)) > 100


def test_shut_down_at_once_after_every_step():
    """The same with a grace of zero, but for what is not answered."""
    assert Setting(InMemory, [shut_down_at_once]).sweep(seeds=(0,)) > 50


@pytest.mark.slow
@all_kinds
def test_ctrl_c_after_every_step(kind):
    """Wherever it strikes, `KeyboardInterrupt` comes out, and everything is closed first."""
    assert Setting(kind, [ctrl_c]).sweep() > 200


@all_kinds
@pytest.mark.parametrize("second", [cancel, ctrl_c, shut_down_at_once], ids=NAMES.get)
def test_second_fault_during_a_shutdown(kind, second):
    """Whenever somebody loses patience with a drain, everything is closed all the same.

    A sample of the pairs; soak/sweeps.py tries them all.
    """
    assert Setting(kind, [shut_down, second]).sweep(seeds=(0,), every=7) > 50


@pytest.mark.slow
@all_kinds
def test_client_reset_after_every_step(kind):
    """Wherever one client is reset, the others get all their replies, and it has its record."""
    assert Setting(kind, [ResetClient()], gentle=True).sweep(every=2) > 100


# One request ------------------------------------------------------------------------


@all_kinds
def test_one_request_cancelled_after_every_step_of_its_own(kind):
    """CX-04: wherever one request is cancelled, the others get all their replies."""
    assert Setting(kind).sweep_one_request() > 15


# Those that will not end ------------------------------------------------------------


class Stubborn(Careful):
    """The same, but the first one has shielded itself for a minute."""

    async def handle(self):
        if self.info.id == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
        await super().handle()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [cancel, shut_down_at_once], ids=NAMES.get)
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
            ends = {it.info.id: it.info.started + it.duration for it in setting.books.records}
            late = [number for number, end in ends.items() if end > struck + 5]
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

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


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
    PLACE = LeavesNoFile.PLACE


class SlowUnixDatagrams(SlowlyMixIn, trioserver.UnixDatagramServer):
    PLACE = LeavesNoFile.PLACE


async def start_by_itself(server, listening):
    """Start in another task, which is told when it listens."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        listening()


@attrs.define(eq=False)
class Start(Sweepable):
    """A scenario: a server that starts, and ends as soon as it listens.

    A Unix server finds its directory locked at first.

    Attributes:
      kind: which server.
      faults: what is done.
      serve: how it is started.
    """

    kind: Any
    faults: Sequence[Fault]
    serve: Callable[[Any, Callable[[], object]], Awaitable[None]] = serve_forever

    async def __call__(self, trial):
        """Run it."""
        trial.afterwards(LeavesNoFile.left_behind)
        trio.socket.set_custom_hostname_resolver(TwoAddresses())
        books, server = Books(), self.kind(self.kind.PLACE, Careful)
        trial.afterwards(books.faults)
        scope = trio.CancelScope()
        with books.open(), locked_directory() as unlock:
            async with trio.open_nursery() as others:
                others.start_soon(unlock)
                trial.arm(server=server, scope=scope)
                with scope:
                    await self.serve(server, partial(server.shutdown, 0))
        if server.snapshot().state != "unbound" or server.sockets:
            trial.complain(f"{server!r} is bound")


@contextmanager
def locked_directory():
    """Lock the current directory; gives what unlocks it after a while."""
    directory = os.open(".", os.O_RDONLY)

    async def unlock():
        await trio.sleep(0.025)
        fcntl.flock(directory, fcntl.LOCK_UN)

    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield unlock
    finally:
        os.close(directory)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SlowTCP, SlowUDP, SlowUnix, SlowUnixDatagrams])
@pytest.mark.parametrize(
    "serve", [serve_forever, serve_in_a_block, serve_one_by_one, start_by_itself]
)
@pytest.mark.parametrize("fault", [cancel, ctrl_c, shut_down], ids=NAMES.get)
def test_start_after_every_step(kind, serve, fault):
    """CX-08, LC-13: a start is broken off at any step, also of binding: no socket, no file."""
    assert Start(kind, [fault], serve).sweep() > 25


class Named(SlowlyMixIn, trioserver.TCPServer):
    """A name that a thread resolves."""

    PLACE = ("localhost", 0)


@pytest.mark.parametrize("fault", [cancel, ctrl_c, shut_down], ids=NAMES.get)
def test_start_that_resolves_in_a_thread_after_every_step(fault):
    """CX-08: the same where the system resolves the name."""

    async def scenario(trial):
        server = Named(Named.PLACE, Careful)
        threads = trio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        try:
            with trio.CancelScope() as scope:
                trial.arm(server=server, scope=scope)
                await serve_forever(server, partial(server.shutdown, 0))
        finally:
            # The thread of a look-up that was given up reads /etc/hosts for a moment yet.
            with trio.CancelScope(shield=True):
                async with threads:
                    pass

    # The clock must not jump while the thread is at work.
    assert sweep(scenario, faults=[fault], jump_after=5).runs > 25


# Two things in one tick ---------------------------------------------------------------


def say_the_last_byte(client):
    """The request is complete."""
    client.sendall(b"\n")


def end_the_output(client):
    """The request is all that there is."""
    client.shutdown(socket.SHUT_WR)


def leave(client):
    """Nobody is there to answer."""
    client.close()


@pytest.mark.parametrize("kind", [OnTCP, OnUnix])
@pytest.mark.parametrize("client_is_first", [True, False])
@pytest.mark.parametrize("do", [say_the_last_byte, end_the_output, leave])
def test_cancelled_in_the_tick_of_the_clients_act(kind, client_is_first, do):
    """CX-13: a request that is cancelled in that tick is cancelled, with a reason, and once."""
    all_books = []

    async def scenario(trial):
        books = Books()
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
                    acts = [partial(do, client), partial(scope.cancel, reason="in this tick")]
                    for act in acts if client_is_first else reversed(acts):
                        act()
                    await server.wait_closed()

    with folder_of_its_own():
        for seed in range(5):
            run_trial(scenario, seed=seed, jump_after=0.02).check()
    ends = [(it.outcome, it.reason) for books in all_books for it in books.records]
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


class HastyListener(HastyMixIn, MemoryListener):
    """The same, in memory."""


class HastySocketListener(HastyMixIn, SocketListener):
    """The same, with the kernel's sockets."""


class Hasty(InMemory):
    """A server that waits between the accept and the request's task."""

    async def server_bind(self):
        self.listener = HastyListener(self.PLACE)
        return [self.listener]


class HastyOnTCP(OnTCP):
    """The same, on TCP."""

    async def server_bind(self):
        return [HastySocketListener(it.socket) for it in await super().server_bind()]


class Careless:
    """A handler whose ``finish`` is skipped when it is cancelled."""

    def __init__(self, request, client_address, server):
        self.request, self.calls = request, server.books.calls

    def __await__(self):
        return self.serve().__await__()

    async def serve(self):
        self.calls["setup"] += 1
        async for line in trioserver.RequestReader(self.request):
            await self.request.sendall(line.upper())
        self.calls["finish"] += 1  # the bug: no try, no finally


class Stale(Careful):
    """A handler that executes a line again when the drain ends its wait for the next."""

    async def handle(self):
        line = b""
        while not self.server.draining:
            with suppress(trioserver.Draining):
                with self.idle():
                    line = await self.rfile.readline()
            if not line:
                return
            await self.answer(line)  # the bug: whose line is it?


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", [Hasty, HastyOnTCP])
def test_a_wait_between_accept_and_start_is_found(kind):
    """A client that is lost there leaves an open connection, or a client that waits for ever."""
    complaint = Setting(kind, [cancel]).complaint()
    assert "clients waited" in complaint or "descriptors are still open" in complaint
    gc.collect()  # what was leaked on purpose


def test_a_skipped_finish_is_found():
    """A handler that is not finished when it is cancelled does not balance."""
    complaint = Setting(InMemory, [cancel], Careless).complaint()
    assert "setup and finish are no pairs" in complaint


def test_a_request_executed_twice_is_found():
    """A client that gets an answer too many says so."""
    complaint = Setting(InMemory, [shut_down], Stale).complaint()
    assert "got b'ONE\\nONE\\n" in complaint


def test_a_request_lost_in_a_drain_is_found():
    """A handler that does not look for what has arrived already leaves an answer due."""

    class Hurried(Careful):
        async def handle(self):
            while not self.server.draining and await self.rfile.more():  # the bug: not its affair
                await self.answer(await self.rfile.readline())

    complaint = Setting(InMemory, [shut_down], Hurried, gentle=True).complaint()
    assert "replies were due" in complaint
