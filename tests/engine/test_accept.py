"""Accepting: three tiers of errors, `get_request`, and no client that is lost in between."""

import errno
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, plain_client, read_to_end, running
from support.scenes import Scene, Visit, close, does, end, heard_by, in_memory, on_tcp, sleep, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Connection, Limits, Timeouts
from trioserver._engine.accept_errors import ReserveDescriptor
from trioserver._sockets.stream_sockets import SocketListener, SocketTransport
from trioserver.testing import MemoryDatagramServer, MemoryListener, MemoryServer, open_descriptors

ASKS = [b"hello\n", end]


def error_of(name):
    """The error that an accept raises."""
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def fails(*errors):
    """Have the next accepts raise these."""
    raised = [error_of(it) if isinstance(it, str) else it for it in errors]
    return lambda server: server.listener.fail(*raised)


def about(instant):
    """It, but for rounding."""
    return pytest.approx(instant, abs=1e-6)


async def ask(client, line=b"hello\n"):
    """What `Upper` replies; raises if the client is gone."""
    await client.send_all(line)
    return await client.receive_some()


@attrs.define(eq=False)
class Watched(MemoryListener):
    """Writes down when it was asked for a client."""

    instants: list[float] = attrs.field(factory=list)

    def accept_now(self):
        self.instants.append(trio.current_time())
        return super().accept_now()


class WatchedServer(MemoryServer):
    """Serves at two watched places."""

    async def server_bind(self):
        self.listener, self.other = (Watched(("memory", number)) for number in (1, 2))
        return [self.listener, self.other]


def server_at(kind):
    """A kind of server that listens with this kind of listener."""

    class Server(MemoryServer):
        async def server_bind(self):
            self.listener = kind(self.server_address)
            return [self.listener]

    return Server


# Errors that end nothing ------------------------------------------------------------

NOBODY = {
    "EAGAIN": error_of("EAGAIN"),
    "EWOULDBLOCK": error_of("EWOULDBLOCK"),
    "EINTR": error_of("EINTR"),
    "by hand": BlockingIOError(),
    "by hand, a signal": InterruptedError(),
}
"""What accept(2) raises when nobody is there, and when it is to be called again."""

nobody = pytest.mark.parametrize("name", NOBODY)

BEGINS, ENDS = "cannot accept", "again"


@table(
    ("errors", "counted", "delay", "logs"),
    {
        **{
            f"AE-01: {name}, an error of one connection, costs no time and no log record": (
                [error_of(name)] * 2,
                2,
                0,
                (),
            )
            for name in ("ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH", "ETIMEDOUT")
        },
        **{
            f"AE-01: {kind.__name__} that a listener raises by hand is understood": (
                [kind("by hand")],
                1,
                0,
                (),
            )
            for kind in (ConnectionAbortedError, ConnectionResetError, TimeoutError)
        },
        **{
            f"AE-01: nobody is there ({name}), and that counts for nothing": (
                [error] * 10,
                0,
                0,
                (),
            )
            for name, error in NOBODY.items()
        },
        **{
            f"AE-01: five of {name}, which the program is out of, are waited out": (
                [error_of(name)] * 5,
                5,
                0.155,
                (BEGINS, ENDS),
            )
            for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
        },
        "AE-01: a connection's own error in between does not end a shortage": (
            [*map(error_of, ("EMFILE", "ECONNABORTED", "EMFILE"))],
            3,
            0.015,
            (BEGINS, ENDS),
        ),
        "AE-01: a shortage is two records; they say where, why and how long": (
            [error_of("ENOBUFS")] * 100,
            100,
            0.635 + 0.64 + 92,
            (f"memory:1.*{os.strerror(errno.ENOBUFS)}", "memory:1.*100 errors"),
        ),
        "AE-01: where one more descriptor would not help, nobody is turned away": (
            [error_of("ENOMEM")] * 30,
            30,
            0.635 + 0.64 + 22,
            (BEGINS, ENDS),
        ),
    },
)
async def test_errors_that_end_nothing(
    errors,
    counted,
    delay,
    logs,
    autojump_clock,
):
    """Whatever an accept raises, live clients are served, and those who wait after a delay."""
    scene = (
        Scene(Upper, {1: b"one\n", 2: close}, meanwhile={1: fails(*errors)})
        .beside(
            *[Visit({1.001: ASKS}, comes_at=1).gives(b"HELLO\n", about(max(1.001, 1 + delay)))] * 2
        )
        .gives(b"ONE\n", 2, logs=logs)
    )
    played = await scene.gives(accept_errors=counted, refused=0).play()
    assert played.witness.names.count("accept_failed") == counted
    assert [it.at for it in played.log] == [1, about(1 + delay)][: len(logs)]


async def test_connection_errors_without_end_leave_others_their_turn():
    """AE-01: however many such errors come, a live connection is served in between."""
    async with in_memory().serving() as server, await server.connect() as client:
        await wait_all_tasks_blocked()
        fails(*["ECONNABORTED"] * 1000)(server)
        assert await ask(client) == b"HELLO\n"
        assert server.statistics().accept_errors < 1000


class Datagrams(trioserver.DatagramRequestHandler):
    async def handle(self):
        await self.wfile.write((await self.rfile.read()).upper())


@nobody
async def test_no_datagram_is_there(autojump_clock, name):
    """AE-01: the same of a listener of datagrams."""
    async with in_memory(Datagrams, MemoryDatagramServer).serving() as server:
        fails(*[NOBODY[name]] * 10)(server)
        await wait_all_tasks_blocked()
        client = server.client()
        await client.send(b"hello")
        assert await client.receive() == b"HELLO"
        assert server.statistics().accept_errors == 0


@nobody
async def test_get_request_finds_nobody(autojump_clock, name):
    """AE-01: the same of a `get_request`; of the inherited one it never comes."""

    class Hesitates(MemoryServer):
        hesitates = True

        def get_request(self, listener):
            if self.hesitates:
                self.hesitates = False
                raise NOBODY[name]
            return super().get_request(listener)

    scene = Scene(Upper, {2: ASKS}, comes_at=1, kind=Hesitates, meanwhile={1: fails(NOBODY[name])})
    await scene.gives(b"HELLO\n", 2, accept_errors=0).play()


class Counts(MemoryServer):
    """Knows when nobody has come."""

    async def server_activate(self):
        self.instants = []
        await super().server_activate()

    async def handle_timeout(self):
        self.instants.append(trio.current_time())


@nobody
async def test_nobody_is_there_for_handle_request(autojump_clock, name):
    """AE-01: `handle_request` goes on waiting, and at its end takes who is there."""
    async with in_memory(Upper, Counts, timeout=1) as server:
        fails(NOBODY[name])(server)
        await server.handle_request()
        assert server.instants == [1]
        client = await server.connect()
        await client.send_eof()
        fails(NOBODY[name])(server)
        await server.handle_request()
        assert await read_to_end(client) == b""
        assert server.instants == [1]


@pytest.mark.parametrize("name", ["EINTR", "by hand, a signal"])
@pytest.mark.parametrize("how", ["drain", "handle_request"])
async def test_signal_during_the_last_look(autojump_clock, how, name):
    """AE-01: after it nobody looks again, so an interrupted accept is made again at once."""
    async with in_memory(timeout=0) as server:
        client = await server.connect()
        await client.send_eof()
        fails(NOBODY[name])(server)
        if how == "drain":
            server.shutdown()
            await server.serve_forever()
        else:
            await server.handle_request()
        assert await read_to_end(client) == b""
        assert server.statistics().accepted == 1


class Spinning(MemoryListener):
    """Never waits, not even for the blink of an eye, and always says that nobody is there."""

    async def wait_acceptable(self):
        pass

    def accept_now(self):
        if self.errors:
            raise self.errors[0]
        return super().accept_now()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EAGAIN", "EINTR", "ECONNABORTED"])
async def test_listener_without_a_checkpoint_stops_nobody(name):
    """AE-01: live connections have their turn, and the server can be ended."""
    async with running(server := in_memory(Upper, server_at(Spinning))):
        async with await server.connect() as client:
            assert await ask(client) == b"HELLO\n"
            server.listener.errors.append(error_of(name))
            for _ in range(10):
                assert await ask(client) == b"HELLO\n"


class Looks(MemoryListener):
    """Looks again when it is woken, and then says that it was closed, as it has to."""

    async def wait_acceptable(self):
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self.closed:
                raise trio.ClosedResourceError
            await self._acceptors.park()


async def test_listener_that_is_closed_in_the_step_in_which_it_is_woken(
    autojump_clock,
):
    """AE-04: the drain has closed it, and that is no failure of the listener's."""
    late = Visit({1.25: end}, comes_at=1).gives(b"", 1.25)
    scene = Scene(Upper, {0: end}, 1, kind=server_at(Looks)).beside(late)
    await scene.gives(b"", 0, "completed", "completed").play()


class Raises(SocketListener):
    """The kernel's, as somebody writes it who has read that it "raises as accept(2) does"."""

    def accept_now(self):
        accepted, address = self.socket.accept()
        return SocketTransport(accepted), address


async def test_client_is_gone_before_it_is_accepted():
    """AE-01: on a real socket, readiness that somebody else has used up is no reason to end."""

    class Server(trioserver.TCPServer):
        takes = True

        async def server_bind(self):
            [listener] = await super().server_bind()
            return [Raises(listener.socket)]

        def get_request(self, listener):
            if self.takes:
                self.takes = False
                listener.socket.accept()[0].close()
            return super().get_request(listener)

    async with running(server := on_tcp(kind=Server)) as address:
        with plain_client(address) as gone:
            assert await heard_by(gone) == b""
        with plain_client(address) as client:
            client.sendall(b"hello\n")
            assert await trio.to_thread.run_sync(client.recv, 10) == b"HELLO\n"
        assert server.statistics().accept_errors == 0


# The second tier: the program is out of something --------------------------------

PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0)


async def test_capacity_pauses_double_up_to_a_second(autojump_clock):
    """AE-01: the pauses are 5 ms, doubling to 1 s, at exact instants."""
    shortage = {1: fails(*["ENOMEM"] * len(PAUSES))}
    scene = Scene(Upper, {9: ASKS}, comes_at=1, kind=WatchedServer, meanwhile=shortage)
    played = await scene.gives(b"HELLO\n", 9, logs=[BEGINS, ENDS]).play()
    tried = [instant for instant in played.server.listener.instants if instant >= 1]
    assert tried[: len(PAUSES) + 1] == list(itertools.accumulate(PAUSES, initial=1))


@table(
    {
        "AE-01: once an accept has worked, the next begins with the shortest pause": Scene(
            Upper,
            {1.001: ASKS},
            comes_at=1,
            meanwhile={1: fails(*["EMFILE"] * 3), 2: fails(*["EMFILE"] * 3)},
        )
        .beside(Visit({2.001: ASKS}, comes_at=2).gives(b"HELLO\n", about(2.035)))
        .gives(b"HELLO\n", about(1.035), logs=[BEGINS, ENDS] * 2),
        "AE-06: a drain during a shortage does not claim that accepting works again": Scene(
            Upper, {0: end}, 1.001, meanwhile={1: fails("EMFILE")}
        ).gives(closed_at=1.001, logs=[BEGINS]),
        "AE-06: a server that pauses ends at once when it is told to": Scene(
            Upper, {0: end}, 6.5, meanwhile={1: fails(*["EMFILE"] * 100)}
        ).gives(closed_at=6.5, logs=[BEGINS]),
    }
)
async def test_shortage(scene, autojump_clock):
    """While the program is out of something, the server pauses between accepts."""
    await scene.play()


async def test_cancelled_while_backing_off(autojump_clock):
    """AE-06: a server that pauses ends at once when it is cancelled."""
    server = in_memory()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        fails(*["EMFILE"] * 100)(server)
        await trio.sleep(5.5)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 5.5


async def test_capacity_pause_is_one_listeners(autojump_clock):
    """AE-01: while one listener pauses, another accepts."""
    async with in_memory(Upper, WatchedServer).serving() as server:
        fails(*["EMFILE"] * 5)(server)
        async with await server.other.connect() as client:
            assert await ask(client) == b"HELLO\n"
        assert trio.current_time() == 0


async def test_capacity_error_ends_with_an_accept(autojump_clock, caplog):
    """AE-01: a shortage is over when somebody was accepted, not when a slot was missing instead."""
    async with in_memory(Upper, WatchedServer, limits=Limits(requests=1)).serving() as server:
        fails("EMFILE")(server)
        await trio.sleep(1)
        async with await server.other.connect():
            await wait_all_tasks_blocked()
            client = await server.connect()
            await wait_all_tasks_blocked()
            assert len(caplog.records) == 1
        async with client:
            assert await ask(client) == b"HELLO\n"
    assert len(caplog.records) == 2


async def test_capacity_error_under_handle_request(autojump_clock):
    """AE-01: `handle_request` waits a shortage out; one that is too long is a time-out."""
    async with in_memory(Upper, Counts, timeout=1) as server:
        fails(*["EMFILE"] * 3)(server)
        client = await server.connect()
        await client.send_all(b"hello\n")
        await client.send_eof()
        await server.handle_request()
        assert trio.current_time() == about(0.035)
        assert await read_to_end(client) == b"HELLO\n"
        began = trio.current_time()
        fails(*["ENOMEM"] * 30)(server)
        await server.handle_request()
        assert server.instants == [began + 1]


# Turning away whom a shortage would leave hanging ---------------------------------


@attrs.define(eq=False)
class Exhausted(MemoryListener):
    """Accepts as the kernel does when there are so many descriptors, and one in reserve."""

    reserve: ReserveDescriptor | None = None
    descriptors: float = 0
    accepted: list[trioserver.Transport] = attrs.field(factory=list)

    def accept_now(self):
        free = self.descriptors - sum(not transport.closed for transport in self.accepted)
        if self.reserve and self.reserve._descriptor is None:
            free += 1
        if free < 1:
            raise error_of("EMFILE")
        found = super().accept_now()
        if found is not None:
            self.accepted.append(found[0])
        return found


class ExhaustedServer(server_at(Exhausted)):
    """Serves where descriptors are short from the first client on."""

    async def server_activate(self):
        await super().server_activate()
        self.listener.reserve = self._bound_run().admission.reserve


def has_descriptors(number):
    """So many of them are left."""

    def leave(server):
        server.listener.descriptors = number

    return leave


SHEDS_AFTER = sum(PAUSES[:9])  # the pause has then stood at a second for a second
WITHIN = 9  # 0.15 s for each of 60 clients; 5 s for a queue of hundreds, after that
LATE = [("late", number) for number in range(3)]


@table(
    {
        "AE-01: a second after the pause is at its longest, those who wait are reset": Scene(Upper)
        .beside(*[Visit().gives(b"", about(SHEDS_AFTER), breaks=True)] * 2)
        .gives(b"", about(SHEDS_AFTER), breaks=True, logs=[BEGINS], refused=3, accepted=0),
        "AE-01: a queue of hundreds is gone within seconds, and live connections go on": Scene(
            Upper, {0: b"one\n", 8.5: [b"two\n", end]}, meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit(comes_at=1.5).gives(b"", breaks=True)] * 300)
        .gives(b"ONE\nTWO\n", 8.5, logs=[BEGINS], refused=300),
        "AE-01: where each client that leaves makes room for the next, all are served": Scene(
            does(sleep(0.05)), meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit().gives(b"")] * 59)
        .gives(b"", logs=[BEGINS], refused=0),
        "AE-06: clients that a drain finds waiting, and cannot keep, are turned away": Scene(
            Upper, {0.5: b"hello\n"}, 1, meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit(address=who, comes_at=0.998).gives(b"", 1, breaks=True) for who in LATE])
        .gives(b"HELLO\n", 1, unaccepted=tuple(LATE), logs=[BEGINS]),
        "AE-01: when there are descriptors again, the next is served, and the log says so": Scene(
            Upper, meanwhile={7: has_descriptors(2)}
        )
        .beside(Visit({8: ASKS}, comes_at=8).gives(b"HELLO\n"))
        .gives(b"", breaks=True, logs=[BEGINS, ENDS]),
    }
)
async def test_shortage_of_descriptors(scene, autojump_clock):
    """Who would be left hanging in a shortage that lasts is turned away."""
    played = await scene.gives(kind=ExhaustedServer).play()
    assert {reason for _, reason in played.refusals} <= {"out of descriptors", "the server drains"}
    assert max(heard.ended_at for heard in played.heard) <= WITHIN


@pytest.mark.parametrize("drain_at", [None, 0.5])
@pytest.mark.parametrize("name", ["ECONNABORTED", "EINTR"])
async def test_shortage_turns_away_who_comes_after_an_error(autojump_clock, name, drain_at):
    """AE-01: an error of one client among those who are turned away does not hide the next."""
    others = [Visit().gives(b"", breaks=True)] * 2
    scene = Scene(Upper, {}, drain_at, kind=ExhaustedServer).beside(*others)
    scene = attrs.evolve(scene, meanwhile={0: fails(name)})
    report = (await scene.gives(b"", breaks=True, logs=[BEGINS]).play()).report
    assert report.statistics.refused + len(report.unaccepted) == 3


@pytest.mark.parametrize("offset", [0.1, 0.7, 12.3, 1234.56, 98765.4321])
async def test_shortage_counts_its_second_at_any_hour(autojump_clock, offset):
    """AE-01: rounding does not make it wait for another pause; then nobody waits long."""
    later = [offset + 10 + 1.3 * n for n in range(5)]
    others = [Visit(comes_at=instant).gives(b"", breaks=True) for instant in later]
    scene = Scene(Upper, comes_at=offset, kind=ExhaustedServer).beside(*others)
    played = await scene.gives(b"", about(offset + SHEDS_AFTER), breaks=True, logs=[BEGINS]).play()
    for came_at, heard in zip(later, played.heard[1:], strict=True):
        assert heard.ended_at <= came_at + 1


async def test_reserve_is_given_back():
    """AE-01: when the server has ended, the descriptor held in reserve is closed, too."""
    before = open_descriptors()
    async with in_memory().serving():
        await wait_all_tasks_blocked()
        assert len(open_descriptors() - before) == 1
    assert open_descriptors() == before


# The third tier: the listener is broken --------------------------------------------


async def failure_of(server, harm):
    """What ends the server, as it leaves `serve_forever`, when it is harmed."""

    async def do_harm():
        await wait_all_tasks_blocked()
        harmed = harm(server)
        if isinstance(harmed, Coroutine):
            await harmed

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do_harm)
            with pytest.raises(BaseException) as caught:  # noqa: PT011  (whatever it is)
                await server.serve_forever()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        *map(error_of, ("EBADF", "ENOTSOCK", "EINVAL", "EFAULT")),
        OSError("of no known number"),
        KeyError("custom"),
        trio.ClosedResourceError("custom"),
        SystemExit(3),
        ExceptionGroup("custom", [ValueError("only")]),
    ],
    ids=repr,
)
async def test_fatal_error_leaves_bare(error):
    """AE-04, AE-05: any other error ends the server, and leaves `serve_forever` as it is.

    A group that a listener raises is not taken for one of Trio's, and stays whole.
    """
    found = await failure_of(in_memory(Upper, WatchedServer), fails(error))
    if isinstance(error, ExceptionGroup):
        assert (found.message, found.exceptions) == (error.message, error.exceptions)
    else:
        assert found is error


@pytest.mark.parametrize("error", [error_of("EBADF"), KeyError("custom")], ids=repr)
async def test_fatal_error_closes_everything(error):
    """AE-04, AE-05: then all listeners and all connections are closed, and the report says why."""
    server = in_memory(Upper, WatchedServer, observers=[witness := Witness()])
    clients = []

    async def harm(server):
        clients.append(await server.other.connect())
        assert await ask(clients[0]) == b"HELLO\n"
        fails(error)(server)

    assert await failure_of(server, harm) is error
    assert server.listener.closed
    assert server.other.closed
    assert await read_to_end(clients[0]) == b""
    assert type(error).__name__ in (await server.wait_closed()).reason
    assert witness.outcomes == ["cancelled"]
    assert witness.names[-1] == "server_closed"


async def test_fatal_error_beside_a_backing_off_listener(autojump_clock):
    """AE-04: one listener that pauses does not hold up the end that another causes."""

    async def harm(server):
        fails(*["EMFILE"] * 100)(server)
        await trio.sleep(5.5)
        server.other.fail(error_of("EBADF"))

    await failure_of(in_memory(Upper, WatchedServer), harm)
    assert trio.current_time() == 5.5


@pytest.mark.parametrize("patience", [None, 0], ids=["waits", "only looks"])
async def test_fatal_error_under_a_handled_request(patience):
    """AE-04: `handle_request` raises it, too, bare."""
    async with in_memory(timeout=patience) as server:
        fails(error := error_of("EBADF"))(server)
        with pytest.raises(OSError, match="Bad file") as caught:
            await server.handle_request()
    assert caught.value is error


def shut_it_down(server):
    """Somebody shuts the listening socket down."""
    server.socket.shutdown(socket.SHUT_RDWR)


def close_it(server):
    """Somebody closes it, and tells Trio."""
    trio.lowlevel.notify_closing(server.socket)
    server.socket.close()


async def close_it_while_full(server):
    """Somebody closes it while all slots are taken; then one is free."""
    with plain_client(server.server_address):
        await wait_all_tasks_blocked()
        server.socket.close()


@table(
    ("harm", "kind", "number"),
    {
        "AE-04: one that somebody shuts down ends the server with its own error": (
            shut_it_down,
            OSError,
            errno.EINVAL,
        ),
        "AE-04: one that somebody closes, with trio.ClosedResourceError": (
            close_it,
            trio.ClosedResourceError,
            None,
        ),
        "AE-04: one that is closed while all slots are taken, when one is free": (
            close_it_while_full,
            (OSError, trio.ClosedResourceError),
            None,
        ),
    },
)
async def test_listening_socket_underfoot(harm, kind, number):
    """A listening socket that is taken away ends the server."""
    before = open_descriptors()
    error = await failure_of(on_tcp(limits=Limits(requests=1)), harm)
    assert isinstance(error, kind)
    assert number is None or error.errno == number
    assert open_descriptors() == before


# get_request -------------------------------------------------------------------------


class Picky(MemoryServer):
    def get_request(self, listener):
        found = super().get_request(listener)
        return None if found is None or found[1][0] == "bad" else found


class Choosy(MemoryServer):
    def get_request(self, listener):
        while (found := super().get_request(listener)) and found[1][0] == "bad":
            pass
        return found


def server_raising(name):
    """One whose `get_request` raises this about one client."""

    class Looking(MemoryServer):
        def get_request(self, listener):
            found = super().get_request(listener)
            if found and found[1][0] == "bad":
                raise error_of(name)
            return found

    return Looking


REFUSES = {"refused": 3, "accept_errors": 0}
COUNTS = {"refused": 0, "accept_errors": 3}


@table(
    ("kind", "report"),
    {
        "BP-02: None for a client that was accepted resets it, and counts it": (Picky, REFUSES),
        "AE-05: of clients that are accepted one after the other, no one is forgotten": (
            Choosy,
            REFUSES,
        ),
        **{
            f"AE-01: {name} after the accept is about that client alone: closed, no pause": (
                server_raising(name),
                COUNTS,
            )
            for name in ("ECONNRESET", "EMFILE", "EBADF", "ENOENT")
        },
    },
)
async def test_get_request_drops_clients(kind, report, autojump_clock):
    """Clients whom an override does not want are closed, and the next is served at once."""
    others = [Visit({0: ASKS}, address=("good", 1)).gives(b"HELLO\n", 0)]
    others += [Visit(address=("bad", n)).gives(b"", 0, breaks=True) for n in (2, 3)]
    scene = Scene(Upper, address=("bad", 1), kind=kind).beside(*others)
    refusals = [(("bad", n), "get_request") for n in range(1, 1 + report["refused"])]
    given = {"report": report, "refusals": refusals}
    played = await scene.gives(b"", 0, breaks=True, **given).play()
    assert played.witness.names.count("accept_failed") == report["accept_errors"]


@attrs.frozen(eq=False)
class Wrapped:
    """What an override makes of a connection."""

    connection: Connection

    async def linger(self):
        """Nothing."""

    async def aclose(self):
        """Nothing."""


class Wrapping(MemoryServer):
    async def server_activate(self):
        self.seen = []
        await super().server_activate()

    def get_request(self, listener):
        found = super().get_request(listener)
        return found and (Wrapped(found[0]), "somebody")

    async def verify_request(self, request, client_address):
        self.seen.append(("verify", type(request), client_address))
        return True

    async def shutdown_request(self, request):
        self.seen.append(("shutdown", type(request)))


async def test_get_request_wraps_a_client(autojump_clock):
    """AE-05: hooks and handler get what an override returns, and the connection is closed."""

    async def look(request, client_address, server):
        server.seen.append(("handle", type(request), client_address))
        await request.connection.sendall(b"seen")

    played = await Scene(look, kind=Wrapping).gives(b"seen", 0).play()
    expected = [(what, Wrapped, "somebody") for what in ("verify", "handle")]
    assert played.server.seen == [*expected, ("shutdown", Wrapped)]


async def test_get_request_wraps_a_client_for_a_class(autojump_clock):
    """AE-05: a handler class is given the wrapper, too, and cleans up in its time."""

    class Fails(trioserver.BaseRequestHandler):
        async def handle(self):
            raise ValueError("its own")

        async def finish(self):
            try:
                await trio.sleep(60)
            finally:
                self.request.connection.reset()

    scene = Scene(Fails, kind=Wrapping, timeouts=Timeouts(cleanup=3))
    await scene.gives(b"", 3, "failed", breaks=True).play()


class Overridden(trioserver.TCPServer):
    """Does with each client what its attribute says."""

    override: Any

    def get_request(self, listener):
        return self.override(super().get_request(listener))


async def failure_with(override):
    """What ends a real server with that override when a client comes, who must not be left open."""
    clients = []

    def connect(server):
        clients.append(plain_client(server.server_address))

    before = open_descriptors()
    error = await failure_of(on_tcp(kind=Overridden, override=override), connect)
    with clients[0] as client, pytest.raises(ConnectionResetError):
        await heard_by(client)
    assert open_descriptors() == before
    return error


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
async def test_get_request_that_raises(error):
    """AE-05: an error of an override ends the server, bare, and the accepted client is closed."""

    def fail(found):
        raise error

    assert await failure_with(fail) is error


@pytest.mark.parametrize("answer", [42, True, (), (1,), (1, 2, 3)], ids=repr)
async def test_get_request_that_returns_nonsense(answer):
    """AE-05: an answer that is no pair is a TypeError or ValueError; the client is closed."""
    error = await failure_with(lambda found: answer)
    assert isinstance(error, TypeError | ValueError)


@pytest.mark.parametrize("answer", ["ab", (None, None), (object(), object())], ids=["ab", "N", "o"])
async def test_get_request_that_returns_a_nonsensical_pair(answer):
    """AE-05: a pair that no handler can use is that request's error; the client is closed."""
    before = open_descriptors()
    witness = Witness()
    async with running(
        on_tcp(kind=Overridden, override=lambda found: found and answer, observers=[witness])
    ) as address:
        with plain_client(address) as client:
            assert await heard_by(client) == b""
    assert witness.outcomes == ["failed"]
    assert open_descriptors() == before


class Broken(MemoryServer):
    def get_request(self, listener):
        raise KeyError("mine")


class Inventive(MemoryServer):
    def get_request(self, listener):
        return object(), "nobody"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Broken, KeyError, "mine"), (Inventive, TypeError, "super().get_request")],
)
async def test_get_request_without_an_accept(kind, error, message):
    """AE-05: an error before the accept, or a request that is made up, ends the server, bare."""
    found = await failure_of(in_memory(Upper, kind), lambda server: server.listener.connect_now())
    assert type(found) is error
    assert message in str(found)


async def test_get_request_that_keeps_the_client_for_itself():
    """AE-05: a client that an override neither returns nor closes is closed for it."""
    kept = []
    async with running(on_tcp(kind=Overridden, override=kept.append)) as address:
        with plain_client(address) as client, pytest.raises(ConnectionResetError):
            await heard_by(client)
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

    def connect(self):
        self.clients.append(plain_client(self.address))
        return self.clients[-1]

    def fill(self):
        """Connect clients until one is not served; it is the last."""
        served = []
        while True:
            served.append(self.connect())
            served[-1].sendall(b"hello\n")
            if not select.select(served[-1:], [], [], 0.3)[0]:
                return served
            assert served[-1].recv(100) == b"HELLO\n"

    def figures(self, client):
        """CPU seconds, errors of accepts, and clients refused."""
        client.sendall(b"figures\n")
        cpu, errors, refused = json.loads(client.recv(1000))
        return cpu, errors, refused

    def drain(self):
        """Tell the server to end; only once, because the second time it would cancel."""
        if not self.draining:
            self.draining = True
            self.process.terminate()

    def log(self):
        """Leave, end the server, and give the records that it logged."""
        for client in self.clients:
            client.close()
        self.drain()
        _, log = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return [line for line in log.splitlines() if line.startswith(("WARNING", "ERROR"))]


@pytest.fixture
def short():
    """Such a server."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def echoes(client):
    """Whether the client is served."""
    client.sendall(b"hello\n")
    return client.recv(100) == b"HELLO\n"


def test_descriptors_run_out_and_come_back(short):
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
def test_descriptors_run_out_for_long(short):
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


def test_descriptors_run_out_inside_a_handler(short):
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


def test_descriptors_run_out_before_a_drain(short):
    """AE-02: a server that drains at its limit ends in order, and turns away whoever waits."""
    *_, waiting = short.fill()
    short.drain()
    with pytest.raises(ConnectionResetError):
        waiting.recv(100)
    assert not [line for line in short.log() if line.startswith("ERROR")]
