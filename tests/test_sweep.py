"""A server, with a fault after every step: nothing is left, nothing is lost, nothing is silent."""

from __future__ import annotations

import fcntl
import gc
import itertools
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from support import Witness, plain_client

import trioserver
from trioserver._sockets.transport import SocketListener
from trioserver.testing import (
    Cancel,
    CtrlC,
    Finding,
    MemoryListener,
    MemoryServer,
    ResetClient,
    ShutDown,
    Trial,
    fire_at,
    run_trial,
    sweep,
)

# Books: what everybody did, to be compared afterwards -----------------------------


@attrs.define(eq=False)
class Books:
    """What a server, its handlers and its clients did in one trial.

    Attributes:
      witness: the server's events.
      run: the server's run, which the server itself forgets.
      accepted: every connection, or datagram, that it accepted.
      calls: how often ``setup`` returned, and ``finish`` was called.
      written: whole replies that were sent, by client address.
      cut: the addresses of those whose request was cancelled alone.
      errors: what somebody found wrong at once, and errors that were logged.
      named: logged errors that had to be.
    """

    witness: Witness = attrs.field(factory=Witness)
    run: Any = None
    accepted: list[Any] = attrs.field(factory=list)
    calls: Counter[str] = attrs.field(factory=Counter)
    written: Counter[Any] = attrs.field(factory=Counter)
    cut: list[Any] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    named: list[str] = attrs.field(factory=list)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write down in the block, too, whatever a server logs as an error."""
        log, handler = logging.getLogger("trioserver"), ErrorsInto(self)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    @property
    def records(self) -> list[trioserver.RequestRecord]:
        """The record of every request that ended."""
        return self.witness.records

    def faults(self) -> Iterator[str]:
        """What does not balance."""
        for connection in self.accepted:
            if connection.state != "closed" or connection.fileno() != -1:
                yield f"{connection!r} is open"
        if self.calls["setup"] != self.calls["finish"]:
            yield f"setup and finish are no pairs: {dict(self.calls)}"
        started = [it[1] for it in self.witness.events if it[0] == "request_started"]
        ended = [record.info for record in self.records]
        if sorted(it.id for it in started) != sorted(it.id for it in ended):
            yield f"started {started}, ended {ended}"
        accepted = Counter(it.client_address for it in self.accepted)
        if accepted != Counter(it.client_address for it in started) + self.refused():
            yield f"accepted {accepted}, started {started}, turned away {self.refused()}"
        if self.witness.names.count("server_listening") != self.witness.names.count(
            "server_closed"
        ):
            yield f"a beginning and no end, or the reverse: {self.witness.names}"
        if self.run is not None:
            yield from self._kept()
        yield from self.errors

    def _kept(self) -> Iterator[str]:
        """What a run that is over still counts as taken."""
        slots, ledger = self.run.door._slots, self.run.ledger
        full = slots.free < slots._most or slots.turning_away or slots._by_client
        if full or slots.free > slots._most:
            yield f"slots were not given back, or too many: {slots}"
        if ledger.here() or ledger.lingering:
            yield f"requests are still in the books: {ledger.here()}"

    def refused(self) -> Counter[Any]:
        """How many were told to go, unserved, and the witness was told of it; by address."""
        return Counter(it[1] for it in self.witness.events if it[0] == "request_refused")


class ErrorsInto(logging.Handler):
    """Writes logged errors in the books of the trial that runs."""

    def __init__(self, books: Books) -> None:
        super().__init__(logging.ERROR)
        self.books = books

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "has not ended" in message:
            self.books.named.append(message)
        else:
            self.books.errors.append(f"logged: {message}")


# The server ------------------------------------------------------------------------


class Careful(trioserver.StreamRequestHandler):
    """Answers lines in upper case."""

    async def setup(self) -> None:
        await trio.lowlevel.checkpoint()
        self.server.books.calls["setup"] += 1

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line: bytes) -> None:
        await self.wfile.write(line.upper())
        self.server.books.written[self.client_address] += 1

    async def finish(self) -> None:
        self.server.books.calls["finish"] += 1
        await trio.lowlevel.checkpoint()
        await super().finish()


class Idling(Careful):
    """The same, with a wait of its own between two requests."""

    async def handle(self) -> None:
        while True:
            with self.idle():
                line = await self.rfile.readline()
            if not line:
                return
            await self.answer(line)


class HangsUp(Careful):
    """The same, but ends the connection after the third line, and so lingers."""

    async def handle(self) -> None:
        for _ in LINES:
            if not await self.rfile.more():
                return
            await self.answer(await self.rfile.readline())


class Buffering(Careful):
    """The same, with replies that are sent when the next request is waited for."""

    wbufsize = -1

    async def answer(self, line: bytes) -> None:
        await self.wfile.write(line.upper())


class WatchedMixIn(trioserver.BaseServer):
    """Writes in its books whom it accepts."""

    def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
        accepted = super().get_request(listener)
        if accepted is not None:
            self.books.accepted.append(accepted[0])
        return accepted

    @classmethod
    def left_behind(cls) -> Iterator[str]:
        """What a server of this kind has not cleared away; it is gone afterwards."""
        yield from ()


class InMemory(WatchedMixIn, MemoryServer):
    """Watched, in memory."""

    PLACE = ("memory", 1)
    JUMP_AFTER = 0.0

    async def dial(self) -> tuple[trio.abc.HalfCloseableStream, Any]:
        """A client's stream, and its address."""
        stream = await self.connect()
        return stream, stream.client_address


class OnTCP(WatchedMixIn, trioserver.TCPServer):
    """Watched, on the loopback interface."""

    PLACE = ("127.0.0.1", 0)
    JUMP_AFTER = 0.01

    async def dial(self) -> tuple[trio.abc.HalfCloseableStream, Any]:
        """A client's stream, and its address."""
        sock = trio.socket.socket()
        try:
            await sock.connect(self.server_address)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock), sock.getsockname()


class LeavesNoFile(WatchedMixIn):
    """Watched, at a path of the current directory."""

    PLACE = "swept.socket"
    JUMP_AFTER = 0.0  # the kernel carries bytes from one socket to the other at once

    @classmethod
    def left_behind(cls) -> Iterator[str]:
        """The socket file, if it is there."""
        with suppress(FileNotFoundError):
            Path(cls.PLACE).unlink()
            yield "the socket file is still there"


class OnUnix(LeavesNoFile, trioserver.UnixStreamServer):
    """Watched, on a Unix socket."""

    async def dial(self) -> tuple[trio.abc.HalfCloseableStream, Any]:
        """A client's stream, and its address."""
        plain = socket.socket(socket.AF_UNIX)
        plain.bind("")  # to any abstract name, so that the books know whose it is
        sock = trio.socket.from_stdlib_socket(plain)
        try:
            await sock.connect(self.PLACE)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock), sock.getsockname()


Kind: TypeAlias = type[InMemory] | type[OnTCP] | type[OnUnix]
all_kinds = pytest.mark.parametrize("kind", [InMemory, OnTCP, OnUnix])


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket files are made in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


# The clients -----------------------------------------------------------------------

LINES = [b"one\n", b"two\n", b"three\n"]
ANSWERS = b"".join(LINES).upper()


@attrs.frozen(eq=False)
class Client:
    """Sends three lines, one by one or at once, and judges what comes back.

    Attributes:
      server: whose client it is.
      pipelines: whether it sends all of them at once.
      must_get: whether what it asks before a drain must be answered; else only
        what was sent must arrive.
    """

    server: Any
    pipelines: bool
    must_get: bool

    async def talk(self) -> None:
        """The whole conversation; a server that is not there has none."""
        if self.server.snapshot().state == "unbound":
            return
        with suppress(OSError):
            stream, address = await self.server.dial()
            async with stream:
                due, got = await self._converse(stream)
            self._judge(address, due, got)

    async def _converse(self, stream: trio.abc.HalfCloseableStream) -> tuple[int, bytes]:
        """How many bytes were due, and what came."""
        due, got = 0, b""
        with suppress(trio.BrokenResourceError):
            for lines in [b"".join(LINES)] if self.pipelines else LINES:
                await stream.send_all(lines)
                if not self.server.draining:
                    due += len(lines)
                wanted = len(got) + len(lines)
                while len(got) < wanted and (data := await stream.receive_some()):
                    got += data
            if self.server.RequestHandlerClass is not HangsUp:
                await stream.send_eof()
            got += b"".join([data async for data in stream])
            await trio.lowlevel.checkpoint()
        return due, got

    def _judge(self, address: Any, due: int, got: bytes) -> None:
        books = self.server.books
        if not ANSWERS.startswith(got):
            books.errors.append(f"got {got!r}")
        if got.count(b"\n") < books.written[address]:
            books.errors.append(f"{books.written[address]} replies were sent, and {got!r} arrived")
        told_to_go = address in books.refused() or address in books.cut
        if self.must_get and len(got) < due and not told_to_go:
            books.errors.append(f"{due} bytes of replies were due, and {got!r} arrived")


# The scenario ----------------------------------------------------------------------

Fault: TypeAlias = Callable[[Trial], object]

# What is done to it, in the words of the tests' parameters.
cancel, ctrl_c = Cancel(), CtrlC()
shut_down, shut_down_at_once = ShutDown(5), ShutDown(0)
NAMES = {
    cancel: "cancel",
    ctrl_c: "ctrl_c",
    shut_down: "shut_down",
    shut_down_at_once: "shut_down_at_once",
}


class Sweepable:
    """What a scenario of one kind of server has to be swept with.

    Attributes:
      kind: which server.
      faults: what is done, in this order.
    """

    kind: Any
    faults: Sequence[Fault]

    async def __call__(self, trial: Trial) -> None:
        """Run it."""
        raise NotImplementedError

    def sweep(self, **options: Any) -> int:
        """Sweep over it, see `trioserver.testing.sweep`; how many runs it took."""
        jump_after = self.kind.JUMP_AFTER
        return sweep(self, faults=[tuple(self.faults)], jump_after=jump_after, **options).runs

    def one(self, *at: int, seed: int = 0) -> Trial:
        """Try it once, with faults after these steps."""
        jump_after = self.kind.JUMP_AFTER
        faults = self.faults[: len(at)]
        return run_trial(self, *faults, at=at, seed=seed, jump_after=jump_after)


@attrs.frozen
class Listening:
    """A task status that does something when the server listens."""

    then: Callable[[], object]

    def started(self, server: object = None) -> None:
        """The server listens."""
        self.then()


async def serve_forever(server: Any, listening: Callable[[], object]) -> None:
    """Serve in this task."""
    await server.serve_forever(task_status=Listening(listening))


async def serve_in_a_block(server: Any, listening: Callable[[], object]) -> None:
    """Serve in the background of a block."""
    async with server.serving():
        listening()
        await server.wait_closed()


async def serve_one_by_one(server: Any, listening: Callable[[], object]) -> None:
    """Serve one request after the other."""
    async with server:
        listening()
        while not server.draining:
            await server.handle_request()


@attrs.define(eq=False)
class Setting(Sweepable):
    """A scenario: a server in the main task, and three clients that nothing cancels.

    Attributes:
      kind: which server.
      faults: what is done, in this order.
      handler: what handles its requests.
      gentle: whether the fault must not lose what was asked before it.
      victim: makes a client that is to be reset, as soon as the server listens.
      limits: the server's.
      serve: how it is served.
      patience: seconds in which every client must have been served.
      books: those of the last trial.
    """

    kind: Kind
    faults: Sequence[Fault] = ()
    handler: Any = Careful
    gentle: bool = False
    victim: Callable[[Any], Any] | None = None
    limits: trioserver.Limits = attrs.field(factory=trioserver.Limits)
    serve: Callable[[Any, Callable[[], object]], Awaitable[None]] = serve_forever
    patience: float = 30
    books: Books = attrs.field(factory=Books)

    async def __call__(self, trial: Trial) -> None:
        """Run it."""
        books = self.books = Books()
        outside = (trioserver.ThreadingMixIn, trioserver.ProcessMixIn)
        trial.varies = issubclass(self.kind, outside)
        trial.afterwards(books.faults)
        trial.afterwards(self.kind.left_behind)
        with books.open():
            await self._run(trial, books)

    async def _run(self, trial: Trial, books: Books) -> None:
        server: Any = self.kind(
            self.kind.PLACE, self.handler, limits=self.limits, observers=[books.witness]
        )
        server.books = books
        scope, listening = trio.CancelScope(), trio.Event()
        if self.victim is None:
            trial.arm(server=server, scope=scope)
        victims: list[Any] = []

        def let_them_in() -> None:
            books.run = server._run
            if self.victim is not None:
                victims.append(self.victim(server))
                trial.arm(client=victims[0])
            listening.set()

        try:
            async with trio.open_nursery() as clients:
                clients.start_soon(self._three_clients, trial, server, listening)
                try:
                    with scope:
                        await self.serve(server, let_them_in)
                finally:
                    listening.set()
        finally:
            for victim in victims:
                victim.reset()

    async def _three_clients(self, trial: Trial, server: Any, listening: trio.Event) -> None:
        must_get = self.gentle or not trial.at
        with trio.move_on_after(self.patience, shield=True) as patience:
            await listening.wait()
            async with trio.open_nursery() as clients:
                for pipelines in (True, False, False):
                    clients.start_soon(Client(server, pipelines, must_get).talk)
            server.shutdown(5)
        if patience.cancelled_caught:
            trial.complain(f"clients waited for {self.patience} s")


# Faults in a server ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "handler"),
    [(InMemory, Careful), (InMemory, HangsUp), (OnTCP, HangsUp), (OnUnix, HangsUp)],
)
def test_cancelled_after_every_step(kind: Kind, handler: Any) -> None:
    """CX-01: wherever it is cancelled, nothing is left and every request has a record."""
    assert Setting(kind, [cancel], handler).sweep() > 200


def test_cancelled_after_every_step_with_few_slots() -> None:
    """CX-03: every slot comes back, of the server's and of the clients', wherever it was held."""
    setting = Setting(InMemory, [cancel], limits=trioserver.Limits(requests=2, per_client=2))
    assert setting.sweep() > 150


class Sloppy(InMemory):
    """A server whose hooks close nothing."""

    async def shutdown_request(self, request: Any) -> None:
        await trio.lowlevel.checkpoint()


def test_hooks_that_close_nothing_cancelled_after_every_step() -> None:
    """Every connection is closed whatever the hooks do."""
    assert Setting(Sloppy, [cancel]).sweep(seeds=(0,)) > 50


@pytest.mark.parametrize("serve", [serve_in_a_block, serve_one_by_one])
@pytest.mark.parametrize("kind", [InMemory, OnUnix])
def test_block_cancelled_after_every_step(kind: Kind, serve: Any) -> None:
    """CX-01: the same around a ``serving`` block, and around ``handle_request`` in a loop."""
    assert Setting(kind, [cancel], serve=serve).sweep(seeds=(0,)) > 50


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
def test_shut_down_after_every_step(kind: Kind, handler: Any) -> None:
    """Wherever the drain begins, what was asked before it is answered, in full."""
    assert Setting(kind, [shut_down], handler, gentle=True).sweep() > 200


@all_kinds
def test_shut_down_after_every_step_with_few_slots(kind: Kind) -> None:
    """CX-03: the same where clients wait for a slot, or are turned away and counted."""
    limits = trioserver.Limits(requests=1)
    assert Setting(kind, [shut_down], gentle=True, limits=limits).sweep(seeds=(0, 1)) > 100


def test_shut_down_at_once_after_every_step() -> None:
    """The same with a grace of zero, but for what is not answered."""
    assert Setting(InMemory, [shut_down_at_once]).sweep(seeds=(0,)) > 50


@all_kinds
def test_ctrl_c_after_every_step(kind: Kind) -> None:
    """Wherever it strikes, `KeyboardInterrupt` comes out, and everything is closed first."""
    assert Setting(kind, [ctrl_c]).sweep() > 200


@all_kinds
@pytest.mark.parametrize("second", [cancel, ctrl_c, shut_down_at_once], ids=NAMES.get)
def test_second_fault_during_a_shutdown(kind: Kind, second: Fault) -> None:
    """Whenever somebody loses patience with a drain, everything is closed all the same.

    A sample of the pairs; soak/sweeps.py tries them all.
    """
    assert Setting(kind, [shut_down, second]).sweep(seeds=(0,), every=7) > 50


class VictimOnTCP:
    """A client that has sent its lines, never reads, and resets its connection."""

    def __init__(self, server: OnTCP) -> None:
        self.socket = socket.create_connection(server.server_address)
        self.socket.sendall(b"".join(LINES))

    def reset(self) -> None:
        """Reset it; twice is once."""
        if self.socket.fileno() != -1:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()


class VictimInMemory:
    """The same, in memory."""

    def __init__(self, server: InMemory) -> None:
        self.connection = server.listener.connect_now()
        self.connection._transport.send_now(b"".join(LINES))

    def reset(self) -> None:
        """Reset it; twice is once."""
        self.connection.reset()


class VictimOnUnix(VictimOnTCP):
    """The same, on a Unix socket: closed with replies that it has not read."""

    def __init__(self, server: OnUnix) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(server.PLACE)
        self.socket.sendall(b"".join(LINES))


VICTIMS: dict[Kind, Any] = {
    InMemory: VictimInMemory,
    OnTCP: VictimOnTCP,
    OnUnix: VictimOnUnix,
}


@all_kinds
def test_client_reset_after_every_step(kind: Kind) -> None:
    """Wherever one client is reset, the others get all their replies, and it has its record."""
    assert Setting(kind, [ResetClient()], gentle=True, victim=VICTIMS[kind]).sweep(every=2) > 100


# One request ------------------------------------------------------------------------


def cut_in_its_step(kind: Any, step: int) -> Any:
    """A server that cancels its first request after so many steps of that one's task."""

    class Fragile(kind):  # type: ignore[misc]
        async def process_request(self, request: Any, client_address: Any) -> None:
            handling = super().process_request(request, client_address)
            at = step if request.info.id == 1 else 0
            await fire_at(handling, at, partial(self.cut, request))

        def cut(self, request: Any) -> None:
            if self.cancel_request(request.info.id, "swept"):
                self.books.cut.append(request.client_address)

    return Fragile


def sweep_one_request(kind: Any, seeds: Sequence[int] = (0, 1, 2), handler: Any = Careful) -> int:
    """Cancel one request at each of its own checkpoints; how many there were."""
    runs = 0
    for seed in seeds:
        for step in itertools.count(1):
            setting = Setting(cut_in_its_step(kind, step), handler=handler)
            setting.one(seed=seed).check()
            outcomes = Counter(setting.books.witness.outcomes)
            cut = len(setting.books.cut)
            assert outcomes == Counter(completed=3 - cut, cancelled=cut)
            if not cut:
                break
            runs += 1
    return runs


@all_kinds
def test_one_request_cancelled_after_every_step_of_its_own(kind: Kind) -> None:
    """CX-04: wherever one request is cancelled, the others get all their replies."""
    assert sweep_one_request(kind) > 15


# Those that will not end ------------------------------------------------------------


class Stubborn(Careful):
    """The same, but the first one has shielded itself for a minute."""

    async def handle(self) -> None:
        if self.info.id == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)
        await super().handle()


@pytest.mark.parametrize("fault", [cancel, shut_down_at_once], ids=NAMES.get)
def test_stubborn_request_cut_after_every_step(fault: Fault) -> None:
    """CX-12: who shields himself is named with its stack, waited for, and holds nobody else up."""
    struck = 0.0

    def timed(trial: Trial) -> None:
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

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        found = [f"127.0.0.{number}" for number in (1, 2)]
        return [(socket.AF_INET, type, proto, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


class SlowlyMixIn(trioserver.BaseServer):
    """Takes a while to bind and to listen."""

    JUMP_AFTER = 0.0

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        await trio.lowlevel.checkpoint()
        listeners = await super().server_bind()
        await trio.lowlevel.checkpoint()
        return listeners

    async def server_activate(self) -> None:
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


async def start_by_itself(server: Any, listening: Callable[[], object]) -> None:
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

    async def __call__(self, trial: Trial) -> None:
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
def locked_directory() -> Iterator[Callable[[], Awaitable[None]]]:
    """Lock the current directory; gives what unlocks it after a while."""
    directory = os.open(".", os.O_RDONLY)

    async def unlock() -> None:
        await trio.sleep(0.025)
        fcntl.flock(directory, fcntl.LOCK_UN)

    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield unlock
    finally:
        os.close(directory)


@pytest.mark.parametrize("kind", [SlowTCP, SlowUDP, SlowUnix, SlowUnixDatagrams])
@pytest.mark.parametrize(
    "serve", [serve_forever, serve_in_a_block, serve_one_by_one, start_by_itself]
)
@pytest.mark.parametrize("fault", [cancel, ctrl_c, shut_down], ids=NAMES.get)
def test_start_after_every_step(kind: Any, serve: Any, fault: Fault) -> None:
    """CX-08: a start is broken off at any step, resolving and binding too: no socket, no file."""
    assert Start(kind, [fault], serve).sweep() > 25


class Named(SlowlyMixIn, trioserver.TCPServer):
    """A name that a thread resolves."""

    PLACE = ("localhost", 0)


@pytest.mark.parametrize("fault", [cancel, ctrl_c, shut_down], ids=NAMES.get)
def test_start_that_resolves_in_a_thread_after_every_step(fault: Fault) -> None:
    """CX-08: the same where the system resolves the name."""

    async def scenario(trial: Trial) -> None:
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


def say_the_last_byte(client: socket.socket) -> None:
    """The request is complete."""
    client.sendall(b"\n")


def end_the_output(client: socket.socket) -> None:
    """The request is all that there is."""
    client.shutdown(socket.SHUT_WR)


def leave(client: socket.socket) -> None:
    """Nobody is there to answer."""
    client.close()


@pytest.mark.parametrize("kind", [OnTCP, OnUnix])
@pytest.mark.parametrize("client_is_first", [True, False])
@pytest.mark.parametrize("do", [say_the_last_byte, end_the_output, leave])
def test_cancelled_in_the_tick_of_the_clients_act(
    kind: Any, client_is_first: bool, do: Callable[[socket.socket], None]
) -> None:
    """CX-13: a request that is cancelled in that tick is cancelled, with a reason, and once."""
    all_books: list[Books] = []

    async def scenario(trial: Trial) -> None:
        books = Books()
        all_books.append(books)
        trial.afterwards(books.faults)
        server: Any = kind(kind.PLACE, Careful, observers=[books.witness])
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

    for seed in range(5):
        run_trial(scenario, seed=seed, jump_after=0.02).check()
    ends = [(it.outcome, it.reason) for books in all_books for it in books.records]
    assert ends == [("cancelled", "in this tick")] * 5


# What is planted is found ------------------------------------------------------------


class HastyMixIn:
    """A listener that accepts a client, waits a moment, and only then hands it on."""

    held: Any = None

    async def wait_acceptable(self: Any) -> None:
        await super().wait_acceptable()
        self.held = super().accept_now()
        await trio.lowlevel.checkpoint()  # the bug

    def accept_now(self) -> tuple[Any, Any] | None:
        held, self.held = self.held, None
        return held


class HastyListener(HastyMixIn, MemoryListener):
    """The same, in memory."""


class HastySocketListener(HastyMixIn, SocketListener):
    """The same, with the kernel's sockets."""


class Hasty(InMemory):
    """A server that waits between the accept and the request's task."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        self.listener = HastyListener(self.PLACE)
        return [self.listener]


class HastyOnTCP(OnTCP):
    """The same, on TCP."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        return [HastySocketListener(it.socket) for it in await super().server_bind()]


class Careless:
    """A handler whose ``finish`` is skipped when it is cancelled."""

    def __init__(self, request: trioserver.Connection, client_address: Any, server: Any) -> None:
        self.request, self.calls = request, server.books.calls

    def __await__(self) -> Generator[Any, Any, None]:
        return self.serve().__await__()

    async def serve(self) -> None:
        self.calls["setup"] += 1
        async for line in trioserver.RequestReader(self.request):
            await self.request.sendall(line.upper())
        self.calls["finish"] += 1  # the bug: no try, no finally


class Stale(Careful):
    """A handler that executes a line again when the drain ends its wait for the next."""

    async def handle(self) -> None:
        line = b""
        while not self.server.draining:
            with suppress(trioserver.Draining):
                with self.idle():
                    line = await self.rfile.readline()
            if not line:
                return
            await self.answer(line)  # the bug: whose line is it?


def complaint_about(scenario: Sweepable) -> str:
    """What the sweep says."""
    with pytest.raises(Finding) as found:
        scenario.sweep()
    return str(found.value)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", [Hasty, HastyOnTCP])
def test_a_wait_between_accept_and_start_is_found(kind: Any) -> None:
    """A client that is lost there leaves an open connection, or a client that waits for ever."""
    complaint = complaint_about(Setting(kind, [cancel]))
    assert "clients waited" in complaint or "descriptors are still open" in complaint
    gc.collect()  # what was leaked on purpose


def test_a_skipped_finish_is_found() -> None:
    """A handler that is not finished when it is cancelled does not balance."""
    complaint = complaint_about(Setting(InMemory, [cancel], Careless))
    assert "setup and finish are no pairs" in complaint


def test_a_request_executed_twice_is_found() -> None:
    """A client that gets an answer too many says so."""
    complaint = complaint_about(Setting(InMemory, [shut_down], Stale))
    assert "got b'ONE\\nONE\\n" in complaint


def test_a_request_lost_in_a_drain_is_found() -> None:
    """A handler that does not look for what has arrived already leaves an answer due."""

    class Hurried(Careful):
        async def handle(self) -> None:
            while not self.server.draining and await self.rfile.more():  # the bug: not its affair
                await self.answer(await self.rfile.readline())

    complaint = complaint_about(Setting(InMemory, [shut_down], Hurried, gentle=True))
    assert "replies were due" in complaint
