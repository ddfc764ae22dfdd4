"""`adopt`: which thread calls what, as far as those who hang something on a thread can tell."""

from __future__ import annotations

import contextvars
import socketserver
import sqlite3
import threading
from typing import Any

import pytest
import trio
from support import Witness, plain_client, until
from support.adopting import THERE, Upper, adopted, ask, in_thread

import trioserver

pytestmark = pytest.mark.usefixtures("nothing_stays_open", "no_thread_stays")

local = threading.local()
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


@pytest.fixture
def no_thread_stays() -> Any:
    """What adopt() has started ends with it; Trio's own threads may stay."""

    def theirs() -> set[threading.Thread]:
        return {it for it in threading.enumerate() if not it.name.startswith("Trio thread")}

    before = theirs()
    yield
    assert theirs() <= before


class Tells:
    """Notes for each hook who called it: the thread, what hangs on it, and on the context."""

    def __init__(self, handler: Any = Upper) -> None:
        self.calls: list[tuple[str, Any, Any]] = []
        self.threads: set[int] = set()
        super().__init__(THERE, handler)  # type: ignore[call-arg]

    def note(self, name: str, client_address: Any = None) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((name, getattr(local, "client", None), variable.get()))
        local.client = client_address
        variable.set(client_address)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.note("verify_request", client_address)
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.note("finish_request", client_address)
        super().finish_request(request, client_address)  # type: ignore[misc]

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.note("handle_error", client_address)

    def shutdown_request(self, request: Any) -> None:
        self.note("shutdown_request", getattr(local, "client", None))
        super().shutdown_request(request)  # type: ignore[misc]

    def close_request(self, request: Any) -> None:
        self.note("close_request", local.client)
        super().close_request(request)  # type: ignore[misc]


class TellsOfMany(Tells, socketserver.ThreadingTCPServer):
    """Serves many at once."""


class TellsOfAll(Tells, socketserver.TCPServer):
    """Serves one after the other."""

    def service_actions(self) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(("service_actions", None, None))

    def server_close(self) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(("server_close", None, None))
        super().server_close()


def fails(request: Any, client_address: Any, server: Any) -> None:
    """A handler that reads, and then has an error."""
    request.recv(100)
    raise ValueError("no")


# Many at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [Upper, fails])
async def test_hooks_of_one_request_share_a_thread_with_nobody(handler: Any) -> None:
    """What one leaves in a thread-local, or a context variable, the next one finds."""
    server, witness = TellsOfMany(handler), Witness()
    hooks = ["verify_request", "finish_request", "shutdown_request", "close_request"]
    if handler is fails:
        hooks.insert(2, "handle_error")
    async with adopted(server, observers=[witness]):
        for number in range(1, 4):
            server.calls.clear()
            with plain_client(server.server_address) as client:
                client.sendall(b"x\n")
                assert await in_thread(client.recv, 100) == (b"X\n" if handler is Upper else b"")
                mine = client.getsockname()
            await until(lambda: len(server.calls) == len(hooks))
            assert [name for name, *_ in server.calls] == hooks
            found = [(hung, seen) for _, hung, seen in server.calls]
            assert found == [(None, None)] + [(mine, mine)] * (len(hooks) - 1)
            await until(lambda: len(witness.records) == number)  # noqa: B023


async def test_hooks_of_a_cancelled_request_share_its_thread() -> None:
    """Also what comes after the cancellation."""
    server, witness = TellsOfMany(), Witness()
    timeouts = trioserver.Timeouts(request=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
            mine = client.getsockname()
        await until(lambda: len(server.calls) == 4)
    assert witness.outcomes == ["timed_out"]
    assert len(server.threads) == 1
    assert [hung for _, hung, _ in server.calls] == [None, mine, mine, mine]


async def test_requests_at_the_same_time_have_a_thread_each() -> None:
    """And see nothing of each other."""
    together, found = threading.Barrier(3), []

    def meets(request: Any, client_address: Any, server: Any) -> None:
        local.client = client_address
        together.wait(10)
        found.append((local.client, client_address))

    server = socketserver.ThreadingTCPServer(THERE, meets)  # type: ignore[arg-type]
    async with adopted(server):
        with plain_client(server.server_address), plain_client(server.server_address):
            with plain_client(server.server_address):
                await until(lambda: len(found) == 3)
    assert all(one == other for one, other in found)
    assert len(set(found)) == 3


# One after the other ---------------------------------------------------------------------


async def test_plain_server_does_everything_in_one_thread() -> None:
    """Beginning with service_actions, up to server_close."""
    server = TellsOfAll()
    async with adopted(server):
        await until(lambda: server.calls)
        for _ in range(3):
            assert await in_thread(ask, server.server_address) == b"HELLO\n"
            await until(lambda: server.calls[-1][0] != "finish_request")
    assert len(server.threads) == 1
    assert threading.get_ident() not in server.threads
    assert [server.calls[i][0] for i in (0, -1)] == ["service_actions", "server_close"]
    # Of the thread, what it was told last; of the context, what this request has set.
    seen = [seen for name, _, seen in server.calls if name == "verify_request"]
    assert seen == [None] * 3


async def test_plain_server_keeps_what_belongs_to_a_thread() -> None:
    """As a connection of sqlite3, which refuses every other one."""

    class Asks(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            server: Any = self.server
            if server.database is None:
                server.database = sqlite3.connect(":memory:")
            (found,) = server.database.execute("SELECT ?", [self.rfile.readline()]).fetchone()
            self.wfile.write(found)

    class Server(socketserver.TCPServer):
        database: Any = None

        def server_close(self) -> None:
            self.database.close()
            super().server_close()

    server, witness = Server(THERE, Asks), Witness()
    async with adopted(server, observers=[witness]):
        for number in range(1, 4):
            assert await in_thread(ask, server.server_address) == b"hello\n"
            # Elsewhere, too, threads are used.
            await until(lambda: len(witness.records) == number)  # noqa: B023
    assert witness.outcomes == ["completed"] * 3


async def test_plain_server_does_one_thing_at_a_time() -> None:
    """service_actions wait for the handler, and the next handler for them."""
    inside, most, times = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def note(step: int) -> None:
        nonlocal inside, most, times
        with lock:
            inside += step
            most = max(most, inside)
            times += 1

    class Server(socketserver.TCPServer):
        def service_actions(self) -> None:
            note(1)
            note(-1)

        def finish_request(self, request: Any, client_address: Any) -> None:
            note(1)
            go.wait(10)
            note(-1)

    server = Server(THERE, Upper)
    async with adopted(server):
        await until(lambda: times >= 2)
        with plain_client(server.server_address) as client:
            await until(lambda: inside == 1)
            await trio.sleep(0.6)  # as long as it takes to be wrong: they come twice a second
            assert times == 3
            go.set()
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: times >= 6)
    assert most == 1


async def test_plain_server_whose_thread_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is waited for by the next request, for it is the same thread, and not by server_close."""
    go, threads = threading.Event(), []

    def stubborn(request: Any, client_address: Any, server: Any) -> None:
        threads.append(threading.get_ident())
        go.wait(10)
        request.sendall(b"done")

    closed = []

    class Server(socketserver.TCPServer):
        def server_close(self) -> None:
            closed.append(threading.get_ident())
            super().server_close()

    server, witness = Server(THERE, stubborn), Witness()  # type: ignore[arg-type]
    timeouts = trioserver.Timeouts(request=0.05, cleanup=0.05, shutdown=0)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address) as first:
            await until(lambda: witness.records)
            with plain_client(server.server_address) as second:
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert len(threads) == 1
                go.set()
                assert await in_thread(second.recv, 4) == b"done"
                assert await in_thread(first.recv, 4) == b""
            await until(lambda: len(witness.records) == 2)
            go.clear()
            with plain_client(server.server_address):
                await until(lambda: len(witness.records) == 3)
                server.shutdown()
    assert [str(outcome) for outcome in witness.outcomes] == ["abandoned", "completed", "abandoned"]
    assert len(set(threads)) == 1
    assert closed
    assert closed != threads[:1]
    assert caplog.text.count("left behind") == 2
    go.set()
    await until(lambda: threads[0] not in {it.ident for it in threading.enumerate()})


# What Trio offers to threads ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_thread_is_one_of_trios(kind: Any) -> None:
    """Its request's cancellation is told to it, and to no other request; Trio can be called."""
    told = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        trio.from_thread.check_cancelled()
        request.sendall(b"%d" % trio.from_thread.run(answer))
        assert trioserver.current_request().client_address == client_address
        if request.recv(1) == b"c":
            try:
                while True:
                    trio.from_thread.check_cancelled()
            except trio.Cancelled:
                told.append("cancelled")
                raise

    async def answer() -> int:
        await trio.lowlevel.checkpoint()
        return 42

    server, witness = kind(THERE, handler), Witness()
    timeouts = trioserver.Timeouts(request=0.5)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        for number, word in enumerate((b"c", b"x", b"c", b"x"), 1):
            with plain_client(server.server_address) as client:
                assert await in_thread(client.recv, 2) == b"42"
                client.sendall(word)
                assert await in_thread(client.recv, 1) == b""
            await until(lambda: len(witness.records) == number)  # noqa: B023
    assert witness.outcomes == ["timed_out", "completed"] * 2
    assert told == ["cancelled"] * 2


async def test_call_that_waits_for_its_turn_is_not_made_once_cancelled() -> None:
    """Nobody would know of it."""
    go, began, verified = threading.Event(), threading.Event(), []

    class Server(socketserver.TCPServer):
        def service_actions(self) -> None:
            began.set()
            go.wait(10)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            verified.append(client_address)
            return True

    server, witness = Server(THERE, Upper), Witness()
    timeouts = trioserver.Timeouts(handshake=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        assert await in_thread(began.wait, 5)
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
            await until(lambda: witness.records)
        go.set()
    assert witness.outcomes == ["timed_out"]
    assert verified == []


async def test_thread_that_cannot_be_started_is_one_requests_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client is closed, and the next one is served."""

    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    class Quiet(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None: ...

    server, witness = Quiet(THERE, Upper), Witness()
    async with adopted(server, observers=[witness]):
        client = plain_client(server.server_address)
        with client, monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await until(lambda: witness.records)
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
    assert witness.outcomes == ["failed", "completed"]
    assert "can't start new thread" in witness.records[0].reason
