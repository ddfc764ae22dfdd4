"""Handlers in threads: those of the standard library, unmodified, and plain functions."""

from __future__ import annotations

import contextvars
import errno
import gc
import os
import resource
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Witness, connect, plain_client, read_to_end, running, until
from support.threads import THERE, Upper, ask, ask_by_datagram, on_tcp

import trioserver
from trioserver import Limits, Outcome, Timeouts
from trioserver.testing import MemoryMixIn, open_descriptors


@pytest.fixture(params=["tcp", "unix"])
def stream(request: pytest.FixtureRequest, folder: Path) -> Callable[..., trioserver.BaseServer]:
    """Makes a stream server of each kind, in turn."""
    if request.param == "tcp":
        return on_tcp
    return partial(trioserver.ThreadingUnixStreamServer, str(folder / "server"))


@pytest.fixture(params=["udp", "unix"])
def datagram(request: pytest.FixtureRequest, folder: Path) -> Callable[..., trioserver.BaseServer]:
    """Makes a datagram server of each kind, in turn."""
    if request.param == "udp":
        return partial(trioserver.ThreadingUDPServer, THERE)
    return partial(trioserver.ThreadingUnixDatagramServer, str(folder / "server"))


# What runs where ------------------------------------------------------------------


async def test_stream_handler(stream: Any) -> None:
    """``StreamRequestHandler`` of `socketserver` works as it is."""
    witness = Witness()
    async with running(server := stream(Upper, observers=[witness])):
        assert await ask(server, b"one\ntwo\n") == b"ONE\nTWO\n"
    [record] = witness.records
    assert str(record.outcome) == "completed"
    assert (record.bytes_received, record.bytes_sent) == (8, 8)
    assert record.info.mode == "thread"


async def test_datagram_handler(datagram: Any) -> None:
    """``DatagramRequestHandler`` of `socketserver` works as it is."""

    class Back(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read()[::-1])

    witness = Witness()
    async with running(server := datagram(Back, observers=[witness])):
        assert await ask_by_datagram(server, b"hello") == b"olleh"
        await until(lambda: bool(witness.records))
    [record] = witness.records
    assert (str(record.outcome), record.bytes_received, record.bytes_sent) == ("completed", 5, 5)
    assert record.info.mode == "thread"


async def test_datagram_pair(datagram: Any) -> None:
    """A datagram's request is the classic pair, and ``sendto`` takes both classic forms."""
    seen: list[Any] = []

    class Twice(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, way_back = self.request
            seen.append((way_back.getsockname(), repr(way_back)))
            way_back.sendto(data, 0, self.client_address)
            with pytest.raises(TypeError, match="sendto takes"):
                way_back.sendto(data)
            assert way_back.sendto(data + data, self.client_address) == 2 * len(data)

    async with running(server := datagram(Twice)) as address:
        assert await ask_by_datagram(server, b"ab") == b"ab"
    [(name, shown)] = seen
    assert name == address
    assert shown.startswith("<trioserver.SyncDatagramSocket: request 1 from ")


async def test_base_handler_in_order(stream: Any) -> None:
    """Constructing the handler sets up, handles and finishes, all in one thread of its own."""
    steps: list[tuple[str, int]] = []

    class Steps(socketserver.BaseRequestHandler):
        def note(self, what: str) -> None:
            steps.append((what, threading.get_ident()))

        def setup(self) -> None:
            self.note("setup")

        def handle(self) -> None:
            self.note("handle")
            assert self.request.recv(3) == b"hey"
            assert isinstance(self.request, socket.socket)
            assert self.server is server
            self.request.sendall(b"you")

        def finish(self) -> None:
            self.note("finish")

    async with running(server := stream(Steps)):
        assert await ask(server, b"hey") == b"you"
    assert [what for what, _ in steps] == ["setup", "handle", "finish"]
    assert len({thread for _, thread in steps}) == 1
    assert steps[0][1] != threading.get_ident()


async def test_finish_runs_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """As ever, also when handle raises."""
    finished = threading.Event()

    class Fails(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("on purpose")

        def finish(self) -> None:
            finished.set()

    async with running(server := on_tcp(Fails)):
        assert await ask(server, b"") == b""
    assert finished.is_set()
    assert "ValueError: on purpose" in caplog.text


def _greet(greeting: bytes, request: socket.socket, client_address: Any, server: Any) -> None:
    request.sendall(greeting + request.recv(100))


async def test_plain_function(stream: Any) -> None:
    """A plain function is a handler, also a partial one."""
    async with running(server := stream(partial(_greet, b"hello, "))):
        assert await ask(server, b"world") == b"hello, world"


async def test_thread_is_named_after_its_request() -> None:
    """Tools that list threads show which client each works for."""
    names: list[str] = []

    def tells_its_name(request: Any, client_address: Any, server: Any) -> None:
        names.append(threading.current_thread().name)

    async with running(server := on_tcp(tells_its_name)):
        async with await connect(server) as client:
            await read_to_end(client)
            host, port = client.socket.getsockname()
    assert names == [f"request 1 from {host}:{port}"]


_set_before = contextvars.ContextVar("_set_before", default="nothing")
_set_inside = contextvars.ContextVar("_set_inside", default="nothing")


async def test_context_variables() -> None:
    """TH-05: what was set before serving is there; what a request sets is gone with it."""
    seen: list[tuple[str, str, int, Any]] = []

    def looks(request: Any, client_address: Any, server: Any) -> None:
        info = trioserver.current_request()
        seen.append((_set_before.get(), _set_inside.get(), threading.get_ident(), info))
        _set_inside.set("something")

    _set_before.set("before")
    witness = Witness()
    async with running(server := on_tcp(looks, observers=[witness])):
        for number in range(1, 4):
            assert await ask(server, b"") == b""
            await until(lambda number=number: len(witness.records) == number)  # type: ignore[misc]
    assert [before for before, *_ in seen] == ["before"] * 3
    assert [inside for _, inside, *_ in seen] == ["nothing"] * 3
    assert len({thread for *_, thread, _ in seen}) < 3  # or it proves nothing
    assert [info for *_, info in seen] == [record.info for record in witness.records]


async def test_shutdown_from_a_handler() -> None:
    """``self.server`` is the server, and its ``shutdown`` works from the thread."""

    class Quits(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.server.shutdown(5)  # type: ignore[call-arg]
            self.wfile.write(b"bye")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = on_tcp(Quits)
            await nursery.start(server.serve_forever)
            assert await ask(server, b"quit\n") == b"bye"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["completed"]
    assert report.clean


async def test_state_and_bytes_while_it_runs() -> None:
    """A snapshot shows what each thread does in its socket, and how far it is."""

    def talks(request: socket.socket, client_address: Any, server: Any) -> None:
        request.recv(100)  # idle
        request.recv(100)  # reading
        step.wait(10)  # working
        request.sendall(bytes(10_000_000))  # writing

    step = threading.Event()

    def now() -> tuple[str, int, int]:
        [it] = server.snapshot().requests
        return it.state, it.bytes_received, it.bytes_sent

    async with running(server := on_tcp(talks)):
        async with await connect(server) as client:
            await until(lambda: bool(server.requests) and now() == ("idle", 0, 0))
            await client.send_all(b"abc")
            await until(lambda: now() == ("reading", 3, 0))
            await client.send_all(b"de")
            await until(lambda: now() == ("working", 5, 0))
            step.set()
            await until(lambda: now()[0] == "writing")
            assert len(await read_to_end(client)) == 10_000_000


# Slots ------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"max_threads": 4}, {"limits": Limits(requests=4)}])
async def test_fifth_client_waits_in_the_kernel(fields: Any) -> None:
    """TH-02: with four stuck handlers nobody else is accepted; stopping is not held up."""
    go = threading.Semaphore(0)

    def stuck(request: socket.socket, client_address: Any, server: Any) -> None:
        go.acquire(timeout=10)
        request.sendall(b"done")

    fields = {"max_threads": 100, **fields}
    async with running(server := on_tcp(stuck, **fields)):
        clients = [await connect(server) for _ in range(5)]
        await until(lambda: len(server.requests) == 4)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.statistics().accepted == 4
        go.release()
        await until(lambda: server.statistics().accepted == 5)
        assert len(server.requests) == 4
        go.release(4)
        for client in clients:
            async with client:
                assert await read_to_end(client) == b"done"


async def test_slots_are_exact_under_load() -> None:
    """There are never more threads at once than slots, and all clients are served."""
    at_once: list[int] = []
    here, lock = 0, threading.Lock()
    three = threading.Barrier(3)

    def counts(request: socket.socket, client_address: Any, server: Any) -> None:
        nonlocal here
        with lock:
            here += 1
            at_once.append(here)
            number = len(at_once)
        if number <= 99:
            three.wait(10)
        request.sendall(request.recv(10))
        with lock:
            here -= 1

    async def asks() -> None:
        for _ in range(21):
            assert await ask(server, b"x") == b"x"

    async with running(server := on_tcp(counts, max_threads=3)):
        async with trio.open_nursery() as clients:
            for _ in range(10):
                clients.start_soon(asks)
    assert len(at_once) == 210
    assert max(at_once) == 3


async def test_thread_left_behind_keeps_its_slot(caplog: pytest.LogCaptureFixture) -> None:
    """TH-02: the next client is accepted when the thread ends, and not before."""
    stuck, go = threading.Event(), threading.Event()

    def stuck_once(request: socket.socket, client_address: Any, server: Any) -> None:
        stuck.set()
        go.wait(10)
        request.sendall(b"done")

    fields: dict[str, Any] = {"max_threads": 1, "timeouts": Timeouts(cleanup=0.01)}
    async with running(server := on_tcp(stuck_once, **fields)):
        first, second = await connect(server), await connect(server)
        await until(stuck.is_set)
        server.cancel_request(1, "enough")
        assert await read_to_end(first) == b""
        await until(lambda: server.statistics().outcomes[Outcome.ABANDONED] == 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.statistics().accepted == 1
        go.set()
        assert await read_to_end(second) == b"done"
        await first.aclose()
        await second.aclose()


async def test_stuck_threads_leave_others_alone() -> None:
    """TH-03: with every thread stuck, look-ups, file access and another server answer at once."""
    go = threading.Event()

    def stuck(request: socket.socket, client_address: Any, server: Any) -> None:
        go.wait(60)

    def answers(request: socket.socket, client_address: Any, server: Any) -> None:
        request.sendall(b"here")

    # As many as Trio's own limiter has tokens, which must not be what they take.
    async with running(server := on_tcp(stuck)), running(other := on_tcp(answers)):
        clients = [await connect(server) for _ in range(40)]
        await until(lambda: len(server.requests) == 40)
        try:
            took: list[float] = []
            while len(took) < 5 and not (took and min(took) < 0.1):  # the machine may be busy
                began = time.perf_counter()
                await trio.socket.getaddrinfo("localhost", 80)
                assert await trio.Path(__file__).exists()
                assert await ask(other, b"") == b"here"
                took.append(time.perf_counter() - began)
            assert min(took) < 0.1
        finally:
            go.set()
        for client in clients:
            await client.aclose()


# Errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("what"), StopIteration("what"), GeneratorExit()])
async def test_error_ends_the_request_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """TH-04: it goes to ``handle_error``, with its traceback, and the server goes on."""

    def fails(request: socket.socket, client_address: Any, server: Any) -> None:
        if request.recv(1):
            raise error

    witness = Witness()
    async with running(server := on_tcp(fails, observers=[witness])):
        assert await ask(server, b"x") == b""
        assert await ask(server, b"") == b""
    assert witness.outcomes == ["failed", "completed"]
    [told] = [it for it in caplog.records if it.exc_info]
    assert told.name == "trioserver.error"
    assert "in fails" in caplog.text


async def test_first_error_is_never_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A ``handle_error`` that fails, and hides what it was told of, has both of them logged."""

    class Hides(trioserver.ThreadingTCPServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            raise RuntimeError("the second") from None

    def fails(request: socket.socket, client_address: Any, server: Any) -> None:
        raise LookupError("the first")

    async with running(server := Hides(THERE, fails)):
        assert await ask(server, b"") == b""
    assert "LookupError: the first" in caplog.text
    assert "in fails" in caplog.text
    assert "RuntimeError: the second" in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_what_ends_programs_ends_the_server(kind: type[BaseException]) -> None:
    """TH-04: it leaves ``serve_forever``, bare, after everything was closed."""

    def exits(request: socket.socket, client_address: Any, server: Any) -> None:
        raise kind("now")

    before = open_descriptors()
    server = on_tcp(exits)

    async def serve() -> None:
        async with running(server):
            assert await ask(server, b"") == b""
            await trio.sleep_forever()

    with pytest.raises(kind, match="now"):
        await serve()
    assert open_descriptors() == before
    assert server.socket is None


async def test_propagated_error_ends_the_server() -> None:
    """``propagate_errors`` counts for errors in threads, too."""

    def fails(request: socket.socket, client_address: Any, server: Any) -> None:
        raise ValueError("what")

    server = on_tcp(fails, propagate_errors=True)

    async def serve() -> None:
        async with running(server), await connect(server):
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="what"):
        await serve()


class Resets(socketserver.StreamRequestHandler):
    """Tells when it begins, and reads when its client has reset the connection."""

    was_reset: threading.Event

    def handle(self) -> None:
        self.wfile.write(b"here")
        self.wfile.flush()
        self.was_reset.wait(10)
        self.talk()

    def talk(self) -> None:
        self.rfile.readline()


class ResetsBuffered(Resets):
    """Meets it twice: in a read, and in the flush of ``finish``, which hides its own."""

    wbufsize = -1

    def talk(self) -> None:
        self.wfile.write(b"more")
        self.rfile.readline()


class ResetsAndApologises(Resets):
    """Meets a second error before the first one is on its way out."""

    def finish(self) -> None:
        with pytest.raises(OSError):  # noqa: PT011
            self.request.sendall(b"sorry")
        super().finish()


class ResetsWriting(Resets):
    """Meets it in a write."""

    def talk(self) -> None:
        while True:
            self.wfile.write(bytes(1000))


@pytest.mark.parametrize(
    "handler",
    [Resets, ResetsBuffered, ResetsAndApologises, ResetsWriting],
    ids=lambda it: it.__name__,
)
async def test_client_that_resets(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The peer's doing: ``disconnected``, one line at INFO, and no traceback."""
    caplog.set_level("INFO", "trioserver")
    was_reset = threading.Event()
    there = type(handler.__name__, (handler,), {"was_reset": was_reset})
    witness = Witness()
    async with running(server := on_tcp(there, observers=[witness])) as address:
        with plain_client(address) as client:
            # The kernel resets a connection that is closed over unread input.
            await until(lambda: server.statistics().active == 1)
            assert await trio.to_thread.run_sync(client.recv, 2) == b"he"
            await until(lambda: server.snapshot().requests[0].bytes_sent == 4)
        was_reset.set()
        await until(lambda: bool(witness.records))
    assert witness.outcomes == ["disconnected"]
    assert [it for it in caplog.records if it.levelname == "ERROR" or it.exc_info] == []


async def test_foreign_connection_error_is_the_handlers() -> None:
    """Of another connection, it is an error of the handler that let it out."""
    witness = Witness()

    def fails(request: socket.socket, client_address: Any, server: Any) -> None:
        raise ConnectionResetError("of the database")

    class Silent(trioserver.ThreadingTCPServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            errors.append(sys.exception())

    errors: list[Any] = []
    async with running(server := Silent(THERE, fails, observers=[witness])):
        assert await ask(server, b"") == b""
    assert witness.outcomes == ["failed"]
    assert [str(error) for error in errors] == ["of the database"]


async def test_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """TH-07: its request fails, its client is closed, its slot is free, no descriptor is left."""

    def no_thread(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    before = open_descriptors()
    witness = Witness()
    fields: dict[str, Any] = {"observers": [witness], "max_threads": 1}
    async with running(server := on_tcp(Upper, **fields)):
        open_then = open_descriptors()
        with monkeypatch.context() as patch:
            patch.setattr("trio._threads.start_thread_soon", no_thread)
            for _ in range(3):
                async with await connect(server) as client:
                    assert await read_to_end(client) == b""
        await until(
            lambda: len(open_descriptors()) <= len(open_then) + 2
        )  # the bell is hung by now
        assert await ask(server, b"x\n") == b"X\n"
    assert witness.outcomes == ["failed"] * 3 + ["completed"]
    assert "can't start new thread" in witness.records[0].reason
    assert open_descriptors() == before


WITHOUT_THREADS = """
import resource, socketserver, sys, threading, trio, trioserver

class Back(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())

async def main():
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), Back, max_threads=1)
    async with server.serving():
        async def ask():
            client = await trio.open_tcp_stream(*server.server_address)
            async with client:
                await client.send_all(b"x\\n")
                return b"".join([chunk async for chunk in client])
        threading.stack_size(2**40)
        print(await ask())
        print(server.statistics().outcomes[trioserver.Outcome.FAILED])
        threading.stack_size(0)
        print(await ask())

trio.run(main)
"""


def test_system_refuses_a_thread() -> None:
    """TH-07: the same when it is the system that says no: its memory would not hold the stack."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["b''", "1", r"b'x\n'"]
    assert "can't start new thread" in done.stderr


# Handlers of the wrong colour -------------------------------------------------------------


async def _asynchronous(request: Any, client_address: Any, server: Any) -> None: ...


class _AsyncHandle(socketserver.StreamRequestHandler):
    async def handle(self) -> None: ...  # type: ignore[override]


def _generator(request: Any, client_address: Any, server: Any) -> Any:
    yield


class _GeneratorHandle(socketserver.StreamRequestHandler):
    def handle(self) -> Any:
        yield


class _AsyncGeneratorHandle(socketserver.StreamRequestHandler):
    async def handle(self) -> Any:  # type: ignore[override]
        yield


async def _async_generator(request: Any, client_address: Any, server: Any) -> Any:
    yield


WRONG: list[tuple[Any, str]] = [
    (_asynchronous, "is asynchronous, and this server runs handlers in threads"),
    (_AsyncHandle, r"its handle\(\) must be a plain `def`"),
    (_generator, "has a `yield`, so calling it runs nothing"),
    (_GeneratorHandle, r"has a `yield` in its handle\(\), so calling it runs nothing"),
    (_async_generator, "has a `yield`, so calling it runs nothing"),
    (_AsyncGeneratorHandle, r"has a `yield` in its handle\(\), so calling it runs nothing"),
    (
        trioserver.BaseRequestHandler,
        "derive it from socketserver.BaseRequestHandler, or the server",
    ),
    (trioserver.StreamRequestHandler, "derive it from socketserver.StreamRequestHandler"),
    (trioserver.DatagramRequestHandler, "derive it from socketserver.DatagramRequestHandler"),
    (partial(trioserver.StreamRequestHandler), "derive it from socketserver.StreamRequestHandler"),
    (socketserver.DatagramRequestHandler, "derive it from socketserver.StreamRequestHandler"),
]


@pytest.mark.parametrize(("handler", "message"), WRONG)
def test_wrong_colour_is_refused_at_once(handler: Any, message: str) -> None:
    """When the server is built, with the base to derive from."""
    with pytest.raises(TypeError, match=message):
        on_tcp(handler)


def test_stream_handler_of_datagrams_is_refused() -> None:
    """The other way round, too."""
    with pytest.raises(TypeError, match=r"derive it from socketserver\.DatagramRequestHandler"):
        trioserver.ThreadingUDPServer(THERE, Upper)


def _hides_a_coroutine(request: Any, client_address: Any, server: Any) -> Any:
    return _asynchronous(request, client_address, server)


def _hides_a_generator(request: Any, client_address: Any, server: Any) -> Any:
    return _generator(request, client_address, server)


def _hides_an_async_generator(request: Any, client_address: Any, server: Any) -> Any:
    async def generator() -> Any:
        yield

    return generator()


@pytest.mark.parametrize(
    "handler", [_hides_a_coroutine, _hides_a_generator, _hides_an_async_generator]
)
async def test_hidden_wrong_colour_fails_the_request(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first request, if it cannot be told before: nothing is silently not done."""
    async with running(server := on_tcp(handler)):
        assert await ask(server, b"x") == b""
    assert "in which nothing has run yet" in caplog.text
    assert "socketserver.BaseRequestHandler" in caplog.text


# Around the handler ------------------------------------------------------------------------


async def test_wrapped_connection_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A ``get_request`` that wraps its connection leaves nothing to give to a thread: said so."""

    class Wraps(trioserver.ThreadingTCPServer):
        def get_request(self, listener: Any) -> Any:
            accepted = super().get_request(listener)
            return None if accepted is None else ((accepted[0],), accepted[1])

        async def shutdown_request(self, request: Any) -> None: ...

    witness = Witness()
    async with running(server := Wraps(THERE, Upper, observers=[witness])):
        assert await ask(server, b"") == b""
    assert witness.outcomes == ["failed"]
    assert "needs the Connection or Datagram itself" in caplog.text


async def test_memory_transport_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """There is no kernel's socket to give to a thread."""

    class InMemory(MemoryMixIn, trioserver.ThreadingTCPServer):
        pass

    server = InMemory(("memory", 1), Upper)
    with trio.fail_after(10):
        async with server.serving():
            async with await server.connect() as client:
                assert await read_to_end(client) == b""
    assert "a handler outside of Trio needs a kernel socket" in caplog.text


async def test_input_that_was_peeked_at_is_not_lost(stream: Any) -> None:
    """What ``verify_request`` has looked at is what the handler reads first."""

    class Peeks(type(stream(Upper))):  # type: ignore[misc]
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            reader = trioserver.RequestReader(request)
            return bool((await reader.peek()).startswith(b"please "))

    witness = Witness()
    fields = {"observers": [witness]}
    server = Peeks(stream(Upper).server_address, Upper, **fields)
    async with running(server):
        assert await ask(server, b"please one\nplease two\n") == b"PLEASE ONE\nPLEASE TWO\n"
        assert await ask(server, b"now\n") == b""
    assert witness.outcomes == ["completed", "refused"]
    assert witness.records[0].bytes_received == 22


async def test_lingering_client_holds_nobody_up() -> None:
    """After the handler, the connection is Trio's again, and nothing about it blocks."""

    def answers(request: socket.socket, client_address: Any, server: Any) -> None:
        request.sendall(b"here")

    async with running(server := on_tcp(answers)):
        async with await connect(server) as client:
            assert await read_to_end(client) == b"here"
            await until(lambda: server.statistics().lingering == 1)
            began = time.perf_counter()
            assert await ask(server, b"") == b"here"
            assert time.perf_counter() - began < 1


async def test_finish_request_can_be_wrapped() -> None:
    """What it writes before it calls the original one goes out first."""

    class Greets(trioserver.ThreadingTCPServer):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            await request.sendall(b"hello ")
            await super().finish_request(request, client_address)
            await request.sendall(b"bye")

    witness = Witness()
    async with running(server := Greets(THERE, Upper, observers=[witness])):
        assert await ask(server, b"x\n") == b"hello X\nbye"
    assert witness.records[0].bytes_sent == 11


async def test_connection_that_is_lent_is_busy() -> None:
    """A hook that uses it while the thread does is told; it would keep Trio from running."""
    errors: list[Exception] = []

    class Meddles(trioserver.ThreadingTCPServer):
        async def process_request(self, request: Any, client_address: Any) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(super().process_request, request, client_address)
                await until(lambda: request.state == "idle")
                for use in (request.recv, partial(request.sendall, b"x"), request.send_eof):
                    try:
                        await use()
                    except trio.BusyResourceError as error:
                        errors.append(error)

    async with running(server := Meddles(THERE, Upper)):
        async with await connect(server) as client:
            await until(lambda: len(errors) == 3)
            await client.send_all(b"x\n")
            await client.send_eof()
            assert await read_to_end(client) == b"X\n"


async def test_no_descriptor_left_for_the_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a drain can wake nobody, and leaves waits to the grace; all else goes on."""

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with running(server := on_tcp(Upper)):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", none_left)
            assert await ask(server, b"x\n") == b"X\n"
            async with await connect(server) as client:
                await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"])
                server.shutdown(0.05)
                assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["cancelled"]


async def test_handler_looks_at_the_server() -> None:
    """``requests``, ``statistics()`` and ``snapshot()`` work from any thread, all the time."""
    seen: list[tuple[int, int, str]] = []

    def looks(request: socket.socket, client_address: Any, server: Any) -> None:
        for _ in range(300):
            requests, counts, tree = server.requests, server.statistics(), server.snapshot()
            assert len(requests) >= 1
            assert tree.requests[0].age >= 0
        seen.append((len(tree.requests), counts.accepted, tree.state))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads meet in the middle of everything
    try:
        witness = Witness()
        async with running(server := on_tcp(looks, observers=[witness])):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, server, b"")
            await until(lambda: len(witness.outcomes) == 20)
    finally:
        sys.setswitchinterval(before)
    assert witness.outcomes == ["completed"] * 20
    assert all(0 < requests <= 20 and state == "serving" for requests, _, state in seen)


async def test_names_are_looked_up_in_the_handlers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that sends to a name keeps nobody else waiting."""
    threads: list[str] = []
    look_up = socket.getaddrinfo

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", noted)

    def sends(request: Any, client_address: Any, server: Any) -> None:
        data, way_back = request
        way_back.sendto(data.upper(), ("localhost", client_address[1]))

    async with running(server := trioserver.ThreadingUDPServer(THERE, sends)):
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(server.server_address)
            await client.send(b"hello")
            with trio.fail_after(5):
                assert await client.recv(100) == b"HELLO"
    assert [name.partition(" ")[0] for name in threads if "Main" not in name] == ["request"]


async def test_datagram_to_an_odd_address() -> None:
    """``sendto`` says of every address what that of a socket says, be it none at all."""
    found: list[tuple[Any, Any]] = []

    def tried(sendto: Any, address: Any) -> Any:
        try:
            return sendto(b"x", address)
        except Exception as error:  # noqa: BLE001  (that is what is compared)
            return type(error), getattr(error, "errno", None)

    def sends(request: Any, client_address: Any, server: Any) -> None:
        data, way_back = request
        port = client_address[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            found.extend(
                (tried(way_back.sendto, address), tried(plain.sendto, address))
                for address in ODD_ADDRESSES
            )
        way_back.sendto(data.upper(), ("", port))

    async with running(server := trioserver.ThreadingUDPServer(THERE, sends)):
        assert await ask_by_datagram(server, b"hello") == b"HELLO"
    assert len(found) == len(ODD_ADDRESSES)
    for ours, theirs in found:
        assert ours == theirs


ODD_ADDRESSES = [(), ("127.0.0.1",), ("<broadcast>", 9), (1, 2), 5, "path", ("127.0.0.1", "x")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")
async def test_handler_forks() -> None:
    """A forked child may answer as long as the handler waits; after that, it is refused."""
    reading, writing = os.pipe()

    def forks(sock: socket.socket, client_address: Any, server: Any) -> None:
        for waits in (True, False):
            if (child := os.fork()) == 0:
                with suppress(OSError):
                    if not waits:
                        os.close(writing)
                        os.read(reading, 1)  # until the request is over
                    sock.sendall(b"child")
                os._exit(0)
            if waits:
                os.waitpid(child, 0)
        children.append(child)

    children: list[int] = []
    async with running(server := on_tcp(forks)):
        assert await ask(server, b"") == b"child"
        await until(lambda: not server.requests)
        os.close(writing)
        assert await trio.to_thread.run_sync(os.waitpid, children[0], 0) == (children[0], 0)
    os.close(reading)


async def test_handler_calls_trio() -> None:
    """``trio.from_thread`` works in a handler."""

    def calls(request: socket.socket, client_address: Any, server: Any) -> None:
        request.sendall(trio.from_thread.run(answer))

    async def answer() -> bytes:
        await trio.lowlevel.checkpoint()
        return repr(trioserver.current_request()).encode()

    async with running(server := on_tcp(calls)):
        assert (await ask(server, b"")).startswith(b"RequestInfo(id=1")


# Leaks ------------------------------------------------------------------------------------


async def test_nothing_is_left() -> None:
    """TH-10: descriptors and threads are as many as before, whatever the clients did."""
    before = open_descriptors()

    def fails(request: socket.socket, client_address: Any, server: Any) -> None:
        kept.append(request.makefile("rb"))  # and never closed
        if request.recv(1) == b"f":
            raise ValueError

    class Silent(trioserver.ThreadingTCPServer):
        async def handle_error(self, request: Any, client_address: Any) -> None: ...

    kept: list[Any] = []
    async with running(server := Silent(THERE, fails, max_threads=5)):
        threads = threading.active_count()
        for data in (b"x", b"f", b"") * 30:
            await ask(server, data)
        assert threading.active_count() <= threads + 5
    assert open_descriptors() == before
    # Trio keeps a thread for ten seconds, for its next call, under another name.
    assert [it for it in threading.enumerate() if it.name.startswith("request ")] == []
    assert all(file.raw.fileno() == -1 for file in kept)


@pytest.mark.parametrize("ends", ["completed", "failed", "timed_out", "disconnected", "cancelled"])
async def test_no_garbage_however_it_ends(ends: str) -> None:
    """TH-10: nothing of a request is in a cycle, which would keep it until a collection."""

    class Fails(Upper):
        def handle(self) -> None:
            super().handle()
            if ends == "failed":
                raise ValueError(ends)

    class Silent(trioserver.ThreadingTCPServer):
        async def handle_error(self, request: Any, client_address: Any) -> None: ...

    async def one(number: int) -> None:
        with plain_client(address) as client:
            client.sendall(b"x\n")
            await until(lambda: [it.bytes_sent for it in server.snapshot().requests] == [2])
            if ends == "cancelled":
                server.cancel_request(number, ends)
            elif ends == "disconnected":
                client.close()  # over unread input: a reset
            elif ends != "timed_out":
                client.shutdown(socket.SHUT_WR)
            await until(lambda: len(witness.records) == number)
        await until(lambda: not server.snapshot().requests)

    witness = Witness()
    timeouts = Timeouts(idle=0.02 if ends == "timed_out" else 10)
    fields: dict[str, Any] = {"observers": [witness], "timeouts": timeouts}
    async with running(server := Silent(THERE, Fails, **fields)) as address:
        await one(1)
        gc.collect()
        gc.disable()
        try:
            for number in range(2, 22):
                await one(number)
            assert gc.collect() < 20  # less than one object a request
        finally:
            gc.enable()
    assert set(witness.outcomes) == {ends}


def resident() -> int:
    """Bytes of memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
async def test_no_garbage() -> None:
    """TH-10: without a garbage collector, thousands of requests, good and bad, cost no memory."""

    def handles(request: socket.socket, client_address: Any, server: Any) -> None:
        with request.makefile("rwb") as file:
            if file.readline() == b"fail\n":
                raise ValueError(bytes(10_000))
            file.write(bytes(10_000))

    class Silent(trioserver.ThreadingTCPServer):
        async def handle_error(self, request: Any, client_address: Any) -> None: ...

    async def many(server: Any, number: int) -> None:
        for at in range(number):
            await ask(server, b"fail\n" if at % 2 else b"succeed\n")

    gc.collect()
    gc.disable()
    try:
        async with running(server := Silent(THERE, handles)):
            await many(server, 300)
            before = resident(), threading.active_count()
            await many(server, 2000)
            grown = resident() - before[0]
        assert threading.active_count() <= before[1] + 2
        assert gc.collect() < 200
        assert grown < 2_000_000
    finally:
        gc.enable()
