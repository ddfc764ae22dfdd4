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

import attrs
import pytest
import trio
from support import Upper, Witness, descriptors, plain_client, read_to_end, running
from support.memory import assert_bare, leaves, raises_bare
from support.scenes import Scene, Visit, close, does, end, heard_by, in_memory, on_tcp, sleep, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Limits, Timeouts
from trioserver._engine.accept import ONE_BY_ONE
from trioserver._engine.accept_errors import ReserveDescriptor
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


def server_at(kind, number=1):
    """A kind of server that listens with so many of this kind of listener."""

    class Server(MemoryServer):
        async def server_bind(self):
            self.listeners = [kind(("memory", n + 1)) for n in range(number)]
            self.listener, self.other = self.listeners[0], self.listeners[-1]
            return self.listeners

    return Server


def overriding(override, kind=MemoryServer):
    """A server class with this in the place of `get_request`; it is given the original."""

    class Overriding(kind):
        def get_request(self, listener):
            return override(lambda: super(Overriding, self).get_request(listener))

    return Overriding


# Errors that end nothing ------------------------------------------------------------

NOBODY = {
    "EAGAIN": error_of("EAGAIN"),
    "EINTR": error_of("EINTR"),
    "by hand": BlockingIOError(),
    "by hand, a signal": InterruptedError(),
}
"""What accept(2) raises when nobody is there, and when it is to be called again."""

nobody = pytest.mark.parametrize("error", NOBODY.values(), ids=NOBODY)
BEGINS, ENDS = "cannot accept", "again"


@table(
    ("errors", "counted", "delay", "logs"),
    {
        **{
            f"AE-01: {name} of one connection costs nothing": ([name] * 2, 2, 0, ())
            for name in ("ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH", "ETIMEDOUT")
        },
        **{
            f"AE-01: so is {kind.__name__} by hand": ([kind("by hand")], 1, 0, ())
            for kind in (ConnectionAbortedError, ConnectionResetError, TimeoutError)
        },
        **{
            f"AE-01: nobody is there ({name}): it counts for nothing": ([error] * 10, 0, 0, ())
            for name, error in NOBODY.items()
        },
        **{
            f"AE-01: five {name} are waited out": ([name] * 5, 5, 0.155, (BEGINS, ENDS))
            for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
        },
        "AE-01: a connection's own error in between does not end a shortage": (
            *(["EMFILE", "ECONNABORTED", "EMFILE"], 3, 0.015, (BEGINS, ENDS)),
        ),
        "AE-01: a shortage is two records; they say where, why and how long": (
            *(["ENOBUFS"] * 100, 100, 0.635 + 0.64 + 92),
            (f"memory:1.*{os.strerror(errno.ENOBUFS)}", "memory:1.*100 errors"),
        ),
        "AE-01: where one more descriptor would not help, nobody is turned away": (
            *(["ENOMEM"] * 30, 30, 0.635 + 0.64 + 22, (BEGINS, ENDS)),
        ),
    },
)
async def test_errors_that_end_nothing(errors, counted, delay, logs, autojump_clock):
    """Whatever an accept raises, live clients are served, and those who wait after a delay.

    An observer is told of each error that is counted, with the listener's address.
    """
    errors = [error_of(it) if isinstance(it, str) else it for it in errors]
    waits = Visit({1.001: ASKS}, comes_at=1).gives(b"HELLO\n", about(max(1.001, 1 + delay)))
    scene = Scene(Upper, {1: b"one\n", 2: close}, meanwhile={1: fails(*errors)})
    scene = scene.beside(waits, waits).gives(b"ONE\n", 2, logs=logs)
    played = await scene.gives(accept_errors=counted, refused=0).play()
    failed = [event[1:] for event in played.witness.events if event[0] == "accept_failed"]
    assert failed == [(("memory", 1), error) for error in errors][:counted]
    assert [it.at for it in played.log] == [1, about(1 + delay)][: len(logs)]


async def test_connection_errors_without_end_leave_others_their_turn():
    """AE-01: however many such errors come, a live connection is served in between."""
    async with in_memory().serving() as server, await server.connect() as client:
        await wait_all_tasks_blocked()
        fails(*["ECONNABORTED"] * 1000)(server)
        assert await ask(client) == b"HELLO\n"
        assert server.statistics().accept_errors < 1000


@nobody
async def test_no_datagram_is_there(autojump_clock, error):
    """AE-01: the same of a listener of datagrams."""
    server = in_memory(does(lambda request: request.reply(b"hello")), MemoryDatagramServer)
    async with server.serving():
        fails(*[error] * 10)(server)
        await wait_all_tasks_blocked()
        client = server.client()
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        assert server.statistics().accept_errors == 0


@nobody
async def test_get_request_finds_nobody(autojump_clock, error):
    """AE-01: the same of a `get_request`."""
    errors = [error]

    def hesitates(get):
        for it in errors:
            errors.clear()
            raise it
        return get()

    scene = Scene(Upper, {2: ASKS}, comes_at=1, kind=overriding(hesitates))
    await scene.gives(b"HELLO\n", 2, accept_errors=0).play()


async def handles_one(server):
    """A client who says something is served by `handle_request`."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.send_eof()
    await server.handle_request()
    assert await read_to_end(client) == b"HELLO\n"


@nobody
async def test_errors_under_handle_request(autojump_clock, error):
    """AE-01: `handle_request` waits on where nobody is there, and at its end takes who is.

    It waits a shortage out; one that is too long is a time-out. AE-04: other errors it raises.
    """
    nobody_came_at = []

    class Server(MemoryServer):
        async def handle_timeout(self):
            nobody_came_at.append(trio.current_time())

    async with in_memory(Upper, Server, timeout=1) as server:
        fails(error)(server)
        await server.handle_request()
        fails(error)(server)
        await handles_one(server)
        fails(*["EMFILE"] * 3)(server)
        await handles_one(server)
        assert trio.current_time() == about(1.035)
        fails(fatal := error_of("EBADF"))(server)
        await raises_bare(fatal, server.handle_request)
        fails(*["ENOMEM"] * 30)(server)
        await server.handle_request()
        assert nobody_came_at == [1, about(2.035)]


@pytest.mark.parametrize("how", ["drain", "handle_request"])
@pytest.mark.parametrize("name", ["EINTR", "ECONNABORTED"])
async def test_signal_during_the_last_look(autojump_clock, how, name):
    """AE-01: after it nobody looks again, so an interrupted accept is made again at once.

    Nor does the error of one client hide the next. AE-04: what is fatal is raised then, too.
    """
    async with in_memory(timeout=0) as server:
        client = await server.connect()
        await client.send_eof()
        fails(name)(server)
        if how == "drain":
            server.shutdown()
        await (server.serve_forever if how == "drain" else server.handle_request)()
        assert await read_to_end(client) == b""
        assert server.statistics().accepted == 1
        if how == "handle_request":
            fails(fatal := error_of("EBADF"))(server)
            await raises_bare(fatal, server.handle_request)


class Spinning(MemoryListener):
    """Never waits, not even for the blink of an eye, and always says that nobody is there."""

    async def wait_acceptable(self):
        pass

    def accept_now(self):
        if self.errors:
            raise self.errors[0]
        return super().accept_now()


async def test_clients_that_come_alone(autojump_clock):
    """One look for another one is enough for eight of them; of a burst all are soon there."""
    seen = []

    class Looking(MemoryListener):
        def accept_now(self):
            found = super().accept_now()
            seen.append("nobody" if found is None else "one")
            return found

    async def visit(times):
        seen.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(server.connect)
        await wait_all_tasks_blocked()
        return seen.copy()

    async with running(server := in_memory(Upper, server_at(Looking))):
        assert await visit(1) == ["one", "nobody"]
        for _ in range(ONE_BY_ONE):
            assert await visit(1) == ["one"]
        assert await visit(1) == ["one", "nobody"]
        came = await visit(ONE_BY_ONE + 20)
        assert came[:ONE_BY_ONE] == ["one"] * ONE_BY_ONE
        assert sorted(came) == ["nobody"] + ["one"] * (ONE_BY_ONE + 20)


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


async def test_listener_that_is_closed_in_the_step_in_which_it_is_woken(autojump_clock):
    """AE-04: the drain has closed it, and that is no failure of the listener's."""
    late = Visit({1.25: end}, comes_at=1).gives(b"", 1.25)
    scene = Scene(Upper, {0: end}, 1, kind=server_at(Looks)).beside(late)
    await scene.gives(b"", 0, "completed", "completed").play()


# The second tier: the program is out of something --------------------------------

PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0)


async def test_capacity_pauses_double_up_to_a_second(autojump_clock):
    """AE-01: the pauses are 5 ms, doubling to 1 s, at exact instants."""
    tried = []

    def watched(get):
        tried.append(trio.current_time())
        return get()

    shortage = {1: fails(*["ENOMEM"] * len(PAUSES))}
    scene = Scene(Upper, {99: ASKS}, comes_at=1, kind=overriding(watched), meanwhile=shortage)
    await scene.gives(b"HELLO\n", 99, logs=[BEGINS, ENDS]).play()
    tried = [instant for instant in tried if instant >= 1]
    assert tried[: len(PAUSES) + 1] == list(itertools.accumulate(PAUSES, initial=1))


@table(
    {
        "AE-01: once an accept has worked, the next begins with the shortest pause": Scene(
            Upper, {1.001: ASKS}, comes_at=1, meanwhile={n: fails(*["EMFILE"] * 3) for n in (1, 2)}
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


async def test_capacity_error_is_one_listeners_and_ends_with_an_accept(autojump_clock, caplog):
    """AE-01: while one listener pauses, another accepts.

    A shortage is over when somebody was accepted, not when a slot was missing instead.
    """
    kind = server_at(MemoryListener, 2)
    async with in_memory(Upper, kind, limits=Limits(requests=1)).serving() as server:
        fails("EMFILE")(server)
        async with await server.other.connect() as other:
            assert await ask(other) == b"HELLO\n"
            assert trio.current_time() == 0
            await trio.sleep(1)
            client = await server.connect()
            await wait_all_tasks_blocked()
            assert len(caplog.records) == 1
        async with client:
            assert await ask(client) == b"HELLO\n"
    assert len(caplog.records) == 2


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
    return lambda server: setattr(server.listener, "descriptors", number)


SHEDS_AFTER = sum(PAUSES[:9])  # the pause has then stood at a second for a second
WITHIN = 9  # 0.15 s for each of 60 clients; 5 s for a queue of hundreds, after that
LATE = [("late", number) for number in range(3)]
TURNED_AWAY = Visit().gives(b"", breaks=True)


@table(
    {
        "AE-01: a second after the pause is at its longest, those who wait are reset": Scene(Upper)
        .beside(*[TURNED_AWAY.gives(b"", about(SHEDS_AFTER))] * 2)
        .gives(b"", about(SHEDS_AFTER), breaks=True, refused=3, accepted=0),
        "AE-01: a queue of hundreds is gone within seconds, and live connections go on": Scene(
            Upper, {0: b"one\n", 8.5: [b"two\n", end]}, meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit(comes_at=1.5).gives(b"", breaks=True)] * 300)
        .gives(b"ONE\nTWO\n", 8.5, refused=300),
        "AE-01: where each client that leaves makes room for the next, all are served": Scene(
            does(sleep(0.05)), meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit().gives(b"")] * 59)
        .gives(b"", refused=0),
        "AE-01: so they are after one that came alone, and it is told once": Scene(
            does(sleep(0.05)),
            comes_at=1,
            meanwhile={0: has_descriptors(2), 1.5: has_descriptors(1)},
        )
        .beside(*[Visit(comes_at=2).gives(b"")] * 40)
        .gives(b"", refused=0),
        "AE-06: clients that a drain finds waiting, and cannot keep, are turned away": Scene(
            Upper, {0.5: b"hello\n"}, 1, meanwhile={0: has_descriptors(1)}
        )
        .beside(*[Visit(address=who, comes_at=0.998).gives(b"", 1, breaks=True) for who in LATE])
        .gives(b"HELLO\n", 1, unaccepted=tuple(LATE)),
        "AE-01: when there are descriptors again, the next is served, and the log says so": Scene(
            Upper, meanwhile={7: has_descriptors(2)}
        )
        .beside(Visit({8: ASKS}, comes_at=8).gives(b"HELLO\n"))
        .gives(b"", breaks=True, logs=[BEGINS, ENDS]),
        **{
            f"AE-01: {name} does not hide the next{when}": Scene(
                Upper, {}, drain_at, meanwhile={0: fails(name)}
            )
            .beside(TURNED_AWAY, TURNED_AWAY)
            .gives(b"", breaks=True)
            for name in ("ECONNABORTED", "EINTR")
            for when, drain_at in {"": None, ", by a drain": 0.5}.items()
        },
    }
)
async def test_shortage_of_descriptors(scene, autojump_clock):
    """Who would be left hanging in a shortage that lasts is turned away."""
    played = await scene.gives(kind=ExhaustedServer, logs=scene.logs or [BEGINS]).play()
    assert {reason for _, reason in played.refusals} <= {"out of descriptors", "the server drains"}
    assert max(heard.ended_at for heard in played.heard) <= WITHIN


@pytest.mark.parametrize("offset", [0.1, 12.3, 98765.4321])
async def test_shortage_counts_its_second_at_any_hour(autojump_clock, offset):
    """AE-01: rounding does not make it wait for another pause; then nobody waits long."""
    later = [offset + 10 + 1.3 * n for n in range(5)]
    others = [Visit(comes_at=instant).gives(b"", breaks=True) for instant in later]
    scene = Scene(Upper, comes_at=offset, kind=ExhaustedServer).beside(*others)
    played = await scene.gives(b"", about(offset + SHEDS_AFTER), breaks=True, logs=[BEGINS]).play()
    for came_at, heard in zip(later, played.heard[1:], strict=True):
        assert heard.ended_at <= came_at + 1


# The third tier: the listener is broken --------------------------------------------


async def failure_of(server, harm):
    """What ends the server, as it leaves `serve_forever`, when it is harmed."""

    async def do_harm():
        await wait_all_tasks_blocked()
        harmed = harm(server)
        if isinstance(harmed, Coroutine):
            await harmed

    before = descriptors()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do_harm)
            with pytest.raises(BaseException) as caught:  # noqa: PT011  (whatever it is)
                await server.serve_forever()
    assert open_descriptors() == before
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        *map(error_of, ("EBADF", "ENOTSOCK", "EINVAL", "EFAULT")),
        *[OSError("of no known number"), KeyError("custom"), trio.ClosedResourceError("custom")],
        *[SystemExit(3), ExceptionGroup("custom", [ValueError("only")])],
    ],
    ids=repr,
)
async def test_fatal_error_leaves_bare(error):
    """AE-04, AE-05, LC-09: any other error ends the server, and leaves `serve_forever` as it is.

    A group that a listener raises is not taken for one of Trio's, and stays whole. All
    listeners and all connections are closed by then, and the report says why. Another listener
    that pauses does not hold this up.
    """
    kind, witness, clients = server_at(MemoryListener, 2), Witness(), []

    async def harm(server):
        clients.append(await server.other.connect())
        assert await ask(clients[0]) == b"HELLO\n"
        server.other.fail(*[error_of("EMFILE")] * 100)
        await wait_all_tasks_blocked()
        fails(error)(server)

    server = in_memory(Upper, kind, observers=[witness])
    found = await failure_of(server, harm)
    assert_bare(found, error)
    assert type(leaves(error)[0]).__name__ in (await server.wait_closed()).reason
    assert [listener.closed for listener in server.listeners] == [True, True]
    assert await read_to_end(clients[0]) == b""
    assert witness.outcomes == ["cancelled"]
    assert witness.names[-1] == "server_closed"


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
    ("harm", "kind", "says"),
    {
        "AE-04: one that somebody shuts down ends the server with its own error": (
            *(lambda server: server.socket.shutdown(socket.SHUT_RDWR), OSError, "Invalid argument"),
        ),
        "AE-04: one that somebody closes, with trio.ClosedResourceError": (
            *(close_it, trio.ClosedResourceError, ""),
        ),
        "AE-04: one that is closed while all slots are taken, when one is free": (
            *(close_it_while_full, (OSError, trio.ClosedResourceError), ""),
        ),
    },
)
async def test_listening_socket_underfoot(harm, kind, says):
    """A listening socket that is taken away ends the server."""
    error = await failure_of(on_tcp(limits=Limits(requests=1)), harm)
    assert isinstance(error, kind)
    assert says in str(error)


# get_request -------------------------------------------------------------------------


def picky(get):
    """Does not want clients of this name."""
    found = get()
    return None if found is None or found[1][0] == "bad" else found


def choosy(get):
    """Accepts until there is one whom it wants."""
    while (found := get()) and found[1][0] == "bad":
        pass
    return found


def raising_of_the_bad(name):
    """Raises this about such a client."""

    def look(get):
        found = get()
        if found and found[1][0] == "bad":
            raise error_of(name)
        return found

    return look


@table(
    ("override", "refused"),
    {
        "BP-02, AE-05: None for a client that was accepted resets it, and counts it": (picky, 3),
        "AE-05: of clients that are accepted one after the other, no one is forgotten": (choosy, 3),
        **{
            f"AE-01: {name} after the accept is about that client alone: closed, no pause": (
                *(raising_of_the_bad(name), 0),
            )
            for name in ("ECONNRESET", "EMFILE", "EBADF", "ENOENT")
        },
    },
)
async def test_get_request_drops_clients(override, refused, autojump_clock):
    """Clients whom an override does not want are closed, and the next is served at once."""
    others = [Visit({0: ASKS}, address=("good", 1)).gives(b"HELLO\n", 0)]
    others += [Visit(address=("bad", n)).gives(b"", 0, breaks=True) for n in (2, 3)]
    scene = Scene(Upper, address=("bad", 1), kind=overriding(override)).beside(*others)
    refusals = [(("bad", n), "get_request") for n in range(1, 1 + refused)]
    scene = scene.gives(b"", 0, breaks=True, refusals=refusals)
    played = await scene.gives(refused=refused, accept_errors=3 - refused).play()
    assert played.witness.names.count("accept_failed") == 3 - refused


@attrs.frozen(eq=False)
class Wrapped:
    """What an override makes of a connection."""

    connection: trioserver.Connection

    async def linger(self):
        """Nothing."""

    aclose = linger


def wraps(get):
    """Serves each connection in that."""
    found = get()
    return found and (Wrapped(found[0]), "somebody")


async def test_get_request_wraps_a_client(autojump_clock):
    """AE-05: hooks and handler get what an override returns, and the connection is closed.

    A handler class that fails cleans up in its time, as ever.
    """
    seen = []

    class Server(overriding(wraps)):
        async def verify_request(self, request, client_address):
            seen.append(("verify", type(request), client_address))
            return True

        async def shutdown_request(self, request):
            seen.append(("shutdown", type(request)))

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self):
            seen.append(("handle", type(self.request), self.client_address))
            await self.request.connection.sendall(b"seen")
            raise ValueError("its own")

        async def finish(self):
            try:
                await trio.sleep(60)
            finally:
                self.request.connection.reset()

    scene = Scene(Handler, kind=Server, timeouts=Timeouts(cleanup=3))
    await scene.gives(b"seen", 3, "failed", breaks=True, logs=["its own"]).play()
    expected = [(what, Wrapped, "somebody") for what in ("verify", "handle")]
    assert seen == [*expected, ("shutdown", Wrapped)]


def answering(answer):
    """Accepts whoever has come, and then returns or raises that."""

    def override(get):
        get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return override


async def is_reset(server):
    """A client comes, and is."""
    with plain_client(server.server_address) as client, pytest.raises(ConnectionResetError):
        await heard_by(client)


@pytest.mark.parametrize(
    "answer", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), 42, (), (1, 2, 3)], ids=repr
)
async def test_get_request_that_raises_or_returns_nonsense(answer):
    """AE-05: an error of an override ends the server, bare, and the accepted client is closed.

    An answer that is no pair is a TypeError or ValueError.
    """
    kind = overriding(answering(answer), trioserver.TCPServer)
    error = await failure_of(on_tcp(kind=kind), is_reset)
    if isinstance(answer, BaseException):
        assert error is answer
    else:
        assert isinstance(error, TypeError | ValueError)


@pytest.mark.parametrize("answer", ["ab", (None, None), (object(), object())], ids=["ab", "N", "o"])
async def test_get_request_that_returns_a_nonsensical_pair(answer):
    """AE-05: a pair that no handler can use is that request's error; the client is closed."""
    before, witness = descriptors(), Witness()
    kind = overriding(lambda get: get() and answer, trioserver.TCPServer)
    async with running(on_tcp(kind=kind, observers=[witness])) as address:
        with plain_client(address) as client:
            assert await heard_by(client) == b""
    assert witness.outcomes == ["failed"]
    assert open_descriptors() == before


async def test_get_request_without_an_accept():
    """AE-05: an error before the accept, or a request that is made up, ends the server, bare.

    So does another listener than the one that it is called with.
    """
    errors = [KeyError("mine")]

    def broken(get):
        for error in errors:
            raise error
        return object(), "nobody"

    class Strays(MemoryServer):
        def get_request(self, listener):
            assert listener.address == ("memory", 1)  # it may be asked for whatever it has
            return super().get_request(MemoryListener(("memory", 2)))

    server = in_memory(Upper, overriding(broken))
    assert await failure_of(server, lambda server: server.listener.connect_now()) is errors.pop()
    for kind, says in ((type(server), "super().get_request"), (Strays, "the listener that")):
        error = await failure_of(in_memory(Upper, kind), lambda it: it.listener.connect_now())
        assert type(error) is TypeError
        assert says in str(error)


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
    address: tuple[str, int]
    clients: list[socket.socket] = attrs.field(factory=list)

    def connect(self):
        self.clients.append(plain_client(self.address))
        return self.clients[-1]

    def fill(self):
        """Connect clients until one is not served; it is the last."""
        while True:
            client = self.connect()
            client.sendall(b"hello\n")
            if not select.select([client], [], [], 0.3)[0]:
                return list(self.clients)
            assert client.recv(100) == b"HELLO\n"

    def leave(self):
        for client in self.clients:
            client.close()

    def log(self):
        """Leave, and give the records of the server, which has been told to end."""
        self.leave()
        _, log = self.process.communicate(timeout=10)
        assert self.process.returncode == 0
        return [line for line in log.splitlines() if line.startswith(("WARNING", "ERROR"))]


@pytest.fixture
def short():
    """Such a server."""
    command, pipe = [sys.executable, "-c", PROGRAM], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            server = ShortOfDescriptors(process, tuple(json.loads(process.stdout.readline())))
            yield server
            server.leave()
        finally:
            process.kill()


def answer(client, line=b"hello\n"):
    """What the client is told."""
    client.sendall(line)
    return client.recv(1000)


def test_descriptors_run_out_and_come_back(short):
    """AE-02: a client that the kernel has queued is served as soon as a descriptor is free.

    AE-07: a handler that cannot open a file fails alone, in the log, too; the server lives.
    """
    *served, waiting = short.fill()
    assert answer(served[0], b"open\n") == b""
    for client in served[:2]:
        client.close()
    assert waiting.recv(100) == b"HELLO\n"
    assert {answer(client) for client in (*served[2:], waiting)} == {b"HELLO\n"}
    short.process.terminate()
    log = short.log()
    assert [line.startswith("ERROR") for line in log] == [False, True, False]
    for line, says in zip(log, ["cannot accept", "error while serving", "again"], strict=True):
        assert says in line


@pytest.mark.slow
def test_descriptors_run_out_for_long(short):
    """AE-02: then clients are turned away promptly, at hardly any CPU time, and few records."""
    live, *others, waiting = short.fill()
    began, (cpu_before, _, _) = time.monotonic(), json.loads(answer(live, b"figures\n"))
    with pytest.raises(ConnectionResetError):
        waiting.recv(100)
    assert time.monotonic() - began < 5
    with pytest.raises(ConnectionResetError):
        short.connect().recv(100)
    cpu, errors, refused = json.loads(answer(live, b"figures\n"))
    assert refused == 2
    assert errors < 20
    assert cpu - cpu_before < 0.05 * (time.monotonic() - began)
    for client in others[:2]:
        client.close()
    assert answer(short.connect()) == answer(live) == b"HELLO\n"
    short.process.terminate()
    assert len(short.log()) == 2


def test_descriptors_run_out_before_a_drain(short):
    """AE-02: a server that drains at its limit ends in order, and turns away whoever waits."""
    *_, waiting = short.fill()
    short.process.terminate()
    with pytest.raises(ConnectionResetError):
        waiting.recv(100)
    assert not [line for line in short.log() if line.startswith("ERROR")]
