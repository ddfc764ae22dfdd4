"""`adopt`: which thread calls what, as far as those who hang something on a thread can tell."""

import contextvars
import socketserver
import sys
import threading

import pytest
import trio
from support import until
from support.adopting import Upper, adopted, fails, in_thread, theirs
from support.scenes import table
from support.threads import does, hooked

import trioserver
from trioserver import Timeouts

pytestmark = pytest.mark.usefixtures("nothing_stays_open", "no_thread_stays")

local = threading.local()
variable = contextvars.ContextVar("variable", default=None)


@pytest.fixture
def no_thread_stays():
    """What adopt() has started ends with it; Trio's own threads may stay."""

    def others():
        return {it for it in threading.enumerate() if not it.name.startswith("Trio thread")}

    before = others()
    yield
    assert others() <= before


def telling(name):
    """A hook that notes who called it: the thread, what hangs on it, and on the context."""

    def hook(self, *arguments):
        before = getattr(local, "client", None)
        self.threads.add(threading.get_ident())
        self.calls.append((name, before, variable.get()))
        local.client = arguments[1] if len(arguments) == 2 else before
        variable.set(local.client)
        if name == "handle_error":
            self.errors.append(repr(sys.exception()))
            return None
        return getattr(super(Tells, self), name)(*arguments)

    return hook


class Tells:
    """All of its hooks do."""

    def __init__(self, *arguments):
        self.calls, self.threads, self.errors = [], set(), []
        super().__init__(*arguments)

    verify_request = telling("verify_request")
    finish_request = telling("finish_request")
    handle_error = telling("handle_error")
    shutdown_request = telling("shutdown_request")
    close_request = telling("close_request")
    server_close = telling("server_close")


class TellsOfMany(Tells, socketserver.ThreadingTCPServer):
    """Serves many at once."""


class Picky(TellsOfMany):
    """Serves nobody."""

    def verify_request(self, request, client_address):
        return super().verify_request(request, client_address) and False


class TellsOfAll(Tells, socketserver.TCPServer):
    """Serves one after the other."""

    service_actions = telling("service_actions")


# Many at once ----------------------------------------------------------------------------

SERVED = ["verify_request", "finish_request"]


@table(
    "kind, handler, answer, hooks, outcome",
    {
        "served": (TellsOfMany, Upper, b"X\n", SERVED, "completed"),
        "failed": (TellsOfMany, fails, b"", [*SERVED, "handle_error"], "failed"),
        "turned away": (Picky, Upper, b"", SERVED[:1], "refused"),
        "cancelled": (TellsOfMany, does("recv 2; recv 1"), b"", SERVED, "timed_out"),
    },
)
async def test_hooks_of_one_request_share_a_thread_with_nobody(
    kind, handler, answer, hooks, outcome
):
    """They are called in order, and may block: what one leaves in a thread, the next one finds."""
    hooks = [*hooks, "shutdown_request", "close_request"]
    server = theirs(handler, kind)
    timeouts = Timeouts(request=0.05 if outcome == "timed_out" else 60)
    async with adopted(server, timeouts=timeouts) as it:
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


async def test_requests_at_the_same_time_have_a_thread_each():
    """And see nothing of each other; as many as ``max_threads``."""
    together, found = threading.Barrier(3), []

    def meets(request, client_address, server):
        local.client = client_address
        together.wait(10)
        found.append((local.client, client_address))

    async with adopted(theirs(meets), max_threads=3) as it:
        with it.client(), it.client(), it.client():
            await until(lambda: len(found) == 3)
    assert all(one == other for one, other in found)
    assert len(set(found)) == 3


# One after the other ---------------------------------------------------------------------


async def test_plain_server_does_everything_in_one_thread():
    """Beginning with service_actions, up to server_close: also what belongs to a thread is kept."""
    async with adopted(server := theirs(kind=TellsOfAll)) as it:
        await until(lambda: server.calls)
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
            await until(lambda: server.calls[-1][0] != "finish_request")
    assert len(server.threads - {threading.get_ident()}) == len(server.threads) == 1
    assert [server.calls[i][0] for i in (0, -1)] == ["service_actions", "server_close"]
    # Of the context, only what this request has set.
    seen = [seen for name, _, seen in server.calls if name == "verify_request"]
    assert seen == [None] * 3


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

    def service_actions(self):
        note(1)
        note(-1)

    def finish_request(self, *_):
        note(1)
        go.wait(10)
        note(-1)

    hooks = {"service_actions": service_actions, "finish_request": finish_request}
    async with adopted(theirs(kind=socketserver.TCPServer, **hooks)) as it:
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

    def finish_request(self, request, client_address):
        threads.append(threading.get_ident())
        go.wait(10)
        request.sendall(b"done")

    def server_close(self):
        closed.append(threading.get_ident())
        socketserver.TCPServer.server_close(self)

    kind = hooked(socketserver.TCPServer, finish_request=finish_request, server_close=server_close)
    timeouts = Timeouts(request=0.05, cleanup=0.05, shutdown=0)
    async with adopted(server := theirs(kind=kind), timeouts=timeouts) as it:
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


async def test_call_that_waits_for_its_turn_is_not_made_once_cancelled():
    """Nobody would know of it."""
    go, began, verified = threading.Event(), threading.Event(), []

    def service_actions(self):
        began.set()
        go.wait(10)

    hooks = {"service_actions": service_actions, "verify_request": lambda *_: verified.append(1)}
    server = theirs(kind=socketserver.TCPServer, **hooks)
    async with adopted(server, timeouts=Timeouts(handshake=0.05)) as it:
        assert await in_thread(began.wait, 5)
        await it.hangs_up()
        go.set()
    assert it.outcomes == ["timed_out"]
    assert verified == []


# What Trio offers to threads ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_thread_is_one_of_trios(kind):
    """Its request's cancellation is told to it, and to no other request; Trio can be called."""
    told = []

    async def answer():
        await trio.lowlevel.checkpoint()
        return b"42"

    def handler(request, client_address, server):
        trio.from_thread.check_cancelled()
        request.sendall(trio.from_thread.run(answer))
        assert trioserver.current_request().client_address == client_address
        try:
            cancelled = request.recv(1) == b"c"
            while cancelled:
                trio.from_thread.check_cancelled()
        except trio.Cancelled:
            told.append("cancelled")
            raise

    async with adopted(theirs(handler, kind), timeouts=Timeouts(request=0.5)) as it:
        for number, word in enumerate((b"c", b"x", b"c", b"x"), 1):
            with it.client() as client:
                assert await in_thread(client.recv, 2) == b"42"
                await it.ends_with(client, word)
            await it.ended(number)
    assert it.outcomes == ["timed_out", "completed"] * 2
    assert told == ["cancelled"] * 2


async def test_thread_that_cannot_be_started_is_one_requests_error(monkeypatch):
    """Its client is closed, and the next one is served."""

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    async with adopted(theirs(handle_error=lambda *_: None)) as it:
        with it.client(), monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await it.ended()
        assert await it.ask() == b"HELLO\n"
    assert it.outcomes == ["failed", "completed"]
    assert "can't start new thread" in it.records[0].reason
