"""Servers, clients and books for a fault after every step: nothing is left, lost or silent."""

from __future__ import annotations

import itertools
import logging
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import trio

import trioserver
from support import Witness
from trioserver.testing import (
    Cancel,
    CtrlC,
    MemoryServer,
    ShutDown,
    Trial,
    fire_at,
    run_trial,
    sweep,
)


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
        slots, ledger = self.run.admission._slots, self.run.registry
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


class Sloppy(InMemory):
    """A server whose hooks close nothing."""

    async def shutdown_request(self, request: Any) -> None:
        await trio.lowlevel.checkpoint()


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
