"""Accepting: three tiers of errors, `get_request`, and no client that is lost in between."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, plain_client, read_to_end

import trioserver
from trioserver import Limits
from trioserver._engine.accept_errors import ReserveDescriptor
from trioserver._sockets.stream_sockets import SocketListener, SocketTransport
from trioserver.testing import (
    MemoryDatagramServer,
    MemoryListener,
    MemoryServer,
    open_descriptors,
)

MEMORY = ("memory", 1)

CONNECTION_ERRORS = ("ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH", "ETIMEDOUT")
CAPACITY_ERRORS = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
FATAL_ERRORS = ("EBADF", "ENOTSOCK", "EINVAL", "EFAULT")


def error_of(name: str) -> OSError:
    """The error that an accept raises."""
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@attrs.define(eq=False)
class Watched(MemoryListener):
    """Writes down when it was asked for a client."""

    instants: list[float] = attrs.field(factory=list)

    def accept_now(self) -> Any:
        self.instants.append(trio.current_time())
        return super().accept_now()


class WatchedServer(MemoryServer):
    """Serves at one watched place, or at more."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        self.places = [Watched(("memory", number)) for number in (1, 2)]
        return self.places


async def ask(client: trioserver.Connection, line: bytes = b"hello\n") -> bytes:
    """What `Upper` replies; raises if the client is gone."""
    await client.send_all(line)
    return await client.receive_some()


async def expect_reset(client: trioserver.Connection) -> None:
    """Wait until the client is told that it was turned away."""
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await client.receive_some()


async def settled() -> None:
    """Wait until everything has happened that happens by itself."""
    await trio.testing.wait_all_tasks_blocked()


def log_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as more than news."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# The first tier: one client's own error -----------------------------------------


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_connection_error_is_forgotten(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """AE-01: an error of one connection costs no time and no log record, and the next is served."""
    witness = Witness()
    async with MemoryServer(MEMORY, Upper, observers=[witness]).serving() as server:
        server.listener.fail(error_of(name), error_of(name))
        began = trio.current_time()
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert trio.current_time() == began
        assert server.statistics().accept_errors == 2
    assert witness.names.count("accept_failed") == 2
    assert log_of(caplog) == []


async def test_connection_errors_without_end_leave_others_their_turn() -> None:
    """AE-01: however many such errors come, a live connection is served in between."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        async with await server.connect() as client:
            await settled()
            server.listener.fail(*(error_of("ECONNABORTED") for _ in range(1000)))
            assert await ask(client) == b"HELLO\n"
            assert server.statistics().accept_errors < 1000


@pytest.mark.parametrize("kind", [ConnectionAbortedError, ConnectionResetError, TimeoutError])
async def test_connection_error_without_a_number(
    autojump_clock: trio.testing.MockClock, kind: type[OSError]
) -> None:
    """AE-01: a listener of one's own that raises it by hand is understood all the same."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        server.listener.fail(kind("by hand"))
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert server.statistics().accept_errors == 1


# No error at all: nobody is there ------------------------------------------------

NOBODY = {
    "EAGAIN": error_of("EAGAIN"),
    "EWOULDBLOCK": error_of("EWOULDBLOCK"),
    "EINTR": error_of("EINTR"),
    "by hand": BlockingIOError(),
    "by hand, a signal": InterruptedError(),
}
"""What accept(2) raises when nobody is there, and when it is to be called again."""

A_SIGNAL = ("EINTR", "by hand, a signal")


class Datagrams(trioserver.DatagramRequestHandler):
    """Answers a datagram with its upper-case form."""

    async def handle(self) -> None:
        await self.wfile.write((await self.rfile.read()).upper())


@pytest.mark.parametrize("name", NOBODY)
async def test_nobody_is_there(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """AE-01: a listener that says so as accept(2) does ends nothing, and counts for nothing."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        async with await server.connect() as live:
            server.listener.fail(*[NOBODY[name]] * 10)
            await settled()
            server.listener.fail(*[NOBODY[name]] * 10)
            async with await server.connect() as client:
                assert await ask(client) == b"HELLO\n"
            assert await ask(live) == b"HELLO\n"
        assert server.statistics().accept_errors == 0
    assert log_of(caplog) == []


@pytest.mark.parametrize("name", NOBODY)
async def test_no_datagram_is_there(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """AE-01: the same of a listener of datagrams."""
    server = MemoryDatagramServer(MEMORY, Datagrams)
    async with server.serving():
        server.listener.fail(*[NOBODY[name]] * 10)
        await settled()
        client = server.client()
        await client.send(b"hello")
        assert await client.receive() == b"HELLO"
        assert server.statistics().accept_errors == 0


@pytest.mark.parametrize("name", NOBODY)
async def test_get_request_finds_nobody(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """AE-01: the same of a `get_request`; of the inherited one it never comes."""

    class Hesitates(MemoryServer):
        hesitates = True

        def get_request(self, listener: trioserver.Listener) -> Any:
            if self.hesitates:
                self.hesitates = False
                raise NOBODY[name]
            return super().get_request(listener)

    async with Hesitates(MEMORY, Upper).serving() as server:
        server.listener.fail(NOBODY[name])
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert server.statistics().accept_errors == 0


@pytest.mark.parametrize("name", NOBODY)
async def test_nobody_is_there_for_handle_request(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """AE-01: `handle_request` goes on waiting, and at its end takes who is there."""
    timeouts = []

    class Counts(MemoryServer):
        async def handle_timeout(self) -> None:
            timeouts.append(trio.current_time())

    async with Counts(MEMORY, Upper, timeout=1) as server:
        server.listener.fail(NOBODY[name])
        await server.handle_request()
        assert timeouts == [1]
        client = await server.connect()
        await client.send_eof()
        server.listener.fail(NOBODY[name])
        await server.handle_request()
        assert await read_to_end(client) == b""
        assert timeouts == [1]


@pytest.mark.parametrize("name", A_SIGNAL)
@pytest.mark.parametrize("how", ["drain", "handle_request"])
async def test_signal_during_the_last_look(
    autojump_clock: trio.testing.MockClock, how: str, name: str
) -> None:
    """AE-01: after it nobody looks again, so an interrupted accept is made again at once."""
    async with MemoryServer(MEMORY, Upper, timeout=0) as server:
        client = await server.connect()
        await client.send_eof()
        server.listener.fail(NOBODY[name])
        if how == "drain":
            server.shutdown()
            await server.serve_forever()
        else:
            await server.handle_request()
        assert await read_to_end(client) == b""
        assert server.statistics().accepted == 1


class Spinning(MemoryListener):
    """Never waits, not even for the blink of an eye, and always says that nobody is there."""

    async def wait_acceptable(self) -> None:
        pass

    def accept_now(self) -> Any:
        if self.errors:
            raise self.errors[0]
        return super().accept_now()


@pytest.mark.parametrize("name", ["EAGAIN", "EINTR", "ECONNABORTED"])
async def test_listener_without_a_checkpoint_stops_nobody(name: str) -> None:
    """AE-01: live connections have their turn, and the server can be ended."""

    class Server(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            self.listener = Spinning(MEMORY)
            return [self.listener]

    with trio.fail_after(10):
        async with Server(MEMORY, Upper).serving() as server:
            async with await server.connect() as client:
                assert await ask(client) == b"HELLO\n"
                server.listener.errors.append(error_of(name))
                for _ in range(10):
                    assert await ask(client) == b"HELLO\n"


class Looks(MemoryListener):
    """Looks again when it is woken, and then says that it was closed, as it has to."""

    async def wait_acceptable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self.closed:
                raise trio.ClosedResourceError
            await self._acceptors.park()


async def test_listener_that_is_closed_in_the_step_in_which_it_is_woken() -> None:
    """AE-04: the drain has closed it, and that is no failure of the listener's."""

    class Server(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            self.listener = Looks(MEMORY)
            return [self.listener]

    server = Server(MEMORY, Upper)
    async with server.serving():
        await settled()
        client = server.listener.connect_now()
        server.shutdown()
        await client.send_eof()
        assert await read_to_end(client) == b""
    assert (await server.wait_closed()).statistics.accepted == 1


class Raises(SocketListener):
    """The kernel's, as somebody writes it who has read that it "raises as accept(2) does"."""

    def accept_now(self) -> Any:
        accepted, address = self.socket.accept()
        return SocketTransport(accepted), address


async def test_client_is_gone_before_it_is_accepted() -> None:
    """AE-01: on a real socket, readiness that somebody else has used up is no reason to end."""

    class Server(trioserver.TCPServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            [listener] = await super().server_bind()
            return [Raises(listener.socket)]

        def get_request(self, listener: trioserver.Listener) -> Any:
            if self.takes:
                self.takes = False
                listener.socket.accept()[0].close()
            return super().get_request(listener)

        takes = True

    with trio.fail_after(10):
        async with Server(("127.0.0.1", 0), Upper).serving() as server:
            with plain_client(server.server_address) as gone:
                assert await trio.to_thread.run_sync(gone.recv, 1) == b""
            with plain_client(server.server_address) as client:
                client.sendall(b"hello\n")
                assert await trio.to_thread.run_sync(client.recv, 10) == b"HELLO\n"
            assert server.statistics().accept_errors == 0


# The second tier: the program is out of something --------------------------------


@pytest.mark.parametrize("name", CAPACITY_ERRORS)
async def test_capacity_error_is_waited_out(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """AE-01: five such errors delay the waiting client by 155 ms, and harm nobody."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        listener = server.listener
        async with await server.connect() as live:
            assert await ask(live) == b"HELLO\n"
            listener.fail(*(error_of(name) for _ in range(5)))
            began = trio.current_time()
            async with await server.connect() as waiting, await server.connect() as later:
                assert await ask(live) == b"HELLO\n"
                assert trio.current_time() == began
                assert await ask(waiting) == b"HELLO\n"
                assert trio.current_time() == pytest.approx(began + 0.155, abs=1e-9)
                assert await ask(later) == b"HELLO\n"
                assert trio.current_time() == pytest.approx(began + 0.155, abs=1e-9)
            assert await ask(live) == b"HELLO\n"
        assert server.listener is listener
        assert server.statistics().accept_errors == 5


PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0)


async def test_capacity_pauses_double_up_to_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: the pauses are 5 ms, doubling to 1 s, at exact instants."""
    async with WatchedServer(MEMORY, Upper).serving() as server:
        place, _ = server.places
        await settled()
        place.fail(*(error_of("ENOMEM") for _ in PAUSES))
        began = trio.current_time()
        async with await place.connect() as client:
            assert await ask(client) == b"HELLO\n"
    tried = [instant for instant in place.instants if instant >= began]
    assert tried[: len(PAUSES) + 1] == list(itertools.accumulate(PAUSES, initial=began))


async def test_capacity_pauses_begin_anew(autojump_clock: trio.testing.MockClock) -> None:
    """AE-01: once an accept has worked, the next shortage begins with the shortest pause."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        for _ in range(2):
            server.listener.fail(*(error_of("EMFILE") for _ in range(3)))
            began = trio.current_time()
            async with await server.connect() as client:
                assert await ask(client) == b"HELLO\n"
            assert trio.current_time() == pytest.approx(began + 0.035, abs=1e-9)


async def test_capacity_pause_goes_on_after_other_errors(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-01: a connection's own error in between does not end a shortage."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        server.listener.fail(*map(error_of, ("EMFILE", "ECONNABORTED", "EMFILE")))
        began = trio.current_time()
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert trio.current_time() == pytest.approx(began + 0.015, abs=1e-9)
    assert len(log_of(caplog)) == 2


async def test_capacity_pause_is_one_listeners(autojump_clock: trio.testing.MockClock) -> None:
    """AE-01: while one listener pauses, another accepts."""
    async with WatchedServer(MEMORY, Upper).serving() as server:
        first, second = server.places
        first.fail(*(error_of("EMFILE") for _ in range(5)))
        began = trio.current_time()
        async with await second.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert trio.current_time() == began


async def test_capacity_error_is_logged_when_it_begins_and_when_it_ends(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-01: a shortage is two records, whatever it lasts; they say where, why and how long."""
    async with MemoryServer(("here", 80), Upper).serving() as server:
        server.listener.fail(*(error_of("ENOBUFS") for _ in range(100)))
        await settled()
        (begin,) = log_of(caplog)
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
    assert log_of(caplog)[0] == begin
    _, end = log_of(caplog)
    assert "here:80" in begin
    assert os.strerror(errno.ENOBUFS) in begin
    assert "here:80" in end
    assert "100 errors" in end


async def test_capacity_error_ends_with_an_accept(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-01: a shortage is over when somebody was accepted, not when a slot was missing instead."""
    async with WatchedServer(MEMORY, Upper, limits=Limits(requests=1)).serving() as server:
        first, second = server.places
        first.fail(error_of("EMFILE"))
        await trio.sleep(1)
        async with await second.connect():
            await settled()
            client = await first.connect()
            await settled()
            assert len(log_of(caplog)) == 1
        async with client:
            assert await ask(client) == b"HELLO\n"
    assert len(log_of(caplog)) == 2


async def test_capacity_error_under_handle_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: `handle_request` waits a shortage out as `serve_forever` does."""
    async with MemoryServer(MEMORY, Upper, timeout=1) as server:
        server.listener.fail(*(error_of("EMFILE") for _ in range(3)))
        async with await server.connect() as client:
            await client.send_all(b"hello\n")
            await client.send_eof()
            began = trio.current_time()
            await server.handle_request()
            assert trio.current_time() == pytest.approx(began + 0.035, abs=1e-9)
            assert await read_to_end(client) == b"HELLO\n"


async def test_capacity_error_until_handle_request_gives_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: a shortage longer than its patience is a time-out like any other."""
    timeouts = []

    class Patient(MemoryServer):
        async def handle_timeout(self) -> None:
            timeouts.append(trio.current_time())

    async with Patient(MEMORY, Upper, timeout=1) as server:
        server.listener.fail(*(error_of("ENOMEM") for _ in range(30)))
        began = trio.current_time()
        await server.handle_request()
    assert timeouts == [began + 1]


async def test_shortage_ends_with_its_server(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-06: a drain during a shortage does not claim that accepting works again."""
    server = MemoryServer(MEMORY, Upper)
    async with server.serving():
        server.listener.fail(error_of("EMFILE"))
        await settled()
    assert len(log_of(caplog)) == 1


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
async def test_stop_while_backing_off(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """AE-06: a server that pauses ends at once when it is told to."""
    server = MemoryServer(MEMORY, Upper)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        server.listener.fail(*(error_of("EMFILE") for _ in range(100)))
        await trio.sleep(5.5)
        began = trio.current_time()
        if how == "shutdown":
            server.shutdown()
        else:
            nursery.cancel_scope.cancel()
    assert trio.current_time() == began


# Turning away whom a shortage would leave hanging ---------------------------------


@attrs.define(eq=False)
class Exhausted(MemoryListener):
    """Accepts as the kernel does when the only free descriptor is the one held in reserve."""

    reserve: ReserveDescriptor | None = None
    exhausted: bool = True

    def accept_now(self) -> Any:
        if self.exhausted and self.reserve and self.reserve._descriptor is not None:
            raise error_of("EMFILE")
        return super().accept_now()


class ExhaustedServer(MemoryServer):
    """Serves where descriptors are short from the first client on."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        self.listener = Exhausted(MEMORY)
        return [self.listener]

    async def server_activate(self) -> None:
        await super().server_activate()
        self.listener.reserve = self._bound_run().admission.reserve


SHEDS_AFTER = sum(PAUSES[:9])  # the pause has then stood at a second for a second


async def test_shortage_turns_clients_away_when_it_lasts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: a second after the pause has reached its longest, those who wait are reset."""
    witness = Witness()
    async with ExhaustedServer(MEMORY, Upper, observers=[witness]).serving() as server:
        began = trio.current_time()
        clients = [await server.connect((str(number), 1)) for number in range(3)]
        for client in clients:
            await expect_reset(client)
            assert trio.current_time() == pytest.approx(began + SHEDS_AFTER, abs=1e-9)
        assert server.statistics().refused == 3
        assert server.statistics().accepted == 0
    refusals = [event[1:] for event in witness.events if event[0] == "request_refused"]
    assert refusals == [((str(number), 1), "out of descriptors") for number in range(3)]


@pytest.mark.parametrize("how", ["it lasts", "drain"])
@pytest.mark.parametrize("name", ["ECONNABORTED", "EINTR"])
async def test_shortage_turns_away_who_comes_after_an_error(
    autojump_clock: trio.testing.MockClock, name: str, how: str
) -> None:
    """AE-01: an error of one client among those who are turned away does not hide the next."""
    server = ExhaustedServer(MEMORY, Upper)
    async with server.serving():
        server.listener.fail(error_of(name))
        clients = [await server.connect((str(number), 1)) for number in range(3)]
        if how == "drain":
            await settled()
            server.shutdown()
        for client in clients:
            await expect_reset(client)
    report = await server.wait_closed()
    assert report.statistics.refused + len(report.unaccepted) == 3


@pytest.mark.parametrize("offset", [0.1, 0.7, 12.3, 1234.56, 98765.4321])
async def test_shortage_counts_its_second_at_any_hour(
    autojump_clock: trio.testing.MockClock, offset: float
) -> None:
    """AE-01: rounding does not make it wait for another pause."""
    await trio.sleep(offset)
    async with ExhaustedServer(MEMORY, Upper).serving() as server:
        began = trio.current_time()
        client = await server.connect()
        await expect_reset(client)
        assert trio.current_time() == pytest.approx(began + SHEDS_AFTER, abs=1e-6)


async def test_shortage_that_lasts_turns_newcomers_away_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: once it turns clients away, nobody waits longer than a pause."""
    async with ExhaustedServer(MEMORY, Upper).serving() as server:
        server.listener.connect_now()
        await trio.sleep(10)
        for _ in range(5):
            began = trio.current_time()
            client = await server.connect()
            await expect_reset(client)
            assert trio.current_time() <= began + 1


async def test_shortage_turns_a_long_queue_away(autojump_clock: trio.testing.MockClock) -> None:
    """AE-01: a queue of hundreds is gone within seconds, and live connections go on."""
    async with ExhaustedServer(MEMORY, Upper).serving() as server:
        server.listener.exhausted = False
        async with await server.connect() as live:
            assert await ask(live) == b"HELLO\n"
            server.listener.exhausted = True
            clients = [server.listener.connect_now() for _ in range(300)]
            began = trio.current_time()
            for client in clients:
                assert await ask(live) == b"HELLO\n"
                await expect_reset(client)
            assert trio.current_time() <= began + SHEDS_AFTER + 5


@attrs.define(eq=False)
class Tight(MemoryListener):
    """Accepts as the kernel does when there is one descriptor for clients, and one in reserve."""

    reserve: ReserveDescriptor | None = None
    accepted: list[trioserver.Transport] = attrs.field(factory=list)

    def accept_now(self) -> Any:
        free = 1 - sum(not transport.closed for transport in self.accepted)
        if self.reserve and self.reserve._descriptor is None:
            free += 1
        if free < 1:
            raise error_of("EMFILE")
        found = super().accept_now()
        if found is not None:
            self.accepted.append(found[0])
        return found


class TightServer(ExhaustedServer):
    """Serves where descriptors are enough for one client."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        self.listener = Tight(MEMORY)
        return [self.listener]


async def test_shortage_with_progress_turns_nobody_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: where each client that leaves makes room for the next, all are served, and soon."""

    async def take_a_moment(request: Any, client_address: Any, server: Any) -> None:
        await trio.sleep(0.05)

    async with TightServer(MEMORY, take_a_moment).serving() as server:
        clients = [server.listener.connect_now() for _ in range(60)]
        began = trio.current_time()
        for client in clients:
            assert await read_to_end(client) == b""
            await client.aclose()
        assert server.statistics().refused == 0
        assert trio.current_time() - began < 60 * (0.05 + 0.1)


async def test_shortage_in_a_drain(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-06: clients that a drain finds waiting, and cannot keep, are turned away and counted."""
    server = TightServer(MEMORY, Upper)
    async with server.serving():
        async with await server.connect() as live:
            await settled()
            waiting = [server.listener.connect_now(("late", number)) for number in range(3)]
            assert await ask(live) == b"HELLO\n"
            server.shutdown()
            for client in waiting:
                await expect_reset(client)
    report = await server.wait_closed()
    assert report.unaccepted == tuple(("late", number) for number in range(3))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_shortage_that_lasts_ends(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """AE-01: when there are descriptors again, the next client is served, and the log says so."""
    async with ExhaustedServer(MEMORY, Upper).serving() as server:
        server.listener.connect_now()
        await trio.sleep(10)
        server.listener.exhausted = False
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
    assert len(log_of(caplog)) == 2
    assert "again" in log_of(caplog)[1]


async def test_shortage_of_memory_turns_nobody_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-01: where one more descriptor would not help, clients wait for the end of the shortage."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        server.listener.fail(*(error_of("ENOMEM") for _ in range(30)))
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert server.statistics().refused == 0


async def test_reserve_is_given_back() -> None:
    """AE-01: when the server has ended, the descriptor held in reserve is closed, too."""
    before = open_descriptors()
    async with MemoryServer(MEMORY, Upper).serving():
        await settled()
        assert len(open_descriptors() - before) == 1
    assert open_descriptors() == before


# The third tier: the listener is broken --------------------------------------------


async def failure_of(server: trioserver.BaseServer, kind: type[BaseException]) -> BaseException:
    """What ends the server, as it leaves `serve_forever`."""
    with trio.fail_after(10), pytest.raises(kind) as caught:
        await server.serve_forever()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        *map(error_of, FATAL_ERRORS),
        OSError("of no known number"),
        KeyError("custom"),
        trio.ClosedResourceError("custom"),
        SystemExit(3),
    ],
    ids=repr,
)
async def test_fatal_error_leaves_bare(error: BaseException) -> None:
    """AE-04, AE-05: any other error ends the server, and leaves `serve_forever` as it is."""
    server = WatchedServer(MEMORY, Upper)

    async def break_it() -> None:
        await settled()
        server.places[0].fail(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        assert await failure_of(server, type(error)) is error


async def test_fatal_error_that_is_a_group() -> None:
    """AE-05: a group that a listener raises is not taken for one of Trio's, and stays whole."""
    server, only = WatchedServer(MEMORY, Upper), ValueError("only")

    async def break_it() -> None:
        await settled()
        server.places[0].fail(ExceptionGroup("custom", [only]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        error = await failure_of(server, ExceptionGroup)
    assert isinstance(error, ExceptionGroup)
    assert (error.message, error.exceptions) == ("custom", (only,))


@pytest.mark.parametrize("error", [error_of("EBADF"), KeyError("custom")], ids=repr)
async def test_fatal_error_closes_everything(error: Exception) -> None:
    """AE-04, AE-05: then all listeners and all connections are closed, and the report says why."""
    witness = Witness()
    server = WatchedServer(MEMORY, Upper, observers=[witness])
    clients = []

    async def break_it() -> None:
        await settled()
        clients.append(await server.places[1].connect())
        assert await ask(clients[0]) == b"HELLO\n"
        server.places[0].fail(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        await failure_of(server, type(error))
        assert [place.closed for place in server.places] == [True, True]
        assert await read_to_end(clients[0]) == b""
        report = await server.wait_closed()
    assert type(error).__name__ in report.reason
    assert witness.outcomes == ["cancelled"]
    assert witness.names[-1] == "server_closed"


async def test_fatal_error_beside_a_backing_off_listener(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """AE-04: one listener that pauses does not hold up the end that another causes."""
    server = WatchedServer(MEMORY, Upper)

    async def break_it() -> None:
        await settled()
        first, second = server.places
        first.fail(*(error_of("EMFILE") for _ in range(100)))
        await trio.sleep(5.5)
        second.fail(error_of("EBADF"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        await failure_of(server, OSError)
        assert trio.current_time() == 5.5


async def test_fatal_error_under_a_handled_request() -> None:
    """AE-04: `handle_request` raises it, too, bare."""
    error = error_of("EBADF")
    async with MemoryServer(MEMORY, Upper) as server:
        server.listener.fail(error)
        with pytest.raises(OSError, match="Bad file") as caught:
            await server.handle_request()
    assert caught.value is error


async def test_fatal_error_in_the_last_look_of_a_handled_request() -> None:
    """AE-04: also when `handle_request` only looks, and does not wait."""
    error = error_of("EBADF")
    async with MemoryServer(MEMORY, Upper, timeout=0) as server:
        server.listener.fail(error)
        with pytest.raises(OSError, match="Bad file") as caught:
            await server.handle_request()
    assert caught.value is error


async def test_listening_socket_shut_down_underfoot() -> None:
    """AE-04: a listening socket that somebody shuts down ends the server with its own error."""
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper)

    async def break_it() -> None:
        await settled()
        assert server.socket
        server.socket.shutdown(socket.SHUT_RDWR)

    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        error = await failure_of(server, OSError)
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    assert open_descriptors() == before


async def test_listening_socket_closed_underfoot() -> None:
    """AE-04: one that somebody closes, telling Trio, ends it with `trio.ClosedResourceError`."""
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper)

    async def break_it() -> None:
        await settled()
        assert server.socket
        trio.lowlevel.notify_closing(server.socket)
        server.socket.close()

    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        await failure_of(server, trio.ClosedResourceError)
    assert open_descriptors() == before


async def test_listening_socket_closed_while_the_server_is_full() -> None:
    """AE-04: one that is closed while all slots are taken ends the server when one is free."""
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper, limits=Limits(requests=1))

    async def break_it() -> None:
        await settled()
        with plain_client(server.server_address):
            await settled()
            assert server.socket
            server.socket.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_it)
        error = await failure_of(server, Exception)
    assert isinstance(error, OSError | trio.ClosedResourceError)


# get_request -------------------------------------------------------------------------


async def test_get_request_drops_a_client() -> None:
    """BP-02: None for a client that was accepted resets it, counts it, and serves the next."""
    witness = Witness()

    class Picky(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            found = super().get_request(listener)
            return None if found is None or found[1][0] == "unwanted" else found

    async with Picky(MEMORY, Upper, observers=[witness]).serving() as server:
        unwanted = await server.connect(("unwanted", 1))
        async with await server.connect(("wanted", 1)) as wanted:
            assert await ask(wanted) == b"HELLO\n"
        await expect_reset(unwanted)
        assert server.statistics().refused == 1
    assert ("request_refused", ("unwanted", 1), "get_request") in witness.events


async def test_get_request_that_looks_for_the_right_client() -> None:
    """AE-05: of clients that an override accepts one after the other, no one is forgotten."""

    class Choosy(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            while (found := super().get_request(listener)) and found[1][0] == "unwanted":
                pass
            return found

    async with Choosy(MEMORY, Upper).serving() as server:
        unwanted = [server.listener.connect_now(("unwanted", n)) for n in range(3)]
        async with await server.connect(("wanted", 1)) as wanted:
            assert await ask(wanted) == b"HELLO\n"
        for client in unwanted:
            await expect_reset(client)
        assert server.statistics().refused == 3


async def test_get_request_wraps_a_client() -> None:
    """AE-05: hooks and handler get what an override returns, and the connection is closed."""
    seen = []

    class Wrapped:
        def __init__(self, connection: trioserver.Connection) -> None:
            self.connection = connection

    class Wrapping(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            found = super().get_request(listener)
            return found and (Wrapped(found[0]), "somebody")

        async def verify_request(self, request: Any, client_address: Any) -> bool:
            seen.append(("verify", type(request), client_address))
            return True

        async def shutdown_request(self, request: Any) -> None:
            seen.append(("shutdown", type(request)))

    async def look(request: Any, client_address: Any, server: Any) -> None:
        seen.append(("handle", type(request), client_address))
        await request.connection.sendall(b"seen")

    async with Wrapping(MEMORY, look).serving() as server:
        async with await server.connect() as client:
            with trio.fail_after(10):
                assert await read_to_end(client) == b"seen"
    expected = [("verify", Wrapped, "somebody"), ("handle", Wrapped, "somebody")]
    assert seen == [*expected, ("shutdown", Wrapped)]


async def test_get_request_wraps_a_client_for_a_class(autojump_clock: object) -> None:
    """AE-05: a handler class is given the wrapper, too, and cleans up in its time."""

    class Wrapped:
        def __init__(self, connection: trioserver.Connection) -> None:
            self.connection = connection

        async def linger(self) -> None:
            """Nothing."""

        async def aclose(self) -> None:
            """Nothing."""

    class Wrapping(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> tuple[Any, Any] | None:
            found = super().get_request(listener)
            return found and (Wrapped(found[0]), found[1])

    class Fails(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise ValueError("its own")

        async def finish(self) -> None:
            try:
                await trio.sleep(60)
            finally:
                self.request.connection.reset()

    timeouts = trioserver.Timeouts(cleanup=3)
    async with Wrapping(MEMORY, Fails, timeouts=timeouts).serving() as server:
        await expect_reset(await server.connect())
        assert trio.current_time() == 3
    assert server.statistics().outcomes[trioserver.Outcome.FAILED] == 1


class Overridden(trioserver.TCPServer):
    """Does with each client what its attribute says."""

    override: Any

    def get_request(self, listener: trioserver.Listener) -> Any:
        return self.override(super().get_request(listener))


async def failure_with(override: Any, kind: type[BaseException]) -> BaseException:
    """What ends a real server with that override when a client comes, who must not be left open."""
    server = Overridden(("127.0.0.1", 0), Upper, override=override)
    clients = []

    async def connect() -> None:
        await settled()
        clients.append(plain_client(server.server_address))

    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        error = await failure_of(server, kind)
        (client,) = clients
        with client, pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(client.recv, 1)
    assert open_descriptors() == before
    return error


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
async def test_get_request_that_raises(error: BaseException) -> None:
    """AE-05: an error of an override ends the server, bare, and the accepted client is closed."""

    def fail(found: Any) -> None:
        raise error

    assert await failure_with(fail, type(error)) is error


@pytest.mark.parametrize("answer", [42, True, (), (1,), (1, 2, 3)], ids=repr)
async def test_get_request_that_returns_nonsense(answer: Any) -> None:
    """AE-05: an answer that is no pair is a TypeError or ValueError; the client is closed."""
    error = await failure_with(lambda found: answer, Exception)
    assert isinstance(error, TypeError | ValueError)


@pytest.mark.parametrize("answer", ["ab", (None, None), (object(), object())], ids=["ab", "N", "o"])
async def test_get_request_that_returns_a_nonsensical_pair(answer: Any) -> None:
    """AE-05: a pair that no handler can use is that request's error; the client is closed."""
    witness = Witness()
    server = Overridden(
        ("127.0.0.1", 0), Upper, override=lambda found: found and answer, observers=[witness]
    )
    before = open_descriptors()
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                assert await trio.to_thread.run_sync(client.recv, 1) == b""
    assert witness.outcomes == ["failed"]
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["ECONNRESET", "EMFILE", "EBADF", "ENOENT"])
async def test_get_request_with_an_error_of_the_clients(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """AE-01: an OSError after the accept is about that client alone: closed, counted, no pause."""

    class Looking(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> Any:
            found = super().get_request(listener)
            if found and found[1][0] == "bad":
                raise error_of(name)
            return found

    witness = Witness()
    async with Looking(MEMORY, Upper, observers=[witness]).serving() as server:
        began = trio.current_time()
        bad = await server.connect(("bad", 1))
        async with await server.connect(("good", 1)) as good:
            assert await ask(good) == b"HELLO\n"
        await expect_reset(bad)
        assert trio.current_time() == began
        assert server.statistics().accept_errors == 1
    assert witness.names.count("accept_failed") == 1


async def test_get_request_raising_before_the_accept() -> None:
    """AE-05: an override that fails before it accepts anybody ends the server, bare."""

    class Broken(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> Any:
            raise KeyError("mine")

    server = Broken(MEMORY, Upper)

    async def connect() -> None:
        await settled()
        server.listener.connect_now()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        error = await failure_of(server, KeyError)
    assert error.args == ("mine",)


async def test_get_request_that_makes_a_request_up() -> None:
    """AE-05: a request that did not come from an accept is a TypeError, and ends the server."""

    class Inventive(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> Any:
            return object(), "nobody"

    server = Inventive(MEMORY, Upper)

    async def connect() -> None:
        await settled()
        server.listener.connect_now()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        error = await failure_of(server, TypeError)
    assert "super().get_request" in str(error)


async def test_get_request_that_keeps_the_client_for_itself() -> None:
    """AE-05: a client that an override neither returns nor closes is closed for it."""
    kept = []

    async with Overridden(("127.0.0.1", 0), Upper, override=kept.append).serving() as server:
        with trio.fail_after(10), plain_client(server.server_address) as client:
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(client.recv, 1)
    assert kept[0][0].fileno() == -1


# Without descriptors -------------------------------------------------------------------

PROGRAM = """
import json, logging, os, resource, sys, time
import trioserver

class Handler(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            if line == b"open\\n":
                open("/dev/null").close()
            if line == b"figures\\n":
                counts = self.server.statistics()
                figures = [time.process_time(), counts.accept_errors, counts.refused]
                line = json.dumps(figures).encode() + b"\\n"
            await self.wfile.write(line.upper())

class Short(trioserver.Observer):
    def server_listening(self, addresses):
        highest = max(map(int, os.listdir("/proc/self/fd")))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, hard))
        print(json.dumps(addresses[0]), flush=True)

logging.basicConfig(level=logging.WARNING)
trioserver.run(trioserver.TCPServer(("127.0.0.1", 0), Handler, observers=[Short()]))
"""


@attrs.define(eq=False)
class ShortOfDescriptors:
    """A server in a process of its own that can open only a few descriptors more."""

    process: subprocess.Popen[str]
    address: tuple[str, int] = ("", 0)
    clients: list[socket.socket] = attrs.field(factory=list)
    draining: bool = False

    def connect(self) -> socket.socket:
        self.clients.append(plain_client(self.address))
        return self.clients[-1]

    def fill(self) -> list[socket.socket]:
        """Connect clients until one is not served; it is the last."""
        served = []
        while True:
            served.append(self.connect())
            served[-1].sendall(b"hello\n")
            if not select.select(served[-1:], [], [], 0.3)[0]:
                return served
            assert served[-1].recv(100) == b"HELLO\n"

    def figures(self, client: socket.socket) -> tuple[float, int, int]:
        """CPU seconds, errors of accepts, and clients refused."""
        client.sendall(b"figures\n")
        cpu, errors, refused = json.loads(client.recv(1000))
        return cpu, errors, refused

    def drain(self) -> None:
        """Tell the server to end; only once, because the second time it would cancel."""
        if not self.draining:
            self.draining = True
            self.process.terminate()

    def log(self) -> list[str]:
        """Leave, end the server, and give the records that it logged."""
        for client in self.clients:
            client.close()
        self.drain()
        _, log = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return [line for line in log.splitlines() if line.startswith(("WARNING", "ERROR"))]


@pytest.fixture
def short() -> Iterator[ShortOfDescriptors]:
    """Such a server."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        server = ShortOfDescriptors(process)
        try:
            host, port = json.loads(process.stdout.readline())
            server.address = (host, port)
            yield server
        finally:
            for client in server.clients:
                client.close()
            process.kill()


def echoes(client: socket.socket) -> bool:
    """Whether the client is served."""
    client.sendall(b"hello\n")
    return client.recv(100) == b"HELLO\n"


def test_descriptors_run_out_and_come_back(short: ShortOfDescriptors) -> None:
    """AE-02: a client that the kernel has queued is served as soon as a descriptor is free."""
    *served, waiting = short.fill()
    assert echoes(served[0])
    for client in served[-2:]:
        client.close()
    assert waiting.recv(100) == b"HELLO\n"
    begin, end = short.log()
    assert "cannot accept" in begin
    assert "again" in end


@pytest.mark.slow
def test_descriptors_run_out_for_long(short: ShortOfDescriptors) -> None:
    """AE-02: then clients are turned away promptly, at hardly any CPU time, and few records."""
    live, *others, waiting = short.fill()
    began, (cpu_before, _, _) = time.monotonic(), short.figures(live)
    with pytest.raises(ConnectionResetError):
        waiting.recv(100)
    assert time.monotonic() - began < 5
    with pytest.raises(ConnectionResetError):
        short.connect().recv(100)
    cpu, errors, refused = short.figures(live)
    assert refused == 2
    assert errors < 20
    assert cpu - cpu_before < 0.05 * (time.monotonic() - began)
    for client in others[:2]:
        client.close()
    assert echoes(short.connect())
    assert echoes(live)
    assert len(short.log()) == 2


def test_descriptors_run_out_inside_a_handler(short: ShortOfDescriptors) -> None:
    """AE-07: a handler that cannot open a file fails alone, in the log, too; the server lives."""
    *served, waiting = short.fill()
    served[0].sendall(b"open\n")
    assert served[0].recv(100) == b""
    served[0].close()
    assert waiting.recv(100) == b"HELLO\n"
    assert all(echoes(client) for client in served[1:])
    assert echoes(waiting)
    (error,) = [line for line in short.log() if line.startswith("ERROR")]
    assert "error while serving" in error


def test_descriptors_run_out_before_a_drain(short: ShortOfDescriptors) -> None:
    """AE-02: a server that drains at its limit ends in order, and turns away whoever waits."""
    *_, waiting = short.fill()
    short.drain()
    with pytest.raises(ConnectionResetError):
        waiting.recv(100)
    assert not [line for line in short.log() if line.startswith("ERROR")]
