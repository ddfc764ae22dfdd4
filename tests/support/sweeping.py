"""Servers, clients and books for a fault after every step: nothing is left, lost or silent."""

import itertools
import logging
import socket
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import pytest
import trio

import trioserver
from support import IdlesMixIn, Witness, plain_client, reset
from trioserver.testing import (
    Cancel,
    CtrlC,
    Finding,
    MemoryServer,
    ResetClient,
    ShutDown,
    Trial,
    fire_at,
    run_trial,
    sweep,
)


@attrs.define(eq=False)
class Books:
    """What a server, its handlers and its clients did in one trial."""

    witness: Witness = attrs.field(factory=Witness)
    run: Any = None  # the server's, which the server itself forgets
    accepted: list[Any] = attrs.field(factory=list)  # every connection, or datagram
    calls: Counter[str] = attrs.field(factory=Counter)  # of `setup` that returned, and of `finish`
    written: Counter[Any] = attrs.field(factory=Counter)  # whole replies sent, by client address
    cut: list[Any] = attrs.field(factory=list)  # whose request was cancelled alone
    errors: list[str] = attrs.field(factory=list)  # found wrong at once, or logged
    named: list[str] = attrs.field(factory=list)  # logged errors that had to be

    @contextmanager
    def open(self):
        """Write down in the block, too, whatever a server logs as an error."""
        log, handler = logging.getLogger("trioserver"), logging.Handler(logging.ERROR)
        handler.emit = self._keep
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    def _keep(self, record):
        message = record.getMessage()
        if "has not ended" in message:
            self.named.append(message)
        else:
            self.errors.append(f"logged: {message}")

    def faults(self):
        """What does not balance."""
        for connection in self.accepted:
            if connection.state != "closed" or connection.fileno() != -1:
                yield f"{connection!r} is open"
        if self.calls["setup"] != self.calls["finish"]:
            yield f"setup and finish are no pairs: {dict(self.calls)}"
        begins = {"request_started", "arrival_failed"}  # one of them
        started = [it[1] for it in self.witness.events if it[0] in begins]
        ended = [record.info for record in self.witness.records]
        if sorted(it.id for it in started) != sorted(it.id for it in ended):
            yield f"started {started}, ended {ended}"
        accepted = Counter(it.client_address for it in self.accepted)
        if accepted != Counter(it.client_address for it in started) + self.refused():
            yield f"accepted {accepted}, started {started}, turned away {self.refused()}"
        names = self.witness.names
        if names.count("server_listening") != names.count("server_closed"):
            yield f"a beginning and no end, or the reverse: {names}"
        if self.run is not None:
            slots, ledger = self.run.admission.slots, self.run.registry
            if slots.free != slots._most or slots.turning_away or slots._by_client:
                yield f"slots were not given back, or too many: {slots}"
            if ledger.here() or ledger.lingering:
                yield f"requests are still in the books: {ledger.here()}"
        yield from self.errors

    def refused(self):
        """How many were told to go, unserved, and the witness was told of it; by address."""
        return Counter(it[1] for it in self.witness.events if it[0] == "request_refused")


class KeepsBooks(trioserver.BaseRequestHandler):
    """Whose setup and finish have to be pairs."""

    async def setup(self):
        await trio.lowlevel.checkpoint()
        self.server.books.calls["setup"] += 1

    async def finish(self):
        self.server.books.calls["finish"] += 1
        await trio.lowlevel.checkpoint()
        await super().finish()


class Careful(KeepsBooks, trioserver.StreamRequestHandler):
    """Answers lines in upper case."""

    async def handle(self):
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line):
        await self.wfile.write(line.upper())
        self.server.books.written[self.client_address] += 1


class Idling(IdlesMixIn, Careful):
    """The same, with a wait of its own between two requests."""


class HangsUp(Careful):
    """The same, but ends the connection after the third line, and so lingers."""

    async def handle(self):
        for _ in LINES:
            if not await self.rfile.more():
                return
            await self.answer(await self.rfile.readline())


class Buffering(Careful):
    """The same, with replies that are sent when the next request is waited for."""

    wbufsize = -1

    async def answer(self, line):
        await self.wfile.write(line.upper())


class WatchedMixIn(trioserver.BaseServer):
    """Writes in its books whom it accepts."""

    FIELDS: ClassVar[Mapping[str, Any]] = {}

    def get_request(self, listener):
        accepted = super().get_request(listener)
        if accepted is not None:
            self.books.accepted.append(accepted[0])
        return accepted

    @classmethod
    def left_behind(cls):
        """What a server of this kind has not cleared away; it is gone afterwards."""
        yield from ()


class InMemory(WatchedMixIn, MemoryServer):
    """Watched, in memory."""

    PLACE = ("memory", 1)
    JUMP_AFTER = 0.0

    async def dial(self):
        stream = await self.connect()
        return stream, stream.client_address

    def victim(self):
        """A client that has sent its lines, and never reads."""
        connection = self.listener.connect_now()
        connection._transport.send_now(b"".join(LINES))
        return connection


class Victim:
    """The same on a socket, which it resets; twice is once."""

    def __init__(self, server):
        self.socket = plain_client(server.server_address)
        self.socket.sendall(b"".join(LINES))

    def reset(self):
        if self.socket.fileno() != -1:
            reset(self.socket)


class OnSocketsMixIn(WatchedMixIn):
    """Watched, on sockets."""

    FAMILY = socket.AF_INET
    # To no port, which could be that of a server that has just closed: who connects from it
    # to itself gets its own words.
    FROM: ClassVar[Any] = None

    async def dial(self):
        plain = socket.socket(self.FAMILY)
        if self.FROM is not None:
            plain.bind(self.FROM)
        sock = trio.socket.from_stdlib_socket(plain)
        try:
            await sock.connect(self.server_address)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock), sock.getsockname()

    def victim(self):
        return Victim(self)


class OnTCP(OnSocketsMixIn, trioserver.TCPServer):
    """Watched, on the loopback interface."""

    PLACE = ("127.0.0.1", 0)
    JUMP_AFTER = 0.01


class LeavesNoFile(WatchedMixIn):
    """At a path of the current directory."""

    PLACE = "swept.socket"
    JUMP_AFTER = 0.0  # the kernel carries bytes from one socket to the other at once

    @classmethod
    def left_behind(cls):
        with suppress(FileNotFoundError):
            Path(cls.PLACE).unlink()
            yield "the socket file is still there"


class OnUnix(OnSocketsMixIn, LeavesNoFile, trioserver.UnixStreamServer):
    """Watched, on a Unix socket."""

    FAMILY = socket.AF_UNIX
    FROM = ""  # any abstract name, so that the books know whose it is


LINES = [b"one\n", b"two\n", b"three\n"]
ANSWERS = b"".join(LINES).upper()


@attrs.frozen(eq=False)
class Client:
    """Sends three lines, one by one or at once, and judges what comes back."""

    server: Any
    pipelines: bool  # sends all of them at once
    must_get: bool  # answers to all that it asks before a drain, not only what was sent

    async def talk(self):
        """The whole conversation; a server that is not there has none."""
        if self.server.snapshot().state == "unbound":
            return
        with suppress(OSError):
            stream, address = await self.server.dial()
            async with stream:
                due, got = await self._converse(stream)
            books = self.server.books
            written, told_to_go = books.written[address], {*books.refused(), *books.cut}
            if not ANSWERS.startswith(got):
                books.errors.append(f"got {got!r}")
            if got.count(b"\n") < written:
                books.errors.append(f"{written} replies were sent, and {got!r} arrived")
            if self.must_get and len(got) < due and address not in told_to_go:
                books.errors.append(f"{due} bytes of replies were due, and {got!r} arrived")

    async def _converse(self, stream):
        """How many bytes were due, and what came."""
        due, got = 0, b""
        with suppress(trio.BrokenResourceError):
            for lines in [b"".join(LINES)] if self.pipelines else LINES:
                await stream.send_all(lines)
                due += len(lines) * self._is_in_time()
                wanted = len(got) + len(lines)
                while len(got) < wanted and (data := await stream.receive_some()):
                    got += data
            if self.server.RequestHandlerClass is not HangsUp:
                await stream.send_eof()
            got += b"".join([data async for data in stream])
            await trio.lowlevel.checkpoint()
        return due, got

    def _is_in_time(self):
        """Whether what was just sent has come before a drain; one that is over drains no more."""
        return not self.server.draining and self.server.snapshot().state != "unbound"


Fault = Callable[[Trial], object]


# What is done to it, in the words of the tests' parameters.
cancel, ctrl_c, shut_down, shut_down_at_once = FAULTS = Cancel(), CtrlC(), ShutDown(5), ShutDown(0)
NAMES = dict(zip(FAULTS, ["cancel", "ctrl_c", "shut_down", "shut_down_at_once"], strict=True))


def leave(trial):
    """One of its clients is gone."""
    trial.client.leave()


def suspend_a_while(trial):
    """Nobody is let in for a few rounds."""
    token = trio.lowlevel.current_trio_token()

    def go_on(rounds):
        if rounds:
            token.run_sync_soon(go_on, rounds - 1)
        elif trial.server.snapshot().state != "unbound":
            trial.server.resume()

    if trial.server.snapshot().state != "unbound":
        trial.server.suspend()
        go_on(5)


@contextmanager
def folder_of_its_own():
    """Socket files are made in one."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder, chdir(folder):
        yield


class Sweepable:
    """What a scenario needs to be swept: the `kind` of its server, and the `faults` in order."""

    def sweep(self, *, seeds=(0,), **options):
        """Sweep over it, see `trioserver.testing.sweep`; how many runs it took.

        By one schedule if nobody says otherwise: tests/soak/sweeps.py has more of them.
        """
        options |= {
            "seeds": seeds,
            "faults": [tuple(self.faults)],
            "jump_after": self.kind.JUMP_AFTER,
        }
        with folder_of_its_own():
            return sweep(self, **options).runs

    def one(self, *at, seed=0):
        """Try it once, with faults after these steps."""
        options = {"at": at, "seed": seed, "jump_after": self.kind.JUMP_AFTER}
        with folder_of_its_own():
            return run_trial(self, *self.faults[: len(at)], **options)

    def complaint(self):
        """What the sweep says, which has to find something."""
        with pytest.raises(Finding) as found:
            self.sweep()
        return str(found.value)


async def serve_forever(server, listening):
    """Serve in this task."""
    await server.serve_forever(task_status=SimpleNamespace(started=lambda *_: listening()))


async def serve_in_a_block(server, listening):
    """Serve in the background of a block."""
    async with server.serving():
        listening()
        await server.wait_closed()


async def serve_one_by_one(server, listening):
    """Serve one request after the other."""
    async with server:
        listening()
        while not server.draining:
            await server.handle_request()


@attrs.define(eq=False)
class Serving(Sweepable):
    """A scenario: a server in the main task, and clients that nothing cancels.

    Those have ``let_in``, when the server listens, which gives who is to do harm, if it is one
    of them; ``clients``, what they do then; and ``send_them_away``, when it is over.
    """

    HANDLER: ClassVar[Any]

    kind: Any
    faults: Sequence[Fault] = ()  # what a client does, once the server listens
    handler: Any = attrs.Factory(lambda self: self.HANDLER, takes_self=True)
    gentle: bool = False  # the fault must not lose what was asked before it
    limits: trioserver.Limits = attrs.field(factory=trioserver.Limits)
    serve: Callable[[Any, Callable[[], object]], Awaitable[None]] = serve_forever
    books: Books = attrs.field(factory=Books)  # those of the last trial

    @property
    def is_of_a_client(self):
        """Whether it is not the server to which something is done."""
        return any(isinstance(fault, ResetClient) or fault is leave for fault in self.faults)

    async def __call__(self, trial):
        self.books = Books()
        outside = (trioserver.ThreadingMixIn, trioserver.ProcessMixIn)
        trial.varies = issubclass(self.kind, outside)
        trial.afterwards(self.books.faults)
        trial.afterwards(self.kind.left_behind)
        with self.books.open():
            try:
                await self._run(trial)
            finally:
                self.send_them_away()

    async def _run(self, trial):
        fields = {"limits": self.limits, "observers": [self.books.witness], **self.kind.FIELDS}
        server = self.kind(self.kind.PLACE, self.handler, **fields)
        server.books = self.books
        scope, listening = trio.CancelScope(), trio.Event()
        if not self.is_of_a_client:
            trial.arm(server=server, scope=scope)

        def let_them_in():
            self.books.run = server._run
            culprit = self.let_in(server)
            if self.is_of_a_client:
                trial.arm(client=culprit)
            listening.set()

        async with trio.open_nursery() as clients:
            clients.start_soon(self.clients, trial, server, listening)
            try:
                with scope:
                    await self.serve(server, let_them_in)
            finally:
                listening.set()

    def are_right(self, outcomes):
        """Whether these are what comes of one that was cut, or of none."""
        return outcomes["cancelled"] == len(self.books.cut)

    def sweep_one_request(self, seeds=(0, 1, 2), cut=None):
        """Cancel one request at each of its own checkpoints; how many there were.

        ``cut`` makes a server that cancels it after so many steps.
        """
        cut, runs = cut or cut_in_its_step, 0
        for seed in seeds:
            for step in itertools.count(1):
                setting = attrs.evolve(self, kind=cut(self.kind, step))
                setting.one(seed=seed).check()
                assert setting.are_right(Counter(setting.books.witness.outcomes))
                if not setting.books.cut:
                    break
                runs += 1
        return runs


@attrs.define(eq=False)
class Setting(Serving):
    """A scenario of streams: three clients, and one that is reset, if that is the fault."""

    HANDLER = Careful

    patience: float = 30  # seconds in which every client must have been served
    _victims: list[Any] = attrs.field(factory=list)

    def let_in(self, server):
        self._victims = [server.victim()] if self.is_of_a_client else []
        return self._victims[0] if self._victims else None

    def send_them_away(self):
        for victim in self._victims:  # it may not have been
            victim.reset()

    async def clients(self, trial, server, listening):
        must_get = self.gentle or not trial.at
        with trio.move_on_after(self.patience, shield=True) as patience:
            await listening.wait()
            async with trio.open_nursery() as clients:
                for pipelines in (True, False, False):
                    clients.start_soon(Client(server, pipelines, must_get).talk)
            server.shutdown(5)
        if patience.cancelled_caught:
            trial.complain(f"clients waited for {self.patience} s")

    def are_right(self, outcomes):
        cut = len(self.books.cut)
        return outcomes == Counter(completed=3 - cut, cancelled=cut)


def cut_in_its_step(kind, step):
    """A server that cancels its first request after so many steps of that one's task."""

    class Fragile(kind):
        async def process_request(self, request, client_address):
            handling = super().process_request(request, client_address)
            at = step if request.info.id == 1 else 0
            await fire_at(handling, at, partial(self.cut, request))

        def cut(self, request):
            if self.cancel_request(request.info.id, "swept"):
                self.books.cut.append(request.client_address)

    return Fragile
