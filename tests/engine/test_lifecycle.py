"""The life of a server: built, bound, serving, shut down, closed, and built upon again."""

import errno
import math
import socket
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import attrs
import pytest
import trio
from support import Upper, connect, descriptors, hold, plain_client, read_to_end, running, stubborn
from support.memory import ask, asking, come, ended, memory, noting, raises_bare, raising
from support.scenes import does, heard_by, sleep, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryListener, MemoryServer, open_descriptors, sweep

LOOPBACK = ("127.0.0.1", 0)
START_HOOKS = ["server_bind", "server_activate"]


class OopsError(Exception):
    """What these tests raise."""


OOPS, EXIT, BROKEN = OopsError("oops"), SystemExit(3), OSError(errno.EBADF, "broken")
nothing = does()


async def oops(*arguments):
    """Raise."""
    raise OOPS


RAISES, SLEEPS = staticmethod(oops), staticmethod(trio.sleep_forever)  # as hooks


class HasNotes(MemoryServer):
    notes: list[str] = attrs.field(factory=list)

    def get_request(self, listener):
        answer = super().get_request(listener)
        if answer is not None:
            self.notes.append("get_request")
        return answer


Noted = noting(
    HasNotes,
    [
        *[*START_HOOKS, "verify_request", "process_request", "finish_request", "handle_error"],
        *["shutdown_request", "close_request", "handle_timeout", "server_close"],
    ],
    lambda server, name, *_: server.notes.append(name),
)
"""Writes down every hook as it is entered."""


class Refuses(Noted):
    async def verify_request(self, request, client_address):
        await super().verify_request(request, client_address)
        return False


# Building and starting ----------------------------------------------------------


def test_building_does_no_io():
    """LC-01: building a server opens no descriptor and starts no thread."""
    before = descriptors(), threading.active_count()
    trioserver.TCPServer(("no such host", 80), Upper)
    trioserver.UnixStreamServer("/no/such/folder/socket", Upper)
    assert (open_descriptors(), threading.active_count()) == before


async def test_server_runs_again_after_it_was_closed():
    """LC-01: the same server runs twice in a row, with a report and facts for each run.

    While bound, `socket`, `fileno` and `server_address` are the first listener's.
    """
    server = trioserver.TCPServer(LOOPBACK, Upper)
    for _ in range(2):
        async with running(server):
            assert server.sockets == (server.socket,)
            assert server.fileno() == server.socket.fileno()
            assert server.server_address == server.socket.getsockname()
            assert await ask(server) == b"HELLO\n"
        assert (server.socket, server.server_address) == (None, LOOPBACK)
        assert (await server.wait_closed()).statistics.accepted == 1


@pytest.mark.parametrize(
    ("state", "second"),
    [
        *[("serving", "serve_forever"), ("serving", "handle_request"), ("bound", "__aenter__")],
        *[("being bound", "serve_forever"), ("being bound", "handle_request")],
    ],
)
async def test_serving_twice_at_once_is_an_error(state, second, autojump_clock):
    """LC-01: who serves, or is being bound, cannot be served again; the first run goes on."""
    may_bind = trio.Event()

    async def server_bind(self):
        await may_bind.wait()
        return await MemoryServer.server_bind(self)

    server = memory(Upper, type("SlowToBind", (MemoryServer,), {"server_bind": server_bind}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        if state != "being bound":
            may_bind.set()
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match=f"{state} already"):
            await getattr(server, second)()
        may_bind.set()
        await wait_all_tasks_blocked()
        assert await ask(server) == b"HELLO\n"
        server.shutdown()


@pytest.mark.parametrize("hook", START_HOOKS)
async def test_error_before_started_leaves_start_bare(hook, autojump_clock):
    """What a hook raises before the server listens is that very object; it can be served later.

    The block of `serving` is not entered. Then `nursery.start` returns the server, and a client
    that connects right then is served.
    """
    errors = [OOPS, OOPS]

    async def fails_twice(self):
        if errors:
            raise errors.pop()
        return await getattr(MemoryServer, hook)(self)

    server = memory(Upper, type("Failing", (MemoryServer,), {hook: fails_twice}))
    async with trio.open_nursery() as nursery:
        await raises_bare(OOPS, nursery.start, server.serve_forever)
        await raises_bare(OOPS, server.serving().__aenter__)
        assert server.snapshot().state == "unbound"
        assert await nursery.start(server.serve_forever) is server
        client = server.listener.connect_now()
        await client.send_all(b"first\n")
        assert await client.receive_some() == b"FIRST\n"
        server.shutdown()


async def test_second_listener_that_cannot_listen_closes_the_first():
    """LC-03: when one of several listeners cannot listen, none is left open."""

    class CannotListen(MemoryListener):
        def listen(self, backlog):
            raise OSError(errno.EADDRINUSE, "taken")

    async def server_bind(self):
        return listeners

    listeners = [MemoryListener(("memory", 1)), CannotListen(("memory", 2))]
    server = memory(Upper, type("Server", (MemoryServer,), {"server_bind": server_bind}))
    with pytest.raises(OSError, match="memory:2") as caught:
        await server.serve_forever()
    assert caught.value.errno == errno.EADDRINUSE
    assert [listener.closed for listener in listeners] == [True, True]


# Shutting down ---------------------------------------------------------------


async def its_block(server):
    """Serve in the server's own block."""
    async with server:
        assert server.sockets == ()
        return await server.serve_forever()


async def one_request(server):
    """Handle one in the server's own block, which returns at once, as after every shutdown."""
    async with server:
        await server.handle_request()
    return await server.wait_closed()


async def serving_block(server):
    """Serve in the background of a block."""
    async with server.serving():
        pass
    return await server.wait_closed()


@pytest.mark.parametrize("hook", START_HOOKS)
@pytest.mark.parametrize(
    "serve", [MemoryServer.serve_forever, its_block, one_request, serving_block]
)
@pytest.mark.parametrize("when", ["before", "meanwhile", "closed meanwhile"])
async def test_shutdown_bounds_the_start(hook, serve, when, autojump_clock):
    """What a server waits for before it serves has the grace, of two the shorter one.

    It reports ready and ends in order; nobody was told of a listener, and none is left.
    """

    async def stuck(self):
        await getattr(MemoryServer, hook)(self)
        await trio.sleep_forever()

    kind = type("Stuck", (MemoryServer,), {hook: stuck})
    server = memory(Upper, kind, timeouts=Timeouts(shutdown=1))
    reports = []

    async def serves():
        reports.append(await serve(server))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            if when == "before":
                server.shutdown(3)
                server.shutdown(5)
            nursery.start_soon(serves)
            await trio.sleep(2)
            if when == "meanwhile":
                server.shutdown(5)
                server.shutdown(1)
            await (server.server_close() if "closed" in when else server.wait_closed())
            assert trio.current_time() == 3
    assert [report.reason for report in reports] == ["shutdown() was called"]
    assert set(server.witness.names) <= {"draining"}
    assert server.snapshot().state == "unbound"
    if hook == "server_activate":
        assert server.listener.closed


async def test_grace_of_a_drain_that_began_while_binding(autojump_clock):
    """It is one: what the binding took of it nobody has again."""

    class Slow(MemoryServer):
        async def server_activate(self):
            await super().server_activate()
            self.listener.connect_now()
            await trio.sleep(3)

    server = memory(hold, Slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await trio.sleep(1)
        server.shutdown(5)
        report = await server.wait_closed()
    assert trio.current_time() == 1 + 5
    assert len(report.cancelled) == 1


async def test_shutdown_and_close_from_two_tasks_at_once(autojump_clock):
    """LC-05: stopped by two tasks at once, a server ends once, with one report for everybody.

    Also for who waits for a bound server that does not serve yet.
    """
    server = memory(hold)
    reports = []

    async def note(wait):
        reports.append(await wait())

    async def stop():
        server.shutdown(2)
        assert server.draining
        assert len(server.requests) == 1
        await note(server.wait_closed)

    async with trio.open_nursery() as nursery, server:
        nursery.start_soon(note, server.wait_closed)
        await trio.sleep(3)
        nursery.start_soon(note, server.serve_forever)
        await come(server)
        assert reports == []
        nursery.start_soon(stop)
        nursery.start_soon(stop)
        await server.wait_closed()
        assert trio.current_time() == 3 + 2
    await note(server.wait_closed)
    assert len(reports) == 5
    assert len({id(report) for report in reports}) == 1
    assert len(reports[0].cancelled) == 1
    assert reports[0].reason == "shutdown() was called"
    assert server.witness.names.count("draining") == 1


@pytest.mark.parametrize(
    ("grace", "kind"),
    [(-1, ValueError), (math.nan, ValueError), ("soon", TypeError), (True, TypeError)],
)
async def test_wrong_grace(grace, kind):
    """A wrong grace is refused by name: nothing is shut down, and no block is entered."""
    server = memory(Upper)
    with pytest.raises(kind, match="grace"):
        await server.serving(grace=grace).__aenter__()
    assert server.snapshot().state == "unbound"
    async with server.serving():
        with pytest.raises(kind, match="grace"):
            server.shutdown(grace)
        assert not server.draining


EVENTS = ["server_listening", "request_started", "request_finished", "draining"]


@pytest.mark.parametrize("where", ["block", *EVENTS])
async def test_shutdown_serves_who_has_come(where, autojump_clock):
    """Shut down in its block, or in any event of an observer, it serves who had come by then."""
    observers = [SimpleNamespace(**{where: lambda *_: server.shutdown()})]
    async with (server := memory(Upper, observers=observers if where in EVENTS else [])):
        client = await asking(server)
        if where in {"block", "draining"}:
            server.shutdown()
        report = await server.serve_forever()
        assert await read_to_end(client) == b"HELLO\n"
    assert [str(record.outcome) for record in report.requests] in ([], ["completed"])
    assert report.statistics.outcomes[trioserver.Outcome.COMPLETED] == 1


# The end ---------------------------------------------------------------------


async def test_wait_closed_without_a_run_is_an_error(autojump_clock):
    """Before the first run, in a bind that fails, and after it, there is nothing to wait for."""

    async def wait():
        with pytest.raises(RuntimeError, match="has not been run"):
            await server.wait_closed()

    async def server_bind(self):
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        raise OOPS

    server = memory(Upper, type("CannotBind", (MemoryServer,), {"server_bind": server_bind}))
    await wait()
    async with trio.open_nursery() as nursery:
        await raises_bare(OOPS, server.serve_forever)
    await wait()


async def waits_for_itself(server, method):
    """Call what would wait for the caller, which is told."""
    with pytest.raises(RuntimeError, match="wait for itself"):
        await getattr(server, method)()


@pytest.mark.parametrize("method", ["wait_closed", "server_close"])
@pytest.mark.parametrize("seconds", [0, 60], ids=["served", "stubborn"])
async def test_waiting_in_its_own_request_is_an_error(method, seconds, autojump_clock, caplog):
    """A request that waits for its own server is told, also from a nursery of its own.

    Even if it has outlived its cancellation, and all patience with it.
    """
    states = []

    async def handler(request, client_address, server):
        with trio.CancelScope(shield=True), trio.fail_after(100):
            await trio.sleep(seconds)
            await waits_for_itself(server, method)
            async with trio.open_nursery() as outer, trio.open_nursery() as inner:
                outer.start_soon(waits_for_itself, server, method)
                inner.start_soon(waits_for_itself, server, method)
            states.append(server.snapshot().state)

    server = memory(handler)
    async with server.serving(grace=0):
        await come(server)
    assert states == ["draining" if seconds else "serving"]
    assert server.witness.outcomes == ["completed"]


async def test_wait_closed_in_a_request_of_another_server(autojump_clock):
    """A request may wait for another server than its own; who stops waiting stops nothing else."""

    async def stop(request, client_address, server):
        with trio.move_on_after(1) as patience:
            await other.wait_closed()
        assert patience.cancelled_caught
        assert other.snapshot().state == "serving"
        other.shutdown()
        await other.wait_closed()
        await request.send_all(b"stopped")

    other, server = memory(Upper), memory(stop)
    async with other.serving(), server.serving():
        assert await ask(server, b"") == b"stopped"


async def test_tasks_of_a_handler_end_with_the_server(autojump_clock):
    """LC-08: a connection stays for the tasks of its handler's nursery, which end with it."""
    ends = []

    async def background():
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    async def busy(request, client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background)
            nursery.start_soon(background)
            nursery.start_soon(does(sleep(5), b"later"), request, client, server)

    server = memory(busy)
    async with server.serving(grace=8):
        [client] = await come(server)
    assert ends == [8, 8]
    assert await ended(client) == b"later"


async def test_servers_do_not_touch_each_other():
    """LC-12: of two servers in one Trio run and one in another thread's, each stops alone.

    LC-01: they are copies of one, each with an address of its own.
    """
    listening = trio.Event()
    token = trio.lowlevel.current_trio_token()
    tells = SimpleNamespace(server_listening=lambda _: token.run_sync_soon(listening.set))
    first = trioserver.TCPServer(LOOPBACK, Upper)
    second, elsewhere = first.evolve(), first.evolve(observers=[tells])
    servers = [first, second, elsewhere]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.serve_forever)
            await nursery.start(second.serve_forever)
            nursery.start_soon(trio.to_thread.run_sync, trio.run, elsewhere.serve_forever)
            await listening.wait()
            assert len({server.server_address for server in servers}) == 3
            streams = [await connect(server) for server in servers]
            for number, server in enumerate(servers):
                for stream in streams[number:]:
                    await stream.send_all(b"you?\n")
                    assert await stream.receive_some() == b"YOU?\n"
                server.shutdown()
                async with streams[number] as stream:
                    assert await read_to_end(stream) == b""


async def test_restart_on_one_port_under_clients():
    """LC-07: 200 starts and stops on one port, with clients all the time, lose nothing."""
    with socket.socket() as taken:
        taken.bind(LOOPBACK)
        server = trioserver.TCPServer(taken.getsockname(), nothing)
    before = descriptors()
    served = trio.Event()

    async def keep_connecting():
        while True:
            with trio.socket.socket() as client:
                # Not from the server's own address: while nobody listens there,
                # a client could get the very port, and connect to itself.
                await client.bind(("127.0.0.2", 0))
                try:
                    await client.connect(server.server_address)
                    await client.recv(1)
                    served.set()
                except ConnectionError:
                    await trio.lowlevel.checkpoint()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(keep_connecting)
            for _ in range(200):
                async with server.serving():
                    served = trio.Event()
                    await served.wait()
            nursery.cancel_scope.cancel()
    assert open_descriptors() == before


# The block -------------------------------------------------------------------


IN_ORDER = trio.lowlevel.checkpoint
GROUP = ExceptionGroup("the block's own", [OOPS])


@pytest.mark.parametrize("block", ["own", "of serving"])
@table(
    ("handler", "leave", "cancel_at", "ends_at"),
    {
        "left in order, it drains for the configured grace": (hold, IN_ORDER, 99, 4),
        "cancelled in that drain, it cuts what is left": (hold, IN_ORDER, 3, 3),
        "left by an error, it cuts at once": (hold, OOPS, 99, 0),
        "by an exit, too": (hold, EXIT, 99, 0),
        "by a group of one, which stays a group": (hold, GROUP, 99, 0),
        "cancelled, it cuts at once": (hold, trio.sleep_forever, 2, 2),
        "it waits for a stubborn request": (stubborn, OOPS, 99, 60),
    },
)
async def test_block_ends_the_run(
    block, handler, leave, cancel_at, ends_at, caplog, autojump_clock
):
    """However a block is left, of either kind, no task outlives it, and what is raised leaves."""
    server = memory(handler, timeouts=Timeouts(shutdown=4))
    raised, left_by = None if callable(leave) else leave, None
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(cancel_at) as scope:
            try:
                async with server if block == "own" else server.serving():
                    if block == "own":
                        await nursery.start(server.serve_forever)
                    await come(server)
                    if raised:
                        raise raised
                    await leave()
            except (OopsError, SystemExit, ExceptionGroup) as error:
                left_by = error
        assert trio.current_time() == ends_at
        assert server.snapshot().state == "unbound"
    assert getattr(left_by, "exceptions", left_by) == getattr(raised, "exceptions", raised)
    assert scope.cancelled_caught == (cancel_at == ends_at)
    assert len((await server.wait_closed()).requests) == 1
    [record] = server.witness.records
    assert record.outcome == ("cancelled" if handler is hold else "completed")
    if raised and handler is hold:
        by_block = {"own": "the server is being closed", "of serving": "left with an error"}
        assert by_block[block] in record.reason
    assert ("has not ended 5 s after it was cancelled" in caplog.text) == (ends_at > 5)


async def test_block_serves_at_most_one_run(autojump_clock):
    """It binds, and closes again, whatever was served; to serve more, it has to be entered anew."""
    server = memory(Upper)
    async with server:
        listener = server.listener
    assert listener.closed
    assert (await server.wait_closed()).statistics.accepted == 0
    async with server:
        server.shutdown()
        await server.serve_forever()
        with pytest.raises(RuntimeError, match="bind it again"):
            await server.serve_forever()


@pytest.mark.parametrize("patience", [1, math.inf])
async def test_server_close_ends_a_run_in_another_task(patience, autojump_clock):
    """Called by hand, `server_close` drains, waits and closes; cancelled in that, it cuts."""
    server = memory(hold, timeouts=Timeouts(shutdown=4))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await come(server)
        with trio.move_on_after(patience), trio.fail_after(60):
            await server.server_close()
        assert trio.current_time() == min(patience, 4)
    assert trio.current_time() == min(patience, 4)
    assert server.snapshot().state == "unbound"


async def run_once(server, way, nursery):
    """Serve once, in one way or another, and end."""
    if way == "in the background":
        await serving_block(server)
        return
    async with server if "block" in way else nullcontext():
        if "serving" in way:
            await nursery.start(server.serve_forever)
        if "shut down" in way:
            server.shutdown()
        elif "cancelled" in way:
            nursery.cancel_scope.cancel()
        elif "one request" in way:
            await server.connect()
            await server.handle_request()
        elif "by hand" in way:
            await server.server_close()


WAYS = [
    *["serving, shut down", "serving, cancelled", "serving, closed by hand", "in the background"],
    *["block", "block, serving", "block, one request", "block, closed by hand"],
]


@pytest.mark.parametrize(
    ("way", "forgets_super"),
    [*((way, False) for way in WAYS), *((way, True) for way in WAYS if "by hand" not in way)],
)
async def test_server_close_is_called_once_a_run(way, forgets_super, autojump_clock):
    """However a server runs, and ends, an override of `server_close` is called once, and last.

    One that forgets the inherited one leaves nothing open either.
    """
    listeners = []

    async def server_close(self):
        self.notes.append("server_close")
        listeners.append(self.listener)
        if not forgets_super:
            await MemoryServer.server_close(self)

    server = memory(nothing, type("Closes", (Noted,), {"server_close": server_close}))
    for run in (1, 2):
        async with trio.open_nursery() as nursery:
            await run_once(server, way, nursery)
        assert server.notes.count("server_close") == run
        assert server.notes[-1] == "server_close"
        assert listeners[-1].closed
    assert server.snapshot().state == "unbound"


async def test_server_close_that_fails_in_a_block(autojump_clock):
    """What an override of `server_close` raises leaves the block, too; all ends."""
    server = memory(Upper, type("Fails", (MemoryServer,), {"server_close": RAISES}))
    server.shutdown()
    await raises_bare(OOPS, its_block, server)
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("shown", [True, False])
async def test_server_close_that_fails_after_the_server(shown, autojump_clock, caplog):
    """What has ended the server is never lost: shown with what `server_close` raises, or logged."""

    async def server_close(self):
        if shown:
            raise OopsError
        raise OopsError from None

    async def serve(*, task_status):
        with pytest.raises(OopsError) as caught:
            await server.serve_forever(task_status=task_status)
        assert not shown or caught.value.__context__ is BROKEN

    server = memory(Upper, type("Fails", (MemoryServer,), {"server_close": server_close}))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        server.listener.fail(BROKEN)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert logged == ([] if shown else [BROKEN])


async def test_serving_goes_on_after_a_shutdown(autojump_clock):
    """`serving` gives the server, bound; when that is shut down, it ends alone, in the block.

    After a run, and in the tick of its end, a shutdown is too late for it, and none of the next.
    """
    server = memory(Upper)
    async with server.serving() as served:
        assert served is server
        server.shutdown()
        await server.wait_closed()
        server.shutdown()
        assert server.snapshot().state == "unbound"
        await trio.sleep(5)
    assert trio.current_time() == 5
    server.shutdown()
    async with server.serving():
        await trio.sleep(1)
        assert server.snapshot().state == "serving"
        assert await ask(server) == b"HELLO\n"


async def test_serving_server_that_fails(autojump_clock):
    """A server that fails cancels the block, and is raised, bare; beside the block's own error."""

    async def serve(*then):
        server = memory(Upper)
        async with server.serving():
            server.listener.fail(BROKEN)
            try:
                await trio.sleep_forever()
            finally:
                for error in then:
                    raise error

    await raises_bare(BROKEN, serve)
    with pytest.raises(ExceptionGroup) as caught:
        await serve(OOPS)
    assert set(caught.value.exceptions) == {BROKEN, OOPS}


# handle_request --------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("by", ["task", "thread"])
async def test_handle_request_that_ends_takes_nobody_else(by, ticks):
    """A shutdown in any tick of its end lets nobody in: who is queued is turned away or reset."""
    server = memory(hold)
    scope = trio.CancelScope()

    async def handle():
        with scope:
            await server.handle_request()

    with trio.fail_after(10):
        async with server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle)
                first = await server.connect()
                while not server.requests:
                    await trio.lowlevel.checkpoint()
                queued = await server.connect()
                scope.cancel(reason="enough")
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                if by == "task":
                    server.shutdown(0)
                else:
                    trio.lowlevel.current_trio_token().run_sync_soon(server.shutdown, 0)
            assert server.statistics().active == 0
        assert [await ended(client) for client in (first, queued)] == [b"", b""]
    statistics = server.statistics()
    assert statistics.accepted == sum(statistics.outcomes.values())


async def test_handle_request_that_fails_takes_nobody_else(autojump_clock):
    """Nor does a shutdown that its failing request causes."""
    observers = [SimpleNamespace(request_finished=lambda *_: server.shutdown(5))]
    async with (server := memory(raising(EXIT), observers=observers)):
        await server.connect()
        await server.connect()
        await raises_bare(EXIT, server.handle_request)
    assert server.statistics().accepted == 1


async def test_handle_request_that_fails_in_a_drain(autojump_clock):
    """Whom the drain had accepted is turned away, and the failure arrives as it was."""
    server = memory(does(sleep(2), oops), limits=Limits(requests=1))
    server.propagate_errors = True
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(raises_bare, OOPS, server.handle_request)
        await server.connect()
        await trio.sleep(1)
        waiting = await server.connect()
        server.shutdown(60)
        with pytest.raises(trio.BrokenResourceError):
            await waiting.receive_some()
    statistics = server.statistics()
    assert (statistics.accepted, statistics.unaccepted, statistics.active) == (1, 1, 0)
    assert server.witness.outcomes == ["failed"]


async def test_handle_request_over_sockets():
    """The classic loop, over two sockets, with all clients queued: each call takes just one.

    When it returns, it has closed that connection.
    """
    sockets = [socket.create_server(LOOPBACK) for _ in range(2)]
    server = trioserver.TCPServer(sockets, Upper, timeout=0)
    with trio.fail_after(10):
        async with server:
            clients = [plain_client(sockets[number].getsockname()) for number in (0, 1, 1)]
            for client in clients:
                client.sendall(b"hello\n")
                client.shutdown(socket.SHUT_WR)
            for number in (1, 2, 3):
                await server.handle_request()
                statistics = server.statistics()
                assert (statistics.accepted, statistics.lingering) == (number, 0)
            for client in clients:
                with client:
                    assert await heard_by(client) == b"HELLO\n"
    assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 3


@table(
    ("handler", "fields", "events", "ends_at", "outcomes"),
    {
        "without `timeout`, it waits as long as it takes": (
            *(nothing, {}, {"come": 80_000}, 80_000, ["completed"]),
        ),
        "a shutdown ends the wait": (nothing, {"timeout": 5}, {"shut down": 1}, 1, []),
        "a shutdown bounds the request by its grace": (
            *(hold, {"timeouts": Timeouts(shutdown=4)}, {"come": 0, "shut down": 1}),
            *(5, ["cancelled"]),
        ),
        "cancelled without a client, it has taken nothing": (nothing, {}, {"cancel": 1}, 1, []),
        "cancelled in its request, it has closed it": (
            *(hold, {}, {"come": 0, "cancel": 1}, 1, ["cancelled"]),
        ),
        "a client that is refused was the one": (
            *(nothing, {"kind": Refuses}, {"come": 0}, 0, ["refused"]),
        ),
        "an error that is propagated leaves it bare": (
            *(raising(OOPS), {"propagate_errors": True}, {"come": 0}, 0, ["failed"]),
        ),
    },
)
async def test_handle_request_handles_one(
    handler, fields, events, ends_at, outcomes, autojump_clock
):
    """`handle_request` handles one request, completely; the next is left to the next call."""
    server = memory(handler, **{"kind": Noted, **fields})
    scope = trio.CancelScope()

    async def act():
        for event, instant in events.items():
            await trio.sleep_until(instant)
            if event == "come":
                nursery.start_soon(ended, await server.connect())
            else:
                (scope.cancel if event == "cancel" else server.shutdown)()

    with trio.fail_after(100_000):
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(act)
            await wait_all_tasks_blocked()
            with scope:
                if outcomes == ["failed"]:
                    await raises_bare(OOPS, server.handle_request)
                else:
                    await server.handle_request()
            assert trio.current_time() == ends_at
            assert server.witness.outcomes == outcomes
            statistics = server.statistics()
            assert (statistics.accepted, statistics.lingering) == (len(outcomes), 0)
            assert "handle_timeout" not in server.notes
            if handler is nothing and not server.draining:
                await server.connect()
                await server.handle_request()
                assert server.statistics().accepted == len(outcomes) + 1


def test_handle_request_cancelled_at_every_step():
    """Wherever it is cancelled, the request was closed or is still there for the next call."""

    async def scenario(trial):
        with trio.fail_after(60):
            async with memory(Upper) as server:
                client = await asking(server, b"line\n")
                with trio.CancelScope() as scope:
                    trial.arm(scope=scope)
                    await server.handle_request()
                statistics = server.statistics()
                assert statistics.active == statistics.lingering == 0
                if not statistics.accepted:
                    await server.handle_request()
                    assert await read_to_end(client) == b"LINE\n"
                else:
                    assert await ended(client) in {b"", b"LINE\n"}

    assert sweep(scenario).runs > 5


async def test_handle_request_after_a_shutdown(autojump_clock):
    """One in a request ends a loop; a call more is an error."""

    async def shuts_down(request, client_address, server):
        server.shutdown()
        await request.send_all(b"done")

    async with memory(shuts_down) as server:
        client = await server.connect()
        while not server.draining:
            await server.handle_request()
        with pytest.raises(RuntimeError, match="shut down"):
            await server.handle_request()
        assert await read_to_end(client) == b"done"


async def test_handle_request_after_a_shutdown_in_handle_timeout(autojump_clock):
    """The next call returns at once, which ends a loop, too."""
    kind = noting(MemoryServer, ["handle_timeout"], lambda server, _: server.shutdown())
    async with memory(nothing, kind, timeout=3) as server:
        for _ in range(2):
            assert not server.draining
            await server.handle_request()
        assert server.draining
    assert trio.current_time() == 3


# Hooks -----------------------------------------------------------------------


NotingHandler = noting(
    trioserver.BaseRequestHandler,
    ["setup", "handle", "finish"],
    lambda handler, name: handler.server.notes.append(name),
)
Fails = type("Fails", (NotingHandler,), {"handle": RAISES})
BEFORE = [*START_HOOKS, "get_request", "verify_request"]
HANDLED = [*BEFORE, "process_request", "finish_request"]
PARTED = ["shutdown_request", "close_request"]


@table(
    ("handler", "kind", "notes"),
    {
        "a request meets every hook in the documented order": (
            *(NotingHandler, Noted, [*HANDLED, "setup", "handle", "finish", *PARTED]),
        ),
        "one that is not verified is shut down, and nothing else": (
            *(NotingHandler, Refuses, [*BEFORE, *PARTED]),
        ),
        "`handle_error` comes after the handler has finished, and before the close": (
            *(Fails, Noted, [*HANDLED, "setup", "finish", "handle_error", *PARTED]),
        ),
        "one that is cancelled is shut down, too; it is nobody's error": (
            *(hold, Noted, [*HANDLED, *PARTED]),
        ),
    },
)
async def test_hooks_in_order(handler, kind, notes, autojump_clock):
    """`server_close` comes last, of whatever run. All of a request is one Trio task."""
    tasks = set()
    names = ["verify_request", "process_request", "finish_request", *PARTED]
    kind = noting(kind, names, lambda *_: tasks.add(trio.lowlevel.current_task()))
    server = memory(handler, kind)
    async with server.serving(grace=0):
        await come(server)
    assert server.notes == [*notes, "server_close"]
    assert len(tasks) == 1


async def test_service_actions_every_poll_interval(autojump_clock):
    """`service_actions` is called every `poll_interval` seconds, until the drain begins.

    `timeout` is `handle_request`'s alone.
    """
    called = []
    kind = noting(Noted, ["service_actions"], lambda *_: called.append(trio.current_time()))
    server = memory(hold, kind, timeout=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever, 2)
        await trio.sleep(5)
        await server.connect()
        await trio.sleep(2)
        server.shutdown(grace=10)
    assert called == [0, 2, 4, 6]
    assert trio.current_time() == 17
    assert "handle_timeout" not in server.notes


async def stops(self):
    """Shut down after a second."""
    if trio.current_time() >= 1:
        self.shutdown()


async def binds_nothing(self):
    """Bind nothing."""
    return []


NO_LISTENERS = ValueError("Hooked.server_bind returned no listeners")
ITSELF = RuntimeError("wait for itself")
ACTS, CLOSES = "service_actions", "server_close"
A_SECOND = staticmethod(partial(trio.sleep, 1))


@pytest.mark.parametrize("end", ["shutdown", "cancellation"])
@table(
    ("hook", "does", "raised", "ends_at"),
    {
        "`service_actions` may shut down": (ACTS, stops, None, 1),
        "one that waits is cancelled by the drain": (ACTS, SLEEPS, None, 5),
        "what it raises stops the server, bare": (ACTS, RAISES, OOPS, 0),
        "it cannot wait for its server, and is told": (ACTS, MemoryServer.wait_closed, ITSELF, 0),
        "nor close it": (ACTS, MemoryServer.server_close, ITSELF, 0),
        "a `server_bind` of nothing is named": ("server_bind", binds_nothing, NO_LISTENERS, 0),
        "a `server_close` is waited for": (CLOSES, A_SECOND, None, 6),
        "one that hangs is cut after `cleanup` seconds, and logged": (CLOSES, SLEEPS, None, 7),
        "what it raises leaves `serve_forever`, and all is closed": (CLOSES, RAISES, OOPS, 5),
    },
)
async def test_what_a_hook_does(hook, does, raised, ends_at, end, autojump_clock, caplog):
    """TO-02: it can stop, delay or break the run, which is ended after 5 s, and waited for."""
    kind = type("Hooked", (MemoryServer,), {hook: does})
    server = memory(hold, kind, timeouts=Timeouts(shutdown=0, cleanup=2))

    async def wait():
        await trio.sleep_until(5)
        if end == "shutdown":
            server.shutdown()
        if not raised:
            await server.wait_closed()
            assert trio.current_time() == max(5, ends_at)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            with trio.move_on_at(5 if end == "cancellation" else math.inf):
                if raised:
                    with pytest.raises(type(raised), match=str(raised)) as caught:
                        await server.serve_forever()
                    assert raised is not OOPS or caught.value is OOPS
                else:
                    await server.serve_forever()
            assert trio.current_time() == ends_at
    assert server.snapshot().state == "unbound"
    assert ("Hooked.server_close did not end within 2 s" in caplog.text) == (ends_at == 7)


async def test_facts_of_an_unbound_server():
    """An unbound server has no sockets, no requests, nothing but zeros to count, or to close."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    for _ in range(2):
        await server.server_close()
        assert (server.socket, server.sockets, server.requests) == (None, (), ())
        assert server.statistics() == trioserver.Statistics()
        assert not server.draining
        assert server.cancel_request(1, "nobody is there") is False
        with pytest.raises(RuntimeError, match="async with server"):
            await server.handle_request()
        with pytest.raises(RuntimeError, match="not bound"):
            server.fileno()
        async with server.serving():
            pass
    async with memory(Upper) as server:  # to something that is no socket
        assert server.socket is None
        with pytest.raises(RuntimeError, match="not bound to a socket"):
            server.fileno()


async def test_snapshot_of_a_life(autojump_clock):
    """`snapshot` names the state at each stage, and what the requests do.

    `requests` has them, oldest first. The counts stay readable until the next run begins.
    """
    server = memory(hold)
    states = [server.snapshot().state]
    async with trio.open_nursery() as nursery:
        async with server:
            states.append(server.snapshot().state)
            nursery.start_soon(server.serve_forever)
            clients = await come(server, 2)
            await trio.sleep(2)
            states.append(server.snapshot().state)
            addresses = [info.client_address for info in server.requests]
            assert addresses == [client.client_address for client in clients]
            request, _ = server.snapshot().requests
            assert (request.state, request.age, request.time_left) == ("working", 2, math.inf)
            assert server.snapshot().uptime == 2
            assert [it.accepting for it in server.snapshot().listeners] == [True]
            server.shutdown(1)
            states.append(server.snapshot().state)
            assert [it.accepting for it in server.snapshot().listeners] == [False]
    states.append(server.snapshot().state)
    assert states == ["unbound", "bound", "serving", "draining", "unbound"]
    assert (server.statistics().accepted, server.statistics().active) == (2, 0)
    async with server.serving():
        assert server.statistics() == trioserver.Statistics()
