"""Context variables: what held when serving began is seen by every request, and nobody else's."""

import contextvars
import socketserver
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from support import adopting, read_to_end
from support.adopting import THERE, adopted, in_thread
from support.memory import MEMORY, ask, noting, raising

import trioserver
from trioserver.testing import MemoryServer

var = contextvars.ContextVar("var", default="default")


def tells(request, client_address, server):
    """In a thread: says what it sees, and leaves something behind."""
    request.sendall(var.get().encode())
    var.set("another request's")


async def atells(request, client_address, server):
    """The same as a task."""
    await request.sendall(var.get().encode())
    var.set("another request's")


async def requests_see(server, value):
    """Requests of new clients see just that."""
    for _ in range(2):
        assert await ask(server, b"") == value.encode()


in_tasks = partial(MemoryServer, MEMORY, atells)
in_threads = partial(trioserver.ThreadingTCPServer, THERE, tells)
modes = pytest.mark.parametrize("make", [in_tasks, in_threads], ids=["tasks", "threads"])


@modes
async def test_context_of_the_block(make):
    """What is set in the block, before `serve_forever` is called in it, is seen.

    Each `handle_request` begins anew.
    """
    with trio.fail_after(10):
        async with make() as server, trio.open_nursery() as nursery:
            for value in ("first", "second"):
                var.set(value)
                nursery.start_soon(server.handle_request)
                assert await ask(server, b"") == value.encode()
            var.set("block")
            await nursery.start(server.serve_forever)
            var.set("too late")
            await requests_see(server, "block")
            server.shutdown()


@modes
@pytest.mark.parametrize("hook", ["server_bind", "server_activate"])
async def test_context_of_the_hooks_before_serving(make, hook):
    """What a hook sets that is called before serving is seen, by whichever way one serves."""

    def sets(server, name):
        var.set(name)

    kind = noting(make.func, [hook], sets)
    with trio.fail_after(10):
        async with kind(*make.args).serving() as server:
            await requests_see(server, hook)
            server.shutdown()
            await server.wait_closed()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await requests_see(server, hook)
            server.shutdown()


async def test_context_of_an_adopted_server():
    """Under `adopt` it is of the task that calls it."""

    class Tells(socketserver.BaseRequestHandler):
        def handle(self):
            tells(self.request, self.client_address, self.server)

    var.set("adopt")
    async with adopted(theirs := socketserver.ThreadingTCPServer(THERE, Tells)):
        var.set("too late")
        for _ in range(2):
            assert await in_thread(adopting.ask, theirs.server_address, b"") == b"adopt"


HOOKS = ["verify_request", "service_actions", "handle_error", "shutdown_request", "server_close"]
EVENTS = ["request_started", "request_finished", "draining", "server_closed"]


async def test_context_of_all_that_is_called(autojump_clock):
    """Every hook and observer sees it."""
    seen = {}

    def note(name, *facts):
        seen[name] = var.get()

    kind = noting(MemoryServer, HOOKS, lambda server, name, *arguments: note(name))
    observer = SimpleNamespace(**{name: partial(note, name) for name in EVENTS})
    async with kind(MEMORY, raising(ValueError()), observers=[observer]) as server:
        var.set("block")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await requests_see(server, "")
            server.shutdown()
    assert seen == dict.fromkeys([*HOOKS, *EVENTS], "block")


@pytest.mark.parametrize("whence", ["request", "thread", "task"])
async def test_context_of_clients_that_a_drain_takes_in(whence, autojump_clock):
    """A drain accepts and starts clients in the server's context, whoever has begun it."""
    seen, go = [], trio.Event()

    async def begin(server):
        var.set("who shuts down")
        if whence == "thread":
            await trio.to_thread.run_sync(server.shutdown)
        else:
            server.shutdown()

    async def handles(request, client_address, server):
        await go.wait()
        if whence == "request" and request.info.id == 1:
            await begin(server)
        await atells(request, client_address, server)

    class Notes(MemoryServer):
        def get_request(self, listener):
            seen.append(var.get())
            return super().get_request(listener)

    var.set("server")
    limits = trioserver.Limits(requests=1)
    async with Notes(MEMORY, handles, limits=limits).serving() as server:
        async with await server.connect(), await server.connect() as waiting:
            await trio.testing.wait_all_tasks_blocked()
            assert server.statistics().accepted == 1
            go.set()
            if whence != "request":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(begin, server)
            assert await read_to_end(waiting) == b"server"
    assert set(seen) == {"server"}
