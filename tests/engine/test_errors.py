"""Errors: whose fault they are, who is told, what they end and what they must not.

One bad request never harms another. So in most tests a first client meets the
error, and a second one must not notice.
"""

import asyncio
import gc
import io
import logging
import socket
import socketserver
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, connect, hold, plain_client, read_to_end, reset, until
from support import process_handlers as handlers
from support.adopting import adopted
from support.memory import (
    ask,
    come,
    ended,
    ending_by,
    leaves,
    noting,
    raises_bare,
)
from support.memory import memory as in_memory
from support.scenes import Scene, act, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer

THERE = ("127.0.0.1", 0)
VICTIM = ("victim", 1)
BEFORE = ["verify_request", "process_request"]
AFTER = ["shutdown_request", "close_request"]


class OutOfTheBlue(BaseException):
    """Not an Exception, and nobody's in particular."""


# Servers and their handlers -----------------------------------------------------------


class Tells(trioserver.BaseServer):
    """Writes down the steps that its requests take, and what handle_error is told of."""

    steps: list[str] = attrs.field(factory=list)
    errors: list[BaseException | None] = attrs.field(factory=list)

    async def step(self, name, request):
        """Called at the beginning of every hook, and of every method of `Steps`."""
        self.steps.append(name)

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())
        await self.step("handle_error", request)


class TellsTCP(Tells, trioserver.TCPServer):
    """The same, on real sockets."""


class TellsInMemory(Tells, MemoryServer):
    """The same, in memory."""


TellsAll = noting(
    TellsInMemory, [*BEFORE, *AFTER], lambda server, name, request, *_: server.step(name, request)
)
"""The same, and of its other hooks."""


class Faulty(TellsAll):
    """Raises `error` at the step called `place`, of one client, whose steps it writes down."""

    place: str = ""
    error: BaseException = attrs.field(factory=lambda: ValueError("oops"))

    async def step(self, name, request):
        await trio.lowlevel.checkpoint()
        if request.info.client_address != VICTIM:
            return
        await super().step(name, request)
        if name == self.place:
            raise self.error
        if name == "handle" and self.place == "handle_error":
            raise ValueError("for handle_error")


class Narrow(TellsInMemory):
    """Holds ten bytes on their way, so that a send soon has to wait for the reader."""

    memory_capacity = 10


class Steps(Upper):
    """Answers in upper case; its methods are steps of its server."""

    async def setup(self):
        await self.server.step("setup", self.request)

    async def handle(self):
        await self.server.step("handle", self.request)
        await super().handle()

    async def finish(self):
        await self.server.step("finish", self.request)
        await super().finish()


def memory(handler, kind=TellsInMemory, **fields):
    """A server in memory, which tells."""
    return in_memory(handler, kind, **fields)


def hooked(kind=TellsInMemory, **hooks):
    """A server class with these hooks."""
    return type("Hooked", (kind,), hooks)


def handling(handle, *, finish=None, setup=None):
    """A handler class with these methods."""
    methods = {"handle": handle, "finish": finish, "setup": setup}
    given = {name: method for name, method in methods.items() if method is not None}
    return type("Handler", (trioserver.StreamRequestHandler,), given)


def raising(error):
    """A handler that raises ``error`` to the first client, and answers the others."""

    async def fail(request, client_address, server):
        await trio.lowlevel.checkpoint()
        if request.info.id == 1:
            raise error
        await Upper(request, client_address, server)

    return fail


def failing(error):
    """A method, or a hook, that raises ``error``."""

    async def fail(self, *arguments):
        raise error

    return fail


async def sleeps(self, *arguments):
    """A method, or a hook, that never ends."""
    await trio.sleep_forever()


class Increment(trioserver.StreamRequestHandler):
    """Answers numbers with the next ones; anything else is an error."""

    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(b"%d\n" % (int(line) + 1))


# Their clients, and what is told of them ----------------------------------------------


async def ends_input(client):
    """Has no more to say."""
    await client.send_eof()


async def resets(client):
    """Goes away, rudely."""
    client.reset()


async def leaves_early(client):
    """Goes away, politely."""
    await client.aclose()


async def meet(server, *does, address=VICTIM):
    """What the first client gets, who does that, and then has no more to say."""
    client = await server.connect(address)
    for what in does:
        await act(client, what)
    await act(client, ends_input)
    return await ended(client)


async def served(*arguments, **fields):
    """A server that has had such a client, and is closed."""
    server = memory(*arguments, **fields)
    async with server.serving():
        await meet(server)
    return server


async def harms_nobody(*arguments, **fields):
    """The same, of which a second client was answered."""
    server = memory(*arguments, **fields)
    async with server.serving():
        server.answer = await meet(server)
        assert await ask(server) == b"HELLO\n"
    return server


def outcomes_of(server):
    """The outcome of each request."""
    return {record.info.id: str(record.outcome) for record in server.witness.records}


def errors_logged(caplog):
    """The records of errors."""
    return [record for record in caplog.records if record.name == "trioserver.error"]


def requests_logged(caplog):
    """The records of requests that ended."""
    records = [record for record in caplog.records if record.name == "trioserver.access"]
    return [record for record in records if hasattr(record, "request_id")]


# Plain Trio's failure modes -----------------------------------------------------------


async def test_error_of_one_client_harms_no_other():
    """EX-01: a ValueError, which ends trio.serve_tcp, leaves a client in mid-request alone (T1)."""
    server = TellsTCP(THERE, Increment)
    with trio.fail_after(10):
        async with server.serving():
            guilty, unrelated, late = [await connect(server) for _ in range(3)]
            await unrelated.send_all(b"4")
            await guilty.send_all(b"four\n")
            assert await read_to_end(guilty) == b""
            await unrelated.send_all(b"1\n")
            assert await unrelated.receive_some() == b"42\n"
            await late.send_all(b"6\n")
            assert await late.receive_some() == b"7\n"
            for client in [guilty, unrelated, late]:
                await client.aclose()
    assert [type(error) for error in server.errors] == [ValueError]


async def test_reset_of_one_client_harms_no_other():
    """EX-14: a reset nobody catches, which ends trio.serve_tcp, is that client's own (T2)."""
    server = TellsTCP(THERE, Upper, observers=[witness := Witness()])
    with trio.fail_after(10):
        async with server.serving(), await connect(server) as unrelated:
            await unrelated.send_all(b"still ")
            rude = plain_client(server.server_address)
            rude.sendall(b"half a li")
            reset(rude)
            await unrelated.send_all(b"here\n")
            assert await unrelated.receive_some() == b"STILL HERE\n"
            await unrelated.aclose()
    assert sorted(witness.outcomes) == ["completed", "disconnected"]
    assert server.errors == []


# Exceptions end their request ---------------------------------------------------------

HANDLED = [*BEFORE, "setup", "handle", "finish"]


@table(
    ("place", "outcome", "steps"),
    {
        "EX-01: nowhere": ("", "completed", [*HANDLED, *AFTER]),
        "EX-08: in verify_request": (
            "verify_request",
            "failed",
            [*BEFORE[:1], "handle_error", *AFTER],
        ),
        "in process_request": ("process_request", "failed", [*BEFORE, "handle_error", *AFTER]),
        "in setup": ("setup", "failed", [*BEFORE, "setup", "handle_error", *AFTER]),
        "in handle": ("handle", "failed", [*HANDLED, "handle_error", *AFTER]),
        "in finish": ("finish", "failed", [*HANDLED, "handle_error", *AFTER]),
        "in shutdown_request": (
            *("shutdown_request", "completed", [*HANDLED, AFTER[0], "handle_error"]),
        ),
        "in close_request": ("close_request", "completed", [*HANDLED, *AFTER, "handle_error"]),
    },
)
async def test_exception_ends_its_request_only(place, outcome, steps, autojump_clock):
    """EX-01, EX-08: handle_error is told once, finish() runs if setup() returned, others live on.

    And the request is always closed.
    """
    error = ValueError("oops")
    server = memory(Steps, Faulty, place=place, error=error)
    async with server.serving():
        bystander = await server.connect()
        await bystander.send_all(b"half ")
        await meet(server, b"hello\n")
        await bystander.send_all(b"full\n")
        assert await bystander.receive_some() == b"HALF FULL\n"
        await bystander.aclose()
        assert await ask(server) == b"HELLO\n"
    assert server.errors == ([error] if place else [])
    assert server.steps == steps
    assert outcomes_of(server) == {1: "completed", 2: outcome, 3: "completed"}


async def test_exception_is_told_with_its_request(autojump_clock):
    """EX-01: handle_error gets the request and the address, and the record says what it was."""
    told = []

    class Told(MemoryServer):
        async def handle_error(self, request, client_address):
            told.append((request.info.id, client_address, repr(sys.exception())))

    server = await harms_nobody(raising(KeyError("name")), Told)
    assert told == [(1, VICTIM, "KeyError('name')")]
    assert server.witness.outcomes == ["failed", "completed"]
    assert server.witness.records[0].reason == "KeyError: 'name'"


async def test_exception_during_the_drain(autojump_clock):
    """EX-01: a handler that fails while the server drains is in the report; the drain goes on."""
    error = ValueError("oops")

    async def fail_late(request, client_address, server):
        await trio.sleep(5)
        raise error

    server = memory(fail_late)
    async with server.serving():
        await come(server)
    report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["failed"]
    assert server.errors == [error]
    assert report.clean
    assert trio.current_time() == 5
    server = memory(fail_late, propagate_errors=True)
    async with ending_by(error, server):
        await come(server)
        server.shutdown()
    assert trio.current_time() == 10


@pytest.mark.parametrize(
    "error",
    [
        *[StopIteration(), StopAsyncIteration(), GeneratorExit(), RecursionError(), MemoryError()],
        *[AssertionError(), EOFError(), ExceptionGroup("one", [ValueError()])],
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["verify_request", "setup", "handle", "finish"])
async def test_strange_exceptions_are_contained(place, error, autojump_clock):
    """EX-11: exceptions that mean something to Python mean an error of the handler here."""
    server = await harms_nobody(Steps, Faulty, place=place, error=error)
    (told,) = server.errors
    # PEP 479 has Python turn StopIteration into a RuntimeError; GeneratorExit is treated alike.
    if isinstance(error, StopIteration | GeneratorExit):
        assert isinstance(told, RuntimeError)
        assert told.__cause__ is error
    else:
        assert told is error


async def test_groups_however_deep(autojump_clock):
    """An error that is nested 3000 deep is the handler's like any other."""
    error = ValueError("oops")
    for _ in range(3000):
        error = ExceptionGroup("deep", [error])
    server = await harms_nobody(raising(error))
    assert server.errors == [error]
    assert server.witness.records[0].reason == "ValueError: oops"


async def recurse(*arguments):
    """Recurses until Python stops it."""
    await recurse(*arguments)


def in_children(*functions):
    """A method that has these run side by side."""

    async def children(self, *arguments):
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function, self, *arguments)

    return children


async def spoil(self, *arguments):
    """Turns its cancellation into an error."""
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("spoilt")


@table(
    ("handle", "errors", "reason"),
    {
        "EX-11: an endless recursion": (recurse, ["RecursionError"], "RecursionError"),
        "EX-11: GeneratorExit beside the cancellation of others": (
            in_children(failing(GeneratorExit()), sleeps),
            ["RuntimeError"],
            "GeneratorExit",
        ),
        "EX-04: two children that fail: with both": (
            in_children(failing(ValueError("first")), failing(KeyError("second"))),
            ["KeyError('second')", "ValueError('first')"],
            "",
        ),
    },
)
async def test_error_of_whatever_shape(handle, errors, reason, autojump_clock):
    """It is the handler's like any other: one call of handle_error, and others are answered."""
    failed = handling(handle)

    async def handler(request, client_address, server):
        await (failed if request.info.id == 1 else Upper)(request, client_address, server)

    server = await harms_nobody(handler)
    [told] = server.errors
    for shown, error in zip(sorted(map(repr, leaves(told))), errors, strict=True):
        assert shown.startswith(error)
    assert reason in server.witness.records[0].reason
    assert server.witness.outcomes == ["failed", "completed"]
    if errors == ["RuntimeError"]:
        [mistake] = leaves(told)
        assert isinstance(mistake.__cause__, GeneratorExit)


# Groups -------------------------------------------------------------------------------


async def test_group_is_split(autojump_clock):
    """EX-02, EX-04: of a mixed group handle_error gets the errors; the rest stops the server."""
    error, deep, final = ValueError("first"), KeyError("deep"), SystemExit(3)
    mixed = BaseExceptionGroup("mixed", [error, ExceptionGroup("inner", [deep]), final])
    server = memory(raising(mixed))
    with pytest.raises((SystemExit, BaseExceptionGroup)) as caught:
        async with server.serving():
            await come(server)
    assert leaves(caught.value) == [final]
    assert [leaves(told) for told in server.errors] == [[error, deep]]


# handle_error -------------------------------------------------------------------------


async def test_handle_error_raises(autojump_clock, caplog):
    """EX-07: an error of handle_error is logged, with the one it was told of, and ends nothing."""
    second = RuntimeError("second")
    server = await harms_nobody(Steps, Faulty, place="handle_error", error=second)
    assert server.answer == b""
    (record,) = errors_logged(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info[1] is second
    assert "for handle_error" in caplog.text
    assert "second" in caplog.text


@table(
    ("does", "logged"),
    {
        "that never ends is ended after `cleanup`, and named": (
            *(sleeps, "handle_error did not end within 5 s"),
        ),
        "that fails beside that cancellation ends nothing either": (
            *(in_children(spoil, sleeps), "spoilt"),
        ),
    },
)
async def test_handle_error_blocks(does, logged, autojump_clock, caplog):
    """EX-07: a handle_error is bounded."""
    server = memory(raising(ValueError("oops")), hooked(handle_error=does))
    async with server.serving():
        await meet(server)
        assert trio.current_time() == 5
        assert await ask(server) == b"HELLO\n"
    assert server.witness.outcomes == ["failed", "completed"]
    assert logged in caplog.text


async def test_handle_error_is_shielded(autojump_clock):
    """EX-07: a server that is cut while handle_error runs lets it end, within its bound."""
    done = []

    async def slow(self, request, client_address):
        await trio.sleep(3)
        done.append(trio.current_time())

    server = memory(raising(ValueError("oops")), hooked(handle_error=slow))
    with trio.move_on_after(1):
        async with server.serving():
            await server.connect()
            await trio.sleep_forever()
    assert done == [trio.current_time()] == [3]


async def test_handle_error_can_tell_the_client(autojump_clock):
    """EX-07: the connection is still there, so an override can say what went wrong; or stop."""

    async def polite(self, request, client_address):
        await request.sendall(b"error: %a\n" % str(sys.exception()))
        self.shutdown()

    server = memory(raising(ValueError("oops")), hooked(handle_error=polite))
    async with server.serving():
        assert await meet(server) == b"error: 'oops'\n"
        report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["failed"]


async def goodbye(self, request, *client_address):
    """A hook that talks to a client who may have left."""
    await trio.sleep(1)
    await request.sendall(b"good")
    await request.sendall(b"bye")


async def test_goodbye_to_a_client_that_is_gone(autojump_clock, caplog):
    """EX-14: a hook that talks to a client who has left is not an error of the server."""
    server = memory(raising(ValueError("oops")), hooked(MemoryServer, shutdown_request=goodbye))
    async with server.serving():
        [client] = await come(server)
        client.reset()
        await trio.sleep(2)
    # The default handle_error logs the handler's, and that is all.
    assert [type(record.exc_info[1]) for record in errors_logged(caplog)] == [ValueError]


class Fails:
    """Ways for a handle_error to fail."""

    async def raises(self, *request):
        raise RuntimeError("the second")

    async def raises_from_none(self, *request):
        raise RuntimeError("the second") from None

    async def raises_from_another(self, *request):
        raise RuntimeError("the second") from KeyError("another")

    async def raises_in_a_thread(self, *request):
        def fail():
            raise RuntimeError("the second") from None

        await trio.to_thread.run_sync(fail)

    async def raises_the_same_again(self, *request):
        raise  # noqa: PLE0704  (the one that is being handled)


FAILING = {
    **{
        name: (function, "RuntimeError: the second")
        for name, function in vars(Fails).items()
        if name.startswith("raises")
    },
    "raises_in_a_child": (in_children(Fails.raises), "RuntimeError: the second"),
    "raises_the_same_again": (Fails.raises_the_same_again, "handle_error raised"),
    "goodbye": (goodbye, "PeerGone: the peer is gone"),
    "goodbye_in_a_child": (in_children(goodbye), "PeerGone: the peer is gone"),
    "is_cut": (sleeps, "handle_error did not end within 5 s (cleanup)"),
    "spoil_in_a_child": (in_children(spoil, sleeps), "ValueError: spoilt"),
    "exits": (failing(SystemExit()), "of which handle_error has not told"),
}
"""What a handle_error does, and what else than the handler's error is logged then."""


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("place", ["handle", "shutdown_request", "when_full"])
async def test_first_error_is_never_lost(place, name, autojump_clock, caplog):
    """EX-07: however a handle_error fails, what it was told of is logged, and so is its own."""
    fails, logged = FAILING[name]

    async def fail(*_arguments):
        raise LookupError("the first")

    hooks = {"handle_error": fails}
    limits = trioserver.Limits()
    if place == "shutdown_request":
        hooks[place] = fail
    if place == "when_full":
        limits = trioserver.Limits(requests=1, when_full=fail)
    handler = fail if place == "handle" else hold
    server = memory(handler, hooked(MemoryServer, **hooks), limits=limits)

    async def clients():
        visitors = await come(server, 1 + (place == "when_full"))
        if place == "shutdown_request":
            server.cancel_request(1, "enough")
            await wait_all_tasks_blocked()
        visitors[-1].reset()
        await trio.sleep(20)

    with suppress(SystemExit):
        async with server.serving(grace=0):
            await clients()
    told = [logging.Formatter().format(record) for record in errors_logged(caplog)]
    assert {record.levelno for record in errors_logged(caplog)} == {logging.ERROR}
    assert any("Traceback" in one and "LookupError: the first" in one for one in told)
    assert any(logged in one for one in told)
    assert len(server.witness.records) == 1 + (place == "when_full")


async def test_both_errors_are_one_record_where_one_shows_both(autojump_clock, caplog):
    """EX-07: nothing is told twice: a second error that leads to the first has one record."""
    await harms_nobody(raising(LookupError("the first")), hooked(handle_error=Fails.raises))
    (record,) = errors_logged(caplog)
    assert [str(error) for error in shown(record.exc_info[1])] == ["the second", "the first"]


# shutdown_request and close_request ---------------------------------------------------


@pytest.mark.parametrize("bound", [{"request": 1}, {"linger": 0}])
async def test_shutdown_request_fails_when_it_is_cut(bound, autojump_clock, caplog):
    """EX-07: an error beside its cancellation, by whomever, ends nothing."""
    kind = hooked(MemoryServer, shutdown_request=in_children(spoil, sleeps))
    await harms_nobody(Upper, kind, timeouts=trioserver.Timeouts(**bound))
    assert "spoilt" in caplog.text


class Endings:
    """Ways for a handler to end its request."""

    async def returns(self):
        pass

    async def raises(self):
        raise ValueError("oops")

    async def reads_too_long(self):
        await self.rfile.read(1)

    async def closes(self):
        await self.request.aclose()

    async def leaves_input_unread(self):
        await self.wfile.write(b"bye")

    async def sleeps_too_long(self):
        await trio.sleep_forever()

    async def cancels_itself(self):
        self.cancel_scope.cancel(reason="enough")
        await trio.lowlevel.checkpoint()

    async def swallows_its_cancellation(self):
        with suppress(trio.Cancelled):
            await trio.sleep_forever()

    async def raises_instead_of_its_cancellation(self):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("instead") from None


ENDINGS = [name for name in vars(Endings) if not name.startswith("_")]


class Thorough(TellsAll):
    """Takes a second to close a request."""

    closed_at: list[float] = attrs.field(factory=list)

    async def close_request(self, request):
        await trio.sleep(1)
        await super().close_request(request)
        self.closed_at.append(trio.current_time())


@pytest.mark.parametrize("name", ENDINGS)
async def test_every_end_passes_the_hooks(name, autojump_clock, caplog):
    """EX-01: however it ended, shutdown_request and close_request are called, once each."""
    timeouts = trioserver.Timeouts(idle=10, request=20, linger=30)
    server = memory(handling(getattr(Endings, name)), TellsAll, timeouts=timeouts)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(60)
        await client.aclose()
    assert [server.steps.count(hook) for hook in AFTER] == [1, 1]


@pytest.mark.parametrize("name", ENDINGS[-4:])
async def test_cancelled_request_has_time_for_the_hooks(name, autojump_clock):
    """EX-05: after a cancellation, be it swallowed, the hooks may still wait; nobody lingers."""
    timeouts = trioserver.Timeouts(request=20, linger=30)
    server = memory(handling(getattr(Endings, name)), Thorough, timeouts=timeouts)
    async with server.serving():
        await ended(await server.connect())
    assert server.closed_at == [1 if name == "cancels_itself" else 21]


@pytest.mark.parametrize("number", [0, 40], ids=["served", "lingering"])
async def test_cancelled_server_has_time_for_the_hooks(number, autojump_clock):
    """EX-01, EX-05: the same when all around it is cancelled; a client that lingers has them."""

    async def flood(request, client_address, server):
        await request.sendall(b"z" * number)
        if not number:
            await trio.sleep_forever()

    server = memory(flood, TellsAll if number else Thorough)
    with trio.CancelScope() as scope:
        async with server.serving():
            await come(server)
            assert server.statistics().lingering == (number > 0)
            scope.cancel()
            await trio.sleep_forever()
    assert [server.steps.count(hook) for hook in AFTER] == [1, 1]
    assert number or server.closed_at == [1]


# propagate_errors ---------------------------------------------------------------------


@pytest.mark.parametrize("place", [*BEFORE, "setup", "handle", "finish"])
async def test_propagate_errors(place, autojump_clock, caplog):
    """EX-01: with propagate_errors the very error stops the server, bare, and all is closed."""
    error = ValueError("oops")
    server = memory(Steps, Faulty, place=place, error=error, propagate_errors=True)
    async with ending_by(error, server):
        [bystander] = await come(server)
        await meet(server)
        await ended(bystander)
    assert outcomes_of(server) == {1: "cancelled", 2: "failed"}
    assert server.errors == []
    assert errors_logged(caplog) == []


async def test_propagate_errors_of_a_group(autojump_clock):
    """EX-04: a group of errors arrives as the group that it was, with nothing around it."""
    group = ExceptionGroup("both", [ValueError("one"), KeyError("two")])
    server = memory(raising(group), propagate_errors=True)
    with pytest.raises(ExceptionGroup, match="both") as caught:
        async with server.serving():
            await come(server)
    assert caught.value.exceptions == group.exceptions


async def test_propagate_errors_is_not_about_the_peer(autojump_clock):
    """EX-14: what the client did stops no server, propagate_errors or not."""
    server = memory(Upper, propagate_errors=True)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"half a li")
        client.reset()
        assert await ask(server) == b"HELLO\n"
    assert server.witness.outcomes == ["disconnected", "completed"]


# What is not an Exception stops the server --------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), OutOfTheBlue(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "place", [*BEFORE, "setup", "handle", "finish", "handle_error", "shutdown_request"]
)
async def test_base_exception_stops_the_server(place, error, autojump_clock):
    """EX-02, EX-07: the very object reaches the caller, bare, after everything was closed."""
    finished = []

    class Finishes(Steps):
        async def finish(self):
            finished.append(self.info.id)
            await super().finish()

    server = memory(Finishes, Faulty, place=place, error=error)
    async with ending_by(error, server):
        listener = server.listener
        bystander = await server.connect()
        await bystander.send_all(b"half ")
        await wait_all_tasks_blocked()
        await meet(server)
        await ended(bystander)
    assert server.snapshot().state == "unbound"
    with pytest.raises(ConnectionRefusedError):
        await listener.connect()
    assert type(error).__name__ in (await server.wait_closed()).reason
    victims = "completed" if place == "shutdown_request" else "failed"
    assert outcomes_of(server) == {1: "cancelled", 2: victims}
    assert sorted(finished) == ([1] if place in [*BEFORE, "setup"] else [1, 2])
    assert all(isinstance(told, ValueError) for told in server.errors)
    assert server.witness.names[-1] == "server_closed"


async def test_base_exception_ends_the_block_of_serving(autojump_clock):
    """EX-02: in a serving() block it cancels the block, and is what leaves it."""
    error, left = SystemExit(3), []
    server = memory(raising(error))

    async def block():
        async with server.serving():
            await server.connect()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                left.append("cancelled")
                raise

    await raises_bare(error, block)
    assert left == ["cancelled"]


async def exits_when_cancelled(self):
    """Turns its cancellation into the end."""
    try:
        await trio.sleep_forever()
    finally:
        raise FINAL


FINAL = SystemExit(3)


@table(
    ("handle", "finish", "cancel", "errors"),
    {
        "it is bare also when the server was being cancelled": (
            *(exits_when_cancelled, None, True, []),
        ),
        "a lone one from a handler's nursery is itself": (
            *(in_children(failing(FINAL), sleeps), None, False, []),
        ),
        "of one from finish(), the handler's error is told of": (
            *(failing(ValueError("first")), failing(FINAL), False, ["first"]),
        ),
    },
)
async def test_base_exception_is_bare(handle, finish, cancel, errors, autojump_clock):
    """EX-02: the server ends by SystemExit with nothing around it."""
    server = memory(handling(handle, finish=finish))
    async with ending_by(FINAL, server) as scope:
        await come(server)
        if cancel:
            scope.cancel()
    assert [str(leaf) for told in server.errors for leaf in leaves(told)] == errors


async def test_base_exception_stops_the_others_at_once(autojump_clock):
    """EX-02: nobody is served on while the request that raised it is being closed."""

    async def close_slowly(self, request):
        if request.info.id == 2:
            await trio.sleep(3)
        await MemoryServer.close_request(self, request)

    async def exits(request, client_address, server):
        if request.info.id == 2:
            raise error
        await trio.sleep_forever()

    error = SystemExit(3)
    server = memory(exits, hooked(close_request=close_slowly))
    async with ending_by(error, server):
        await come(server)
        await server.connect()
    outcomes = {it.info.id: (it.outcome, it.duration) for it in server.witness.records}
    assert outcomes == {1: ("cancelled", 0), 2: ("failed", 0)}
    assert trio.current_time() == 3


async def test_base_exception_waits_for_the_others(autojump_clock):
    """EX-02: it reaches the caller only when every other handler has finished."""

    async def handle(self):
        if await self.rfile.read(1):
            raise error
        await trio.sleep_forever()

    async def finish(self):
        if self.info.id == 2:
            await trio.sleep(3)
            await self.wfile.write(b"good night")

    error = SystemExit(3)
    server = memory(handling(handle, finish=finish))
    async with ending_by(error, server):
        victim, other = await server.connect(), await server.connect()
        await victim.send_all(b"x")
        assert await ended(other) == b"good night"
        assert trio.current_time() == 3


# A hard stop --------------------------------------------------------------------------


@table(
    ("handle", "errors", "outcome"),
    {
        "Cancelled is never passed to handle_error, nor logged": (sleeps, [], "cancelled"),
        "an error instead of it is told of; the stop goes on": (
            *(Endings.raises_instead_of_its_cancellation, ["ValueError('instead')"], "failed"),
        ),
        "an error beside it is told of; the cancellation goes on": (
            *(in_children(spoil, sleeps), ["ValueError('spoilt')"], "cancelled"),
        ),
    },
)
async def test_cancellation_is_nobodys_error(handle, errors, outcome, autojump_clock, caplog):
    """EX-05: what a handler makes of its cancellation is its error, and not the cancellation."""
    server = memory(handling(handle))
    async with server.serving(grace=0):
        await come(server)
    assert [repr(leaf) for told in server.errors for leaf in leaves(told)] == errors
    assert errors_logged(caplog) == []
    assert server.witness.outcomes == [outcome]
    assert trio.current_time() == 0


# verify_request -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        *((answer, "completed") for answer in [True, 1, "yes"]),
        *((answer, "refused") for answer in [False, 0, None, []]),
    ],
    ids=repr,
)
async def test_verify_request_of_any_truth(answer, outcome, autojump_clock, caplog):
    """EX-08: what is not a bool counts as what it is worth, and a refusal is no error."""

    async def judge(self, request, client_address):
        return answer

    server = await served(Steps, hooked(verify_request=judge))
    assert server.witness.outcomes == [outcome]
    assert ("setup" in server.steps) == (outcome == "completed")
    assert server.errors == []
    assert errors_logged(caplog) == []


async def test_verify_request_can_be_the_peers_undoing(autojump_clock):
    """EX-08: a verification that reads may meet what a handler may meet; nobody is to blame."""

    async def password(self, request, client_address):
        return await request.recv() == b"swordfish"

    timeouts = trioserver.Timeouts(idle=5, handshake=10)
    server = memory(Steps, hooked(verify_request=password), timeouts=timeouts)
    async with server.serving():
        silent, gone = await come(server, 2)
        gone.reset()
        await ended(silent)
    assert server.witness.outcomes == ["disconnected", "timed_out"]
    assert server.errors == []


async def test_handler_never_awaited_because_of_an_error(autojump_clock):
    """EX-10: an error between construction and await is told as itself."""
    error = ValueError("in between")

    async def finish_request(self, request, client_address):
        self.RequestHandlerClass(request, client_address, self)
        raise error

    server = await served(Steps, hooked(finish_request=finish_request))
    assert server.errors == [error]


# finish() -----------------------------------------------------------------------------


def assert_no_rings(error, above=()):
    """No exception leads back to itself, by whatever links."""
    if error is None:
        return
    assert all(error is not one for one in above), f"{error!r} is in a ring"
    for following in (error.__context__, error.__cause__, *getattr(error, "exceptions", ())):
        assert_no_rings(following, (*above, error))


def shown(error):
    """The exceptions that a traceback of ``error`` shows, the last one first."""
    chain = []
    following = error
    while following is not None:
        assert following not in chain, "the chain has no end"
        chain.append(following)
        if following.__cause__ is not None or following.__suppress_context__:
            following = following.__cause__
        else:
            following = following.__context__
    return chain


class Chains:
    """Ways for a handler to raise `FIRST`; its server has the others."""

    async def bare(self):
        raise self.server.first

    async def from_none(self):
        raise self.server.first from None

    async def from_a_cause(self):
        raise self.server.first from OSError("other")

    async def handling_another(self):
        try:
            raise OSError("other")
        except OSError:
            raise self.server.first  # noqa: B904  (the implicit context is what is meant)


class ChainsToo:
    """Ways for its finish() to raise another."""

    async def bare(self):
        raise KeyError("second")

    async def in_steps(self):
        try:
            raise KeyError("second")
        finally:
            raise OSError("third")

    async def again(self):
        raise self.server.first

    async def from_it(self):
        raise RuntimeError("second") from self.server.first

    async def in_a_group(self):
        raise ExceptionGroup("second", [self.server.first, KeyError("third")])

    async def in_a_group_from_none(self):
        raise ExceptionGroup("second", [self.server.first, KeyError("third")]) from None


@table(
    ("handle", "finish", "tells"),
    {
        "bare": (Chains.bare, ChainsToo.bare, ["first", "second"]),
        "the handler's is from None": (Chains.from_none, ChainsToo.bare, ["first", "second"]),
        "it has a cause": (Chains.from_a_cause, ChainsToo.bare, ["first", "other", "second"]),
        "it has a context": (Chains.handling_another, ChainsToo.bare, ["first", "other", "second"]),
        "the whole story of its own": (
            Chains.bare,
            ChainsToo.in_steps,
            ["first", "third", "second"],
        ),
        "the same object, raised again": (Chains.bare, ChainsToo.again, ["first"]),
        "made of the handler's": (Chains.bare, ChainsToo.from_it, ["second"]),
        "in a group with it": (Chains.bare, ChainsToo.in_a_group, ["second"]),
        "the same, from None": (Chains.bare, ChainsToo.in_a_group_from_none, ["second"]),
    },
)
async def test_finish_error_is_chained(handle, finish, tells, autojump_clock):
    """EX-01: an error of finish() is shown with the handler's, once, never instead of it."""
    server = memory(handling(handle, finish=finish))
    server.first = ValueError("first")
    async with server.serving():
        await meet(server)
    [told] = server.errors
    assert_no_rings(told)
    assert all(it in "".join(traceback.format_exception(told)) for it in tells)
    if tells[0] == "first":
        assert told is server.first
        assert sorted(str(error).strip("'") for error in shown(told)) == sorted(tells)


async def test_finish_flush_after_a_cancellation(autojump_clock, caplog):
    """EX-14: after a cancellation, a last flush to a client that has gone stays quiet."""

    class Buffered(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self):
            await self.wfile.write(b"too late")
            await trio.sleep_forever()

    server = memory(Buffered, timeouts=trioserver.Timeouts(request=10))
    async with server.serving():
        client = await server.connect()
        await trio.sleep(1)
        client.reset()
        await trio.sleep(10)
    assert server.errors == []
    assert errors_logged(caplog) == []


async def polite(self):
    """A finish() that takes its time, and then says goodbye."""
    await trio.sleep(3)
    await self.wfile.write(b"goodbye")


@table(
    ("handle", "shutdown_at", "ends_at"),
    {
        "after a cancellation it may still wait, and say goodbye": (sleeps, 1, 4),
        "a cancellation that comes while it cleans up after an error lets it end": (
            *(failing(ValueError("oops")), 1, 3),
        ),
    },
)
async def test_finish_is_shielded_after_a_cancellation(
    handle, shutdown_at, ends_at, autojump_clock
):
    """EX-05: finish() gives back what setup() took, also in a hurry."""
    server = memory(handling(handle, finish=polite))
    async with server.serving(grace=0):
        client = await server.connect()
        await trio.sleep(shutdown_at)
        server.shutdown(grace=0)
        assert await ended(client) == b"goodbye"
        assert trio.current_time() == ends_at


async def test_finish_not_called_when_setup_was_cancelled(autojump_clock):
    """EX-05: setup() that was cancelled did not return, so there is nothing to give back."""
    handler = handling(sleeps, setup=sleeps, finish=Steps.finish)
    server = await served(handler, timeouts=trioserver.Timeouts(request=10))
    assert server.steps == []
    assert server.witness.outcomes == ["timed_out"]


# Whose fault --------------------------------------------------------------------------


class Meets:
    """What handlers do that meet something."""

    async def a_receive(self):
        await self.request.recv()

    async def a_line(self):
        await self.rfile.readline()

    async def ten_bytes(self):
        await self.rfile.readexactly(10)

    async def a_header(self):
        await self.rfile.readuntil(b"\r\n\r\n")

    async def all_input(self):
        await self.rfile.read()

    async def a_send(self):
        await self.wfile.write(b"z" * 40)

    async def an_idle_block(self):
        with self.idle():
            await trio.sleep_forever()


@attrs.frozen
class Fault:
    """What a handler meets: what it does, what its client does, and what it is called."""

    handle: Callable[[trioserver.StreamRequestHandler], Any]
    client: Sequence[Any]
    outcome: str
    reason: str


DRAINED = object()
LONG = b"x" * 99

FAULTS = {
    "idle": Fault(Meets.a_receive, [], "timed_out", "idle"),
    "line": Fault(Meets.a_line, [b"x"], "timed_out", "line"),
    "write": Fault(Meets.a_send, [], "timed_out", "write"),
    "reset while reading": Fault(Meets.a_receive, [resets], "disconnected", "reset by peer"),
    "reset while writing": Fault(Meets.a_send, [resets], "disconnected", "the peer is gone"),
    "closed while writing": Fault(Meets.a_send, [leaves_early], "disconnected", "the peer is gone"),
    "input cut short": Fault(
        Meets.ten_bytes, [b"abc", ends_input], "disconnected", "3 of 10 bytes"
    ),
    "no delimiter": Fault(
        Meets.a_header, [b"abc", ends_input], "disconnected", "the input ended before"
    ),
    "line too long": Fault(Meets.a_line, [LONG], "refused", "50 bytes (line)"),
    "header too long": Fault(Meets.a_header, [LONG], "refused", "50 bytes (line)"),
    "input too long": Fault(Meets.all_input, [LONG], "refused", "60 bytes (read)"),
    "drained before its first byte": Fault(Meets.a_receive, [DRAINED], "drained", "drains"),
    "drained in an idle block": Fault(Meets.an_idle_block, [DRAINED], "drained", "drains"),
}


def strict(handler, kind=Narrow):
    """A server with every limit that the faults meet."""
    return memory(
        handler,
        kind,
        timeouts=trioserver.Timeouts(idle=10, line=5, write=5),
        limits=trioserver.Limits(line=50, read=60),
    )


async def have_fault(server, does):
    """Have a client do its part, and wait until all is over."""
    [client] = await come(server)
    for what in does:
        if what is DRAINED:
            server.shutdown()
        else:
            await act(client, what)
    await trio.sleep(20)
    return client


def wrapped(depth, handle):
    """``handle``, inside that many nurseries."""
    return in_children(wrapped(depth - 1, handle), sleeps) if depth else handle


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["bare", "group", "nested groups"])
@pytest.mark.parametrize("name", FAULTS)
async def test_fault_of_the_peer(name, depth, autojump_clock, caplog):
    """EX-14: what the peer did has its outcome and one INFO line; no traceback, no handle_error."""
    fault = FAULTS[name]
    caplog.set_level(logging.INFO, logger="trioserver")
    server = strict(handling(wrapped(depth, fault.handle)))
    async with server.serving():
        await (await have_fault(server, fault.client)).aclose()
    assert server.witness.outcomes == [fault.outcome]
    assert fault.reason in server.witness.records[0].reason
    assert (await server.wait_closed()).statistics.outcomes[fault.outcome] == 1
    assert server.errors == []
    assert errors_logged(caplog) == []
    [record] = requests_logged(caplog)
    assert (record.levelno, record.exc_info) == (logging.INFO, None)


@pytest.mark.parametrize("in_a_child", [False, True], ids=["bare", "in a child"])
@pytest.mark.parametrize("name", FAULTS)
async def test_finish_error_after_a_fault_of_the_peer(name, in_a_child, autojump_clock, caplog):
    """EX-14: an error of finish() is told of and is the outcome, however the client has ended."""

    async def fail(self):
        raise RuntimeError("finish") from None

    fault, finish = FAULTS[name], in_children(fail) if in_a_child else fail
    caplog.set_level(logging.INFO, logger="trioserver")
    server = strict(handling(fault.handle, finish=finish))
    async with server.serving():
        await (await have_fault(server, fault.client)).aclose()
    [told] = server.errors
    assert list(map(repr, leaves(told))) == ["RuntimeError('finish')"]
    [record] = server.witness.records
    assert (record.outcome, record.reason) == ("failed", "RuntimeError: finish")
    assert len(requests_logged(caplog)) == 1


MODES = {
    "task": lambda name: trioserver.TCPServer(THERE, getattr(handlers, f"Async{name}")),
    "thread": lambda name: trioserver.ThreadingTCPServer(THERE, getattr(handlers, name)),
    "process": lambda name: trioserver.ProcessTCPServer(
        THERE, getattr(handlers, name), min_children=1
    ),
    "process, async": lambda name: trioserver.ProcessTCPServer(
        THERE, getattr(handlers, f"Async{name}"), min_children=1
    ),
    "adopt": lambda name: socketserver.ThreadingTCPServer(THERE, getattr(handlers, name)),
}
"""Servers on real sockets whose handlers are of that name, by where these run."""


@pytest.mark.parametrize("name", ["FailsThenFinishes", "MeetsThenFails"])
@pytest.mark.parametrize("mode", MODES)
async def test_error_beside_a_fault_of_the_peer(mode, name, caplog, capfd):
    """EX-14: the client's end, in handle or finish, hides no error of the other, in any mode."""
    witness, server = Witness(), MODES[mode](name)
    caplog.set_level(logging.INFO, logger="trioserver")
    with trio.fail_after(20):
        if mode == "adopt":
            serving = adopted(server, observers=[witness])
        else:
            server.observers = [witness]
            serving = server.serving()
        async with serving:
            reset(plain_client(server.server_address))
            await until(lambda: witness.records)
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason.endswith("ValueError: on purpose")
    told = caplog.text if mode != "adopt" else capfd.readouterr().err  # theirs prints
    assert "ValueError: on purpose" in told


class Rude(trioserver.RequestEnded):
    """Something that a protocol does not allow."""


class Blames:
    """What handlers do that meet something, and raise something."""

    async def both(self):
        errors = []
        for meets in [Meets.a_receive, Meets.a_send]:
            try:
                await meets(self)
            except trioserver.RequestEnded as error:
                errors.append(error)
        raise ExceptionGroup("both", errors)

    async def both_its_own(self):
        try:
            await Meets.a_receive(self)
        except trioserver.IdleTimeout as timeout:
            raise ExceptionGroup("both", [timeout, ValueError("mine")]) from None

    async def translates(self):
        try:
            await Meets.ten_bytes(self)
        except EOFError as cause:
            raise ValueError("protocol error") from cause

    async def judges(self):
        raise Rude("this is not done", info=self.info)

    async def loses_its_backend(self):
        async def rude(request, client_address, server):
            request.reset()

        async with memory(rude).serving() as backend, await backend.connect() as stream:
            await self.request.sendall(await stream.receive_some())

    async def sends_twice(self):
        await Meets.a_send(self)
        await Meets.a_send(self)


@table(
    ("handle", "finish", "does", "outcome", "errors"),
    {
        "EX-14: a group in which every leaf is the peer's doing is the peer's doing": (
            *(Blames.both, None, [], "timed_out", []),
        ),
        "EX-04: one leaf that is the handler's own makes the whole group its error": (
            *(Blames.both_its_own, None, [], "failed", [trioserver.IdleTimeout, ValueError]),
        ),
        "EX-14: who raises something else because of the peer has an error of its own": (
            *(Blames.translates, None, [ends_input], "failed", [ValueError]),
        ),
        "EX-14: an exception that a program derives from ours is its own": (
            *(Blames.judges, None, [], "failed", [Rude]),
        ),
        "EX-14: a proxy whose backend went away has failed; its client is not to blame": (
            *(Blames.loses_its_backend, None, [], "failed", [trio.BrokenResourceError]),
        ),
        "EX-14: two tasks that receive from one connection are the handler's mistake": (
            in_children(Meets.a_receive, Meets.a_receive),
            *(None, [], "failed", [trio.BusyResourceError]),
        ),
        "EX-14: a finish() that finds out once more that the client has gone is no error": (
            *(Meets.a_receive, Blames.sends_twice, [resets], "disconnected", []),
        ),
    },
)
async def test_fault_of_somebody(
    handle,
    finish,
    does,
    outcome,
    errors,
    autojump_clock,
):
    """What is told of is what is not the client's doing alone."""
    server = memory(handling(handle, finish=finish), Narrow)
    async with server.serving():
        client = await have_fault(server, does)
        await trio.sleep(400)
        await client.aclose()
    assert server.witness.outcomes == [outcome]
    assert [type(leaf) for told in server.errors for leaf in leaves(told)] == errors


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("of something else")
            for kind in [
                *[trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError],
                *[ConnectionResetError, BrokenPipeError, TimeoutError, EOFError],
            ]
        ),
        trioserver.PeerGone("made by the handler"),
        trioserver.IdleTimeout("made by the handler"),
        trioserver.Draining("made by the handler"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_fault_of_something_else(error, autojump_clock):
    """TO-09, EX-14: an error that looks like the peer's, and is not, is the handler's."""
    server = await harms_nobody(raising(error))
    assert server.witness.outcomes == ["failed", "completed"]
    assert server.errors == [error]


async def test_fault_of_another_client(autojump_clock):
    """EX-14: a handler that lets out the error of another client's connection has failed."""
    connections = {}

    async def eavesdrop(request, client_address, server):
        connections[request.info.id] = request
        if request.info.id == 1:
            await trio.sleep_forever()
        await connections[1].recv()

    server = memory(eavesdrop)
    async with server.serving(grace=0):
        [first] = await come(server)
        [second] = await come(server)
        first.reset()
        await ended(second)
    assert outcomes_of(server) == {1: "cancelled", 2: "failed"}
    assert [type(error) for error in server.errors] == [trioserver.PeerGone]


# Exceptions that cannot be shown, and logs that cannot be written ---------------------


class Unprintable(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


async def test_unprintable_exception(autojump_clock, caplog):
    """EX-12: an exception whose own __str__ raises is told of by its name."""
    server = await harms_nobody(raising(Unprintable()), MemoryServer)
    assert server.witness.records[0].outcome == "failed"
    assert server.witness.records[0].reason == "Unprintable"
    assert "Unprintable" in caplog.text


class Broken(logging.Handler):
    """Raises whatever is logged."""

    def emit(self, record):
        raise OSError("the disk is full")


@contextmanager
def logging_to(*handlers):
    """The library logs to these handlers alone, and not to pytest's, which keep what they get."""
    logger = logging.getLogger("trioserver")
    before = logger.handlers
    logger.handlers, logger.propagate = list(handlers), False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, True
        logger.setLevel(logging.NOTSET)


closed = io.StringIO()
closed.close()


@table(
    ("kind", "handlers", "stderr"),
    {
        "a logging handler that raises, at every record, ends nothing": (
            *(MemoryServer, [Broken()], sys.stderr),
        ),
        "nor with nobody left to tell, when handle_error raises as well": (
            *(hooked(handle_error=failing(Unprintable())), [Broken()], sys.stderr),
        ),
        "with stderr closed, an unconfigured program still serves": (MemoryServer, [], closed),
        "with stderr gone, too": (MemoryServer, [], None),
    },
)
async def test_log_that_cannot_be_written(kind, handlers, stderr, autojump_clock, monkeypatch):
    """EX-12: errors that nobody can be told of harm nobody."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with logging_to(*handlers):
        await harms_nobody(raising(ValueError("oops")), kind)


# Nothing is kept alive ----------------------------------------------------------------


class Kept(Exception):
    """An error that can be referred to weakly."""


class Keeps:
    """What handlers do whose requests are collected."""

    async def returns(self):
        pass

    async def fails(self):
        raise Kept

    async def fails_in_a_child(self):
        await in_children(Keeps.fails, sleeps)(self)

    async def fails_in_finish_too(self):
        self.fails_in_finish = True
        raise Kept

    async def is_cancelled(self):
        self.cancel_scope.cancel(reason="enough")
        await trio.sleep_forever()

    async def fails_when_cancelled(self):
        try:
            await Keeps.is_cancelled(self)
        finally:
            raise Kept


CYCLES = {
    **{name: (handle, []) for name, handle in vars(Keeps).items() if not name.startswith("_")},
    **{
        name: (fault.handle, fault.client)
        for name, fault in FAULTS.items()
        if fault.outcome != "drained"
    },
}


@contextmanager
def nothing_is_collected():
    """Without the collector of cycles, what is in one stays."""
    gc.collect()
    gc.disable()
    try:
        with logging_to(logging.StreamHandler(io.StringIO())):  # formats, and keeps nothing
            yield
    finally:
        gc.enable()


def found_in_cycles():
    """What the collector would have to find: the library's objects."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        types = [type(found) for found in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    return [kind.__name__ for kind in types if kind.__module__.startswith("trioserver")]


class NarrowAndQuiet(MemoryServer):
    memory_capacity = 10


@pytest.mark.parametrize("name", CYCLES)
async def test_ended_request_is_collected_at_once(name, autojump_clock):
    """EX-13: no cycle keeps a handler or its connection, however the request ended."""
    handle, does = CYCLES[name]
    refs = []

    class Handler(handling(handle)):
        fails_in_finish = False

        async def setup(self):
            refs.extend([weakref.ref(self), weakref.ref(self.request)])

        async def finish(self):
            if self.fails_in_finish:
                raise Kept
            await super().finish()

    server = strict(Handler, NarrowAndQuiet)
    with nothing_is_collected():
        async with server.serving():
            client = await have_fault(server, does)
            assert [ref() for ref in refs] == [None, None]
            assert found_in_cycles() == []
            await client.aclose()


async def test_ended_requests_of_sockets_are_collected_at_once():
    """EX-13: the same on real sockets, for an answer, an error and a reset."""
    server = trioserver.TCPServer(THERE, Increment)
    with trio.fail_after(10), nothing_is_collected():
        async with server.serving():
            clients = [plain_client(server.server_address) for _ in range(3)]
            for client, data in zip(clients, [b"1\n", b"one\n", b"1"], strict=True):
                client.sendall(data)
            clients[0].shutdown(socket.SHUT_WR)
            clients[0].close()
            clients[1].close()
            reset(clients[2])
            await until(lambda: sum(server.statistics().outcomes.values()) == 3)
            await until(lambda: not server.statistics().lingering)
            assert found_in_cycles() == []


async def test_reported_error_is_collected_at_once(autojump_clock):
    """EX-13: when the log is written, the error itself is gone, with its traceback and frames."""
    refs = []

    async def fail(request, client_address, server):
        error = Kept("oops")
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    server = memory(fail, MemoryServer)
    with nothing_is_collected():
        async with server.serving():
            await ended(await server.connect())
            await wait_all_tasks_blocked()
            assert [ref() for ref in refs] == [None]


async def test_finish_is_ordinary_code_otherwise(autojump_clock):
    """EX-05: after a handle() that returned, finish() has the time of the request and no more."""

    class Endless(trioserver.BaseRequestHandler):
        async def finish(self):
            await trio.sleep_forever()

    timeouts = trioserver.Timeouts(request=10)
    played = await Scene(Endless, timeouts=timeouts, outcomes=["timed_out"]).play()
    assert played.witness.records[0].duration == 10
