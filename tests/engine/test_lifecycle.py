"""The life of a server: built, bound, serving, shut down, closed, and built upon again."""

import errno
import inspect
import math
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from support import Upper, connect, hold, read_to_end, running
from support.memory import ask, asking, come, ended, memory, noting, raises_bare, raising
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import (
    MemoryListener,
    MemoryServer,
    open_descriptors,
    sweep,
)

LOOPBACK = ("127.0.0.1", 0)
START_HOOKS = ["server_bind", "server_activate"]


class OopsError(Exception):
    """What these tests raise."""


OOPS, EXIT = OopsError(), SystemExit(3)


async def nothing(request, client_address, server):
    """Ends at once."""


async def shut_down(request, client_address, server):
    """Shuts its own server down, then says so."""
    server.shutdown()
    await request.send_all(b"done")


def taking(seconds):
    """A handler that takes so long."""

    async def handler(request, client_address, server):
        await trio.sleep(seconds)

    return handler


class HasNotes(MemoryServer):
    notes: list[str] = attrs.field(factory=list)

    def get_request(self, listener):
        answer = super().get_request(listener)
        if answer is not None:
            self.notes.append("get_request")
        return answer

    async def handle_error(self, request, client_address):
        """Leave it out of the log."""


Noted = noting(
    HasNotes,
    [
        *[*START_HOOKS, "verify_request", "process_request", "finish_request", "handle_error"],
        *["shutdown_request", "close_request", "handle_timeout", "server_close"],
    ],
    lambda server, name, *_: server.notes.append(name),
)
"""Writes down every hook as it is entered."""


class NotingHandler(trioserver.BaseRequestHandler):
    async def setup(self):
        self.server.notes.append("setup")

    async def handle(self):
        self.server.notes.append("handle")

    async def finish(self):
        self.server.notes.append("finish")


class TwoListeners(MemoryServer):
    """Listens in two places."""

    async def server_bind(self):
        self.places = [MemoryListener(("memory", 1)), MemoryListener(("memory", 2))]
        return self.places


class SlowToBind(MemoryServer):
    """Binds when it is allowed to."""

    may_bind: trio.Event = attrs.field(factory=trio.Event)

    async def server_bind(self):
        await self.may_bind.wait()
        return await super().server_bind()


async def shut_down_at(server, instant):
    """Shut a server down then, whose clients were all seen to until then."""
    await trio.sleep_until(instant)
    server.shutdown()


class Does:
    """What a hook does."""

    async def raises(self):
        raise OOPS

    async def sleeps(self):
        await trio.sleep_forever()

    async def takes_a_second(self):
        await trio.sleep(1)

    async def stops_after_a_second(self):
        if trio.current_time() >= 1:
            self.shutdown()

    async def binds_nothing(self):
        return []


# Building --------------------------------------------------------------------


def test_building_does_no_io():
    """LC-01: building a server opens no descriptor and starts no thread."""
    before = open_descriptors(), threading.active_count()
    servers = [
        trioserver.TCPServer(("no such host", 80), Upper),
        trioserver.UnixStreamServer("/no/such/folder/socket", Upper),
    ]
    assert (open_descriptors(), threading.active_count()) == before
    assert [server.socket for server in servers] == [None, None]


async def test_server_runs_again_after_it_was_closed():
    """LC-01: the same server runs twice in a row, with a report for each run."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    for _ in range(2):
        async with running(server):
            assert await ask(server) == b"HELLO\n"
        assert (await server.wait_closed()).statistics.accepted == 1


@pytest.mark.parametrize(
    ("state", "second"),
    [
        *(("serving", method) for method in ["serve_forever", "handle_request"]),
        ("bound", "__aenter__"),
        *(("being bound", method) for method in ["serve_forever", "handle_request"]),
    ],
)
async def test_serving_twice_at_once_is_an_error(state, second, autojump_clock):
    """LC-01: who serves, or is being bound, cannot be served again; the first run goes on."""
    server = memory(Upper, SlowToBind)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        if state != "being bound":
            server.may_bind.set()
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match=f"{state} already"):
            await getattr(server, second)()
        server.may_bind.set()
        await wait_all_tasks_blocked()
        assert await ask(server) == b"HELLO\n"
        server.shutdown()


async def test_evolved_copies_run_side_by_side():
    """LC-01: copies of one server run at the same time, each with an address of its own."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    twin = server.evolve()
    async with server.serving(), twin.serving():
        assert server.server_address != twin.server_address
    assert server.server_address == twin.server_address == LOOPBACK


# Starting --------------------------------------------------------------------


async def test_start_returns_once_clients_are_let_in(autojump_clock):
    """`nursery.start` returns the server, and a client that connects right then is served."""
    server = memory(Upper)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(server.serve_forever) is server
        client = server.listener.connect_now()
        await client.send_all(b"first\n")
        assert await client.receive_some() == b"FIRST\n"
        server.shutdown()


@pytest.mark.parametrize("hook", START_HOOKS)
async def test_error_before_started_leaves_start_bare(hook, autojump_clock):
    """What a hook raises before the server listens is that very object; it can be served later."""
    error = OopsError()
    errors = [error]

    async def fails_once(self):
        if errors:
            raise errors.pop()
        return await getattr(MemoryServer, hook)(self)

    server = memory(Upper, type("Failing", (MemoryServer,), {hook: fails_once}))
    async with trio.open_nursery() as nursery:
        await raises_bare(error, nursery.start, server.serve_forever)
    assert server.snapshot().state == "unbound"
    async with server.serving():
        assert await ask(server) == b"HELLO\n"


async def test_second_listener_that_cannot_listen_closes_the_first():
    """LC-03: when one of several listeners cannot listen, none is left open."""

    class CannotListen(MemoryListener):
        def listen(self, backlog):
            raise OSError(errno.EADDRINUSE, "taken")

    listeners = [MemoryListener(("memory", 1)), CannotListen(("memory", 2))]

    class Server(MemoryServer):
        async def server_bind(self):
            return listeners

    with pytest.raises(OSError, match="memory:2") as caught:
        await memory(Upper, Server).serve_forever()
    assert caught.value.errno == errno.EADDRINUSE
    assert [listener.closed for listener in listeners] == [True, True]


async def test_server_bind_that_fails_after_binding():
    """LC-03: an override of `server_bind` that fails when the socket is bound leaves none open."""

    class NeedsMore(trioserver.TCPServer):
        async def server_bind(self):
            await super().server_bind()
            raise OopsError

    before = open_descriptors()
    with pytest.raises(OopsError) as caught:
        await NeedsMore(LOOPBACK, Upper).serve_forever()
    # The traceback still holds the frames, so this is no work of the garbage collector's.
    assert caught.value.__traceback__
    assert open_descriptors() == before


async def test_start_in_a_cancelled_scope_leaves_nothing():
    """LC-13: served in a scope that is cancelled already, a server returns and is not bound."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    before = open_descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.serve_forever()
    assert scope.cancelled_caught
    assert server.snapshot().state == "unbound"
    assert open_descriptors() == before


# Shutting down ---------------------------------------------------------------


class TooEarly:
    """When a server is shut down before it serves."""

    async def before_its_first_run(self, nursery):
        self.shutdown()
        await nursery.start(self.serve_forever)

    async def by_a_thread_that_knows_of_no_trio(self, nursery):
        thread = threading.Thread(target=self.shutdown)
        thread.start()
        thread.join()
        await nursery.start(self.serve_forever)

    async def in_the_tick_of_its_start(self, nursery):
        nursery.start_soon(self.serve_forever)
        self.shutdown()

    async def while_it_binds(self, nursery):
        self.may_bind = trio.Event()
        nursery.start_soon(nursery.start, self.serve_forever)
        await wait_all_tasks_blocked()
        self.shutdown()
        self.may_bind.set()


@pytest.mark.parametrize("when", [name for name in vars(TooEarly) if not name.startswith("_")])
async def test_shutdown_before_serving(when, autojump_clock):
    """Shut down too early, a server reports ready and ends at once; just that run."""
    server = memory(Upper, SlowToBind)
    server.may_bind.set()
    async with trio.open_nursery() as nursery:
        await getattr(TooEarly, when)(server, nursery)
    assert trio.current_time() == 0
    async with server.serving():
        assert await ask(server) == b"HELLO\n"


def stuck_in(hook):
    """A server whose ``hook`` has done its part, and never returns."""

    async def waits(self):
        await getattr(MemoryServer, hook)(self)
        await trio.sleep_forever()

    return memory(Upper, type("Stuck", (MemoryServer,), {hook: waits}))


async def its_block(server):
    """Serve in the server's own block."""
    async with server:
        assert server.sockets == ()
        return await server.serve_forever()


async def serving_block(server):
    """Serve in the background of a block."""
    async with server.serving():
        pass
    return await server.wait_closed()


@pytest.mark.parametrize("hook", START_HOOKS)
@pytest.mark.parametrize("serve", [MemoryServer.serve_forever, its_block, serving_block])
@pytest.mark.parametrize("when", ["before", "meanwhile", "closed meanwhile"])
async def test_shutdown_bounds_the_start(hook, serve, when, autojump_clock):
    """What a server waits for before it serves has the grace, and not longer.

    It reports ready and ends in order; nobody was told of a listener, and none is left.
    """
    server = stuck_in(hook)
    server.timeouts = trioserver.Timeouts(shutdown=1)
    reports = []

    async def serves():
        reports.append(await serve(server))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            if when == "before":
                server.shutdown(3)
            nursery.start_soon(serves)
            await trio.sleep(2)
            if when == "meanwhile":
                server.shutdown(5)
                server.shutdown(1)
            await (server.server_close() if "closed" in when else server.wait_closed())
            assert trio.current_time() == 3
    assert [report.reason for report in reports] == ["shutdown() was called"]
    assert server.witness.names == []
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


async def test_handle_request_after_a_start_that_was_cut(autojump_clock):
    """It returns at once, as after every shutdown."""
    server = stuck_in("server_bind")
    server.shutdown(0)
    async with server:
        await server.handle_request()
    assert trio.current_time() == 0


async def test_name_that_is_not_resolved(autojump_clock):
    """A look-up that takes for ever is given up with the grace."""

    class Deaf(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments, **options):
            await trio.sleep_forever()

        async def getnameinfo(self, *arguments):
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Deaf())
    server = trioserver.TCPServer(("nowhere.invalid", 0), Upper)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_forever)
            await wait_all_tasks_blocked()
            server.shutdown(2)
    assert trio.current_time() == 2


async def test_shutdown_after_the_end_does_nothing(autojump_clock):
    """After a run, and in the tick of its end, it is too late for it and too early for the next."""
    server = memory(Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        server.shutdown()
        await server.wait_closed()
        server.shutdown()
    server.shutdown()
    async with server.serving():
        await trio.sleep(1)
        assert server.snapshot().state == "serving"
        assert await ask(server) == b"HELLO\n"


async def test_shutdown_and_close_from_two_tasks_at_once(autojump_clock):
    """LC-05: stopped by two tasks at once, a server ends once, with one report for everybody."""
    server = memory(hold)
    reports = []

    async def note(wait):
        reports.append(await wait())

    async def stop():
        assert server.shutdown(2) is None
        assert server.draining
        assert len(server.requests) == 1
        await note(server.wait_closed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, server.serve_forever)
        await wait_all_tasks_blocked()
        nursery.start_soon(note, server.wait_closed)
        await come(server)
        assert reports == []
        nursery.start_soon(stop)
        nursery.start_soon(stop)
    assert trio.current_time() == 2
    await note(server.wait_closed)
    assert reports == [reports[0]] * 5
    assert len({id(report) for report in reports}) == 1
    assert len(reports[0].cancelled) == 1
    assert reports[0].reason == "shutdown() was called"
    assert server.witness.names.count("draining") == 1


@pytest.mark.parametrize("graces", [(5, 2), (2, 5)])
async def test_shutdown_twice_before_serving_keeps_the_earlier_deadline(graces, autojump_clock):
    """Before the first run, too, the earlier of two deadlines holds."""
    server = memory(hold)
    for grace in graces:
        server.shutdown(grace)
    report = await server.serve_forever()
    assert report.grace == 2


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

    def shut(*facts):
        server.shutdown()

    observers = [SimpleNamespace(**{where: shut})] if where in EVENTS else []
    async with (server := memory(Upper, observers=observers)):
        client = await asking(server)
        if where in {"block", "draining"}:
            server.shutdown()
        report = await server.serve_forever()
        assert await read_to_end(client) == b"HELLO\n"
    assert [str(record.outcome) for record in report.requests] in ([], ["completed"])
    assert report.statistics.outcomes[trioserver.Outcome.COMPLETED] == 1


# The end ---------------------------------------------------------------------


async def test_wait_closed_before_serving(autojump_clock):
    """Whoever waits for a bound server that does not serve yet waits for the end of its run."""
    server = memory(Upper)
    waited = trio.Event()

    async def wait():
        await server.wait_closed()
        waited.set()

    async with trio.open_nursery() as nursery, server:
        nursery.start_soon(wait)
        nursery.start_soon(server.serve_forever)
        await trio.sleep(3)
        assert not waited.is_set()
        server.shutdown()
        assert (await server.wait_closed()).statistics.accepted == 0
    assert waited.is_set()


async def test_wait_closed_without_a_run_is_an_error(autojump_clock):
    """Before the first run, in a bind that fails, and after it, there is nothing to wait for."""

    class CannotBind(SlowToBind):
        async def server_bind(self):
            await super().server_bind()
            raise error

    error = OopsError()
    server = memory(Upper, CannotBind)

    async def wait():
        with pytest.raises(RuntimeError, match="has not been run"):
            await server.wait_closed()

    await wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises_bare, error, server.serve_forever)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        server.may_bind.set()
    await wait()


async def waits_for_itself(server, method):
    """Call what would wait for the caller, which is told."""
    with pytest.raises(RuntimeError, match="wait for itself"):
        await getattr(server, method)()


@pytest.mark.parametrize("method", ["wait_closed", "server_close"])
async def test_waiting_in_its_own_request_is_an_error(method, autojump_clock):
    """A request that waits for its own server is told, also from a nursery of its own."""

    async def handler(request, client_address, server):
        await waits_for_itself(server, method)
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(waits_for_itself, server, method)
            inner.start_soon(waits_for_itself, server, method)
        await request.send_all(b"no")

    server = memory(handler)
    with trio.fail_after(60):
        async with server.serving():
            assert await ask(server, b"") == b"no"
            assert server.snapshot().state == "serving"
    assert server.witness.outcomes == ["completed"]


async def test_wait_closed_in_a_stubborn_request_is_an_error(autojump_clock, caplog):
    """A request that outlived its cancellation, and all patience with it, is told as well."""
    told = []

    async def outlast(request, client_address, server):
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
            with trio.move_on_after(60):
                await waits_for_itself(server, "wait_closed")
                told.append(True)

    server = memory(outlast)
    async with server.serving(grace=0):
        await come(server)
    assert told == [True]


async def test_wait_closed_in_a_request_of_another_server(autojump_clock):
    """A request may wait for another server than its own."""

    async def stop(request, client_address, server):
        other.shutdown()
        await other.wait_closed()
        await request.send_all(b"stopped")

    other, server = memory(Upper), memory(stop)
    async with other.serving(), server.serving():
        assert await ask(server, b"") == b"stopped"


async def test_wait_closed_cancelled_leaves_the_server_alone(autojump_clock):
    """Who stops waiting stops nothing else."""
    server = memory(Upper)
    async with server.serving():
        with trio.move_on_after(1) as patience:
            await server.wait_closed()
        assert patience.cancelled_caught
        assert server.snapshot().state == "serving"


async def test_listener_that_fails_ends_the_server(autojump_clock):
    """LC-09: a listener that breaks closes the other one, and its very error is raised, bare."""
    server = memory(hold, TwoListeners)
    broken = OSError(errno.EBADF, "broken")
    async with server, trio.open_nursery() as nursery:
        first, second = server.places
        nursery.start_soon(raises_bare, broken, server.serve_forever)
        await first.connect()
        await wait_all_tasks_blocked()
        second.fail(broken)
    assert [first.closed, second.closed] == [True, True]
    assert server.witness.outcomes == ["cancelled"]
    assert trio.current_time() == 0


async def test_handler_leaves_tasks_behind(autojump_clock):
    """LC-08: a connection stays until the tasks of its handler's own nursery have ended."""

    async def tell_later(request, client, server):
        async def later():
            await trio.sleep(5)
            await request.send_all(b"later")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)

    server = memory(tell_later)
    async with server.serving():
        assert await ask(server, b"") == b"later"
    assert trio.current_time() == 5


async def test_tasks_of_a_handler_end_with_the_server(autojump_clock):
    """LC-08: the tasks of a handler's nursery are cancelled with their request, and waited for."""
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

    server = memory(busy)
    async with server.serving(grace=3):
        await come(server)
    assert ends == [3, 3]


async def test_servers_do_not_touch_each_other():
    """LC-12: of two servers in one Trio run and one in another thread's, each stops alone."""
    listening = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def tell(addresses):
        token.run_sync_soon(listening.set)

    first, second = (trioserver.TCPServer(LOOPBACK, Upper) for _ in range(2))
    observers = [SimpleNamespace(server_listening=tell)]
    elsewhere = trioserver.TCPServer(LOOPBACK, Upper, observers=observers)
    servers = [first, second, elsewhere]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.serve_forever)
            await nursery.start(second.serve_forever)
            nursery.start_soon(trio.to_thread.run_sync, trio.run, elsewhere.serve_forever)
            await listening.wait()
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
    taken = socket.socket()
    taken.bind(LOOPBACK)
    server = trioserver.TCPServer(taken.getsockname(), nothing)
    taken.close()
    before = open_descriptors()
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


@asynccontextmanager
async def own_block(server, nursery):
    """A run in another task, in the server's own block, with a request in flight."""
    async with server:
        await nursery.start(server.serve_forever)
        await come(server)
        yield


@asynccontextmanager
async def block_of_serving(server, nursery):
    """The same with `serving`."""
    async with server.serving():
        await come(server)
        yield


async def oops():
    """Leave a block by an error."""
    raise OopsError


class TakesItsTime(trioserver.BaseRequestHandler):
    """Uses its full time to clean up, twice."""

    async def handle(self):
        await trio.sleep_forever()

    async def finish(self):
        await trio.sleep(4)


class PartsSlowly(MemoryServer):
    async def shutdown_request(self, request):
        if self.RequestHandlerClass is TakesItsTime:
            await trio.sleep(4)
        await super().shutdown_request(request)


async def stubborn(request, client_address, server):
    """Shields itself from every cancellation for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


IN_ORDER = trio.lowlevel.checkpoint


@pytest.mark.parametrize("block", [own_block, block_of_serving])
@table(
    ("handler", "leave", "cancel_at", "ends_at"),
    {
        "left in order, it drains for the configured grace": (hold, IN_ORDER, 99, 4),
        "cancelled in that drain, it cuts what is left": (hold, IN_ORDER, 3, 3),
        "left by an error, it cuts at once": (hold, oops, 99, 0),
        "cancelled, it cuts at once": (hold, trio.sleep_forever, 2, 2),
        "it waits for a stubborn request": (stubborn, oops, 99, 60),
        "it waits for one that uses its time to clean up, twice": (TakesItsTime, oops, 99, 8),
    },
)
async def test_block_ends_the_run(
    block,
    handler,
    leave,
    cancel_at,
    ends_at,
    autojump_clock,
    caplog,
):
    """However a block is left, of either kind, no task outlives it, and what is raised leaves."""
    server = memory(handler, PartsSlowly, timeouts=trioserver.Timeouts(shutdown=4))
    left_by = None
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(cancel_at) as scope:
            try:
                async with block(server, nursery):
                    await leave()
            except OopsError as error:
                left_by = error
        assert trio.current_time() == ends_at
        assert server.snapshot().state == "unbound"
    assert (left_by is not None) == (leave is oops)
    assert scope.cancelled_caught == (cancel_at == ends_at)
    assert len((await server.wait_closed()).requests) == 1
    assert handler is not hold or server.witness.outcomes == ["cancelled"]
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


# server_close ----------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, math.inf])
async def test_server_close_ends_a_run_in_another_task(patience, autojump_clock):
    """Called by hand, `server_close` drains, waits and closes; cancelled in that, it cuts."""
    server = memory(hold, timeouts=trioserver.Timeouts(shutdown=4))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await come(server)
            with trio.move_on_after(patience):
                await server.server_close()
            assert trio.current_time() == min(patience, 4)
    assert trio.current_time() == min(patience, 4)
    assert server.snapshot().state == "unbound"


async def test_server_close_of_an_unbound_server_does_nothing():
    """There is nothing to close, before the first run and after the last."""
    server = memory(Upper)
    await server.server_close()
    async with server.serving():
        pass
    await server.server_close()
    assert server.snapshot().state == "unbound"


class RunsOnce(Noted):
    """Serves once, in one way or another, and ends."""

    async def alone(self):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve_forever)
            self.shutdown()

    async def in_its_block(self):
        async with self:
            self.shutdown()
            await self.serve_forever()

    async def in_another_task(self):
        async with trio.open_nursery() as nursery, self:
            await nursery.start(self.serve_forever)

    async def in_the_background(self):
        async with self.serving():
            pass

    async def one_request(self):
        async with self:
            await self.connect()
            await self.handle_request()

    async def cancelled(self):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve_forever)
            nursery.cancel_scope.cancel()

    async def nothing(self):
        async with self:
            pass

    async def closed_by_hand(self):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve_forever)
            await self.server_close()

    async def closed_by_hand_in_its_block(self):
        async with self:
            await self.server_close()


ONE_RUN = [name for name in vars(RunsOnce) if inspect.iscoroutinefunction(vars(RunsOnce)[name])]


@pytest.mark.parametrize("one_run", ONE_RUN)
async def test_server_close_is_called_once_a_run(one_run, autojump_clock):
    """However a server runs, and ends, an override of `server_close` is called once, and last."""
    server = memory(nothing, RunsOnce)
    for run in (1, 2):
        await getattr(server, one_run)()
        assert server.notes.count("server_close") == run
        assert server.notes[-1] == "server_close"
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("one_run", ["alone", "in_its_block", "in_the_background"])
async def test_server_close_without_super(one_run, autojump_clock):
    """An override of `server_close` that forgets the inherited one leaves nothing open."""
    listeners = []

    class Forgets(RunsOnce):
        async def server_close(self):
            listeners.append(self.listener)

    server = memory(Upper, Forgets)
    await getattr(server, one_run)()
    await getattr(server, one_run)()
    assert [listener.closed for listener in listeners] == [True, True]


@pytest.mark.parametrize("in_a_block", [False, True])
async def test_server_close_that_fails(in_a_block, autojump_clock):
    """What an override of `server_close` raises leaves `serve_forever`, or the block; all ends."""

    class Fails(MemoryServer):
        async def server_close(self):
            raise OopsError

    server = memory(Upper, Fails)
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError):
            if in_a_block:
                async with server:
                    await nursery.start(server.serve_forever)
            else:
                server.shutdown()
                await server.serve_forever()
        assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("how", ["as it is", "from None", "in a child"])
async def test_server_close_that_fails_after_the_server(how, autojump_clock, caplog):
    """What has ended the server is never lost: shown with what `server_close` raises, or logged."""
    first = OSError(errno.EBADF, "the first")

    class Fails(MemoryServer):
        async def server_close(self):
            if how == "in a child":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(oops)
            elif how == "from None":
                raise OopsError from None
            raise OopsError

    async def serve(*, task_status):
        with pytest.raises((OopsError, ExceptionGroup)) as caught:
            await server.serve_forever(task_status=task_status)
        if how == "as it is":
            assert caught.value.__context__ is first

    server = memory(Upper, Fails)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        server.listener.fail(first)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert logged == ([] if how == "as it is" else [first])


# serving() -------------------------------------------------------------------


async def test_serving_goes_on_after_a_shutdown(autojump_clock):
    """`serving` gives the server, bound; when that is shut down, it ends alone, in the block."""
    server = memory(Upper)
    async with server.serving() as served:
        assert served is server
        assert await ask(server) == b"HELLO\n"
        server.shutdown()
        await server.wait_closed()
        assert server.snapshot().state == "unbound"
        await trio.sleep(5)
    assert trio.current_time() == 5


@pytest.mark.parametrize(
    "error",
    [
        *[OopsError(), SystemExit(3), KeyboardInterrupt()],
        *(ExceptionGroup("the block's own", [OopsError()] * number) for number in (1, 2)),
    ],
    ids=["error", "exit", "interrupt", "group of one", "group"],
)
async def test_serving_block_that_raises(error, autojump_clock):
    """The block's own exception, or group, leaves as it was made; the server is cut at once."""
    server = memory(hold)

    async def serve():
        async with server.serving():
            await come(server)
            raise error

    if isinstance(error, ExceptionGroup):
        with pytest.raises(ExceptionGroup, match="the block's own") as caught:
            await serve()
        assert caught.value.exceptions == error.exceptions
    else:
        await raises_bare(error, serve)
    assert server.witness.outcomes == ["cancelled"]
    assert trio.current_time() == 0


BROKEN = OSError(errno.EBADF, "broken")


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


async def test_serving_that_cannot_bind():
    """An error before the server listens leaves `async with` bare; the block is not entered."""
    with socket.create_server(LOOPBACK) as taken:
        server = trioserver.TCPServer(taken.getsockname(), Upper)
        with pytest.raises(OSError, match="cannot listen on") as caught:
            await server.serving().__aenter__()
    assert caught.value.errno == errno.EADDRINUSE


# handle_request --------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("by", ["task", "thread"])
async def test_handle_request_that_ends_takes_nobody_else(by, ticks):
    """A shutdown in any tick of its end lets nobody in: who is queued is turned away or reset."""
    server = memory(hold)
    with trio.fail_after(10):
        async with server:
            scope = trio.CancelScope()

            async def handle():
                with scope:
                    await server.handle_request()

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

    def enough(info, outcome, record):
        server.shutdown(5)

    observers = [SimpleNamespace(request_finished=enough)]
    server = memory(raising(SystemExit(3)), observers=observers)
    async with server:
        await server.connect()
        await server.connect()
        with pytest.raises(SystemExit):
            await server.handle_request()
    assert server.statistics().accepted == 1


async def test_handle_request_that_fails_in_a_drain(autojump_clock):
    """Whom the drain had accepted is turned away, and the failure arrives as it was."""
    error = SystemExit(3)

    async def leave(request, client_address, server):
        await trio.sleep(2)
        raise error

    server = memory(leave, limits=trioserver.Limits(requests=1))
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(raises_bare, error, server.handle_request)
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
    """The classic loop, over TCP: the connection is closed when `handle_request` returns."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    with trio.fail_after(10):
        async with server:
            for number in range(3):
                async with await asking(server) as client:
                    await server.handle_request()
                    assert await read_to_end(client) == b"HELLO\n"
                assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == number + 1


class Refuses(Noted):
    async def verify_request(self, request, client_address):
        await super().verify_request(request, client_address)
        return False


@attrs.frozen
class Call:
    """A `handle_request`, what happens to it, and what has to come of it."""

    handler: Any = nothing
    ends_at: float = attrs.field(default=0, kw_only=True)
    outcomes: Sequence[str] = attrs.field(default=[], kw_only=True)
    raises: BaseException | None = attrs.field(default=None, kw_only=True)
    notes: Sequence[str] = attrs.field(default=[], kw_only=True)
    kind: Any = attrs.field(default=Noted, kw_only=True)
    fields: Mapping[str, Any] = attrs.field(default={}, kw_only=True)
    comes_at: float = attrs.field(default=math.inf, kw_only=True)
    shut_down_at: float = attrs.field(default=math.inf, kw_only=True)
    cancel_at: float = attrs.field(default=math.inf, kw_only=True)


FOUR = {"timeouts": trioserver.Timeouts(shutdown=4)}


@table(
    "call",
    {
        "without `timeout`, it waits as long as it takes": Call(
            comes_at=80_000, ends_at=80_000, outcomes=["completed"]
        ),
        "a shutdown ends the wait": Call(fields={"timeout": 5}, shut_down_at=1, ends_at=1),
        "a shutdown bounds the request by its grace": Call(
            hold, fields=FOUR, comes_at=0, shut_down_at=1, ends_at=5, outcomes=["cancelled"]
        ),
        "cancelled without a client, it has taken nothing": Call(cancel_at=1, ends_at=1),
        "cancelled in its request, it has closed it": Call(
            hold, comes_at=0, cancel_at=1, ends_at=1, outcomes=["cancelled"]
        ),
        "a client that is refused was the one": Call(
            kind=Refuses, comes_at=0, outcomes=["refused"]
        ),
        "an error goes to `handle_error`": Call(
            raising(OOPS), comes_at=0, outcomes=["failed"], notes=["handle_error"]
        ),
        "one that is propagated leaves it bare": Call(
            raising(OOPS),
            fields={"propagate_errors": True},
            comes_at=0,
            raises=OOPS,
            outcomes=["failed"],
        ),
        "so does SystemExit": Call(raising(EXIT), comes_at=0, raises=EXIT, outcomes=["failed"]),
    },
)
async def test_handle_request_handles_one(call, autojump_clock):
    """`handle_request` handles one request, completely; the next is left to the next call."""
    server = memory(call.handler, call.kind, **call.fields)

    async def client():
        if call.comes_at:
            await trio.sleep_until(call.comes_at)
        assert await ended(await server.connect()) == b""

    async def handle():
        with trio.move_on_at(call.cancel_at):
            await server.handle_request()

    with trio.fail_after(100_000):
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(shut_down_at, server, call.shut_down_at)
            await wait_all_tasks_blocked()
            await (raises_bare(call.raises, handle) if call.raises else handle())
            assert trio.current_time() == call.ends_at
            assert server.witness.outcomes == call.outcomes
            statistics = server.statistics()
            assert (statistics.accepted, statistics.lingering) == (len(call.outcomes), 0)
            assert [it for it in server.notes if it.startswith("handle_")] == call.notes
            nursery.cancel_scope.cancel()
            if call.handler is nothing and not server.draining:
                with trio.CancelScope(shield=True):
                    await server.connect()
                    await server.handle_request()
                    assert server.statistics().accepted == len(call.outcomes) + 1


async def test_handle_request_leaves_the_next_in_the_queue(autojump_clock):
    """Each call answers one client, and has closed its connection when it returns."""
    async with memory(Upper) as server:
        clients = [await asking(server, b"%d a\n" % number) for number in range(2)]
        for number, client in enumerate(clients):
            await server.handle_request()
            statistics = server.statistics()
            assert (statistics.accepted, statistics.lingering) == (number + 1, 0)
            assert await read_to_end(client) == b"%d A\n" % number


async def test_handle_request_polls_every_listener():
    """The same over TCP, where it is the second socket that has a client."""
    sockets = [socket.create_server(LOOPBACK) for _ in range(2)]
    server = trioserver.TCPServer(
        sockets, nothing, timeout=0, timeouts=trioserver.Timeouts(linger=0)
    )
    with trio.fail_after(10):
        async with server:
            with socket.create_connection(sockets[1].getsockname()) as client:
                await server.handle_request()
                assert client.recv(1) == b""


async def test_handle_request_client_at_the_last_instant(autojump_clock):
    """A client that comes in the tick in which the time is up: served, or left for the next."""
    server = memory(nothing, timeout=1)

    async def client():
        await trio.sleep(1)
        await server.connect()

    async with server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await server.handle_request()
        if not server.statistics().accepted:
            await server.handle_request()
    assert server.witness.outcomes == ["completed"]


async def test_handle_request_takes_one_of_several_listeners(autojump_clock):
    """With clients on two listeners in one tick, `handle_request` takes exactly one of them."""
    async with memory(nothing, TwoListeners) as server:
        clients = [listener.connect_now() for listener in server.places]
        for expected in (1, 2):
            await server.handle_request()
            assert server.statistics().accepted == expected
        assert [await read_to_end(client) for client in clients] == [b"", b""]


async def test_handle_request_out_of_place_is_an_error(autojump_clock):
    """It needs the block, and says so; and two tasks cannot handle requests of one server."""
    server = memory(nothing)
    with pytest.raises(RuntimeError, match="async with server"):
        await server.handle_request()
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_request)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="serving already"):
            await server.handle_request()
        nursery.cancel_scope.cancel()


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


class StopsInTime(MemoryServer):
    async def handle_timeout(self):
        self.shutdown()


@pytest.mark.parametrize(
    ("handler", "calls", "ends_at"), [(shut_down, 1, 0), (nothing, 2, 3)], ids=["in", "between"]
)
async def test_handle_request_after_a_shutdown(handler, calls, ends_at, autojump_clock):
    """In the request, or between two calls, of which the next returns at once, it ends a loop."""
    async with memory(handler, StopsInTime, timeout=3) as server:
        client = await server.connect() if calls == 1 else None
        for _ in range(calls):
            assert not server.draining
            began = trio.current_time()
            await server.handle_request()
        assert server.draining
        assert began == ends_at
        with pytest.raises(RuntimeError, match="shut down"):
            await server.handle_request()
        assert client is None or await read_to_end(client) == b"done"


async def test_serve_forever_ignores_timeout(autojump_clock):
    """`timeout` is `handle_request`'s alone."""
    server = memory(nothing, Noted, timeout=1)
    async with server.serving():
        await trio.sleep(100)
        assert server.snapshot().state == "serving"
    assert "handle_timeout" not in server.notes


# Hooks -----------------------------------------------------------------------


class Fails(NotingHandler):
    async def handle(self):
        raise OopsError


BEFORE = [*START_HOOKS, "get_request", "verify_request"]
HANDLED = [*BEFORE, "process_request", "finish_request"]
CLOSED = ["shutdown_request", "close_request", "server_close"]


@table(
    ("handler", "kind", "notes"),
    {
        "a request meets every hook in the documented order": (
            NotingHandler,
            Noted,
            [*HANDLED, "setup", "handle", "finish", *CLOSED],
        ),
        "one that is not verified is shut down, and nothing else": (
            NotingHandler,
            Refuses,
            [*BEFORE, *CLOSED],
        ),
        "`handle_error` comes after the handler has finished, and before the close": (
            Fails,
            Noted,
            [*HANDLED, "setup", "finish", "handle_error", *CLOSED],
        ),
        "one that is cancelled is shut down, too; it is nobody's error": (
            hold,
            Noted,
            [*HANDLED, *CLOSED],
        ),
    },
)
async def test_hooks_in_order(handler, kind, notes, autojump_clock):
    """`server_close` comes last, of whatever run."""
    server = memory(handler, kind)
    async with server.serving(grace=0):
        await come(server)
    assert server.notes == notes


async def test_hooks_run_in_the_request_task(autojump_clock):
    """From `verify_request` to `close_request`, all of a request is one Trio task."""
    tasks = []
    names = ["verify_request", "process_request", "finish_request", *CLOSED[:2]]
    kind = noting(MemoryServer, names, lambda *_: tasks.append(trio.lowlevel.current_task()))
    server = memory(nothing, kind)
    async with server.serving():
        await come(server)
    assert len(tasks) == 5
    assert len(set(tasks)) == 1


async def test_service_actions_every_poll_interval(autojump_clock):
    """`service_actions` is called every `poll_interval` seconds, until the drain begins."""
    called = []

    class Server(MemoryServer):
        async def service_actions(self):
            called.append(trio.current_time())

    server = memory(hold, Server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever, 2)
        await wait_all_tasks_blocked()
        await server.connect()
        await trio.sleep(7)
        server.shutdown(grace=10)
    assert called == [0, 2, 4, 6]
    assert trio.current_time() == 17


NO_LISTENERS = ValueError("Hooked.server_bind returned no listeners")
ITSELF = RuntimeError("wait for itself")


@table(
    ("hook", "does", "raised", "ends_at"),
    {
        "`service_actions` may shut down": ("service_actions", Does.stops_after_a_second, None, 1),
        "one that waits is cancelled by the drain": ("service_actions", Does.sleeps, None, 5),
        "what it raises stops the server, bare": (
            "service_actions",
            Does.raises,
            OOPS,
            0,
        ),
        "it cannot wait for its server, and is told at once": (
            *("service_actions", MemoryServer.wait_closed, ITSELF, 0),
        ),
        "nor close it": ("service_actions", MemoryServer.server_close, ITSELF, 0),
        "a `server_bind` of nothing is named": ("server_bind", Does.binds_nothing, NO_LISTENERS, 0),
        "a `server_close` is waited for": ("server_close", Does.takes_a_second, None, 6),
        "one that hangs is cut after `cleanup` seconds, and logged": (
            *("server_close", Does.sleeps, None, 7),
        ),
        "what it raises leaves `serve_forever`, and all is closed": (
            *("server_close", Does.raises, OOPS, 5),
        ),
    },
)
@pytest.mark.parametrize("end", ["shutdown", "cancellation"])
async def test_what_a_hook_does(
    hook,
    does,
    raised,
    ends_at,
    end,
    autojump_clock,
    caplog,
):
    """It can stop, delay or break the run, which is ended after 5 s, and waited for."""
    kind = type("Hooked", (MemoryServer,), {hook: does})
    server = memory(hold, kind, timeouts=trioserver.Timeouts(shutdown=0, cleanup=2))

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
                if raised is OOPS:
                    await raises_bare(OOPS, server.serve_forever)
                elif raised:
                    with pytest.raises(type(raised), match=str(raised)):
                        await server.serve_forever()
                else:
                    await server.serve_forever()
            assert trio.current_time() == ends_at
    assert server.snapshot().state == "unbound"
    assert ("Hooked.server_close did not end within 2 s" in caplog.text) == (ends_at == 7)


# Facts -----------------------------------------------------------------------


async def test_facts_of_an_unbound_server():
    """An unbound server has no sockets, no requests, and nothing but zeros to count."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    assert (server.socket, server.sockets, server.requests) == (None, (), ())
    assert server.statistics() == trioserver.Statistics()
    assert not server.draining
    with pytest.raises(RuntimeError, match="not bound"):
        server.fileno()
    async with memory(Upper) as server:  # to something that is no socket
        assert server.socket is None
        with pytest.raises(RuntimeError, match="not bound to a socket"):
            server.fileno()


async def test_facts_of_a_bound_server():
    """While bound, `socket`, `fileno` and `server_address` are the first listener's."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    async with server:
        assert server.socket is not None
        assert server.sockets == (server.socket,)
        assert server.fileno() == server.socket.fileno()
        assert server.server_address == server.socket.getsockname()
    assert (server.socket, server.server_address) == (None, LOOPBACK)


async def test_requests_are_those_that_hold_a_slot(autojump_clock):
    """`requests` lists what is served now, oldest first, and not what only closes."""
    server = memory(Upper)
    async with server.serving():
        clients = await come(server, 3)
        assert [info.id for info in server.requests] == [1, 2, 3]
        await clients[1].send_eof()
        await wait_all_tasks_blocked()
        assert [(info.id, info.client_address) for info in server.requests] == [
            (number, clients[number - 1].info.client_address) for number in (1, 3)
        ]


async def test_statistics_count_a_run(autojump_clock):
    """The counts of a run stay readable when it is over, until the next one begins."""
    server = memory(Upper)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"five\n")
        assert await client.receive_some() == b"FIVE\n"
        assert (server.statistics().accepted, server.statistics().active) == (1, 1)
        await client.aclose()
    after = server.statistics()
    assert (after.accepted, after.active, after.bytes_received, after.bytes_sent) == (1, 0, 5, 5)
    assert sum(after.outcomes.values()) == 1
    async with server.serving():
        assert server.statistics() == trioserver.Statistics()


async def test_snapshot_of_a_life(autojump_clock):
    """`snapshot` names the state at each stage, and what the requests do."""
    server = memory(hold)
    states = [server.snapshot().state]
    async with trio.open_nursery() as nursery:
        async with server:
            states.append(server.snapshot().state)
            nursery.start_soon(server.serve_forever)
            await server.connect()
            await trio.sleep(2)
            states.append(server.snapshot().state)
            (request,) = server.snapshot().requests
            assert (request.state, request.age, request.time_left) == ("working", 2, math.inf)
            assert server.snapshot().uptime == 2
            assert [it.accepting for it in server.snapshot().listeners] == [True]
            server.shutdown(1)
            states.append(server.snapshot().state)
            assert [it.accepting for it in server.snapshot().listeners] == [False]
    states.append(server.snapshot().state)
    assert states == ["unbound", "bound", "serving", "draining", "unbound"]


async def test_cancel_request_of_nobody(autojump_clock):
    """There is nothing to cancel of an id that is not there, or was, or on an unbound server."""
    server = memory(nothing)
    assert server.cancel_request(1, "unbound") is False
    async with server.serving():
        assert server.cancel_request(1, "not yet") is False
        await read_to_end(await server.connect())
        assert server.cancel_request(1, "gone") is False
