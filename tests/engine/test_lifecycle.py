"""The life of a server: built, bound, serving, shut down, closed, and built upon again."""

from __future__ import annotations

import errno
import math
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, hold, read_to_end
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver.testing import (
    MemoryListener,
    MemoryServer,
    ShutDown,
    Trial,
    open_descriptors,
    sweep,
)

ADDRESS = ("memory", 1)
LOOPBACK = ("127.0.0.1", 0)


class OopsError(Exception):
    """What these tests raise."""


async def nothing(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Ends at once."""


async def stubborn(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Shields itself from every cancellation for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


async def shut_down(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Shuts its own server down, then says so."""
    server.shutdown()
    await request.send_all(b"done")


class Noted(MemoryServer):
    """Writes down every hook as it is entered."""

    notes: list[str] = attrs.field(factory=list)

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        self.notes.append("server_bind")
        return await super().server_bind()

    async def server_activate(self) -> None:
        self.notes.append("server_activate")
        await super().server_activate()

    def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
        answer = super().get_request(listener)
        if answer is not None:
            self.notes.append("get_request")
        return answer

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        self.notes.append("verify_request")
        return await super().verify_request(request, client_address)

    async def process_request(self, request: Any, client_address: Any) -> None:
        self.notes.append("process_request")
        await super().process_request(request, client_address)

    async def finish_request(self, request: Any, client_address: Any) -> None:
        self.notes.append("finish_request")
        await super().finish_request(request, client_address)

    async def shutdown_request(self, request: Any) -> None:
        self.notes.append("shutdown_request")
        await super().shutdown_request(request)

    async def close_request(self, request: Any) -> None:
        self.notes.append("close_request")
        await super().close_request(request)

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.notes.append("handle_error")

    async def handle_timeout(self) -> None:
        self.notes.append("handle_timeout")

    async def server_close(self) -> None:
        self.notes.append("server_close")
        await super().server_close()


class NotingHandler(trioserver.BaseRequestHandler):
    async def setup(self) -> None:
        self.server.notes.append("setup")

    async def handle(self) -> None:
        self.server.notes.append("handle")

    async def finish(self) -> None:
        self.server.notes.append("finish")


class TwoListeners(MemoryServer):
    """Listens in two places."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        return [MemoryListener(("memory", 1)), MemoryListener(("memory", 2))]

    def places(self) -> tuple[MemoryListener, MemoryListener]:
        first, second = self._bound_run().listeners
        assert isinstance(first, MemoryListener)
        assert isinstance(second, MemoryListener)
        return first, second


class SlowToBind(MemoryServer):
    """Binds when it is allowed to."""

    may_bind: trio.Event = attrs.field(factory=trio.Event)

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        await self.may_bind.wait()
        return await super().server_bind()


# Building --------------------------------------------------------------------


def test_building_does_no_io() -> None:
    """LC-01: building a server opens no descriptor and starts no thread."""
    before = open_descriptors(), threading.active_count()
    servers = [
        trioserver.TCPServer(("no such host", 80), Upper),
        trioserver.UnixStreamServer("/no/such/folder/socket", Upper),
    ]
    assert (open_descriptors(), threading.active_count()) == before
    assert [server.socket for server in servers] == [None, None]


async def test_server_runs_again_after_it_was_closed() -> None:
    """LC-01: the same server runs twice in a row, with a report for each run."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    reports = []
    with trio.fail_after(10):
        for _ in range(2):
            async with server.serving():
                stream = await trio.open_tcp_stream(*server.server_address)
                async with stream:
                    await stream.send_all(b"again\n")
                    assert await stream.receive_some() == b"AGAIN\n"
            reports.append(await server.wait_closed())
    assert [report.statistics.accepted for report in reports] == [1, 1]


async def test_serving_twice_at_once_is_an_error(autojump_clock: MockClock) -> None:
    """LC-01: a server that serves cannot be served again; the first run goes on."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        with pytest.raises(RuntimeError, match="serving already"):
            await server.serve_forever()
        with pytest.raises(RuntimeError, match="serving already"):
            await server.handle_request()
        with pytest.raises(RuntimeError, match="bound already"):
            async with server:
                pass
        client = await server.connect()
        await client.send_all(b"still here\n")
        assert await client.receive_some() == b"STILL HERE\n"


@pytest.mark.parametrize("second", ["serve_forever", "handle_request"])
async def test_serving_while_binding_is_an_error(second: str, autojump_clock: MockClock) -> None:
    """LC-01: a server that is being bound cannot be served by another task; the first goes on."""
    server = SlowToBind(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError):
            await getattr(server, second)()
        server.may_bind.set()
        await wait_all_tasks_blocked()
        client = await server.connect()
        await client.send_all(b"here\n")
        assert await client.receive_some() == b"HERE\n"
        server.shutdown()


async def test_evolved_copies_run_side_by_side() -> None:
    """LC-01: copies of one server run at the same time, each with an address of its own."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    twin = server.evolve()
    async with server.serving(), twin.serving():
        assert server.server_address != twin.server_address
    assert server.server_address == twin.server_address == LOOPBACK


def test_plain_with_names_async_with() -> None:
    """A plain `with` is an error that says what to write instead."""
    server = MemoryServer(ADDRESS, Upper)
    with pytest.raises(TypeError, match="async with"):
        with server:  # type: ignore[attr-defined]
            pass


# Starting --------------------------------------------------------------------


async def test_start_returns_once_clients_are_let_in(autojump_clock: MockClock) -> None:
    """`nursery.start` returns the server, and a client that connects right then is served."""
    server = MemoryServer(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(server.serve_forever) is server
        client = server.listener.connect_now()
        await client.send_all(b"first\n")
        assert await client.receive_some() == b"FIRST\n"
        server.shutdown()


@pytest.mark.parametrize("hook", ["server_bind", "server_activate"])
async def test_error_before_started_leaves_start_bare(hook: str) -> None:
    """What a hook raises before the server listens leaves `nursery.start` as that very object."""
    error = OopsError()

    async def fail(self: object) -> None:
        raise error

    server = type("Failing", (MemoryServer,), {hook: fail})(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError) as caught:
            await nursery.start(server.serve_forever)
    assert caught.value is error
    assert server.snapshot().state == "unbound"


async def test_server_serves_after_a_bind_that_failed(autojump_clock: MockClock) -> None:
    """A server whose bind failed can be served later."""

    class FailsOnce(MemoryServer):
        failed = False

        async def server_bind(self) -> Sequence[trioserver.Listener]:
            if not self.failed:
                self.failed = True
                raise OopsError
            return await super().server_bind()

    server = FailsOnce(ADDRESS, Upper)
    with pytest.raises(OopsError):
        await server.serve_forever()
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"second try\n")
        assert await client.receive_some() == b"SECOND TRY\n"


async def test_server_bind_without_listeners_is_an_error() -> None:
    """An override of `server_bind` that returns nothing to listen on is named."""

    class Deaf(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            return []

    with pytest.raises(ValueError, match=r"Deaf\.server_bind returned no listeners"):
        await Deaf(ADDRESS, Upper).serve_forever()


async def test_second_listener_that_cannot_listen_closes_the_first() -> None:
    """LC-03: when one of several listeners cannot listen, none is left open."""

    class CannotListen(MemoryListener):
        def listen(self, backlog: int) -> None:
            raise OSError(errno.EADDRINUSE, "taken")

    first, second = MemoryListener(("memory", 1)), CannotListen(("memory", 2))

    class Server(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            return [first, second]

    with pytest.raises(OSError, match="memory:2") as caught:
        await Server(ADDRESS, Upper).serve_forever()
    assert caught.value.errno == errno.EADDRINUSE
    assert first.closed
    assert second.closed


async def test_start_in_a_cancelled_scope_leaves_nothing() -> None:
    """LC-13: served in a scope that is cancelled already, a server returns and is not bound."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    before = open_descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.serve_forever()
    assert scope.cancelled_caught
    assert server.snapshot().state == "unbound"
    assert open_descriptors() == before


def test_start_cancelled_at_every_step_leaves_nothing() -> None:
    """LC-13: wherever the start is cancelled, the listener is closed and the server is unbound."""
    made: list[MemoryListener] = []

    class Server(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            await trio.lowlevel.checkpoint()
            made.append(MemoryListener(ADDRESS))
            return made[-1:]

    async def scenario(trial: Trial) -> None:
        server = Server(ADDRESS, Upper)
        with trio.CancelScope() as scope:
            trial.arm(scope=scope)
            async with server.serving():
                pass
        assert server.snapshot().state == "unbound"
        assert all(listener.closed for listener in made)

    assert sweep(scenario).runs > 5


@pytest.mark.parametrize("interval", [0, -1, math.nan])
async def test_poll_interval_must_be_positive(interval: float) -> None:
    """A wrong `poll_interval` is refused before anything is bound."""
    server = MemoryServer(ADDRESS, Upper)
    with pytest.raises(ValueError, match="poll_interval"):
        await server.serve_forever(interval)
    assert server.snapshot().state == "unbound"


# Shutting down ---------------------------------------------------------------


async def test_shutdown_from_its_own_handler(autojump_clock: MockClock) -> None:
    """A handler shuts its own server down, and still finishes its reply: nothing deadlocks."""
    server = MemoryServer(ADDRESS, shut_down)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = await server.connect()
        assert await read_to_end(client) == b"done"
        await client.aclose()
    assert trio.current_time() == 0


async def test_shutdown_from_another_thread() -> None:
    """A plain thread shuts a server down."""
    server = MemoryServer(ADDRESS, Upper)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await trio.to_thread.run_sync(server.shutdown, 3)
            report = await server.wait_closed()
    assert report.grace == 3


async def test_shutdown_does_not_wait(autojump_clock: MockClock) -> None:
    """`shutdown` returns at once, while requests are in flight; it only tells."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        assert server.shutdown(grace=7) is None
        assert server.draining
        assert len(server.requests) == 1
        await server.wait_closed()
    assert trio.current_time() == 7


async def test_shutdown_before_serving(autojump_clock: MockClock) -> None:
    """Shut down before its first run, a server reports ready and ends at once; just that run."""
    server = MemoryServer(ADDRESS, Upper)
    server.shutdown()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
    assert trio.current_time() == 0
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"next run\n")
        assert await client.receive_some() == b"NEXT RUN\n"


async def test_shutdown_before_serving_from_another_thread() -> None:
    """The same from a thread that knows of no Trio."""
    server = MemoryServer(ADDRESS, Upper)
    thread = threading.Thread(target=server.shutdown)
    thread.start()
    thread.join()
    with trio.fail_after(10):
        await server.serve_forever()


async def test_shutdown_while_binding(autojump_clock: MockClock) -> None:
    """Shut down while it binds, a server reports ready and ends at once."""
    server = SlowToBind(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nursery.start, server.serve_forever)
        await wait_all_tasks_blocked()
        server.shutdown()
        server.may_bind.set()
    assert trio.current_time() == 0


def stuck_in(hook: str) -> MemoryServer:
    """A server whose ``hook`` has done its part, and never returns."""

    async def waits(self: MemoryServer) -> None:
        await getattr(MemoryServer, hook)(self)
        await trio.sleep_forever()

    return type("Stuck", (MemoryServer,), {hook: waits})(ADDRESS, Upper)


async def its_block(server: MemoryServer) -> trioserver.ShutdownReport:
    """Serve in the server's own block."""
    async with server:
        assert server.sockets == ()
        return await server.serve_forever()


async def serving_block(server: MemoryServer) -> trioserver.ShutdownReport:
    """Serve in the background of a block."""
    async with server.serving():
        pass
    return await server.wait_closed()


START_HOOKS = ["server_bind", "server_activate"]


@pytest.mark.parametrize("hook", START_HOOKS)
@pytest.mark.parametrize("serve", [MemoryServer.serve_forever, its_block, serving_block])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_shutdown_bounds_the_start(
    hook: str, serve: Any, when: str, autojump_clock: MockClock
) -> None:
    """What a server waits for before it serves has the grace, and not longer.

    It reports ready and ends in order; nobody was told of a listener, and none is left.
    """
    server = stuck_in(hook)
    server.observers = [witness := Witness()]
    reports = []

    async def serves() -> None:
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
            await server.wait_closed()
            assert trio.current_time() == 3
    assert [report.reason for report in reports] == ["shutdown() was called"]
    assert witness.names == []
    assert server.snapshot().state == "unbound"
    if hook == "server_activate":
        assert server.listener.closed


async def test_grace_of_a_drain_that_began_while_binding(autojump_clock: MockClock) -> None:
    """It is one: what the binding took of it nobody has again."""

    class Slow(MemoryServer):
        async def server_activate(self) -> None:
            await super().server_activate()
            self.listener.connect_now()
            await trio.sleep(3)

    server = Slow(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await trio.sleep(1)
        server.shutdown(5)
        report = await server.wait_closed()
    assert trio.current_time() == 1 + 5
    assert len(report.cancelled) == 1


async def test_handle_request_after_a_start_that_was_cut(autojump_clock: MockClock) -> None:
    """It returns at once, as after every shutdown."""
    server = stuck_in("server_bind")
    server.shutdown(0)
    async with server:
        await server.handle_request()
    assert trio.current_time() == 0


@pytest.mark.parametrize("hook", START_HOOKS)
async def test_server_close_while_binding(hook: str, autojump_clock: MockClock) -> None:
    """It ends the start as it ends a run: within the grace, and then it is cut."""
    server = stuck_in(hook)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_forever)
            await wait_all_tasks_blocked()
            await server.server_close()
            assert trio.current_time() == server.timeouts.shutdown
            assert server.snapshot().state == "unbound"


async def test_name_that_is_not_resolved(autojump_clock: MockClock) -> None:
    """A look-up that takes for ever is given up with the grace."""

    class Deaf(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
            await trio.sleep_forever()

        async def getnameinfo(self, *arguments: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Deaf())
    server = trioserver.TCPServer(("nowhere.invalid", 0), Upper)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_forever)
            await wait_all_tasks_blocked()
            server.shutdown(2)
    assert trio.current_time() == 2


async def test_shutdown_between_bind_and_serve(autojump_clock: MockClock) -> None:
    """Shut down inside its block but before it serves, a server ends at once.

    A client that the kernel had queued by then is served.
    """
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        client = await server.connect()
        await client.send_all(b"queued\n")
        server.shutdown()
        report = await server.serve_forever()
        assert await read_to_end(client) == b"QUEUED\n"
    assert report.statistics.accepted == 1


async def test_shutdown_in_the_same_tick_as_start(autojump_clock: MockClock) -> None:
    """A server whose task was started in this very tick, and not yet run, ends at once."""
    server = MemoryServer(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        server.shutdown()
    assert trio.current_time() == 0


async def test_shutdown_in_the_same_tick_as_an_accept(autojump_clock: MockClock) -> None:
    """A client that connects in the tick of the shutdown is served: its request was there."""
    server = MemoryServer(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = server.listener.connect_now()
        await client.send_all(b"just in time\n")
        server.shutdown()
        assert await read_to_end(client) == b"JUST IN TIME\n"


async def test_shutdown_in_the_same_tick_as_the_end(autojump_clock: MockClock) -> None:
    """A shutdown in the tick in which a server ends by itself changes nothing about the next."""
    server = MemoryServer(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        server.shutdown()
        await server.wait_closed()
        server.shutdown()
    async with server.serving():
        await server.connect()
        assert not server.draining


async def test_shutdown_twice() -> None:
    """LC-05: twice in a row is once."""
    server = MemoryServer(ADDRESS, Upper, observers=[witness := Witness()])
    with trio.fail_after(10):
        async with server.serving():
            server.shutdown()
            server.shutdown()
    assert witness.names.count("draining") == 1


async def test_shutdown_and_close_from_two_tasks_at_once(autojump_clock: MockClock) -> None:
    """LC-05: stopped by two tasks at once, and waited for by both, a server ends once for both."""
    server = MemoryServer(ADDRESS, hold)
    reports = []

    async def stop() -> None:
        server.shutdown(2)
        reports.append(await server.wait_closed())

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        nursery.start_soon(stop)
        nursery.start_soon(stop)
    assert trio.current_time() == 2
    assert reports[0] is reports[1]


@pytest.mark.parametrize("graces", [(5, 2), (2, 5)])
async def test_shutdown_twice_keeps_the_earlier_deadline(
    graces: tuple[float, float], autojump_clock: MockClock
) -> None:
    """The earlier of two deadlines holds, whichever came first."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        for grace in graces:
            server.shutdown(grace)
    assert trio.current_time() == 2


@pytest.mark.parametrize("graces", [(5, 2), (2, 5)])
async def test_shutdown_twice_before_serving_keeps_the_earlier_deadline(
    graces: tuple[float, float], autojump_clock: MockClock
) -> None:
    """Before the first run, too, the earlier of two deadlines holds."""
    server = MemoryServer(ADDRESS, hold)
    for grace in graces:
        server.shutdown(grace)
    report = await server.serve_forever()
    assert report.grace == 2


async def test_shutdown_after_the_end_does_nothing(autojump_clock: MockClock) -> None:
    """After a run has ended, a shutdown is too late for it and too early for the next."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        pass
    server.shutdown()
    async with server.serving():
        await trio.sleep(1)
        assert server.snapshot().state == "serving"


async def test_shutdown_without_a_limit(autojump_clock: MockClock) -> None:
    """`shutdown(math.inf)` waits as long as it takes, until a second one says otherwise."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        server.shutdown(math.inf)
        await trio.sleep(50_000)
        assert len(server.requests) == 1
        server.shutdown(1)
    assert trio.current_time() == 50_001


@pytest.mark.parametrize(
    ("grace", "kind"),
    [(-1, ValueError), (math.nan, ValueError), ("soon", TypeError), (True, TypeError)],
)
async def test_shutdown_with_a_wrong_grace(grace: Any, kind: type[Exception]) -> None:
    """A wrong grace is refused by name, and nothing is shut down."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        with pytest.raises(kind, match="grace"):
            server.shutdown(grace)
        assert not server.draining


async def test_shutdown_from_get_request(autojump_clock: MockClock) -> None:
    """An override of `get_request` may shut down; who had connected by then is served."""

    class StopsAtFirst(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            answer = super().get_request(listener)
            self.shutdown()
            return answer

    server = StopsAtFirst(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        clients = [server.listener.connect_now() for _ in range(3)]
        for client in clients:
            await client.send_all(b"served\n")
        replies = [await read_to_end(client) for client in clients]
    assert replies == [b"SERVED\n"] * 3


async def test_shutdown_from_get_request_within_limits(autojump_clock: MockClock) -> None:
    """The same when there is one slot: never two requests at once."""
    running, most = 0, 0

    async def count(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1

    class StopsAtFirst(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            answer = super().get_request(listener)
            self.shutdown()
            return answer

    server = StopsAtFirst(ADDRESS, count, limits=trioserver.Limits(requests=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        clients = [server.listener.connect_now() for _ in range(2)]
        for client in clients:
            await client.send_eof()
        for client in clients:
            await read_to_end(client)
    assert most == 1
    assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 2


async def test_shutdown_from_service_actions(autojump_clock: MockClock) -> None:
    """`service_actions` may shut down."""

    class StopsAfterASecond(MemoryServer):
        async def service_actions(self) -> None:
            if trio.current_time() >= 1:
                self.shutdown()

    await StopsAfterASecond(ADDRESS, Upper).serve_forever()
    assert trio.current_time() == 1


@pytest.mark.parametrize(
    "event", ["server_listening", "request_started", "request_finished", "draining"]
)
async def test_shutdown_from_an_observer(event: str, autojump_clock: MockClock) -> None:
    """An observer may shut the server down in any event; a client's request is completed."""

    def shut(*facts: object) -> None:
        server.shutdown()

    server = MemoryServer(ADDRESS, Upper, observers=[SimpleNamespace(**{event: shut})])
    async with server:
        client = await server.connect()
        await client.send_all(b"line\n")
        await client.send_eof()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_forever)
            assert await read_to_end(client) == b"LINE\n"
            server.shutdown()
    assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 1


def test_shutdown_at_every_step() -> None:
    """Wherever a shutdown falls, a client is served whole or not at all, and nothing hangs."""

    async def scenario(trial: Trial) -> None:
        server = MemoryServer(ADDRESS, Upper)
        trial.arm(server=server)
        replies = []

        async def ask() -> None:
            try:
                client = await server.connect()
            except (RuntimeError, ConnectionRefusedError):
                return
            await client.send_all(b"asked\n")
            await client.send_eof()
            replies.append(await read_to_end(client))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve_forever)
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                server.shutdown()
                report = await server.wait_closed()
        assert set(replies) <= {b"ASKED\n"}
        assert report.statistics.accepted == len(replies)
        assert report.unaccepted == ()

    assert sweep(scenario, faults=[ShutDown()]).runs > 10


# The end ---------------------------------------------------------------------


async def test_wait_closed_gives_the_report(autojump_clock: MockClock) -> None:
    """`wait_closed` gives everybody who waits what `serve_forever` returns."""
    server = MemoryServer(ADDRESS, hold)
    reports: list[trioserver.ShutdownReport] = []

    async def wait() -> None:
        reports.append(await server.wait_closed())

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await server.connect()
        await wait_all_tasks_blocked()
        assert reports == []
        server.shutdown(1)
    reports.append(await server.wait_closed())
    assert trio.current_time() == 1
    assert len(reports[0].cancelled) == 1
    assert reports[0] is reports[1] is reports[2]


async def test_serve_forever_returns_the_report(autojump_clock: MockClock) -> None:
    """What `serve_forever` returns and what `wait_closed` gives is the same report."""
    server = MemoryServer(ADDRESS, Upper)
    server.shutdown()
    report = await server.serve_forever()
    assert await server.wait_closed() is report
    assert report.reason == "shutdown() was called"


async def test_wait_closed_waits_for_server_close(autojump_clock: MockClock) -> None:
    """When `wait_closed` returns, the server's own `server_close` has ended too."""

    class ClosesSlowly(MemoryServer):
        async def server_close(self) -> None:
            await super().server_close()
            await trio.sleep(2)

    server = ClosesSlowly(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        server.shutdown()
        await server.wait_closed()
        assert trio.current_time() == 2


async def test_wait_closed_before_serving(autojump_clock: MockClock) -> None:
    """Whoever waits for a bound server that does not serve yet waits for the end of its run."""
    server = MemoryServer(ADDRESS, Upper)
    reports = []

    async def wait() -> None:
        reports.append(await server.wait_closed())

    async with trio.open_nursery() as nursery, server:
        nursery.start_soon(wait)
        nursery.start_soon(server.serve_forever)
        await trio.sleep(3)
        assert reports == []
        server.shutdown()
        assert (await server.wait_closed()).statistics.accepted == 0
    assert len(reports) == 1


async def test_wait_closed_of_a_bind_that_fails(autojump_clock: MockClock) -> None:
    """Whoever waits while a bind fails is told that there was no run; the server can be run."""

    class CannotBind(SlowToBind):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            await super().server_bind()
            raise OopsError

    server = CannotBind(ADDRESS, Upper)

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="has not been run"):
            await server.wait_closed()

    async def start() -> None:
        with pytest.raises(OopsError):
            await server.serve_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        server.may_bind.set()
    with pytest.raises(RuntimeError, match="has not been run"):
        await server.wait_closed()


async def test_wait_closed_in_its_own_request_is_an_error(autojump_clock: MockClock) -> None:
    """A request that waits for its own server is told, also from a nursery of its own."""
    errors: list[BaseException] = []

    async def wait(server: Any) -> None:
        with pytest.raises(RuntimeError, match="wait for itself") as caught:
            await server.wait_closed()
        errors.append(caught.value)

    async def handler(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await wait(server)
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(wait, server)
            inner.start_soon(wait, server)

    server = MemoryServer(ADDRESS, handler)
    async with server.serving():
        await read_to_end(await server.connect())
    assert len(errors) == 3
    assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 1


async def test_wait_closed_in_a_stubborn_request_is_an_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that outlived its cancellation, and all patience with it, is told as well."""
    errors = []

    async def outlast(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
            with trio.move_on_after(60):
                try:
                    await server.wait_closed()
                except RuntimeError as error:
                    errors.append(str(error))

    server = MemoryServer(ADDRESS, outlast)
    async with server.serving(grace=0):
        await server.connect()
        await wait_all_tasks_blocked()
    assert len(errors) == 1
    assert "wait for itself" in errors[0]


async def test_wait_closed_in_a_request_of_another_server(autojump_clock: MockClock) -> None:
    """A request may wait for another server than its own."""

    async def stop(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        other.shutdown()
        await other.wait_closed()
        await request.send_all(b"stopped")

    other = MemoryServer(ADDRESS, Upper)
    server = MemoryServer(ADDRESS, stop)
    async with other.serving(), server.serving():
        client = await server.connect()
        assert await read_to_end(client) == b"stopped"


async def test_wait_closed_cancelled_leaves_the_server_alone(autojump_clock: MockClock) -> None:
    """Who stops waiting stops nothing else."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        with trio.move_on_after(1) as patience:
            await server.wait_closed()
        assert patience.cancelled_caught
        assert server.snapshot().state == "serving"


async def test_wait_closed_without_a_run_is_an_error() -> None:
    """There is nothing to wait for before the first run."""
    with pytest.raises(RuntimeError, match="has not been run"):
        await MemoryServer(ADDRESS, Upper).wait_closed()


async def test_cancelled_server_cuts_its_requests(autojump_clock: MockClock) -> None:
    """Cancelled, a server ends at once, and each request with it, with a reason."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            client = await server.connect()
            await wait_all_tasks_blocked()
            scope.cancel(reason="enough")
    assert await read_to_end(client) == b""
    assert [(record.outcome, record.reason) for record in witness.records] == [
        (trioserver.Outcome.CANCELLED, "enough")
    ]
    assert trio.current_time() == 0


@pytest.mark.parametrize("where", ["in a handler", "idle"])
def test_ctrl_c_ends_the_server(where: str) -> None:
    """Ctrl-C without `run` cuts all requests, closes everything, and leaves bare."""

    async def interrupt(request: trioserver.Connection, client: Any, server: Any) -> None:
        if where == "in a handler":
            signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    class Idle(trioserver.Observer):
        def request_started(self, info: trioserver.RequestInfo) -> None:
            if where == "idle":
                signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with server:
            await server.connect()
            await server.serve_forever()

    server = MemoryServer(ADDRESS, interrupt, observers=[witness := Witness(), Idle()])
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert len(witness.records) == 1
    assert server.snapshot().state == "unbound"


async def test_listener_that_fails_ends_the_server(autojump_clock: MockClock) -> None:
    """LC-09: a listener that breaks closes the other one, and its very error is raised, bare."""
    server = TwoListeners(ADDRESS, hold)
    broken = OSError(errno.EBADF, "broken")

    async def break_later(listener: MemoryListener) -> None:
        await wait_all_tasks_blocked()
        listener.fail(broken)

    async with server, trio.open_nursery() as nursery:
        first, second = server.places()
        await first.connect()
        nursery.start_soon(break_later, second)
        with pytest.raises(OSError, match="broken") as caught:
            await server.serve_forever()
        assert caught.value is broken
        assert [first.closed, second.closed] == [True, True]
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1
    assert trio.current_time() == 0


async def test_handler_leaves_tasks_behind(autojump_clock: MockClock) -> None:
    """LC-08: a connection stays until the tasks of its handler's own nursery have ended."""

    async def tell_later(request: trioserver.Connection, client: Any, server: Any) -> None:
        async def later() -> None:
            await trio.sleep(5)
            await request.send_all(b"later")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)

    server = MemoryServer(ADDRESS, tell_later)
    async with server.serving():
        client = await server.connect()
        assert await read_to_end(client) == b"later"
        await client.aclose()
    assert trio.current_time() == 5


async def test_tasks_of_a_handler_end_with_the_server(autojump_clock: MockClock) -> None:
    """LC-08: the tasks of a handler's nursery are cancelled with their request, and waited for."""
    ended = []

    async def background() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async def busy(request: trioserver.Connection, client: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background)
            nursery.start_soon(background)

    server = MemoryServer(ADDRESS, busy)
    async with server.serving(grace=3):
        await server.connect()
        await wait_all_tasks_blocked()
    assert ended == [3, 3]


async def test_servers_do_not_touch_each_other() -> None:
    """LC-12: of two servers in one Trio run and one in another thread's, each stops alone."""
    listening = trio.Event()
    token = trio.lowlevel.current_trio_token()

    class Tells(trioserver.Observer):
        def server_listening(self, addresses: Any) -> None:
            token.run_sync_soon(listening.set)

    first, second = (trioserver.TCPServer(LOOPBACK, Upper) for _ in range(2))
    elsewhere = trioserver.TCPServer(LOOPBACK, Upper, observers=[Tells()])
    servers = [first, second, elsewhere]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.serve_forever)
            await nursery.start(second.serve_forever)
            nursery.start_soon(trio.to_thread.run_sync, trio.run, elsewhere.serve_forever)
            await listening.wait()
            streams = [await trio.open_tcp_stream(*it.server_address) for it in servers]
            for stopped, stream in zip(servers, streams, strict=True):
                await ask_all(streams[servers.index(stopped) :])
                stopped.shutdown()
                assert await read_to_end(stream) == b""
                await stream.aclose()


async def ask_all(streams: Sequence[trio.SocketStream]) -> None:
    """Have every one of them answered."""
    for stream in streams:
        await stream.send_all(b"you?\n")
        assert await stream.receive_some() == b"YOU?\n"


async def test_restart_on_one_port_under_clients() -> None:
    """LC-07: 200 starts and stops on one port, with clients all the time, lose nothing."""
    taken = socket.socket()
    taken.bind(LOOPBACK)
    server = trioserver.TCPServer(taken.getsockname(), nothing)
    taken.close()
    before = open_descriptors()
    served = trio.Event()

    async def keep_connecting() -> None:
        nonlocal served
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


async def test_block_drains_at_its_end(autojump_clock: MockClock) -> None:
    """Left in order, the block drains a run in another task for the configured grace."""
    server = MemoryServer(ADDRESS, hold, timeouts=trioserver.Timeouts(shutdown=4))
    async with trio.open_nursery() as nursery:
        async with server:
            await nursery.start(server.serve_forever)
            await server.connect()
            await wait_all_tasks_blocked()
        assert trio.current_time() == 4
        assert server.snapshot().state == "unbound"


async def test_block_left_by_an_error_cuts(autojump_clock: MockClock) -> None:
    """Left by an error, the block ends a run in another task at once, and the error leaves."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError):
            await leave_block_by_an_error(server, nursery)
        assert trio.current_time() == 0
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1


async def leave_block_by_an_error(server: MemoryServer, nursery: trio.Nursery) -> None:
    """Leave a server's block by an error, while a request is in flight."""
    async with server:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        raise OopsError


async def test_block_cancelled_cuts(autojump_clock: MockClock) -> None:
    """A cancelled block ends a run in another task at once."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(3):
            async with server:
                await nursery.start(server.serve_forever)
                await server.connect()
                await trio.sleep_forever()
        assert trio.current_time() == 3
        assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("serving", [True, False])
async def test_block_cancelled_in_its_drain_cuts(serving: bool, autojump_clock: MockClock) -> None:
    """Cancelled while it drains at its end, a block, of either kind, cuts what is left."""
    server = MemoryServer(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(3):
            if serving:
                async with server.serving():
                    await server.connect()
                    await wait_all_tasks_blocked()
            else:
                async with server:
                    await nursery.start(server.serve_forever)
                    await server.connect()
                    await wait_all_tasks_blocked()
        assert trio.current_time() == 3
        assert server.snapshot().state == "unbound"
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1


async def test_block_waits_for_a_stubborn_request(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However the block is left, no task of the server outlives it, and the report is complete."""
    server = MemoryServer(ADDRESS, stubborn)
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError):
            await leave_block_by_an_error(server, nursery)
        assert trio.current_time() == 60
    report = await server.wait_closed()
    assert len(report.requests) == 1
    assert "has not ended 5 s after it was cancelled" in caplog.text


async def test_block_waits_for_cleanup_of_requests(autojump_clock: MockClock) -> None:
    """A request that uses its full time to clean up, twice, is waited for as well."""

    class TakesItsTime(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            await trio.sleep(4)

    class Server(MemoryServer):
        async def shutdown_request(self, request: Any) -> None:
            await trio.sleep(4)
            await super().shutdown_request(request)

    server = Server(ADDRESS, TakesItsTime)
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError):
            await leave_block_by_an_error(server, nursery)
        assert trio.current_time() == 8
        assert server.snapshot().state == "unbound"


async def test_block_entered_and_left_closes(autojump_clock: MockClock) -> None:
    """A block in which nothing is served binds, and closes again."""
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        listener = server.listener
    assert listener.closed
    assert (await server.wait_closed()).statistics.accepted == 0


async def test_block_serves_one_run(autojump_clock: MockClock) -> None:
    """After a shutdown the listeners are gone: the block has to be entered anew to serve."""
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        server.shutdown()
        await server.serve_forever()
        with pytest.raises(RuntimeError, match="bind it again"):
            await server.serve_forever()


# server_close ----------------------------------------------------------------


async def test_server_close_ends_a_run_in_another_task(autojump_clock: MockClock) -> None:
    """Called by hand, `server_close` does what leaving the block does: drain, wait, close."""
    server = MemoryServer(ADDRESS, hold, timeouts=trioserver.Timeouts(shutdown=4))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await wait_all_tasks_blocked()
        await server.server_close()
        assert trio.current_time() == 4
        assert server.snapshot().state == "unbound"


async def test_server_close_of_an_unbound_server_does_nothing() -> None:
    """There is nothing to close, before the first run and after the last."""
    server = MemoryServer(ADDRESS, Upper)
    await server.server_close()
    async with server.serving():
        pass
    await server.server_close()
    assert server.snapshot().state == "unbound"


async def test_server_close_in_its_own_request_is_an_error(autojump_clock: MockClock) -> None:
    """A request cannot close the server that serves it: it would wait for itself."""

    async def close(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        with pytest.raises(RuntimeError, match="wait for itself"):
            await server.server_close()
        await request.send_all(b"no")

    server = MemoryServer(ADDRESS, close)
    with trio.fail_after(60):
        async with server.serving():
            assert await read_to_end(await server.connect()) == b"no"
            assert server.snapshot().state == "serving"


async def test_server_close_by_hand_that_is_cancelled(autojump_clock: MockClock) -> None:
    """Cancelled while it drains, `server_close` cuts the run, and all of it ends and is closed."""
    server = MemoryServer(ADDRESS, hold)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await server.connect()
            await wait_all_tasks_blocked()
            with trio.move_on_after(1):
                await server.server_close()
            assert trio.current_time() == 1
    assert trio.current_time() == 1
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("method", ["server_close", "wait_closed"])
async def test_waiting_in_service_actions_is_an_error(
    method: str, autojump_clock: MockClock
) -> None:
    """`service_actions`, a task of the server, cannot wait for its end: it is told at once."""

    class Closes(MemoryServer):
        async def service_actions(self) -> None:
            await getattr(self, method)()

    with trio.fail_after(60), pytest.raises(RuntimeError, match="wait for itself"):
        await Closes(ADDRESS, Upper).serve_forever()
    assert trio.current_time() == 0


async def serve_alone(server: Noted) -> None:
    """One run, bound by `serve_forever` itself."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        server.shutdown()


async def serve_in_a_block(server: Noted) -> None:
    """One run inside the server's block, in the same task."""
    async with server:
        server.shutdown()
        await server.serve_forever()


async def serve_in_another_task(server: Noted) -> None:
    """One run inside the server's block, ended by leaving it."""
    async with trio.open_nursery() as nursery, server:
        await nursery.start(server.serve_forever)


async def serve_in_the_background(server: Noted) -> None:
    """One run as a block."""
    async with server.serving():
        pass


async def serve_one_request(server: Noted) -> None:
    """Nothing but `handle_request`."""
    async with server:
        await server.connect()
        await server.handle_request()


async def serve_cancelled(server: Noted) -> None:
    """One run, cancelled."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        nursery.cancel_scope.cancel()


async def serve_nothing(server: Noted) -> None:
    """Bound, and closed."""
    async with server:
        pass


async def close_by_hand(server: Noted) -> None:
    """One run, ended by `server_close` from another task."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.server_close()


async def close_by_hand_in_the_block(server: Noted) -> None:
    """`server_close` by hand, and then the end of the block."""
    async with server:
        await server.server_close()


ONE_RUN = [
    serve_alone,
    serve_in_a_block,
    serve_in_another_task,
    serve_in_the_background,
    serve_one_request,
    serve_cancelled,
    serve_nothing,
    close_by_hand,
    close_by_hand_in_the_block,
]


@pytest.mark.parametrize("one_run", ONE_RUN)
async def test_server_close_is_called_once_a_run(
    one_run: Callable[[Noted], Awaitable[None]], autojump_clock: MockClock
) -> None:
    """However a server runs, and ends, an override of `server_close` is called once, and last."""
    server = Noted(ADDRESS, nothing)
    for run in (1, 2):
        await one_run(server)
        assert server.notes.count("server_close") == run
        assert server.notes[-1] == "server_close"
    assert server.snapshot().state == "unbound"


async def test_server_close_comes_after_the_last_request(autojump_clock: MockClock) -> None:
    """When an override of `server_close` is called, every request is closed."""
    open_then = []

    class Server(MemoryServer):
        async def server_close(self) -> None:
            statistics = self.statistics()
            open_then.append((statistics.active, statistics.lingering, statistics.accepted))
            await super().server_close()

    server = Server(ADDRESS, hold)
    async with server.serving(grace=1):
        await server.connect()
        await wait_all_tasks_blocked()
    assert open_then == [(0, 0, 1)]


async def test_server_close_is_shielded(autojump_clock: MockClock) -> None:
    """An override of `server_close` may wait although the server was cancelled."""
    closed_at = []

    class Server(MemoryServer):
        async def server_close(self) -> None:
            await trio.sleep(3)
            closed_at.append(trio.current_time())

    server = Server(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        nursery.cancel_scope.cancel()
    assert closed_at == [3]


async def test_server_close_is_bounded(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An override of `server_close` that hangs is cut after `cleanup` seconds, and logged."""

    class Hangs(MemoryServer):
        async def server_close(self) -> None:
            await trio.sleep_forever()

    server = Hangs(ADDRESS, Upper, timeouts=trioserver.Timeouts(cleanup=2))
    server.shutdown()
    await server.serve_forever()
    assert trio.current_time() == 2
    assert "Hangs.server_close did not end within 2 s" in caplog.text
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("one_run", [serve_alone, serve_in_a_block, serve_in_the_background])
async def test_server_close_without_super(
    one_run: Callable[[Any], Awaitable[None]], autojump_clock: MockClock
) -> None:
    """An override of `server_close` that forgets the inherited one leaves nothing open."""
    listeners = []

    class Forgets(MemoryServer):
        async def server_close(self) -> None:
            listeners.append(self.listener)

    server = Forgets(ADDRESS, Upper)
    await one_run(server)
    await one_run(server)
    assert [listener.closed for listener in listeners] == [True, True]


async def test_server_close_that_fails(autojump_clock: MockClock) -> None:
    """What an override of `server_close` raises leaves `serve_forever`, and all is closed."""

    class Fails(MemoryServer):
        async def server_close(self) -> None:
            raise OopsError

    server = Fails(ADDRESS, Upper)
    server.shutdown()
    with pytest.raises(OopsError):
        await server.serve_forever()
    assert server.snapshot().state == "unbound"
    async with trio.open_nursery() as nursery:
        with pytest.raises(OopsError):
            await leave_at_once(server, nursery)
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize("how", ["as it is", "from None", "in a child"])
async def test_server_close_that_fails_after_the_server(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What has ended the server is never lost: shown with what `server_close` raises, or logged."""
    first = OSError(errno.EBADF, "the first")

    async def fail() -> None:
        raise OopsError

    class Fails(MemoryServer):
        async def server_close(self) -> None:
            if how == "in a child":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail)
            elif how == "from None":
                raise OopsError from None
            raise OopsError

    server = Fails(ADDRESS, Upper)
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: Any) -> None:
            with pytest.raises((OopsError, ExceptionGroup)) as caught:
                await server.serve_forever(task_status=task_status)
            if how == "as it is":
                assert caught.value.__context__ is first

        await nursery.start(serve)
        server.listener.fail(first)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert logged == ([] if how == "as it is" else [first])


async def leave_at_once(server: MemoryServer, nursery: trio.Nursery) -> None:
    """Serve in another task, and leave the block."""
    async with server:
        await nursery.start(server.serve_forever)


# serving() -------------------------------------------------------------------


async def test_serving_serves_inside_its_block(autojump_clock: MockClock) -> None:
    """`serving` gives the server, bound, and unbinds it at its end."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving() as served:
        assert served is server
        client = await server.connect()
        await client.send_all(b"inside\n")
        assert await client.receive_some() == b"INSIDE\n"
    assert server.snapshot().state == "unbound"


async def test_serving_drains_at_its_end(autojump_clock: MockClock) -> None:
    """Left in order, `serving` gives the requests in flight its grace, and no more."""
    server = MemoryServer(ADDRESS, hold)
    async with server.serving(grace=3):
        await server.connect()
        await wait_all_tasks_blocked()
    assert trio.current_time() == 3
    assert len((await server.wait_closed()).cancelled) == 1


async def test_serving_goes_on_after_a_shutdown(autojump_clock: MockClock) -> None:
    """A server that is shut down inside the block ends alone; the block goes on."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        server.shutdown()
        await server.wait_closed()
        await trio.sleep(5)
    assert trio.current_time() == 5


async def leave_serving(server: MemoryServer, error: BaseException) -> None:
    """Serve a request, and have the block raise."""
    async with server.serving():
        await server.connect()
        await wait_all_tasks_blocked()
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OopsError(),
        SystemExit(3),
        KeyboardInterrupt(),
    ],
    ids=["error", "exit", "interrupt"],
)
async def test_serving_block_that_raises(error: BaseException, autojump_clock: MockClock) -> None:
    """The block's own exception leaves as that very object, and the server is cut at once."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    with pytest.raises(type(error)) as caught:
        await leave_serving(server, error)
    assert caught.value is error
    assert witness.outcomes == ["cancelled"]
    assert trio.current_time() == 0


@pytest.mark.parametrize("count", [1, 2])
async def test_serving_block_that_raises_a_group(count: int, autojump_clock: MockClock) -> None:
    """A group that the block raises leaves as it was made, also a group of one."""
    inside = [OopsError() for _ in range(count)]
    with pytest.raises(ExceptionGroup, match="the block's own") as caught:
        await leave_serving(MemoryServer(ADDRESS, hold), ExceptionGroup("the block's own", inside))
    assert list(caught.value.exceptions) == inside


async def test_serving_block_that_is_cancelled(autojump_clock: MockClock) -> None:
    """A cancelled block cuts the server, and the cancellation goes where it belongs."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    with trio.move_on_after(2) as scope:
        async with server.serving():
            await server.connect()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert witness.outcomes == ["cancelled"]
    assert trio.current_time() == 2


async def serve_while_it_breaks(
    server: MemoryServer, error: Exception, *, then: BaseException | None = None
) -> None:
    """Have the listener break inside the block, which raises something as it is cancelled."""
    async with server.serving():
        server.listener.fail(error)
        try:
            await trio.sleep_forever()
        finally:
            if then is not None:
                raise then


async def test_serving_server_that_fails(autojump_clock: MockClock) -> None:
    """A server that fails cancels the block, and its very error is raised, bare."""
    error = OSError(errno.EBADF, "broken")
    with pytest.raises(OSError, match="broken") as caught:
        await serve_while_it_breaks(MemoryServer(ADDRESS, Upper), error)
    assert caught.value is error


async def test_serving_server_and_block_both_fail(autojump_clock: MockClock) -> None:
    """When the server fails and the block too, neither error is lost."""
    error, then = OSError(errno.EBADF, "broken"), OopsError()
    with pytest.raises(ExceptionGroup) as caught:
        await serve_while_it_breaks(MemoryServer(ADDRESS, Upper), error, then=then)
    assert set(caught.value.exceptions) == {error, then}


async def test_serving_handler_exits(autojump_clock: MockClock) -> None:
    """A handler's SystemExit ends server and block, and leaves bare."""
    error = SystemExit(3)

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise error

    async def serve() -> None:
        async with server.serving():
            await server.connect()
            await trio.sleep_forever()

    server = MemoryServer(ADDRESS, leave)
    with pytest.raises(SystemExit) as caught:
        await serve()
    assert caught.value is error


async def test_serving_that_cannot_bind() -> None:
    """An error before the server listens leaves `async with` bare; the block is not entered."""
    with socket.create_server(LOOPBACK) as taken:
        server = trioserver.TCPServer(taken.getsockname(), Upper)
        with pytest.raises(OSError, match="cannot listen on") as caught:
            await server.serving().__aenter__()
    assert caught.value.errno == errno.EADDRINUSE


async def test_serving_with_a_wrong_grace() -> None:
    """A wrong grace is refused before anything is served."""
    server = MemoryServer(ADDRESS, Upper)
    with pytest.raises(ValueError, match="grace"):
        await server.serving(grace=-1).__aenter__()
    assert server.snapshot().state == "unbound"


# handle_request --------------------------------------------------------------


async def test_handle_request_handles_one(autojump_clock: MockClock) -> None:
    """`handle_request` handles one request, completely; the next is left in the queue."""
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        clients = [await server.connect() for _ in range(2)]
        for number, client in enumerate(clients):
            await client.send_all(b"%d a\n" % number)
            await client.send_eof()
        for number, client in enumerate(clients):
            await server.handle_request()
            assert server.statistics().accepted == number + 1
            assert server.statistics().lingering == 0
            assert await read_to_end(client) == b"%d A\n" % number


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("by", ["task", "thread"])
async def test_handle_request_that_ends_takes_nobody_else(by: str, ticks: int) -> None:
    """A shutdown in any tick of its end lets nobody in: who is queued is turned away or reset."""
    server = MemoryServer(ADDRESS, hold)
    with trio.fail_after(10):
        async with server:
            scope = trio.CancelScope()

            async def handle() -> None:
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
        for client in (first, queued):
            with suppress(trio.BrokenResourceError):
                assert await client.receive_some() == b""
    statistics = server.statistics()
    assert statistics.accepted == sum(statistics.outcomes.values())


async def test_handle_request_that_fails_takes_nobody_else(autojump_clock: MockClock) -> None:
    """Nor does a shutdown that its failing request causes."""

    class EnoughAfterOne(trioserver.Observer):
        server: Any = None

        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            self.server.shutdown(5)

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise SystemExit(3)

    observer = EnoughAfterOne()
    server = observer.server = MemoryServer(ADDRESS, leave, observers=[observer])
    async with server:
        await server.connect()
        await server.connect()
        with pytest.raises(SystemExit):
            await server.handle_request()
    assert server.statistics().accepted == 1


async def test_handle_request_that_fails_in_a_drain(autojump_clock: MockClock) -> None:
    """Whom the drain had accepted is turned away, and the failure arrives as it was."""
    error = SystemExit(3)

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(2)
        raise error

    server = MemoryServer(ADDRESS, leave, limits=trioserver.Limits(requests=1))
    async with server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_system_exit, error, server.handle_request)
            await server.connect()
            await trio.sleep(1)
            waiting = await server.connect()
            server.shutdown(60)
            with pytest.raises(trio.BrokenResourceError):
                await waiting.receive_some()
    statistics = server.statistics()
    assert (statistics.accepted, statistics.unaccepted, statistics.active) == (1, 1, 0)
    assert statistics.outcomes[trioserver.Outcome.FAILED] == 1


async def expect_system_exit(error: SystemExit, call: Callable[[], Awaitable[None]]) -> None:
    """Await a call that raises just that."""
    with pytest.raises(SystemExit) as caught:
        await call()
    assert caught.value is error


async def test_handle_request_over_sockets() -> None:
    """The classic loop, over TCP: the connection is closed when `handle_request` returns."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    with trio.fail_after(10):
        async with server:
            for number in range(3):
                with socket.create_connection(server.server_address) as client:
                    client.sendall(b"line\n")
                    client.shutdown(socket.SHUT_WR)
                    await server.handle_request()
                    with client.makefile("rb") as reply:
                        assert reply.read() == b"LINE\n"
                assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == number + 1


async def test_handle_request_waits_for_ever_by_default(autojump_clock: MockClock) -> None:
    """Without `timeout`, `handle_request` waits as long as it takes."""
    server = Noted(ADDRESS, nothing)
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_request)
        await trio.sleep(80_000)
        await server.connect()
    assert server.statistics().accepted == 1
    assert "handle_timeout" not in server.notes


async def test_handle_request_times_out(autojump_clock: MockClock) -> None:
    """After `timeout` seconds without a request it calls `handle_timeout`, once, and returns."""
    server = Noted(ADDRESS, nothing, timeout=2)
    async with server:
        await server.handle_request()
        assert trio.current_time() == 2
        assert server.notes.count("handle_timeout") == 1
        await server.handle_request()
        assert trio.current_time() == 4


async def test_handle_request_timeout_ends_with_the_accept(autojump_clock: MockClock) -> None:
    """`timeout` bounds the wait for a request, not the request."""

    async def slow(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(60)
        await request.send_all(b"done")

    server = Noted(ADDRESS, slow, timeout=2)
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_request)
        await trio.sleep(1)
        client = await server.connect()
        assert await read_to_end(client) == b"done"
        await client.aclose()
    assert trio.current_time() == 61
    assert "handle_timeout" not in server.notes


async def test_handle_request_takes_who_is_there_when_time_is_up(
    autojump_clock: MockClock,
) -> None:
    """`timeout=0` polls: a client who waits is served, and only without one time is up."""
    server = Noted(ADDRESS, Upper, timeout=0)
    async with server:
        await server.handle_request()
        assert server.notes.count("handle_timeout") == 1
        client = await server.connect()
        await client.send_all(b"waiting\n")
        await client.send_eof()
        await server.handle_request()
        assert await read_to_end(client) == b"WAITING\n"
    assert server.notes.count("handle_timeout") == 1


async def test_handle_request_polls_every_listener() -> None:
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


async def test_handle_request_client_at_the_last_instant(autojump_clock: MockClock) -> None:
    """A client that comes in the tick in which the time is up: served, or left for the next."""
    server = MemoryServer(ADDRESS, nothing, timeout=1)
    async with server:

        async def come() -> None:
            await trio.sleep(1)
            await server.connect()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await server.handle_request()
        if not server.statistics().accepted:
            await server.handle_request()
        assert server.statistics().outcomes[trioserver.Outcome.COMPLETED] == 1


async def test_handle_timeout_that_fails(autojump_clock: MockClock) -> None:
    """TO-10: an error in `handle_timeout` leaves `handle_request`; the server goes on."""

    class Fails(MemoryServer):
        async def handle_timeout(self) -> None:
            raise OopsError

    server = Fails(ADDRESS, nothing, timeout=1)
    async with server:
        with pytest.raises(OopsError):
            await server.handle_request()
        await server.connect()
        await server.handle_request()
    assert server.statistics().accepted == 1


async def test_handle_request_takes_one_of_several_listeners(autojump_clock: MockClock) -> None:
    """With clients on two listeners in one tick, `handle_request` takes exactly one of them."""
    server = TwoListeners(ADDRESS, nothing)
    async with server:
        clients = [listener.connect_now() for listener in server.places()]
        for expected in (1, 2):
            await server.handle_request()
            assert server.statistics().accepted == expected
        for client in clients:
            assert await read_to_end(client) == b""


async def test_handle_request_of_a_refused_client(autojump_clock: MockClock) -> None:
    """A client that `verify_request` refuses was the one request."""

    class RefusesAll(MemoryServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    server = RefusesAll(ADDRESS, nothing)
    async with server:
        await server.connect()
        await server.handle_request()
    assert server.statistics().outcomes[trioserver.Outcome.REFUSED] == 1


async def test_handle_request_with_a_handler_error(autojump_clock: MockClock) -> None:
    """A handler's error goes to `handle_error`, and `handle_request` returns."""

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise OopsError

    server = Noted(ADDRESS, fail)
    async with server:
        await server.connect()
        await server.handle_request()
    assert server.notes.count("handle_error") == 1


@pytest.mark.parametrize(
    ("error", "propagate"), [(OopsError(), True), (SystemExit(3), False)], ids=["error", "exit"]
)
async def test_handle_request_raises_bare(
    error: BaseException, propagate: bool, autojump_clock: MockClock
) -> None:
    """What is not the request's alone leaves `handle_request` as that very object."""

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise error

    server = MemoryServer(ADDRESS, fail, propagate_errors=propagate)
    async with server:
        client = await server.connect()
        with pytest.raises(type(error)) as caught:
            await server.handle_request()
        assert caught.value is error
        assert await read_to_end(client) == b""


async def test_handle_request_listener_that_fails(autojump_clock: MockClock) -> None:
    """An accept error of the fatal tier leaves `handle_request` bare."""
    error = OSError(errno.EBADF, "broken")
    server = TwoListeners(ADDRESS, nothing)
    async with server:
        server.places()[1].fail(error)
        with pytest.raises(OSError, match="broken") as caught:
            await server.handle_request()
        assert caught.value is error


async def test_handle_request_unbound_is_an_error() -> None:
    """`handle_request` needs the block, and says so."""
    with pytest.raises(RuntimeError, match="async with server"):
        await MemoryServer(ADDRESS, nothing).handle_request()


async def test_handle_request_twice_at_once_is_an_error(autojump_clock: MockClock) -> None:
    """Two tasks cannot handle requests of one server at once."""
    server = MemoryServer(ADDRESS, nothing)
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_request)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="serving already"):
            await server.handle_request()
        nursery.cancel_scope.cancel()


async def test_handle_request_cancelled_while_waiting(autojump_clock: MockClock) -> None:
    """Cancelled without a client, `handle_request` has taken nothing: the next one does."""
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        with trio.move_on_after(1):
            await server.handle_request()
        client = await server.connect()
        await client.send_all(b"next\n")
        await client.send_eof()
        await server.handle_request()
        assert await read_to_end(client) == b"NEXT\n"


async def test_handle_request_cancelled_in_its_request(autojump_clock: MockClock) -> None:
    """Cancelled in its request, `handle_request` has closed it when it returns."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    async with server:
        client = await server.connect()
        with trio.move_on_after(1):
            await server.handle_request()
        assert witness.outcomes == ["cancelled"]
        assert server.statistics().lingering == 0
        assert await read_to_end(client) == b""


def test_handle_request_cancelled_at_every_step() -> None:
    """Wherever it is cancelled, the request was closed or is still there for the next call."""

    async def scenario(trial: Trial) -> None:
        server = MemoryServer(ADDRESS, Upper)
        with trio.fail_after(60):
            async with server:
                client = await server.connect()
                await client.send_all(b"line\n")
                await client.send_eof()
                with trio.CancelScope() as scope:
                    trial.arm(scope=scope)
                    await server.handle_request()
                statistics = server.statistics()
                assert statistics.active == statistics.lingering == 0
                if not statistics.accepted:
                    await server.handle_request()
                    assert await read_to_end(client) == b"LINE\n"
                else:
                    with suppress(trio.BrokenResourceError):  # of a request that was cut
                        assert await read_to_end(client) in {b"", b"LINE\n"}

    assert sweep(scenario).runs > 5


async def test_handle_request_shut_down_by_its_request(autojump_clock: MockClock) -> None:
    """A shutdown in the request ends the loop: `draining` says so, and a further call raises."""
    server = MemoryServer(ADDRESS, shut_down)
    async with server:
        client = await server.connect()
        calls = 0
        while not server.draining:
            await server.handle_request()
            calls += 1
        assert calls == 1
        assert await read_to_end(client) == b"done"
        with pytest.raises(RuntimeError, match="shut down"):
            await server.handle_request()


async def test_handle_request_shut_down_while_waiting(autojump_clock: MockClock) -> None:
    """A shutdown ends the wait for a request at once, without `handle_timeout`."""
    server = Noted(ADDRESS, nothing, timeout=5)
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(server.handle_request)
        await wait_all_tasks_blocked()
        server.shutdown()
    assert trio.current_time() == 0
    assert "handle_timeout" not in server.notes


async def test_handle_request_shut_down_before(autojump_clock: MockClock) -> None:
    """After a shutdown between two calls, the next returns at once, and the loop can end."""

    class GivesUp(MemoryServer):
        async def handle_timeout(self) -> None:
            self.shutdown()

    server = GivesUp(ADDRESS, nothing, timeout=3)
    async with server:
        while not server.draining:
            await server.handle_request()
    assert trio.current_time() == 3


async def test_handle_request_grace(autojump_clock: MockClock) -> None:
    """A shutdown during the request bounds it by the grace."""
    server = MemoryServer(ADDRESS, hold)
    async with server, trio.open_nursery() as nursery:
        await server.connect()
        nursery.start_soon(server.handle_request)
        await wait_all_tasks_blocked()
        server.shutdown(4)
    assert trio.current_time() == 4


async def test_handle_request_tells_of_listening_once(autojump_clock: MockClock) -> None:
    """A loop of `handle_request` is one run: it is announced once, and closed once."""
    server = MemoryServer(ADDRESS, nothing, observers=[witness := Witness()])
    async with server:
        for _ in range(3):
            await server.connect()
            await server.handle_request()
    assert witness.names.count("server_listening") == 1
    assert witness.names.count("request_finished") == 3
    assert witness.names.count("server_closed") == 1


async def test_serve_forever_ignores_timeout(autojump_clock: MockClock) -> None:
    """`timeout` is `handle_request`'s alone."""
    server = Noted(ADDRESS, nothing, timeout=1)
    async with server.serving():
        await trio.sleep(100)
        assert server.snapshot().state == "serving"
    assert "handle_timeout" not in server.notes


# Hooks -----------------------------------------------------------------------

BOUND = ["server_bind", "server_activate"]
CLOSED = ["shutdown_request", "close_request", "server_close"]


async def serve_one_client(server: MemoryServer) -> None:
    """One client, from its connect to its end."""
    async with server.serving():
        await read_to_end(await server.connect())


async def test_hooks_in_order(autojump_clock: MockClock) -> None:
    """A request meets every hook in the documented order, and `server_close` comes last."""
    server = Noted(ADDRESS, NotingHandler)
    await serve_one_client(server)
    assert server.notes == [
        *BOUND,
        "get_request",
        "verify_request",
        "process_request",
        "finish_request",
        "setup",
        "handle",
        "finish",
        *CLOSED,
    ]


async def test_hooks_of_a_refused_request(autojump_clock: MockClock) -> None:
    """After a `verify_request` that says no, the request is shut down, and nothing else."""

    class RefusesAll(Noted):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await super().verify_request(request, client_address)
            return False

    server = RefusesAll(ADDRESS, NotingHandler)
    await serve_one_client(server)
    assert server.notes == [*BOUND, "get_request", "verify_request", *CLOSED]


async def test_hooks_of_a_failed_request(autojump_clock: MockClock) -> None:
    """`handle_error` comes after the handler has finished, and before the request is closed."""

    class Fails(NotingHandler):
        async def handle(self) -> None:
            raise OopsError

    server = Noted(ADDRESS, Fails)
    await serve_one_client(server)
    assert server.notes[-6:] == ["setup", "finish", "handle_error", *CLOSED]


async def test_hooks_of_a_cancelled_request(autojump_clock: MockClock) -> None:
    """A cancelled request is shut down by its hooks, too; it is nobody's error."""
    server = Noted(ADDRESS, hold)
    async with server.serving(grace=0):
        await server.connect()
        await wait_all_tasks_blocked()
    assert server.notes[-4:] == ["finish_request", *CLOSED]


async def test_hooks_run_in_the_request_task(autojump_clock: MockClock) -> None:
    """From `verify_request` to `close_request`, all of a request is one Trio task."""
    tasks: set[trio.lowlevel.Task] = set()

    def note_task(name: str) -> Callable[..., Any]:
        async def hook(self: Any, *arguments: Any) -> Any:
            tasks.add(trio.lowlevel.current_task())
            return await getattr(MemoryServer, name)(self, *arguments)

        return hook

    names = ["verify_request", "process_request", "finish_request", "shutdown_request"]
    hooks = {name: note_task(name) for name in [*names, "close_request"]}
    await serve_one_client(type("Server", (MemoryServer,), hooks)(ADDRESS, nothing))
    assert len(tasks) == 1


async def test_service_actions_every_poll_interval(autojump_clock: MockClock) -> None:
    """`service_actions` is called every `poll_interval` seconds, until the drain begins."""
    called = []

    class Server(MemoryServer):
        async def service_actions(self) -> None:
            called.append(trio.current_time())

    server = Server(ADDRESS, hold)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever, 2)
        await wait_all_tasks_blocked()
        await server.connect()
        await trio.sleep(7)
        server.shutdown(grace=10)
    assert called == [0, 2, 4, 6]
    assert trio.current_time() == 17


async def test_service_actions_is_cancelled_by_the_drain(autojump_clock: MockClock) -> None:
    """A `service_actions` that waits when the drain begins is cancelled, and does not hold it."""

    class Server(MemoryServer):
        async def service_actions(self) -> None:
            await trio.sleep_forever()

    async with Server(ADDRESS, nothing).serving():
        await wait_all_tasks_blocked()
    assert trio.current_time() == 0


async def test_service_actions_that_fails_stops_the_server(autojump_clock: MockClock) -> None:
    """What `service_actions` raises stops the server, and leaves `serve_forever` bare."""
    error = OopsError()

    class Server(MemoryServer):
        async def service_actions(self) -> None:
            raise error

    server = Server(ADDRESS, hold)
    with pytest.raises(OopsError) as caught:
        await server.serve_forever()
    assert caught.value is error
    assert server.snapshot().state == "unbound"


async def test_server_bind_that_fails_after_binding() -> None:
    """LC-03: an override of `server_bind` that fails when the socket is bound leaves none open."""

    class NeedsMore(trioserver.TCPServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            await super().server_bind()
            raise OopsError

    before = open_descriptors()
    with pytest.raises(OopsError) as caught:
        await NeedsMore(LOOPBACK, Upper).serve_forever()
    # The traceback still holds the frames, so this is no work of the garbage collector's.
    assert caught.value.__traceback__
    assert open_descriptors() == before


# Facts -----------------------------------------------------------------------


async def test_facts_of_an_unbound_server() -> None:
    """An unbound server has no sockets, no requests, and nothing but zeros to count."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    assert (server.socket, server.sockets, server.requests) == (None, (), ())
    assert server.statistics() == trioserver.Statistics()
    assert not server.draining
    with pytest.raises(RuntimeError, match="not bound"):
        server.fileno()


async def test_facts_of_a_bound_server() -> None:
    """While bound, `socket`, `fileno` and `server_address` are the first listener's."""
    server = trioserver.TCPServer(LOOPBACK, Upper)
    async with server:
        assert server.socket is not None
        assert server.sockets == (server.socket,)
        assert server.fileno() == server.socket.fileno()
        assert server.server_address == server.socket.getsockname()
    assert (server.socket, server.server_address) == (None, LOOPBACK)


async def test_fileno_of_a_server_without_a_socket(autojump_clock: MockClock) -> None:
    """Bound to something that is no socket, a server has no descriptor, and says so."""
    server = MemoryServer(ADDRESS, Upper)
    async with server:
        assert server.socket is None
        with pytest.raises(RuntimeError, match="not bound to a socket"):
            server.fileno()


async def test_requests_are_those_that_hold_a_slot(autojump_clock: MockClock) -> None:
    """`requests` lists what is served now, oldest first, and not what only closes."""
    server = MemoryServer(ADDRESS, Upper)
    async with server.serving():
        clients = [await server.connect() for _ in range(3)]
        await wait_all_tasks_blocked()
        assert [info.id for info in server.requests] == [1, 2, 3]
        await clients[1].send_eof()
        await wait_all_tasks_blocked()
        assert [info.id for info in server.requests] == [1, 3]
        assert [info.client_address for info in server.requests] == [
            clients[0].info.client_address,
            clients[2].info.client_address,
        ]


async def test_statistics_count_a_run(autojump_clock: MockClock) -> None:
    """The counts of a run stay readable when it is over, until the next one begins."""
    server = MemoryServer(ADDRESS, Upper)
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


async def test_snapshot_of_a_life(autojump_clock: MockClock) -> None:
    """`snapshot` names the state at each stage, and what the requests do."""
    server = MemoryServer(ADDRESS, hold)
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


async def test_cancel_request_ends_one(autojump_clock: MockClock) -> None:
    """`cancel_request` ends that request, with the reason in its record, and no other."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    async with server.serving(grace=0):
        clients = [await server.connect() for _ in range(2)]
        await wait_all_tasks_blocked()
        assert server.cancel_request(1, "enough of you") is True
        assert await read_to_end(clients[0]) == b""
        assert [(record.info.id, record.reason) for record in witness.records] == [
            (1, "enough of you")
        ]
        assert [info.id for info in server.requests] == [2]


async def test_cancel_request_of_nobody(autojump_clock: MockClock) -> None:
    """There is nothing to cancel of an id that is not there, or was, or on an unbound server."""
    server = MemoryServer(ADDRESS, nothing)
    assert server.cancel_request(1, "unbound") is False
    async with server.serving():
        assert server.cancel_request(1, "not yet") is False
        await read_to_end(await server.connect())
        assert server.cancel_request(1, "gone") is False
