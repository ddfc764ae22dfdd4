"""`adopt`: which thread calls what, as far as those who hang something on a thread can tell."""

import contextvars
import socketserver
import sqlite3
import sys
import threading
from typing import Any

import pytest
import trio
from support import until
from support.adopting import THERE, Upper, adopted, fails, in_thread
from support.scenes import table

import trioserver
from trioserver import Timeouts

pytestmark = pytest.mark.usefixtures("nothing_stays_open", "no_thread_stays")

local = threading.local()
variable = contextvars.ContextVar("variable", default=None)


@pytest.fixture
def no_thread_stays():
    """What adopt() has started ends with it; Trio's own threads may stay."""

    def theirs():
        return {it for it in threading.enumerate() if not it.name.startswith("Trio thread")}

    before = theirs()
    yield
    assert theirs() <= before


class Tells:
    """Notes for each hook who called it: the thread, what hangs on it, and on the context."""

    likes_clients = True

    def __init__(self, handler=Upper):
        self.calls = []
        self.threads = set()
        self.errors = []
        super().__init__(THERE, handler)

    def note(self, name, client_address=None):
        self.threads.add(threading.get_ident())
        self.calls.append((name, getattr(local, "client", None), variable.get()))
        local.client = client_address
        variable.set(client_address)

    def verify_request(self, request, client_address):
        self.note("verify_request", client_address)
        return self.likes_clients

    def finish_request(self, request, client_address):
        self.note("finish_request", client_address)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        self.note("handle_error", client_address)
        self.errors.append(repr(sys.exception()))

    def shutdown_request(self, request):
        self.note("shutdown_request", local.client)
        super().shutdown_request(request)

    def close_request(self, request):
        self.note("close_request", local.client)
        super().close_request(request)

    def server_close(self):
        self.note("server_close")
        super().server_close()


class TellsOfMany(Tells, socketserver.ThreadingTCPServer):
    """Serves many at once."""


class Picky(TellsOfMany):
    """Serves nobody."""

    likes_clients = False


class TellsOfAll(Tells, socketserver.TCPServer):
    """Serves one after the other."""

    def service_actions(self):
        self.threads.add(threading.get_ident())
        self.calls.append(("service_actions", None, None))


# Many at once ----------------------------------------------------------------------------

SERVED = ["verify_request", "finish_request"]


@table(
    "kind, handler, answer, hooks, outcome",
    {
        "served": (TellsOfMany, Upper, b"X\n", SERVED, "completed"),
        "failed": (TellsOfMany, fails, b"", [*SERVED, "handle_error"], "failed"),
        "turned away": (Picky, Upper, b"", SERVED[:1], "refused"),
    },
)
async def test_hooks_of_one_request_share_a_thread_with_nobody(
    kind, handler, answer, hooks, outcome
):
    """They are called in order, and may block: what one leaves in a thread, the next one finds."""
    hooks = [*hooks, "shutdown_request", "close_request"]
    async with adopted(server := kind(handler)) as it:
        for number in range(1, 4):
            server.calls.clear()
            with it.client() as client:
                client.sendall(b"x\n")
                assert await in_thread(client.recv, 100) == answer
                mine = client.getsockname()
            await until(lambda: len(server.calls) == len(hooks))
            assert [name for name, *_ in server.calls] == hooks
            # In a thread-local, and in a context variable.
            found = [(hung, seen) for _, hung, seen in server.calls]
            assert found == [(None, None)] + [(mine, mine)] * (len(hooks) - 1)
            await it.ended(number)
    assert threading.get_ident() not in server.threads
    assert server.calls[-1][0] == "server_close"
    assert it.outcomes == [outcome] * 3
    assert server.errors == ["ValueError('no')"] * (3 if outcome == "failed" else 0)


async def test_hooks_of_a_cancelled_request_share_its_thread():
    """Also what comes after the cancellation."""
    async with adopted(server := TellsOfMany(), timeouts=Timeouts(request=0.05)) as it:
        with it.client() as client:
            await it.ends_with(client)
            mine = client.getsockname()
        await until(lambda: len(server.calls) == 4)
        assert len(server.threads) == 1
        assert [hung for _, hung, _ in server.calls] == [None, mine, mine, mine]
    assert it.outcomes == ["timed_out"]


async def test_requests_at_the_same_time_have_a_thread_each():
    """And see nothing of each other; as many as ``max_threads``."""
    together, found = threading.Barrier(3), []

    def meets(request, client_address, server):
        local.client = client_address
        together.wait(10)
        found.append((local.client, client_address))

    server = socketserver.ThreadingTCPServer(THERE, meets)
    async with adopted(server, max_threads=3) as it:
        with it.client(), it.client(), it.client():
            await until(lambda: len(found) == 3)
    assert all(one == other for one, other in found)
    assert len(set(found)) == 3


# One after the other ---------------------------------------------------------------------


async def test_plain_server_does_everything_in_one_thread():
    """Beginning with service_actions, up to server_close."""
    async with adopted(server := TellsOfAll()) as it:
        await until(lambda: server.calls)
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
            await until(lambda: server.calls[-1][0] != "finish_request")
    assert len(server.threads) == 1
    assert threading.get_ident() not in server.threads
    assert [server.calls[i][0] for i in (0, -1)] == ["service_actions", "server_close"]
    # Of the thread, what it was told last; of the context, what this request has set.
    seen = [seen for name, _, seen in server.calls if name == "verify_request"]
    assert seen == [None] * 3


async def test_plain_server_keeps_what_belongs_to_a_thread():
    """As a connection of sqlite3, which refuses every other one."""

    class Server(socketserver.TCPServer):
        database: Any = None

        def finish_request(self, request, client_address):
            self.database = self.database or sqlite3.connect(":memory:")
            (found,) = self.database.execute("SELECT ?", [request.recv(100)]).fetchone()
            request.sendall(found)

        def server_close(self):
            self.database.close()
            super().server_close()

    async with adopted(Server(THERE, Upper)) as it:
        for number in range(1, 4):
            assert await it.ask() == b"hello\n"
            await it.ended(number)  # elsewhere, too, threads are used
    assert it.outcomes == ["completed"] * 3


@pytest.mark.slow
async def test_plain_server_does_one_thing_at_a_time():
    """service_actions wait for the handler, as does the next one, which waits for them, too."""
    inside, most, times = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def note(step):
        nonlocal inside, most, times
        with lock:
            inside += step
            most = max(most, inside)
            times += 1

    class Server(socketserver.TCPServer):
        def service_actions(self):
            note(1)
            note(-1)

        def finish_request(self, request, client_address):
            note(1)
            go.wait(10)
            note(-1)

    async with adopted(Server(THERE, Upper)) as it:
        await until(lambda: times >= 2)
        with it.client() as first, it.client() as second:
            await until(lambda: inside == 1)
            await trio.sleep(0.6)  # as long as it takes to be wrong: they come twice a second
            assert times == 3
            go.set()
            for client in (first, second):
                await it.ends_with(client)
        await until(lambda: times >= 8)
    assert most == 1


async def test_plain_server_whose_thread_is_left_behind(caplog):
    """It is waited for by the next request, for it is the same thread, and not by server_close."""
    go, threads, closed = threading.Event(), [], []

    class Server(socketserver.TCPServer):
        def finish_request(self, request, client_address):
            threads.append(threading.get_ident())
            go.wait(10)
            request.sendall(b"done")

        def server_close(self):
            closed.append(threading.get_ident())
            super().server_close()

    timeouts = Timeouts(request=0.05, cleanup=0.05, shutdown=0)
    async with adopted(server := Server(THERE, Upper), timeouts=timeouts) as it:
        with it.client() as first:
            await it.ended()
            with it.client() as second:
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert len(threads) == 1
                go.set()
                assert await in_thread(second.recv, 4) == b"done"
                await it.ends_with(first)
            await it.ended(2)
            go.clear()
            with it.client():
                await it.ended(3)
                server.shutdown()
    assert it.outcomes == ["abandoned", "completed", "abandoned"]
    assert len(set(threads)) == 1
    assert closed
    assert closed != threads[:1]
    assert caplog.text.count("left behind") == 2
    go.set()
    await until(lambda: threads[0] not in {it.ident for it in threading.enumerate()})


# What Trio offers to threads ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_thread_is_one_of_trios(kind):
    """Its request's cancellation is told to it, and to no other request; Trio can be called."""
    told = []

    def handler(request, client_address, server):
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

    async def answer():
        await trio.lowlevel.checkpoint()
        return 42

    async with adopted(kind(THERE, handler), timeouts=Timeouts(request=0.5)) as it:
        for number, word in enumerate((b"c", b"x", b"c", b"x"), 1):
            with it.client() as client:
                assert await in_thread(client.recv, 2) == b"42"
                await it.ends_with(client, word)
            await it.ended(number)
    assert it.outcomes == ["timed_out", "completed"] * 2
    assert told == ["cancelled"] * 2


async def test_call_that_waits_for_its_turn_is_not_made_once_cancelled():
    """Nobody would know of it."""
    go, began, verified = threading.Event(), threading.Event(), []

    class Server(socketserver.TCPServer):
        def service_actions(self):
            began.set()
            go.wait(10)

        def verify_request(self, request, client_address):
            verified.append(client_address)
            return True

    async with adopted(Server(THERE, Upper), timeouts=Timeouts(handshake=0.05)) as it:
        assert await in_thread(began.wait, 5)
        await it.hangs_up()
        await it.ended()
        go.set()
    assert it.outcomes == ["timed_out"]
    assert verified == []


async def test_thread_that_cannot_be_started_is_one_requests_error(monkeypatch):
    """Its client is closed, and the next one is served."""

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    class Quiet(socketserver.ThreadingTCPServer):
        def handle_error(self, request, client_address): ...

    async with adopted(Quiet(THERE, Upper)) as it:
        with it.client(), monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await it.ended()
        assert await it.ask() == b"HELLO\n"
    assert it.outcomes == ["failed", "completed"]
    assert "can't start new thread" in it.records[0].reason
