"""Errors: whose fault they are, who is told, what they end and what they must not.

One bad request never harms another. So in most tests a first client meets the
error, and a second one must not notice.
"""

import asyncio
import gc
import io
import logging
import signal
import socket
import socketserver
import sys
import traceback
import weakref
from contextlib import contextmanager, suppress
from functools import partial

import attrs
import pytest
import trio
from support import Upper, Witness, hold, plain_client, reset, until
from support import process_handlers as handlers
from support.adopting import adopted
from support.memory import ask, come, ended, ending_by, leaves, noting
from support.memory import memory as in_memory
from support.pipes import does
from support.scenes import Narrow, Scene, Visit, act, close, end, table
from support.scenes import reset as resets
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer

THERE = ("127.0.0.1", 0)
VICTIM = ("victim", 1)
BEFORE = ["verify_request", "process_request"]
HANDLED = [*BEFORE, "setup", "handle", "finish"]
AFTER = ["shutdown_request", "close_request"]


# Servers and their handlers -----------------------------------------------------------


class Tells(MemoryServer):
    """Writes down the steps that its requests take, and what handle_error is told of."""

    steps: list[str] = attrs.field(factory=list)
    errors: list[BaseException | None] = attrs.field(factory=list)

    async def step(self, name, request):
        """Called at the beginning of every hook, and of every method of `Steps`."""
        self.steps.append(name)

    async def handle_error(self, request, client_address):
        assert client_address == request.info.client_address
        self.errors.append(sys.exception())
        await self.step("handle_error", request)


TellsAll = noting(
    Tells, [*BEFORE, *AFTER], lambda server, name, request, *_: server.step(name, request)
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


Steps = noting(Upper, HANDLED[2:], lambda it, name: it.server.step(name, it.request))
"""Answers in upper case; its methods are steps of its server."""


def memory(handler, kind=Tells, **fields):
    """A server in memory, which tells."""
    return in_memory(handler, kind, **fields)


def hooked(kind=Tells, **hooks):
    """A server class with these hooks."""
    return type("Hooked", (kind,), hooks)


def handling(handle, **methods):
    """A handler class with these methods."""
    methods = {name: method for name, method in methods.items() if method is not None}
    return type("Handler", (trioserver.StreamRequestHandler,), {"handle": handle, **methods})


def steps(text):
    """A method that does these steps: see `does`."""
    return does(text).handle


def failing(error, *cause):
    """A method, or a hook, that raises ``error``, from a cause if there is one."""

    async def fail(self, *arguments):
        if cause:
            raise error from cause[0]
        raise error

    return fail


async def sleeps(self, *arguments):
    """A method, or a hook, that never ends."""
    await trio.sleep_forever()


def spoil_by(error):
    """One that turns its cancellation into this."""

    async def spoil(self, *arguments):
        try:
            await trio.sleep_forever()
        finally:
            raise error

    return spoil


spoil = spoil_by(ValueError("spoilt"))


def in_children(*functions):
    """One that has these run side by side."""

    async def children(self, *arguments):
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function, self, *arguments)

    return children


async def cancels_itself(self):
    """Ends its request in the way that a handler can."""
    self.cancel_scope.cancel(reason="enough")
    await trio.sleep_forever()


def to_the_first(handle):
    """A handler that has the first client meet this method, and answers the others."""
    special = handling(handle)

    async def handler(request, client_address, server):
        await (special if request.info.id == 1 else Upper)(request, client_address, server)

    return handler


def raising(error):
    """A handler that raises ``error`` to the first client, and answers the others."""
    return to_the_first(failing(error))


# Their clients, and what is told of them ----------------------------------------------


async def meet(server, *does):
    """What the first client gets, who does that, and then has no more to say."""
    client = await server.connect(VICTIM)
    await act(client, *does, end)
    return await ended(client)


async def served(*arguments, others=0, **fields):
    """A server that has had such a client, and then answered others; closed."""
    server = memory(*arguments, **fields)
    async with server.serving():
        server.answer = await meet(server)
        for _ in range(others):
            assert await ask(server) == b"HELLO\n"
    return server


harms_nobody = partial(served, others=1)


def told(server):
    """The errors that handle_error was told of, without the groups that they came in."""
    return [leaf for error in server.errors for leaf in leaves(error)]


def outcomes_of(server):
    """The outcome of each request."""
    return {record.info.id: str(record.outcome) for record in server.witness.records}


def errors_logged(caplog):
    """The records of errors."""
    return [record for record in caplog.records if record.name == "trioserver.error"]


# Exceptions end their request ---------------------------------------------------------


@table(
    ("place", "outcome", "expected"),
    {
        "EX-01: nowhere": ("", "completed", [*HANDLED, *AFTER]),
        "EX-08: in verify_request": (BEFORE[0], "failed", [BEFORE[0], "handle_error", *AFTER]),
        "in process_request": (BEFORE[1], "failed", [*BEFORE, "handle_error", *AFTER]),
        "in setup": ("setup", "failed", [*BEFORE, "setup", "handle_error", *AFTER]),
        "in handle": ("handle", "failed", [*HANDLED, "handle_error", *AFTER]),
        "in finish": ("finish", "failed", [*HANDLED, "handle_error", *AFTER]),
        "in shutdown_request": (AFTER[0], "completed", [*HANDLED, AFTER[0], "handle_error"]),
        "in close_request": (AFTER[1], "completed", [*HANDLED, *AFTER, "handle_error"]),
    },
)
async def test_exception_ends_its_request_only(place, outcome, expected, autojump_clock):
    """EX-01, EX-08: handle_error is told once, finish() runs if setup() returned, others live on.

    And the request is always closed, and its record says what it was.
    """
    server = memory(Steps, Faulty, place=place)
    async with server.serving():
        bystander = await server.connect()
        await bystander.send_all(b"half ")
        await meet(server, b"hello\n")
        await bystander.send_all(b"full\n")
        assert await bystander.receive_some() == b"HALF FULL\n"
        await bystander.aclose()
        assert await ask(server) == b"HELLO\n"
    assert server.errors == ([server.error] if place else [])
    assert server.steps == expected
    assert outcomes_of(server) == {1: "completed", 2: outcome, 3: "completed"}
    reasons = [record.reason for record in server.witness.records if record.reason]
    assert reasons == (["ValueError: oops"] if outcome == "failed" else [])


@pytest.mark.parametrize(
    "error",
    [
        *[StopIteration(), StopAsyncIteration(), GeneratorExit(), MemoryError()],
        *[AssertionError(), EOFError(), ExceptionGroup("one", [ValueError()])],
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["verify_request", "setup", "handle", "finish"])
async def test_strange_exceptions_are_contained(place, error, autojump_clock):
    """EX-11: exceptions that mean something to Python mean an error of the handler here."""
    server = await harms_nobody(Steps, Faulty, place=place, error=error)
    (found,) = server.errors
    # PEP 479 has Python turn StopIteration into a RuntimeError; GeneratorExit is treated alike.
    if isinstance(error, StopIteration | GeneratorExit):
        assert isinstance(found, RuntimeError)
        assert found.__cause__ is error
    else:
        assert found is error


async def recurse(*arguments):
    """Recurses until Python stops it."""
    await recurse(*arguments)


DEEP = ValueError("oops")
for _ in range(3000):
    DEEP = ExceptionGroup("deep", [DEEP])


@table(
    ("handle", "errors", "reason"),
    {
        "EX-11: an endless recursion": (recurse, ["RecursionError"], "RecursionError"),
        "EX-11: GeneratorExit beside the cancellation of others": (
            *(in_children(failing(GeneratorExit()), sleeps), ["RuntimeError"], "GeneratorExit"),
        ),
        "EX-04: two children that fail: with both": (
            in_children(failing(ValueError("first")), failing(KeyError("second"))),
            *(["KeyError('second')", "ValueError('first')"], ""),
        ),
        "one that is nested 3000 deep": (failing(DEEP), ["ValueError"], "ValueError: oops"),
    },
)
async def test_error_of_whatever_shape(handle, errors, reason, autojump_clock):
    """It is the handler's like any other: one call of handle_error, and others are answered."""
    server = await harms_nobody(to_the_first(handle))
    assert len(server.errors) == 1
    found = sorted(told(server), key=repr)
    for error, expected in zip(found, errors, strict=True):
        assert repr(error).startswith(expected)
    assert reason in server.witness.records[0].reason
    assert server.witness.outcomes == ["failed", "completed"]
    if errors == ["RuntimeError"]:
        assert isinstance(found[0].__cause__, GeneratorExit)


def shown(error):
    """The exceptions that a traceback of ``error`` shows, the last one first."""
    chain = []
    while error is not None:
        assert error not in chain, "the chain has no end"
        chain.append(error)
        hidden = error.__cause__ is not None or error.__suppress_context__
        error = error.__cause__ if hidden else error.__context__
    return chain


async def test_handle_error_raises(autojump_clock, caplog):
    """EX-07: an error of handle_error is logged, with the one it was told of, and ends nothing.

    Both are in one record, where one traceback shows both.
    """
    second = RuntimeError("second")
    server = await harms_nobody(Steps, Faulty, place="handle_error", error=second)
    assert server.answer == b""
    (record,) = errors_logged(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info[1] is second
    assert list(map(str, shown(second))) == ["second", "for handle_error"]


async def polite(self, request, client_address):
    """A handle_error that tells the client, in a while, and stops the server."""
    await trio.sleep(3)
    await request.sendall(b"error: %a\n" % str(sys.exception()))
    self.shutdown()


async def goodbye(self, request, *client_address):
    """A hook that talks to a client who may have left."""
    await trio.sleep(1)
    await request.sendall(b"good")
    await request.sendall(b"bye")


OOPS = raising(ValueError("oops"))
LATER = Visit({6: [b"hello\n", end]}).gives(b"HELLO\n", 6)
HALF = {0: b"half a li", 1: resets}


async def password(self, request, client_address):
    """A verification that reads."""
    return await request.recv() == b"swordfish"


async def forgets(self, request, client_address):
    """A finish_request that fails between construction and await."""
    self.RequestHandlerClass(request, client_address, self)
    raise ValueError("in between")


class Unprintable(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


@table(
    {
        "EX-01: a handler that fails while the server drains: the drain goes on": Scene(
            does("sleep 5; fail", fail=failing(ValueError("oops"))), drain_at=1
        ).gives(b"", 5, "failed", closed_at=5, clean=True, logs=["ValueError: oops"]),
        "EX-12: an exception whose own __str__ raises is told of by its name": Scene(
            raising(Unprintable())
        ).gives(b"", 0, "failed", reason="Unprintable", logs=["Unprintable"]),
        "EX-10: an error between construction and await is told as itself": Scene(
            Upper, kind=hooked(MemoryServer, finish_request=forgets)
        ).gives(b"", 0, "failed", logs=["ValueError: in between"]),
        "EX-07: a handle_error is bounded, and what it raises then ends nothing either": Scene(
            OOPS, kind=hooked(handle_error=in_children(spoil, sleeps))
        )
        .beside(LATER)
        .gives(b"", 5, "failed", "completed"),
        "EX-07: the connection is still there, so it can say what went wrong; or stop": Scene(
            OOPS, kind=hooked(handle_error=polite)
        ).gives(b"error: 'oops'\n", 3, "failed"),
        "EX-07: a server that is cut while it runs lets it end, within its bound": Scene(
            OOPS, drain_at=1, grace=0, kind=hooked(handle_error=polite)
        ).gives(b"error: 'oops'\n", 3, "failed"),
        "EX-14: a shutdown_request that talks to a client who has left is no error": Scene(
            OOPS, {0: resets}, kind=hooked(MemoryServer, shutdown_request=goodbye)
        ).gives(closed_at=1, logs=["ValueError: oops"]),
        "EX-14: what the client did stops no server, propagate_errors or not": Scene(
            Upper, HALF, fields={"propagate_errors": True}
        )
        .beside(LATER)
        .gives(b"", 1, "disconnected", "completed"),
        "EX-08: a verification may meet what a handler may meet; nobody is to blame": Scene(
            Upper, kind=hooked(verify_request=password), timeouts=Timeouts(idle=5)
        )
        .beside(Visit({1: resets}))
        .gives(b"", 5, "disconnected", "timed_out"),
    }
)
async def test_error_in_a_scene(scene, autojump_clock):
    """What hooks do about an error, and what they meet."""
    await scene.play()


async def again(self, *request):
    """A handle_error that raises what is being handled."""
    raise  # noqa: PLE0704


@table(
    ("fails", "logged"),
    {
        "it raises": (failing(RuntimeError("the second")), "RuntimeError: the second"),
        "it raises from None": (failing(KeyError("the second"), None), "KeyError: 'the second'"),
        "it raises in a child": (in_children(failing(KeyError)), "KeyError"),
        "it raises the same again": (again, "handle_error raised"),
        "its client is gone": (goodbye, "PeerGone: the peer is gone"),
        "it is cut": (sleeps, "handle_error did not end within 5 s (cleanup)"),
        "it fails when it is cut": (in_children(spoil, sleeps), "ValueError: spoilt"),
        "it exits": (failing(SystemExit()), "of which handle_error has not told"),
    },
)
@pytest.mark.parametrize("place", ["handle", "shutdown_request", "when_full"])
async def test_first_error_is_never_lost(place, fails, logged, autojump_clock, caplog):
    """EX-07: however a handle_error fails, what it was told of is logged, and so is its own."""
    fail = failing(LookupError("the first"))
    number = 1 + (place == "when_full")
    hooks = {"handle_error": fails}
    if place == "shutdown_request":
        hooks[place] = fail
    handler = partial(fail, None) if place == "handle" else hold
    limits = Limits(requests=1, when_full=partial(fail, None)) if number == 2 else Limits()
    server = memory(handler, hooked(MemoryServer, **hooks), limits=limits)
    with suppress(SystemExit):
        async with server.serving(grace=0):
            visitors = await come(server, number)
            if place == "shutdown_request":
                server.cancel_request(1, "enough")
                await wait_all_tasks_blocked()
            visitors[-1].reset()
            await trio.sleep(20)
    texts = [logging.Formatter().format(record) for record in errors_logged(caplog)]
    assert {record.levelno for record in errors_logged(caplog)} == {logging.ERROR}
    assert any("Traceback" in text and "LookupError: the first" in text for text in texts)
    assert any(logged in text for text in texts)
    assert len(server.witness.records) == number


@pytest.mark.parametrize("bound", [{"request": 1}, {"linger": 0}])
async def test_shutdown_request_fails_when_it_is_cut(bound, autojump_clock, caplog):
    """EX-07: an error beside its cancellation, by whomever, ends nothing."""
    kind = hooked(MemoryServer, shutdown_request=in_children(spoil, sleeps))
    await harms_nobody(Upper, kind, timeouts=Timeouts(**bound))
    assert "spoilt" in caplog.text


class Thorough(TellsAll):
    """Takes a second to close a request."""

    closed_at: list[float] = attrs.field(factory=list)

    async def close_request(self, request):
        await super().close_request(request)
        await trio.sleep(1)
        self.closed_at.append(trio.current_time())


@table(
    ("handle", "closed_at"),
    {
        "it returns": (steps("sleep 0"), []),
        "it raises": (failing(ValueError("oops")), []),
        "it reads too long": (steps("read 1"), []),
        "it closes": (steps("aclose"), [1]),
        "it leaves input unread": (steps("write b'bye'"), []),
        "EX-05: it sleeps too long": (sleeps, [21]),
        "EX-05: it cancels itself": (cancels_itself, [1]),
        "EX-05: it swallows its cancellation": (steps("sleep_forever -> Cancelled"), [21]),
        "EX-05: it raises something instead": (spoil, [21]),
    },
)
async def test_every_end_passes_the_hooks(handle, closed_at, autojump_clock):
    """EX-01: however it ended, shutdown_request and close_request are called, once each.

    EX-05: after a cancellation, be it swallowed, they may still wait; nobody lingers then.
    Where a client lingers, the end of the time for the whole request cuts them.
    """
    timeouts = Timeouts(idle=10, request=20, linger=30)
    server = memory(handling(handle), Thorough, timeouts=timeouts)
    async with server.serving():
        client = await server.connect()
        await trio.sleep(60)
        await client.aclose()
    assert [server.steps.count(hook) for hook in AFTER] == [1, 1]
    assert server.closed_at == closed_at


# What stops the server ----------------------------------------------------------------


STOPS = [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]  # the last is nobody's
EVERYWHERE = [*HANDLED, "handle_error", "shutdown_request"]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        *((place, error) for place in EVERYWHERE for error in STOPS),
        *((place, ValueError("propagated")) for place in HANDLED),
        ("handle", ExceptionGroup("both", [ValueError("one"), KeyError("two")])),
    ],
    ids=repr,
)
async def test_base_exception_stops_the_server(place, error, autojump_clock, caplog):
    """EX-01, EX-02, EX-07: the very object reaches the caller, bare, after all was closed.

    So does any exception with propagate_errors; it is nothing for handle_error then. EX-04: a
    group is the group that it was.
    """
    propagates = isinstance(error, Exception)
    server = memory(Steps, Faulty, place=place, error=error, propagate_errors=propagates)
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
    assert type(leaves(error)[0]).__name__ in (await server.wait_closed()).reason
    victims = "completed" if place == "shutdown_request" else "failed"
    assert outcomes_of(server) == {1: "cancelled", 2: victims}
    assert ("finish" in server.steps) == (place not in [*BEFORE, "setup"])
    assert len(server.errors) == (place == "handle_error")
    assert errors_logged(caplog) == [] or place == "handle_error"
    assert server.witness.names[-1] == "server_closed"


WAITED = []  # the methods in which Ctrl-C has not struck at once


def struck_in(name):
    """A handler class that is interrupted in the method of that name, which never waits."""

    def strike(*arguments):
        signal.raise_signal(signal.SIGINT)
        WAITED.append(name)

    async def strike_in_task(*arguments):
        strike()

    body = strike if name == "__init__" else strike_in_task
    return type("Struck", (trioserver.StreamRequestHandler,), {name: body})


@table(
    ("handler", "hook"),
    {
        "a handler class": (struck_in("handle"), None),
        "its constructor": (struck_in("__init__"), None),
        "a function": (lambda *arguments: struck_in("handle").handle(), None),
        "behind an override of finish_request": (struck_in("handle"), "finish_request"),
        "behind one of process_request": (struck_in("handle"), "process_request"),
    },
)
def test_ctrl_c_strikes_in_what_never_waits(handler, hook):
    """EX-01: it does not wait until the handler does."""

    async def passes_on(self, request, client_address):
        await getattr(MemoryServer, hook)(self, request, client_address)

    async def main():
        server = in_memory(handler, hooked(**{hook: passes_on} if hook else {}))
        async with server.serving():
            await server.connect()
            await trio.sleep(1)

    WAITED.clear()
    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert WAITED == []


FINAL = SystemExit(3)
MIXED = [ValueError("first"), ExceptionGroup("inner", [KeyError("deep")]), FINAL]


@table(
    ("handle", "finish", "cancel", "errors"),
    {
        "also when the server was being cancelled": (spoil_by(FINAL), None, True, []),
        "a lone one from a handler's nursery": (
            *(in_children(failing(FINAL), sleeps), None, False, []),
        ),
        "of one from finish(), the handler's error is told of": (
            *(failing(ValueError("first")), failing(FINAL), False, ["ValueError('first')"]),
        ),
        "EX-04: of a mixed group handle_error gets the errors; the rest stops the server": (
            failing(BaseExceptionGroup("mixed", MIXED)),
            *(None, False, ["ValueError('first')", "KeyError('deep')"]),
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
    assert list(map(repr, told(server))) == errors
    assert len(server.errors) == (len(errors) > 0)


async def test_base_exception_stops_the_others_at_once_and_waits(autojump_clock):
    """EX-02: nobody is served on while its request is being closed; all have finished before."""
    cut_at = []

    async def handle(self):
        if await self.rfile.read(1):
            raise FINAL

    async def finish(self):
        if self.info.id == 2:
            cut_at.append(trio.current_time())
            await trio.sleep(4)
            await self.wfile.write(b"good night")

    async def close_slowly(self, request):
        if request.info.id == 1:
            await trio.sleep(3)
        await MemoryServer.close_request(self, request)

    server = memory(handling(handle, finish=finish), hooked(close_request=close_slowly))
    async with ending_by(FINAL, server):
        victim, other = await come(server, 2)
        await victim.send_all(b"x")
        assert await ended(other) == b"good night"
    assert cut_at == [0]
    assert trio.current_time() == 4
    assert outcomes_of(server) == {1: "failed", 2: "cancelled"}


@table(
    ("handle", "errors", "outcome"),
    {
        "Cancelled is never passed to handle_error, nor logged": (sleeps, [], "cancelled"),
        "an error instead of it is told of; the stop goes on": (
            *(spoil, ["ValueError('spoilt')"], "failed"),
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
    assert list(map(repr, told(server))) == errors
    assert errors_logged(caplog) == []
    assert server.witness.outcomes == [outcome]
    assert trio.current_time() == 0


# finish() -----------------------------------------------------------------------------


def assert_no_rings(error, above=()):
    """No exception leads back to itself, by whatever links."""
    if error is None:
        return
    assert all(error is not one for one in above), f"{error!r} is in a ring"
    for following in (error.__context__, error.__cause__, *getattr(error, "exceptions", ())):
        assert_no_rings(following, (*above, error))


async def fails_in_steps(self):
    """A finish() that fails, and then fails to clean up."""
    try:
        raise KeyError("second")
    finally:
        raise OSError("third")


FIRST, SECOND, OTHER = ValueError("first"), KeyError("second"), OSError("other")
GROUP = ExceptionGroup("second", [FIRST, OTHER])


@table(
    ("handle", "finish", "tells"),
    {
        "bare": (failing(FIRST), failing(SECOND), ["first", "second"]),
        "the handler's is from None": (failing(FIRST, None), failing(SECOND), ["first", "second"]),
        "it has a cause, and the second one a context": (
            *(failing(FIRST, OTHER), fails_in_steps, ["first", "other", "third", "second"]),
        ),
        "the same object, raised again": (failing(FIRST), failing(FIRST), ["first"]),
        "made of the handler's": (failing(FIRST), failing(SECOND, FIRST), ["second"]),
        "in a group with it": (failing(FIRST), failing(GROUP), ["second"]),
        "the same, from None": (failing(FIRST), failing(GROUP, None), ["second"]),
    },
)
async def test_finish_error_is_chained(handle, finish, tells, autojump_clock):
    """EX-01: an error of finish() is shown with the handler's, once, never instead of it."""
    for error in (FIRST, SECOND, OTHER, GROUP):  # without what another row has left
        error.__context__ = error.__cause__ = None
        error.__suppress_context__ = False
        vars(error).pop("__notes__", None)
    [found] = (await served(handling(handle, finish=finish))).errors
    assert_no_rings(found)
    assert all(it in "".join(traceback.format_exception(found)) for it in tells)
    if tells[0] == "first":
        assert found is FIRST
        assert sorted(str(error).strip("'") for error in shown(found)) == sorted(tells)


polite = steps("sleep 3; write b'goodbye'")


@table(
    {
        "after a cancellation it may still wait, and say goodbye": Scene(
            handling(sleeps, finish=polite), drain_at=1, grace=0
        ).gives(b"goodbye", 4, "cancelled"),
        "a cancellation that comes while it cleans up after an error lets it end": Scene(
            handling(failing(ValueError("oops")), finish=polite), drain_at=1, grace=0
        ).gives(b"goodbye", 3, "failed"),
        "after a handle() that returned, it has the time of the request and no more": Scene(
            handling(steps("sleep 1"), finish=sleeps), timeouts=Timeouts(request=10)
        ).gives(b"", 10, "timed_out", duration=10),
        "EX-14: a last flush to a client that has gone stays quiet": Scene(
            does("write b'too late'; sleep_forever", wbufsize=-1),
            {1: resets},
            timeouts=Timeouts(request=10),
        ).gives(outcomes=["timed_out"], closed_at=10),
    }
)
async def test_finish_is_shielded_after_a_cancellation(scene, autojump_clock):
    """EX-05: finish() gives back what setup() took, also in a hurry."""
    await scene.play()


# Whose fault --------------------------------------------------------------------------


async def idles(self):
    """Waits for something else than bytes, between two requests."""
    with self.idle():
        await trio.sleep_forever()


def fault(does_it, client, outcome, reason, *, drain_at=None):
    """A method that meets something, what its client does, and what it is called."""
    scene = Scene(idles if does_it == "idles" else steps(does_it), {**client, 50: close}, drain_at)
    bounds = {"limits": Limits(line=50, read=60), "timeouts": Timeouts(idle=10, line=5, write=5)}
    return scene.gives(None, None, outcome, reason=reason, kind=Narrow, reads_from=60, **bounds)


SENDS, HEADER, LONG = f"write {bytes(40)!r}", r"readuntil b'\r\n\r\n'", b"x" * 99

FAULTS = {
    "idle": fault("recv", {}, "timed_out", "idle"),
    "line": fault("readline", {0: b"x"}, "timed_out", "line"),
    "write": fault(SENDS, {}, "timed_out", "write"),
    "reset while reading": fault("recv", {1: resets}, "disconnected", "reset by peer"),
    "reset while writing": fault(SENDS, {1: resets}, "disconnected", "the peer is gone"),
    "closed while writing": fault(SENDS, {1: close}, "disconnected", "the peer is gone"),
    "input cut short": fault("readexactly 10", {0: [b"abc", end]}, "disconnected", "3 of 10 bytes"),
    "no delimiter": fault(HEADER, {0: [b"abc", end]}, "disconnected", "the input ended before"),
    "line too long": fault("readline", {0: LONG}, "refused", "50 bytes (line)"),
    "header too long": fault(HEADER, {0: LONG}, "refused", "50 bytes (line)"),
    "input too long": fault("read", {0: LONG}, "refused", "60 bytes (read)"),
    "drained before its first byte": fault("recv", {}, "drained", "drains", drain_at=1),
    "drained in an idle block": fault("idles", {}, "drained", "drains", drain_at=1),
}
"""Scenes of one method, by what it meets."""


def wrapped(depth, handle):
    """``handle``, inside that many nurseries."""
    return in_children(wrapped(depth - 1, handle), sleeps) if depth else handle


def requests_logged(caplog):
    """The records of requests that ended."""
    return [record for record in caplog.records if hasattr(record, "request_id")]


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["bare", "group", "nested groups"])
@pytest.mark.parametrize("name", FAULTS)
async def test_fault_of_the_peer(name, depth, autojump_clock, caplog):
    """EX-14: what the peer did has its outcome and one INFO line; no traceback, no handle_error."""
    caplog.set_level(logging.INFO, logger="trioserver")
    scene = FAULTS[name]
    await scene.gives(handler=handling(wrapped(depth, scene.handler))).play()
    [record] = requests_logged(caplog)
    assert (record.levelno, record.exc_info) == (logging.INFO, None)


@pytest.mark.parametrize("in_a_child", [False, True], ids=["bare", "in a child"])
@pytest.mark.parametrize("name", FAULTS)
async def test_finish_error_after_a_fault_of_the_peer(name, in_a_child, autojump_clock, caplog):
    """EX-14: an error of finish() is told of and is the outcome, however the client has ended."""
    caplog.set_level(logging.INFO, logger="trioserver")
    scene, finish = FAULTS[name], failing(RuntimeError("finish"), None)
    handler = handling(scene.handler, finish=in_children(finish) if in_a_child else finish)
    scene = scene.gives(outcomes=["failed"], reason="RuntimeError: finish", handler=handler)
    played = await scene.gives(logs=["RuntimeError: finish"]).play()
    assert played.witness.records[0].reason == "RuntimeError: finish"
    assert len(requests_logged(caplog)) == 1


@pytest.mark.parametrize("name", ["FailsThenFinishes", "MeetsThenFails"])
@table(
    ("kind", "prefix", "fields"),
    {
        "task": (trioserver.TCPServer, "Async", {}),
        "thread": (trioserver.ThreadingTCPServer, "", {}),
        "process": (trioserver.ProcessTCPServer, "", {"min_children": 1}),
        "process, async": (trioserver.ProcessTCPServer, "Async", {"min_children": 1}),
        "adopt": (socketserver.ThreadingTCPServer, "", {}),
    },
)
async def test_error_beside_a_fault_of_the_peer(kind, prefix, fields, name, caplog, capfd):
    """EX-14: the client's end, in handle or finish, hides no error of the other, in any mode."""
    witness, server = Witness(), kind(THERE, getattr(handlers, prefix + name), **fields)
    if theirs := isinstance(server, socketserver.BaseServer):
        serving = adopted(server, observers=[witness])
    else:
        server.observers = [witness]
        serving = server.serving()
    with trio.fail_after(20):
        async with serving:
            reset(plain_client(server.server_address))
            await until(lambda: witness.records)
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason.endswith("ValueError: on purpose")
    assert "ValueError: on purpose" in (capfd.readouterr().err if theirs else caplog.text)


class Rude(trioserver.RequestEnded):
    """Something that a protocol does not allow."""


class Blames:
    """What handlers do that meet something, and raise something."""

    async def both(self):
        errors = []
        for meets in (self.request.recv, partial(self.wfile.write, bytes(40))):
            try:
                await meets()
            except trioserver.RequestEnded as error:
                errors.append(error)
        raise ExceptionGroup("both", errors)

    async def both_its_own(self):
        try:
            await self.request.recv()
        except trioserver.IdleTimeout as timeout:
            raise ExceptionGroup("both", [timeout, ValueError("mine")]) from None

    async def translates(self):
        try:
            await self.rfile.readexactly(10)
        except EOFError as cause:
            raise ValueError("protocol error") from cause

    async def judges(self):
        raise Rude("this is not done", info=self.info)

    async def loses_its_backend(self):
        async def rude(request, client_address, server):
            request.reset()

        async with memory(rude).serving() as backend, await backend.connect() as stream:
            await self.request.sendall(await stream.receive_some())


@table(
    ("handle", "finish", "client", "outcome", "errors"),
    {
        "EX-14: a group in which every leaf is the peer's doing is the peer's doing": (
            *(Blames.both, None, {}, "timed_out", []),
        ),
        "EX-04: one leaf that is the handler's own makes the whole group its error": (
            *(Blames.both_its_own, None, {}, "failed", ["IdleTimeout", "ValueError"]),
        ),
        "EX-14: who raises something else because of the peer has an error of its own": (
            *(Blames.translates, None, {0: end}, "failed", ["ValueError"]),
        ),
        "EX-14: an exception that a program derives from ours is its own": (
            *(Blames.judges, None, {}, "failed", ["Rude"]),
        ),
        "EX-14: a proxy whose backend went away has failed; its client is not to blame": (
            *(Blames.loses_its_backend, None, {}, "failed", ["BrokenResourceError"]),
        ),
        "EX-14: two tasks that receive from one connection are the handler's mistake": (
            in_children(steps("recv"), steps("recv")),
            *(None, {}, "failed", ["BusyResourceError"]),
        ),
        "EX-14: a finish() that finds out once more that the client has gone is no error": (
            *(steps("recv"), steps(SENDS), {1: resets}, "disconnected", []),
        ),
    },
)
async def test_fault_of_somebody(handle, finish, client, outcome, errors, autojump_clock):
    """What is told of is what is not the client's doing alone."""
    scene = Scene(handling(handle, finish=finish), {**client, 400: close}, reads_from=401)
    kind = hooked(memory_capacity=10)
    played = await scene.gives(None, None, outcome, kind=kind).play()
    assert [type(error).__name__ for error in told(played.server)] == errors


@pytest.mark.parametrize(
    "error",
    [
        *[trio.BrokenResourceError(), trio.TooSlowError(), ConnectionResetError(), EOFError()],
        trioserver.PeerGone("made by the handler"),
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
        [first], [second] = await come(server), await come(server)
        first.reset()
        await ended(second)
    assert outcomes_of(server) == {1: "cancelled", 2: "failed"}
    assert [type(error) for error in server.errors] == [trioserver.PeerGone]


# Exceptions that cannot be shown, and logs that cannot be written ---------------------


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


async def fails_when_cancelled(self):
    """Fails when it cancels itself."""
    try:
        await cancels_itself(self)
    finally:
        raise Kept


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


@table(
    ("scene", "finish"),
    {
        "it returns": (Scene(steps("sleep 0")), None),
        "it fails": (Scene(failing(Kept)), None),
        "it fails in a child": (Scene(in_children(failing(Kept), sleeps)), None),
        "it fails, and so does its finish()": (Scene(failing(Kept)), failing(Kept)),
        "it is cancelled": (Scene(cancels_itself), None),
        "it fails when it is cancelled": (Scene(fails_when_cancelled), None),
        **{name: (scene, None) for name, scene in FAULTS.items() if scene.drain_at is None},
    },
)
async def test_ended_request_is_collected_at_once(scene, finish, autojump_clock):
    """EX-13: no cycle keeps a handler, its connection or its error, however the request ended."""
    refs = []

    class Handler(handling(scene.handler, finish=finish)):
        async def handle(self):
            refs.extend([weakref.ref(self), weakref.ref(self.request)])
            try:
                await super().handle()
            except Kept as error:
                refs.append(weakref.ref(error))
                raise

    def look(server):
        assert [ref() for ref in refs if ref()] == []
        assert len(refs) >= 2
        assert found_in_cycles() == []

    with nothing_is_collected():
        await scene.gives(
            handler=Handler, meanwhile={49: look}, does={**scene.does, 50: close}
        ).play()


async def test_ended_requests_of_sockets_are_collected_at_once():
    """EX-13: the same on real sockets, for an error, an answer and a reset."""
    server = trioserver.TCPServer(THERE, raising(ValueError))  # each its own error
    with trio.fail_after(10), nothing_is_collected():
        async with server.serving():
            clients = [plain_client(server.server_address) for _ in range(3)]
            for client, data in zip(clients, [b"", b"one\n", b"two"], strict=True):
                client.sendall(data)
            clients[0].close()
            clients[1].shutdown(socket.SHUT_WR)
            clients[1].close()
            reset(clients[2])
            await until(lambda: sum(server.statistics().outcomes.values()) == 3)
            await until(lambda: not server.statistics().lingering)
            assert found_in_cycles() == []
