"""Errors: whose fault they are, who is told, what they end and what they must not.

One bad request never harms another. So in most tests a first client meets the
error, and a second one must not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import socket
import socketserver
import struct
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, hold, plain_client, read_to_end, until
from support import process_handlers as handlers
from support.adopting import adopted

import trioserver
from trioserver.testing import MemoryServer

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class OutOfTheBlue(BaseException):
    """Not an Exception, and nobody's in particular."""


class Tells(trioserver.BaseServer):
    """Writes down the steps that its requests take, and what handle_error is told of."""

    steps: list[str] = attrs.field(factory=list)
    errors: list[BaseException | None] = attrs.field(factory=list)

    async def step(self, name: str, info: trioserver.RequestInfo) -> None:
        """Called at the beginning of every hook, and of every method of `Steps`."""
        self.steps.append(name)

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        await self.step("verify_request", request.info)
        return True

    async def process_request(self, request: Any, client_address: Any) -> None:
        await self.step("process_request", request.info)
        await super().process_request(request, client_address)

    async def shutdown_request(self, request: Any) -> None:
        await self.step("shutdown_request", request.info)
        await super().shutdown_request(request)

    async def close_request(self, request: Any) -> None:
        await self.step("close_request", request.info)
        await super().close_request(request)

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception())
        await self.step("handle_error", request.info)


class TellsInMemory(Tells, MemoryServer):
    """The same, in memory."""


class TellsTCP(Tells, trioserver.TCPServer):
    """The same, on real sockets."""


VICTIM = ("victim", 1)


class Faulty(TellsInMemory):
    """Raises `error` at the step called `place`, for one client only."""

    place: str = ""
    error: BaseException = attrs.field(factory=lambda: ValueError("oops"))

    async def step(self, name: str, info: trioserver.RequestInfo) -> None:
        await super().step(name, info)
        await trio.lowlevel.checkpoint()
        if info.client_address != VICTIM:
            return
        if name == self.place:
            raise self.error
        if name == "handle" and self.place == "handle_error":
            raise ValueError("for handle_error")


class Narrow(TellsInMemory):
    """Holds ten bytes on their way, so that a send soon has to wait for the reader."""

    memory_capacity = 10


class Steps(Upper):
    """Answers in upper case; its methods are steps of its server."""

    async def setup(self) -> None:
        await self.server.step("setup", self.info)

    async def handle(self) -> None:
        await self.server.step("handle", self.info)
        await super().handle()

    async def finish(self) -> None:
        await self.server.step("finish", self.info)
        await super().finish()


def memory(handler: Any, kind: type[MemoryServer] = TellsInMemory, **fields: Any) -> Any:
    """A server in memory."""
    return kind(("memory", 1), handler, **fields)


def raising(error: BaseException) -> Any:
    """A handler that raises ``error`` to the first client, and answers the others."""

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.lowlevel.checkpoint()
        if request.info.id == 1:
            raise error
        await Upper(request, client_address, server)

    return fail


async def flood(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Sends more than a narrow pipe holds."""
    await request.sendall(b"z" * 40)


async def ended(client: trioserver.Connection) -> bytes:
    """What the client received until the server ended or reset the connection."""
    received = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while portion := await client.receive_some():
            received += portion
    await client.aclose()
    return received


async def assert_answers(server: MemoryServer) -> None:
    """A new client is served."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.send_eof()
    assert await ended(client) == b"HELLO\n"


async def serve_until(
    server: trioserver.BaseServer, error: BaseException, *, task_status: Any
) -> None:
    """Serve until the server ends with that very exception, bare."""
    with pytest.raises(type(error)) as caught:
        await server.serve_forever(task_status=task_status)
    assert caught.value is error


async def serve_one_client(server: MemoryServer) -> None:
    """Serve while there is one client, then drain."""
    async with server.serving():
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()


def leaves(error: BaseException | None) -> list[BaseException | None]:
    """The exceptions in nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in leaves(child)]
    return [error]


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of errors."""
    return [record for record in caplog.records if record.name == "trioserver.error"]


def requests_logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of requests that ended."""
    records = [record for record in caplog.records if record.name == "trioserver.access"]
    return [record for record in records if hasattr(record, "request_id")]


# Plain Trio's failure modes -----------------------------------------------------------


class Increment(trioserver.StreamRequestHandler):
    """Answers numbers with the next ones; anything else is an error."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(b"%d\n" % (int(line) + 1))


async def test_error_of_one_client_harms_no_other() -> None:
    """EX-01: a ValueError, which ends trio.serve_tcp, leaves a client in mid-request alone (T1)."""
    server = TellsTCP(("127.0.0.1", 0), Increment)
    with trio.fail_after(10):
        async with server.serving():
            guilty, unrelated, late = [
                await trio.open_tcp_stream(*server.server_address) for _ in range(3)
            ]
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


async def test_reset_of_one_client_harms_no_other() -> None:
    """EX-14: a reset nobody catches, which ends trio.serve_tcp, is that client's own (T2)."""
    witness = Witness()
    server = TellsTCP(("127.0.0.1", 0), Upper, observers=[witness])
    with trio.fail_after(10):
        async with server.serving():
            unrelated = await trio.open_tcp_stream(*server.server_address)
            await unrelated.send_all(b"still ")
            rude = plain_client(server.server_address)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            rude.sendall(b"half a li")
            rude.close()
            await unrelated.send_all(b"here\n")
            assert await unrelated.receive_some() == b"STILL HERE\n"
            await unrelated.aclose()
    assert sorted(witness.outcomes) == ["completed", "disconnected"]
    assert server.errors == []


class AtStep(trio.abc.Instrument):
    """Calls an action after one step of the whole run."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.action: Callable[[], object] = lambda: None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def test_reset_at_every_step_harms_no_other() -> None:
    """EX-14: wherever the reset strikes, nobody else notices, and there is one quiet record."""

    async def scenario(steps: AtStep) -> list[str]:
        witness = Witness()
        server = memory(Upper, observers=[witness])
        async with server.serving():
            rude = await server.connect()
            steps.action = rude.reset
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await rude.send_all(b"one\ntw")
                await rude.receive_some()
                await rude.send_all(b"o\n")
                await rude.receive_some()
                await rude.send_eof()
            await assert_answers(server)
            rude.reset()
        assert server.errors == []
        assert len(witness.outcomes) == 2
        return witness.outcomes

    seen, number = set(), 0
    while True:
        number += 1
        steps = AtStep(number)
        clock = trio.testing.MockClock(autojump_threshold=0)
        seen.update(trio.run(scenario, steps, clock=clock, instruments=[steps]))
        if steps.left > 0:
            break
    assert number > 50
    assert seen == {"completed", "disconnected"}


# Exceptions end their request ---------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "outcome"),
    [
        ("verify_request", "failed"),
        ("process_request", "failed"),
        ("setup", "failed"),
        ("handle", "failed"),
        ("finish", "failed"),
        ("shutdown_request", "completed"),
        ("close_request", "completed"),
    ],
)
async def test_exception_ends_its_request_only(
    place: str, outcome: str, autojump_clock: Any
) -> None:
    """EX-01, EX-08: wherever it comes from, handle_error is told once, and the server lives."""
    error, witness = ValueError("oops"), Witness()
    server = memory(Steps, Faulty, place=place, error=error, observers=[witness])
    async with server.serving():
        bystander, victim = await server.connect(), await server.connect(VICTIM)
        await bystander.send_all(b"half ")
        await victim.send_all(b"hello\n")
        await victim.send_eof()
        await ended(victim)
        await bystander.send_all(b"full\n")
        assert await bystander.receive_some() == b"HALF FULL\n"
        await bystander.aclose()
        await assert_answers(server)
    assert server.errors == [error]
    outcomes = {record.info.id: record.outcome for record in witness.records}
    assert outcomes == {1: "completed", 2: outcome, 3: "completed"}


async def test_groups_however_deep(autojump_clock: Any) -> None:
    """An error that is nested 3000 deep is the handler's like any other."""
    error: Exception = ValueError("oops")
    for _ in range(3000):
        error = ExceptionGroup("deep", [error])
    witness = Witness()
    server = memory(Steps, Faulty, place="handle", error=error, observers=[witness])
    async with server.serving():
        client = await server.connect(VICTIM)
        await client.send_all(b"hello\n")
        await client.send_eof()
        await ended(client)
    assert server.errors == [error]
    assert [record.reason for record in witness.records] == ["ValueError: oops"]


BEFORE = ["verify_request", "process_request"]
AFTER = ["shutdown_request", "close_request"]


@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("", [*BEFORE, "setup", "handle", "finish", *AFTER]),
        ("verify_request", ["verify_request", "handle_error", *AFTER]),
        ("process_request", [*BEFORE, "handle_error", *AFTER]),
        ("setup", [*BEFORE, "setup", "handle_error", *AFTER]),
        ("handle", [*BEFORE, "setup", "handle", "finish", "handle_error", *AFTER]),
        ("finish", [*BEFORE, "setup", "handle", "finish", "handle_error", *AFTER]),
        ("close_request", [*BEFORE, "setup", "handle", "finish", *AFTER, "handle_error"]),
    ],
)
async def test_steps_after_an_exception(place: str, steps: list[str], autojump_clock: Any) -> None:
    """EX-01: finish() runs if and only if setup() returned, and the request is always closed."""
    server = memory(Steps, Faulty, place=place)
    async with server.serving():
        client = await server.connect(VICTIM)
        await client.send_eof()
        await ended(client)
    assert server.steps == steps


async def test_exception_is_told_with_its_request(autojump_clock: Any) -> None:
    """EX-01: handle_error gets the request and the address, and the record says what it was."""
    told, witness = [], Witness()

    class Told(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            told.append((request.info.id, client_address, repr(sys.exception())))

    server = memory(raising(KeyError("name")), Told, observers=[witness])
    async with server.serving():
        await ended(await server.connect(("alice", 7)))
    assert told == [(1, ("alice", 7), "KeyError('name')")]
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason == "KeyError: 'name'"


async def test_exception_in_every_request(autojump_clock: Any) -> None:
    """EX-01: a thousand failing requests free a thousand slots."""
    server = memory(Increment, limits=trioserver.Limits(requests=2))
    async with server.serving():
        for _ in range(1000):
            client = await server.connect()
            await client.send_all(b"x\n")
            await ended(client)
        client = await server.connect()
        await client.send_all(b"1\n")
        assert await client.receive_some() == b"2\n"
        await client.aclose()
    assert len(server.errors) == 1000


@pytest.mark.parametrize(
    "error",
    [
        StopIteration(),
        StopAsyncIteration(),
        GeneratorExit(),
        RecursionError(),
        MemoryError(),
        AssertionError(),
        EOFError(),
        ExceptionGroup("one", [ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["verify_request", "setup", "handle", "finish"])
async def test_strange_exceptions_are_contained(
    place: str, error: BaseException, autojump_clock: Any
) -> None:
    """EX-11: exceptions that mean something to Python mean an error of the handler here."""
    server = memory(Steps, Faulty, place=place, error=error)
    async with server.serving():
        client = await server.connect(VICTIM)
        await client.send_eof()
        await ended(client)
        await assert_answers(server)
    (told,) = server.errors
    # PEP 479 has Python turn StopIteration into a RuntimeError; GeneratorExit is treated alike.
    if isinstance(error, StopIteration | GeneratorExit):
        assert isinstance(told, RuntimeError)
        assert told.__cause__ is error
    else:
        assert told is error


async def test_generator_exit_in_a_child_task_is_contained(autojump_clock: Any) -> None:
    """EX-11: also from a handler's nursery, where a cancellation of the others comes with it."""
    error = GeneratorExit()

    async def leave() -> None:
        raise error

    async def handler(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        if request.info.id == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                nursery.start_soon(trio.sleep_forever)
        await Upper(request, client_address, server)

    server = memory(handler)
    async with server.serving():
        await ended(await server.connect())
        await assert_answers(server)
    [told] = server.errors
    assert isinstance(told, ExceptionGroup)
    [mistake] = told.exceptions
    assert isinstance(mistake, RuntimeError)
    assert mistake.__cause__ is error


async def test_endless_recursion_is_contained(autojump_clock: Any) -> None:
    """EX-11: a handler that recurses until Python stops it is one request's error."""

    async def recurse(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        if request.info.id == 1:
            await recurse(request, client_address, server)
        await Upper(request, client_address, server)

    server = memory(recurse)
    async with server.serving():
        await ended(await server.connect())
        await assert_answers(server)
    assert [type(error) for error in server.errors] == [RecursionError]


async def test_exception_during_the_drain(autojump_clock: Any) -> None:
    """EX-01: a handler that fails while the server drains is in the report; the drain goes on."""
    error = ValueError("oops")

    async def fail_late(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(5)
        raise error

    server = memory(fail_late)
    async with server.serving():
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
    report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["failed"]
    assert server.errors == [error]
    assert report.clean


# Groups -------------------------------------------------------------------------------


async def test_group_of_a_handlers_children(autojump_clock: Any) -> None:
    """EX-04: two children of a handler fail: one call of handle_error, with both."""
    first, second = ValueError("first"), KeyError("second")

    async def fail(error: Exception) -> None:
        raise error

    async def split(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, first)
            nursery.start_soon(fail, second)

    witness = Witness()
    server = memory(split, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert len(server.errors) == 1
    assert set(leaves(server.errors[0])) == {first, second}
    assert witness.outcomes == ["failed"]


async def test_group_is_split(autojump_clock: Any) -> None:
    """EX-02, EX-04: of a mixed group handle_error gets the errors; the rest stops the server."""
    error, deep, final = ValueError("first"), KeyError("deep"), SystemExit(3)
    mixed = BaseExceptionGroup("mixed", [error, ExceptionGroup("inner", [deep]), final])
    server = memory(raising(mixed))
    with pytest.raises((SystemExit, BaseExceptionGroup)) as caught:
        await serve_one_client(server)
    assert leaves(caught.value) == [final]
    assert [leaves(told) for told in server.errors] == [[error, deep]]


async def test_group_of_one_system_exit(autojump_clock: Any) -> None:
    """EX-02: a lone SystemExit from a handler's nursery reaches the caller as itself."""
    final = SystemExit(3)

    async def leave() -> None:
        raise final

    async def in_a_child(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            nursery.start_soon(trio.sleep_forever)

    server = memory(in_a_child)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, final))
        await ended(await server.connect())
    assert server.errors == []


async def test_group_with_a_cancellation(autojump_clock: Any) -> None:
    """EX-05: an error raised beside a cancellation is told; the cancellation goes on."""
    error = ValueError("instead")

    async def spoil() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def both(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spoil)
            nursery.start_soon(trio.sleep_forever)

    server = memory(both)
    async with server.serving(grace=0):
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
    assert [leaves(told) for told in server.errors] == [[error]]


# handle_error -------------------------------------------------------------------------


async def test_handle_error_raises(autojump_clock: Any, caplog: Any) -> None:
    """EX-07: an error of handle_error is logged, with the one it was told of, and ends nothing."""
    second = RuntimeError("second")
    server = memory(Steps, Faulty, place="handle_error", error=second)
    async with server.serving():
        assert await ended(await server.connect(VICTIM)) == b""
        await assert_answers(server)
    (record,) = errors_logged(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info[1] is second
    assert "for handle_error" in caplog.text
    assert "second" in caplog.text


async def test_handle_error_blocks(autojump_clock: Any, caplog: Any) -> None:
    """EX-07: a handle_error that never ends is ended after `cleanup`, and named."""

    class Stuck(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            await trio.sleep_forever()

    witness = Witness()
    timeouts = trioserver.Timeouts(cleanup=4)
    error = ValueError("oops")
    server = memory(raising(error), Stuck, timeouts=timeouts, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
        assert trio.current_time() == 4
        await assert_answers(server)
    assert witness.records[0].outcome == "failed"
    assert "handle_error did not end within 4 s" in caplog.text


async def test_handle_error_is_shielded(autojump_clock: Any) -> None:
    """EX-07: a server that is cut while handle_error runs lets it end, within its bound."""
    done = []

    class Slow(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            await trio.sleep(3)
            done.append(trio.current_time())

    server = memory(raising(ValueError("oops")), Slow)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert done == [3]
    assert trio.current_time() == 3


async def test_handle_error_can_tell_the_client(autojump_clock: Any) -> None:
    """EX-07: the connection is still there, so an override can say what went wrong."""

    class Polite(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            await request.sendall(b"error: %a\n" % str(sys.exception()))

    server = memory(raising(ValueError("oops")), Polite)
    async with server.serving():
        assert await ended(await server.connect()) == b"error: 'oops'\n"


async def test_handle_error_can_shut_down(autojump_clock: Any) -> None:
    """EX-07: an override may decide that this was enough."""

    class Once(MemoryServer):
        async def handle_error(self, request: Any, client_address: Any) -> None:
            self.shutdown()

    server = memory(raising(ValueError("oops")), Once)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await ended(await server.connect())
    report = await server.wait_closed()
    assert [str(record.outcome) for record in report.requests] == ["failed"]


async def spoil() -> None:
    """Turns its cancellation into an error."""
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("spoilt")


async def spoil_in_a_child(*arguments: Any) -> None:
    """Ends in a group of a cancellation and an error when it is cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spoil)
        nursery.start_soon(trio.sleep_forever)


async def goodbye(self: Any, request: Any, *client_address: Any) -> None:
    """A hook that talks to a client who may have left."""
    await trio.sleep(1)
    await request.sendall(b"good")
    await request.sendall(b"bye")


async def test_goodbye_to_a_client_that_is_gone(autojump_clock: Any, caplog: Any) -> None:
    """EX-14: a hook that talks to a client who has left is not an error of the server."""
    polite = type("Polite", (MemoryServer,), {"shutdown_request": goodbye})
    server = memory(raising(ValueError("oops")), polite)
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        client.reset()
        await trio.sleep(2)
    # The default handle_error logs the handler's, and that is all.
    assert [type(record.exc_info[1]) for record in errors_logged(caplog)] == [ValueError]


async def raises(self: Any, *request: Any) -> None:
    """Fails, as it is."""
    raise RuntimeError("the second")


async def raises_from_none(self: Any, *request: Any) -> None:
    """Fails, and hides why."""
    raise RuntimeError("the second") from None


async def raises_from_another(self: Any, *request: Any) -> None:
    """Fails because of something else."""
    raise RuntimeError("the second") from KeyError("another")


async def raises_in_a_child(self: Any, *request: Any) -> None:
    """Fails where it has no context."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, self)


async def raises_in_a_thread(self: Any, *request: Any) -> None:
    """The same in a thread."""

    def fail() -> None:
        raise RuntimeError("the second") from None

    await trio.to_thread.run_sync(fail)


async def raises_the_same_again(self: Any, *request: Any) -> None:
    """Lets the error out that it was told of."""
    raise  # noqa: PLE0704  (the one that is being handled)


async def goodbye_in_a_child(self: Any, request: Any, *client_address: Any) -> None:
    """The client has left, and it is a child that finds out."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(goodbye, self, request)


async def is_cut(self: Any, *request: Any) -> None:
    """Never ends."""
    await trio.sleep_forever()


async def exits(self: Any, *request: Any) -> None:
    """Ends the program."""
    raise SystemExit


FAILING: dict[Any, str] = {
    raises: "RuntimeError: the second",
    raises_from_none: "RuntimeError: the second",
    raises_from_another: "RuntimeError: the second",
    raises_in_a_child: "RuntimeError: the second",
    raises_in_a_thread: "RuntimeError: the second",
    raises_the_same_again: "handle_error raised",
    goodbye: "PeerGone: the peer is gone",
    goodbye_in_a_child: "PeerGone: the peer is gone",
    is_cut: "handle_error did not end within 5 s (cleanup)",
    spoil_in_a_child: "ValueError: spoilt",
    exits: "of which handle_error has not told",
}
"""What a handle_error does, and what else than the handler's error is logged then."""


@pytest.mark.parametrize("fails", FAILING)
@pytest.mark.parametrize("place", ["handle", "shutdown_request", "when_full"])
async def test_first_error_is_never_lost(
    place: str, fails: Any, autojump_clock: Any, caplog: Any
) -> None:
    """EX-07: however a handle_error fails, what it was told of is logged, and so is its own."""

    async def fail(*_arguments: Any) -> None:
        raise LookupError("the first")

    hooks: dict[str, Any] = {"handle_error": fails}
    limits = trioserver.Limits()
    if place == "shutdown_request":
        hooks[place] = fail
    if place == "when_full":
        limits = trioserver.Limits(requests=1, when_full=fail)
    witness = Witness()
    kind = type("Failing", (MemoryServer,), hooks)
    handler = fail if place == "handle" else hold
    server = memory(handler, kind, limits=limits, observers=[witness])

    async def clients() -> None:
        visitors = [await server.connect() for _ in range(1 + (place == "when_full"))]
        await trio.testing.wait_all_tasks_blocked()
        if place == "shutdown_request":
            server.cancel_request(1, "enough")
            await trio.testing.wait_all_tasks_blocked()
        visitors[-1].reset()
        await trio.sleep(20)

    with contextlib.suppress(SystemExit):
        async with server.serving(grace=0):
            await clients()
    told = [logging.Formatter().format(record) for record in errors_logged(caplog)]
    assert {record.levelno for record in errors_logged(caplog)} == {logging.ERROR}
    assert any("Traceback" in one and "LookupError: the first" in one for one in told)
    assert any(FAILING[fails] in one for one in told)
    assert len(witness.records) == 1 + (place == "when_full")


async def test_both_errors_are_one_record_where_one_shows_both(
    autojump_clock: Any, caplog: Any
) -> None:
    """EX-07: nothing is told twice: a second error that leads to the first has one record."""
    kind = type("Failing", (MemoryServer,), {"handle_error": raises})
    server = memory(raising(LookupError("the first")), kind)
    async with server.serving():
        await ended(await server.connect())
    (record,) = errors_logged(caplog)
    assert [str(error) for error in shown(record.exc_info[1])] == ["the second", "the first"]


async def test_handle_error_fails_when_it_is_cut(autojump_clock: Any, caplog: Any) -> None:
    """EX-07: an error beside the cancellation of a handle_error that took too long ends nothing."""

    class Spoilt(MemoryServer):
        handle_error = spoil_in_a_child

    server = memory(raising(KeyError("oops")), Spoilt)
    async with server.serving():
        await ended(await server.connect())
        assert trio.current_time() == 5
        await assert_answers(server)
    assert "spoilt" in caplog.text


async def test_shutdown_request_fails_when_it_is_cut(autojump_clock: Any, caplog: Any) -> None:
    """EX-07: the same for a shutdown_request, whoever cancels it."""

    class Spoilt(MemoryServer):
        shutdown_request = spoil_in_a_child

    for timeouts in [trioserver.Timeouts(request=1), trioserver.Timeouts(linger=0)]:
        caplog.clear()
        server = memory(Upper, Spoilt, timeouts=timeouts)
        async with server.serving():
            client = await server.connect()
            await client.send_eof()
            await ended(client)
            await assert_answers(server)
        assert "spoilt" in caplog.text


async def test_when_full_function_fails(autojump_clock: Any) -> None:
    """EX-01: an error of a when_full function is told of; its client is refused all the same."""
    error = ValueError("oops")

    async def fail(connection: trioserver.Connection) -> None:
        raise error

    witness = Witness()
    limits = trioserver.Limits(requests=1, when_full=fail)
    server = memory(Steps, limits=limits, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await ended(await server.connect())
        await client.send_all(b"still here\n")
        assert await client.receive_some() == b"STILL HERE\n"
        await client.aclose()
    assert server.errors == [error]
    assert witness.outcomes == ["refused", "completed"]


# shutdown_request and close_request ---------------------------------------------------


async def test_shutdown_request_blocks(autojump_clock: Any, caplog: Any) -> None:
    """EX-07: a shutdown_request that never ends is bounded, after every kind of end."""

    class Stuck(MemoryServer):
        async def shutdown_request(self, request: Any) -> None:
            await trio.sleep_forever()

    timeouts = trioserver.Timeouts(linger=2, cleanup=5)
    server = memory(raising(ValueError("oops")), Stuck, timeouts=timeouts)
    async with server.serving():
        await ended(await server.connect())
        assert trio.current_time() <= 7
        client = await server.connect()
        await client.send_eof()
        began = trio.current_time()
        await ended(client)
        assert trio.current_time() - began <= 7
    assert "shutdown_request did not end" in caplog.text


class Endings:
    """Handlers, by how they end their request."""

    async def returns(self: Any) -> None:
        pass

    async def raises(self: Any) -> None:
        raise ValueError("oops")

    async def reads_too_long(self: Any) -> None:
        await self.rfile.read(1)

    async def sleeps_too_long(self: Any) -> None:
        await trio.sleep_forever()

    async def cancels_itself(self: Any) -> None:
        self.cancel_scope.cancel(reason="enough")
        await trio.lowlevel.checkpoint()

    async def swallows_its_cancellation(self: Any) -> None:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()

    async def raises_instead_of_its_cancellation(self: Any) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("instead") from None

    async def closes(self: Any) -> None:
        await self.request.aclose()

    async def leaves_input_unread(self: Any) -> None:
        await self.wfile.write(b"bye")

    ALL = (
        returns,
        raises,
        reads_too_long,
        sleeps_too_long,
        cancels_itself,
        swallows_its_cancellation,
        raises_instead_of_its_cancellation,
        closes,
        leaves_input_unread,
    )


@pytest.mark.parametrize("handle", Endings.ALL, ids=lambda handle: handle.__name__)
async def test_every_end_passes_the_hooks(handle: Any, autojump_clock: Any, caplog: Any) -> None:
    """EX-01: however it ended, shutdown_request and close_request are called, once each."""

    class Handler(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await handle(self)

    server = memory(Handler, timeouts=trioserver.Timeouts(idle=10, request=20, linger=30))
    async with server.serving():
        client = await server.connect()
        await trio.sleep(60)
        await client.aclose()
    assert server.steps.count("shutdown_request") == 1
    assert server.steps.count("close_request") == 1


class Thorough(TellsInMemory):
    """Takes a second to close a request."""

    closed_at: list[float] = attrs.field(factory=list)

    async def close_request(self, request: Any) -> None:
        await trio.sleep(1)
        await super().close_request(request)
        self.closed_at.append(trio.current_time())


@pytest.mark.parametrize(
    "handle",
    [
        Endings.sleeps_too_long,
        Endings.cancels_itself,
        Endings.swallows_its_cancellation,
        Endings.raises_instead_of_its_cancellation,
    ],
    ids=lambda handle: handle.__name__,
)
async def test_cancelled_request_has_time_for_the_hooks(handle: Any, autojump_clock: Any) -> None:
    """EX-05: after a cancellation, be it swallowed, the hooks may still wait; nobody lingers."""

    class Handler(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await handle(self)

    server = memory(Handler, Thorough, timeouts=trioserver.Timeouts(request=20, linger=30))
    async with server.serving():
        client = await server.connect()
        await ended(client)
    assert server.closed_at == [1 if handle is Endings.cancels_itself else 21]


async def test_cancelled_server_has_time_for_the_hooks(autojump_clock: Any) -> None:
    """EX-05: the same when it is not the request that was cancelled, but all around it."""
    server = memory(hold, Thorough)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert server.closed_at == [1]


async def test_cut_while_lingering_passes_the_hooks(autojump_clock: Any) -> None:
    """EX-01: a server that ends at once still calls close_request for a client that lingers."""
    server = memory(flood)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().lingering == 1
        nursery.cancel_scope.cancel()
    assert server.steps.count("shutdown_request") == 1
    assert server.steps.count("close_request") == 1


# propagate_errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["verify_request", "process_request", "setup", "handle", "finish"]
)
async def test_propagate_errors(place: str, autojump_clock: Any, caplog: Any) -> None:
    """EX-01: with propagate_errors the very error stops the server, bare, and all is closed."""
    error, witness = ValueError("oops"), Witness()
    server = memory(
        Steps, Faulty, place=place, error=error, propagate_errors=True, observers=[witness]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, error))
        bystander = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        victim = await server.connect(VICTIM)
        await victim.send_eof()
        await ended(victim)
        await ended(bystander)
    outcomes = {record.info.id: record.outcome for record in witness.records}
    assert outcomes == {1: "cancelled", 2: "failed"}
    assert server.errors == []
    assert errors_logged(caplog) == []


async def test_propagate_errors_of_a_group(autojump_clock: Any) -> None:
    """EX-04: a group of errors arrives as the group that it was, with nothing around it."""
    group = ExceptionGroup("both", [ValueError("one"), KeyError("two")])
    server = memory(raising(group), propagate_errors=True)
    with pytest.raises(ExceptionGroup, match="both") as caught:
        await serve_one_client(server)
    assert caught.value.exceptions == group.exceptions


async def test_propagate_errors_is_not_about_the_peer(autojump_clock: Any) -> None:
    """EX-14: what the client did stops no server, propagate_errors or not."""
    witness = Witness()
    server = memory(Upper, propagate_errors=True, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"half a li")
        client.reset()
        await assert_answers(server)
    assert witness.outcomes == ["disconnected", "completed"]


async def test_propagate_errors_during_the_drain(autojump_clock: Any) -> None:
    """EX-01: an error late in the drain still reaches the caller."""
    error = ValueError("late")

    async def fail_late(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(5)
        raise error

    server = memory(fail_late, propagate_errors=True)
    with pytest.raises(ValueError, match="late") as caught:
        await serve_one_client(server)
    assert caught.value is error
    assert trio.current_time() == 5


# What is not an Exception stops the server --------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), OutOfTheBlue(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "place", [*BEFORE, "setup", "handle", "finish", "handle_error", "shutdown_request"]
)
async def test_base_exception_stops_the_server(
    place: str, error: BaseException, autojump_clock: Any
) -> None:
    """EX-02, EX-07: the very object reaches the caller, bare, after everything was closed."""
    witness = Witness()
    server = memory(Steps, Faulty, place=place, error=error, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, error))
        listener = server.listener
        bystander = await server.connect()
        await bystander.send_all(b"half ")
        await trio.testing.wait_all_tasks_blocked()
        victim = await server.connect(VICTIM)
        await victim.send_eof()
        await ended(victim)
        await ended(bystander)
    assert server.snapshot().state == "unbound"
    with pytest.raises(ConnectionRefusedError):
        await listener.connect()
    assert type(error).__name__ in (await server.wait_closed()).reason
    outcomes = {record.info.id: record.outcome for record in witness.records}
    assert outcomes == {1: "cancelled", 2: "completed" if place == "shutdown_request" else "failed"}
    # The bystander's, and the victim's if it came so far.
    assert server.steps.count("finish") == (1 if place in [*BEFORE, "setup"] else 2)
    assert all(isinstance(told, ValueError) for told in server.errors)
    assert witness.names[-1] == "server_closed"


async def test_base_exception_ends_the_block_of_serving(autojump_clock: Any) -> None:
    """EX-02: in a serving() block it cancels the block, and is what leaves it."""
    error, left = SystemExit(3), []

    async def block() -> None:
        async with server.serving():
            await server.connect()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                left.append("cancelled")
                raise

    server = memory(raising(error))
    with pytest.raises(SystemExit) as caught:
        await block()
    assert caught.value is error
    assert left == ["cancelled"]


async def test_base_exception_beside_a_cancellation(autojump_clock: Any) -> None:
    """EX-02: it is bare also when the server was being cancelled at that moment."""
    error = SystemExit(3)

    async def exits(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    server = memory(exits)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, error))
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_base_exception_leaves_handle_request(autojump_clock: Any) -> None:
    """EX-02: from handle_request it arrives bare, too, with the request closed."""
    error = SystemExit(3)
    async with memory(raising(error)) as server:
        client = await server.connect()
        with pytest.raises(SystemExit) as caught:
            await server.handle_request()
        assert await ended(client) == b""
    assert caught.value is error


async def test_base_exception_stops_the_others_at_once(autojump_clock: Any) -> None:
    """EX-02: nobody is served on while the request that raised it is being closed."""

    class SlowToClose(TellsInMemory):
        async def close_request(self, request: Any) -> None:
            if request.info.id == 2:
                await trio.sleep(3)
            await super().close_request(request)

    error, witness = SystemExit(3), Witness()

    async def exits(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        if request.info.id == 2:
            raise error
        await trio.sleep_forever()

    server = memory(exits, SlowToClose, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, error))
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        await server.connect()
    outcomes = {record.info.id: (record.outcome, record.duration) for record in witness.records}
    assert outcomes == {1: ("cancelled", 0), 2: ("failed", 0)}
    assert trio.current_time() == 3


async def test_base_exception_waits_for_the_others(autojump_clock: Any) -> None:
    """EX-02: it reaches the caller only when every other handler has finished."""

    class SlowToFinish(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            if await self.rfile.read(1):
                raise error
            await trio.sleep_forever()

        async def finish(self) -> None:
            if self.info.id == 2:
                await trio.sleep(3)
                await self.wfile.write(b"good night")

    error = SystemExit(3)
    server = memory(SlowToFinish)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, error))
        victim, other = await server.connect(), await server.connect()
        await victim.send_all(b"x")
        assert await ended(other) == b"good night"
        assert trio.current_time() == 3


# A hard stop --------------------------------------------------------------------------


async def test_error_instead_of_a_cancellation(autojump_clock: Any) -> None:
    """EX-05: a handler that turns its cancellation into an error is told of; the stop goes on."""
    error = ValueError("instead")

    async def spoil(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise error from None

    witness = Witness()
    server = memory(spoil, observers=[witness])
    async with server.serving(grace=0):
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
    assert server.errors == [error]
    assert witness.outcomes == ["failed"]
    assert trio.current_time() == 0


async def test_cancellation_is_nobodys_error(autojump_clock: Any, caplog: Any) -> None:
    """EX-05: Cancelled is never passed to handle_error, nor logged as an error."""
    witness = Witness()
    server = memory(hold, observers=[witness])
    async with server.serving(grace=0):
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
    assert server.errors == []
    assert errors_logged(caplog) == []
    assert witness.outcomes == ["cancelled"]


# verify_request -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        *((answer, "completed") for answer in [True, 1, "yes"]),
        *((answer, "refused") for answer in [False, 0, None, []]),
    ],
    ids=repr,
)
async def test_verify_request_of_any_truth(
    answer: object, outcome: str, autojump_clock: Any, caplog: Any
) -> None:
    """EX-08: what is not a bool counts as what it is worth, and a refusal is no error."""

    class Judge(TellsInMemory):
        async def verify_request(self, request: Any, client_address: Any) -> Any:
            return answer

    witness = Witness()
    server = memory(Steps, Judge, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_eof()
        await ended(client)
    assert witness.outcomes == [outcome]
    assert ("setup" in server.steps) == (outcome == "completed")
    assert server.errors == []
    assert errors_logged(caplog) == []


async def test_verify_request_can_be_the_peers_undoing(autojump_clock: Any) -> None:
    """EX-08: a verification that reads may meet what a handler may meet; nobody is to blame."""

    class Password(TellsInMemory):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            return await request.recv() == b"swordfish"

    witness = Witness()
    timeouts = trioserver.Timeouts(idle=5, handshake=10)
    server = memory(Steps, Password, timeouts=timeouts, observers=[witness])
    async with server.serving():
        silent, gone = await server.connect(), await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        gone.reset()
        await ended(silent)
    assert witness.outcomes == ["disconnected", "timed_out"]
    assert server.errors == []


# Handlers of a wrong kind -------------------------------------------------------------


class PlainHandle(trioserver.BaseRequestHandler):
    def handle(self) -> None:  # type: ignore[override]
        """Of the wrong colour."""


class PlainFinish(trioserver.StreamRequestHandler):
    def finish(self) -> None:  # type: ignore[override]
        """Of the wrong colour."""


class Classic(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        """Of another library."""


async def too_curious(request: Any, client_address: Any, server: Any, weather: Any) -> None:
    """Wants more than there is."""


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (None, "must be a handler class or a function"),
        ("Upper", "must be a handler class or a function"),
        (PlainHandle, r"PlainHandle .* handle\(\) must be an `async def`"),
        (PlainFinish, r"PlainFinish .* finish\(\) must be an `async def`"),
        (Classic, r"Classic .* derive it from trioserver.StreamRequestHandler"),
        (partial(PlainHandle), "PlainHandle"),
        (too_curious, r"too_curious is called with .* takes \(.*, weather\)"),
    ],
    ids=["None", "str", "handle", "finish", "socketserver", "partial", "signature"],
)
def test_handler_of_a_wrong_kind(handler: Any, message: str) -> None:
    """EX-10: what can be seen not to work is a TypeError when the server is built."""
    with pytest.raises(TypeError, match=message):
        memory(handler)
    server = memory(Upper)
    with pytest.raises(TypeError, match=message):
        server.RequestHandlerClass = handler


def plain(request: Any, client_address: Any, server: Any) -> None:
    """A function of the wrong colour."""


class Unbuildable(trioserver.BaseRequestHandler):
    def __init__(self, *arguments: Any) -> None:
        raise TypeError("cannot be built")


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (plain, "plain returned None, which cannot be awaited: .* `async def`"),
        (lambda *three: three, "returned .*, which cannot be awaited"),
        (Unbuildable, "cannot be built"),
    ],
    ids=["plain", "lambda", "__init__"],
)
async def test_handler_found_wrong_at_its_first_request(
    handler: Any, message: str, autojump_clock: Any
) -> None:
    """EX-10: what cannot be seen before is that request's TypeError, and says what is expected."""
    server = memory(handler)
    async with server.serving():
        await ended(await server.connect())
    (error,) = server.errors
    assert isinstance(error, TypeError)
    with pytest.raises(TypeError, match=message):
        raise error


async def test_handler_never_awaited(autojump_clock: Any) -> None:
    """EX-10: a finish_request that forgets to await the handler is that request's error."""

    class Forgetful(TellsInMemory):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            self.RequestHandlerClass(request, client_address, self)

    witness = Witness()
    server = memory(Steps, Forgetful, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    (error,) = server.errors
    assert isinstance(error, RuntimeError)
    assert "never awaited" in str(error)
    assert witness.outcomes == ["failed"]
    assert "setup" not in server.steps


async def test_handler_never_awaited_beside_another(autojump_clock: Any) -> None:
    """EX-10: one that was forgotten is noticed although another was awaited."""

    class Forgetful(TellsInMemory):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            self.RequestHandlerClass(request, client_address, self)
            await self.RequestHandlerClass(request, client_address, self)

    server = memory(Steps, Forgetful)
    async with server.serving():
        client = await server.connect()
        await client.send_eof()
        await ended(client)
    (error,) = server.errors
    assert "never awaited" in str(error)


async def test_handler_never_awaited_because_of_an_error(autojump_clock: Any) -> None:
    """EX-10: an error between construction and await is told as itself."""
    error = ValueError("in between")

    class Interrupted(TellsInMemory):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            self.RequestHandlerClass(request, client_address, self)
            raise error

    server = memory(Steps, Interrupted)
    async with server.serving():
        await ended(await server.connect())
    assert server.errors == [error]


async def test_handler_awaited_twice(autojump_clock: Any) -> None:
    """EX-10: awaiting a handler a second time is an error, and handles nothing twice."""

    class Doubtful(TellsInMemory):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            handler = self.RequestHandlerClass(request, client_address, self)
            await handler
            await handler

    server = memory(Steps, Doubtful)
    async with server.serving():
        client = await server.connect()
        await client.send_eof()
        await ended(client)
    (error,) = server.errors
    assert isinstance(error, RuntimeError)
    assert "Steps was awaited twice" in str(error)
    assert server.steps.count("setup") == server.steps.count("finish") == 1


# finish() -----------------------------------------------------------------------------


def assert_no_rings(errors: list[BaseException | None]) -> None:
    """No exception leads back to itself, by whatever links."""

    def walk(error: BaseException | None, above: tuple[BaseException, ...]) -> None:
        if error is None:
            return
        assert all(error is not one for one in above), f"{error!r} is in a ring"
        above = (*above, error)
        walk(error.__context__, above)
        walk(error.__cause__, above)
        for leaf in getattr(error, "exceptions", ()):
            walk(leaf, above)

    for error in errors:
        walk(error, ())


def shown(error: BaseException) -> list[BaseException]:
    """The exceptions that a traceback of ``error`` shows, the last one first."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        assert following not in chain, "the chain has no end"
        chain.append(following)
        if following.__cause__ is not None or following.__suppress_context__:
            following = following.__cause__
        else:
            following = following.__context__
    return chain


@pytest.mark.parametrize("how", ["bare", "from None", "from a cause", "while handling another"])
async def test_finish_error_is_chained(how: str, autojump_clock: Any) -> None:
    """EX-01: an error of finish() is shown with the handler's, never instead of it."""
    first, second, other = ValueError("first"), KeyError("second"), OSError("other")

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            if how == "bare":
                raise first
            if how == "from None":
                raise first from None
            if how == "from a cause":
                raise first from other
            try:
                raise other
            except OSError:
                raise first  # noqa: B904  (the implicit context is what is meant)

        async def finish(self) -> None:
            raise second

    server = memory(Handler)
    async with server.serving():
        await ended(await server.connect())
    assert server.errors == [first]
    assert second in shown(first)
    if how in {"from a cause", "while handling another"}:
        assert other in shown(first)


async def test_finish_error_of_several_steps_is_chained(autojump_clock: Any) -> None:
    """EX-01: the whole story of finish()'s error is shown, and the handler's only once."""
    first, second, third = ValueError("first"), KeyError("second"), OSError("third")

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise first

        async def finish(self) -> None:
            try:
                raise second
            finally:
                raise third

    server = memory(Handler)
    async with server.serving():
        await ended(await server.connect())
    assert server.errors == [first]
    assert shown(first) == [first, third, second]


async def test_finish_raises_the_handlers_error_again(autojump_clock: Any) -> None:
    """EX-01: the same object, kept and raised again, is told of once, and chained to nothing."""
    error = ValueError("kept")

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise error

        async def finish(self) -> None:
            raise error

    server = memory(Handler)
    async with server.serving():
        await ended(await server.connect())
    assert server.errors == [error]
    assert shown(error) == [error]


@pytest.mark.parametrize("how", ["from it", "in a group", "in a group, from None"])
async def test_finish_raises_because_of_the_handlers_error(how: str, autojump_clock: Any) -> None:
    """EX-01: an error that finish() made of the handler's makes no ring with it."""
    error = ValueError("kept")

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise error

        async def finish(self) -> None:
            if how == "from it":
                raise RuntimeError("second") from error
            if how == "in a group":
                raise ExceptionGroup("second", [error, KeyError("third")])
            raise ExceptionGroup("second", [error, KeyError("third")]) from None

    server = memory(Handler)
    async with server.serving():
        await ended(await server.connect())
    assert_no_rings(server.errors)
    assert len(server.errors) == 1
    assert "second" in "".join(traceback.format_exception(server.errors[0]))


async def test_finish_error_after_a_cancellation(autojump_clock: Any) -> None:
    """EX-05: an error of finish() is told of also when the request was cancelled."""
    error = ValueError("in finish")

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            raise error

    witness = Witness()
    server = memory(Handler, timeouts=trioserver.Timeouts(request=10), observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["timed_out"]
    assert [leaves(told) for told in server.errors] == [[error]]


async def test_finish_flush_after_a_cancellation(autojump_clock: Any, caplog: Any) -> None:
    """EX-14: after a cancellation, a last flush to a client that has gone stays quiet."""

    class Buffered(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self) -> None:
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


async def test_finish_is_shielded_after_a_cancellation(autojump_clock: Any) -> None:
    """EX-05: after a cancellation finish() may still wait, and say goodbye."""

    class Polite(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await trio.sleep_forever()

        async def finish(self) -> None:
            await trio.sleep(3)
            await self.wfile.write(b"goodbye")

    server = memory(Polite)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        client = await server.connect()
        await trio.sleep(1)
        server.shutdown(grace=0)
        assert await ended(client) == b"goodbye"
        assert trio.current_time() == 4


async def test_finish_is_shielded_after_an_error(autojump_clock: Any) -> None:
    """EX-05: a cancellation that comes while finish() cleans up after an error lets it end."""
    done = []

    class Thorough(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise ValueError("oops")

        async def finish(self) -> None:
            await trio.sleep(3)
            done.append(trio.current_time())

    server = memory(Thorough, timeouts=trioserver.Timeouts(request=1))
    async with server.serving():
        await ended(await server.connect())
    assert done == [3]


async def test_finish_is_ordinary_code_otherwise(autojump_clock: Any) -> None:
    """EX-05: after a handle() that returned, finish() has the time of the request and no more."""

    class Endless(trioserver.BaseRequestHandler):
        async def finish(self) -> None:
            await trio.sleep_forever()

    witness = Witness()
    server = memory(Endless, timeouts=trioserver.Timeouts(request=10), observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 10


async def test_finish_not_called_when_setup_was_cancelled(autojump_clock: Any) -> None:
    """EX-05: setup() that was cancelled did not return, so there is nothing to give back."""

    class Handler(Steps):
        async def setup(self) -> None:
            await trio.sleep_forever()

    server = memory(Handler, timeouts=trioserver.Timeouts(request=10))
    async with server.serving():
        await ended(await server.connect())
    assert "finish" not in server.steps


async def test_finish_raises_system_exit_after_an_error(autojump_clock: Any) -> None:
    """EX-02: SystemExit from finish() stops the server, and the handler's error is told of."""
    first, final = ValueError("first"), SystemExit(3)

    class Handler(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise first

        async def finish(self) -> None:
            raise final

    server = memory(Handler)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_until, server, final))
        await ended(await server.connect())
    assert [leaves(told) for told in server.errors] == [[first]]


class FinishFails(trioserver.StreamRequestHandler):
    """Reads, in the manner of its server, and cannot give back what it has."""

    async def handle(self) -> None:
        await self.server.reads(self)

    async def finish(self) -> None:
        if self.server.in_a_child:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
        else:
            await self.fail()

    async def fail(self) -> None:
        raise RuntimeError("finish") from None


class Reads(TellsInMemory):
    """Tells its handlers how to read."""

    reads: Any = None
    in_a_child: bool = False


# Whose fault --------------------------------------------------------------------------


@attrs.frozen
class Fault:
    """What a handler meets: what it does, what its client does, and what it is called."""

    handle: Callable[[trioserver.StreamRequestHandler], Any]
    client: Callable[[trioserver.Connection, Any], Any]
    outcome: str
    reason: str


async def silent(client: trioserver.Connection, server: Any) -> None:
    """Does nothing."""


async def resets(client: trioserver.Connection, server: Any) -> None:
    """Goes away, rudely."""
    client.reset()


async def leaves_early(client: trioserver.Connection, server: Any) -> None:
    """Goes away, politely."""
    await client.aclose()


async def is_drained(client: trioserver.Connection, server: Any) -> None:
    """Has done nothing when the server is shut down."""
    server.shutdown()


def sends(data: bytes, *, then_ends: bool = False) -> Any:
    """A client that sends something."""

    async def send(client: trioserver.Connection, server: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await client.send_all(data)
            if then_ends:
                await client.send_eof()

    return send


async def reads(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a receive meets."""
    await handler.request.recv()


async def reads_a_line(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a line meets."""
    await handler.rfile.readline()


async def reads_ten_bytes(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a read of a known size meets."""
    await handler.rfile.readexactly(10)


async def reads_a_header(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a delimited read meets."""
    await handler.rfile.readuntil(b"\r\n\r\n")


async def reads_all(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a read to the end meets."""
    await handler.rfile.read()


async def writes_a_lot(handler: trioserver.StreamRequestHandler) -> None:
    """Meets what a send meets."""
    await handler.wfile.write(b"z" * 40)


async def waits_idle(handler: trioserver.StreamRequestHandler) -> None:
    """Waits between two requests."""
    with handler.idle():
        await trio.sleep_forever()


FAULTS = {
    "idle": Fault(reads, silent, "timed_out", "idle"),
    "line": Fault(reads_a_line, sends(b"x"), "timed_out", "line"),
    "write": Fault(writes_a_lot, silent, "timed_out", "write"),
    "reset while reading": Fault(reads, resets, "disconnected", "reset by peer"),
    "reset while writing": Fault(writes_a_lot, resets, "disconnected", "the peer is gone"),
    "closed while writing": Fault(writes_a_lot, leaves_early, "disconnected", "the peer is gone"),
    "input cut short": Fault(
        reads_ten_bytes, sends(b"abc", then_ends=True), "disconnected", "3 of 10 bytes"
    ),
    "no delimiter": Fault(
        reads_a_header, sends(b"abc", then_ends=True), "disconnected", "the input ended before"
    ),
    "line too long": Fault(reads_a_line, sends(b"x" * 99), "refused", "50 bytes (line)"),
    "header too long": Fault(reads_a_header, sends(b"x" * 99), "refused", "50 bytes (line)"),
    "input too long": Fault(reads_all, sends(b"x" * 99), "refused", "60 bytes (read)"),
    "drained before its first byte": Fault(reads, is_drained, "drained", "drains"),
    "drained in an idle block": Fault(waits_idle, is_drained, "drained", "drains"),
}


def wrapped(depth: int, handle: Callable[[Any], Any]) -> Any:
    """``handle``, inside that many nurseries."""

    async def inside(handler: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wrapped(depth - 1, handle), handler)
            nursery.start_soon(trio.sleep_forever)

    return inside if depth else handle


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["bare", "group", "nested groups"])
@pytest.mark.parametrize("name", FAULTS)
async def test_fault_of_the_peer(
    name: str, depth: int, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-14: what the peer did has its outcome and one INFO line; no traceback, no handle_error."""
    fault, witness = FAULTS[name], Witness()

    class Handler(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await wrapped(depth, fault.handle)(self)

    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(
        Handler,
        Narrow,
        timeouts=trioserver.Timeouts(idle=10, line=5, write=5),
        limits=trioserver.Limits(line=50, read=60),
        observers=[witness],
    )
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        await fault.client(client, server)
        await trio.sleep(20)
        await client.aclose()
    assert witness.outcomes == [fault.outcome]
    assert fault.reason in witness.records[0].reason
    assert (await server.wait_closed()).statistics.outcomes[fault.outcome] == 1
    assert server.errors == []
    assert errors_logged(caplog) == []
    assert [(record.levelno, record.exc_info) for record in requests_logged(caplog)] == [
        (logging.INFO, None)
    ]


@pytest.mark.parametrize("in_a_child", [False, True], ids=["bare", "in a child"])
@pytest.mark.parametrize("name", FAULTS)
async def test_finish_error_after_a_fault_of_the_peer(
    name: str, in_a_child: bool, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-14: an error of finish() is told of and is the outcome, however the client has ended."""
    fault, witness = FAULTS[name], Witness()
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(
        FinishFails,
        type("Served", (Reads, Narrow), {}),
        reads=fault.handle,
        in_a_child=in_a_child,
        timeouts=trioserver.Timeouts(idle=10, line=5, write=5),
        limits=trioserver.Limits(line=50, read=60),
        observers=[witness],
    )
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        await fault.client(client, server)
        await trio.sleep(20)
        await client.aclose()
    [told] = server.errors
    assert list(map(repr, leaves(told))) == ["RuntimeError('finish')"]
    assert [(it.outcome, it.reason) for it in witness.records] == [
        ("failed", "RuntimeError: finish")
    ]
    assert len(requests_logged(caplog)) == 1


async def test_finish_that_meets_the_peers_fault_again(autojump_clock: Any) -> None:
    """EX-14: a finish() that only finds out once more that the client has gone is no error."""

    class Polite(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await reads(self)

        async def finish(self) -> None:
            await writes_a_lot(self)
            await writes_a_lot(self)

    witness = Witness()
    server = memory(Polite, Narrow, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        client.reset()
        await trio.sleep(20)
    assert (server.errors, witness.outcomes) == ([], ["disconnected"])


THERE = ("127.0.0.1", 0)

MODES: dict[str, Callable[[str], Any]] = {
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
async def test_error_beside_a_fault_of_the_peer(
    mode: str, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """EX-14: the client's end, in handle or finish, hides no error of the other, in any mode."""
    witness, server = Witness(), MODES[mode](name)
    caplog.set_level(logging.INFO, logger="trioserver")
    with trio.fail_after(20):
        if mode == "adopt":
            serving: Any = adopted(server, observers=[witness])
        else:
            server.observers = [witness]
            serving = server.serving()
        async with serving:
            client = plain_client(server.server_address)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
            await until(lambda: witness.records)
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason.endswith("ValueError: on purpose")
    told = caplog.text if mode != "adopt" else capfd.readouterr().err  # theirs prints
    assert "ValueError: on purpose" in told


async def test_fault_of_the_peer_twice(autojump_clock: Any) -> None:
    """EX-14: a group in which every leaf is the peer's doing is the peer's doing."""

    class Both(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            errors = []
            for meet in [reads, writes_a_lot]:
                try:
                    await meet(self)
                except trioserver.RequestEnded as error:
                    errors.append(error)
            raise ExceptionGroup("both", errors)

    witness = Witness()
    server = memory(Both, Narrow, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(400)
        await client.aclose()
    assert witness.outcomes == ["timed_out"]
    assert server.errors == []


async def test_fault_of_the_peer_beside_an_error(autojump_clock: Any) -> None:
    """EX-04: one leaf that is the handler's own makes the whole group its error."""
    error = ValueError("mine")

    class Both(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            try:
                await reads(self)
            except trioserver.IdleTimeout as timeout:
                raise ExceptionGroup("both", [timeout, error]) from None

    witness = Witness()
    server = memory(Both, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["failed"]
    (told,) = server.errors
    assert error in leaves(told)


async def test_fault_turned_into_an_error(autojump_clock: Any) -> None:
    """EX-14: a handler that raises something else because of the peer has its own error."""
    error = ValueError("protocol error")

    class Translates(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            try:
                await reads_ten_bytes(self)
            except EOFError as cause:
                raise error from cause

    witness = Witness()
    server = memory(Translates, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_eof()
        await ended(client)
    assert witness.outcomes == ["failed"]
    assert server.errors == [error]


@pytest.mark.parametrize(
    "error",
    [
        trio.BrokenResourceError("of something else"),
        trio.TooSlowError("of something else"),
        trio.ClosedResourceError("of something else"),
        ConnectionResetError("of something else"),
        BrokenPipeError("of something else"),
        TimeoutError("of something else"),
        EOFError("of something else"),
        trioserver.PeerGone("made by the handler"),
        trioserver.IdleTimeout("made by the handler"),
        trioserver.Draining("made by the handler"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_fault_of_something_else(error: Exception, autojump_clock: Any) -> None:
    """TO-09, EX-14: an error that looks like the peer's, and is not, is the handler's."""
    witness = Witness()
    server = memory(raising(error), observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["failed"]
    assert server.errors == [error]


async def test_fault_of_a_kind_of_the_handlers_own(autojump_clock: Any) -> None:
    """EX-14: an exception that a program derives from ours is its own, and so is its meaning."""

    class Rude(trioserver.RequestEnded):
        """Something that a protocol does not allow."""

    async def judge(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise Rude("this is not done", info=request.info)

    witness = Witness()
    server = memory(judge, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["failed"]
    assert [type(error).__name__ for error in server.errors] == ["Rude"]


async def test_fault_of_another_client(autojump_clock: Any) -> None:
    """EX-14: a handler that lets out the error of another client's connection has failed."""
    connections = {}

    async def eavesdrop(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        connections[request.info.id] = request
        if request.info.id == 1:
            await trio.sleep_forever()
        await connections[1].recv()

    witness = Witness()
    server = memory(eavesdrop, observers=[witness])
    async with server.serving(grace=0):
        first = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        second = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        first.reset()
        await ended(second)
    outcomes = {record.info.id: record.outcome for record in witness.records}
    assert outcomes == {1: "cancelled", 2: "failed"}
    assert [type(error) for error in server.errors] == [trioserver.PeerGone]


async def test_fault_of_a_backend(autojump_clock: Any) -> None:
    """EX-14: a proxy whose backend went away has failed; its own client is not to blame."""

    async def rude(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        request.reset()

    async def proxy(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with await backend.connect() as stream:
            await request.sendall(await stream.receive_some())

    witness = Witness()
    backend, server = memory(rude), memory(proxy, observers=[witness])
    async with backend.serving(), server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["failed"]
    assert [type(error) for error in server.errors] == [trio.BrokenResourceError]


async def test_fault_of_two_tasks_in_one_direction(autojump_clock: Any) -> None:
    """EX-14: two tasks that receive from one connection are the handler's mistake."""

    class Busy(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads, self)
                nursery.start_soon(reads, self)

    witness = Witness()
    server = memory(Busy, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
    assert witness.outcomes == ["failed"]
    assert [type(leaf) for leaf in leaves(server.errors[0])] == [trio.BusyResourceError]


# Exceptions that cannot be shown, and logs that cannot be written ---------------------


class Unprintable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


async def test_unprintable_exception(autojump_clock: Any, caplog: Any) -> None:
    """EX-12: an exception whose own __str__ raises is told of by its name."""
    witness = Witness()
    server = memory(raising(Unprintable()), MemoryServer, observers=[witness])
    async with server.serving():
        await ended(await server.connect())
        await assert_answers(server)
    assert witness.records[0].outcome == "failed"
    assert witness.records[0].reason == "Unprintable"
    assert "Unprintable" in caplog.text


class Broken(logging.Handler):
    """Raises whatever is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the disk is full")


@contextlib.contextmanager
def logging_to(*handlers: logging.Handler) -> Iterator[None]:
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


async def test_logging_handler_raises(autojump_clock: Any) -> None:
    """EX-12: a logging handler that raises, at every record, ends nothing."""
    server = memory(raising(ValueError("oops")), MemoryServer)
    with logging_to(Broken()):
        async with server.serving():
            await ended(await server.connect())
            await assert_answers(server)


async def test_handle_error_raises_and_so_does_the_log(autojump_clock: Any) -> None:
    """EX-12: even with nobody left to tell, the server lives."""
    server = memory(Steps, Faulty, place="handle_error", error=Unprintable())
    with logging_to(Broken()):
        async with server.serving():
            await ended(await server.connect(VICTIM))
            await assert_answers(server)


@pytest.mark.parametrize("stderr", ["closed", None])
async def test_no_stderr(
    stderr: str | None, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EX-12: with stderr closed or gone, an unconfigured program still serves."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stderr else None)
    server = memory(raising(ValueError("oops")), MemoryServer)
    with logging_to():
        async with server.serving():
            await ended(await server.connect())
            await assert_answers(server)


# Nothing is kept alive ----------------------------------------------------------------


class Kept(Exception):
    """An error that can be referred to weakly."""


async def fails(handler: Any) -> None:
    """Has an error."""
    raise Kept


async def fails_in_a_child(handler: Any) -> None:
    """Has an error in a task of its own."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, handler)
        nursery.start_soon(trio.sleep_forever)


async def fails_twice(handler: Any) -> None:
    """Has an error, and another one in finish()."""
    handler.fails_in_finish = True
    raise Kept


async def is_cancelled(handler: Any) -> None:
    """Has enough."""
    handler.cancel_scope.cancel(reason="enough")
    await trio.sleep_forever()


async def is_cancelled_and_fails(handler: Any) -> None:
    """Has an error instead of its cancellation."""
    try:
        await is_cancelled(handler)
    finally:
        raise Kept


async def returns(handler: Any) -> None:
    """Is done."""


CYCLES = {
    "returns": (returns, silent),
    "fails": (fails, silent),
    "fails in a child": (fails_in_a_child, silent),
    "fails in finish, too": (fails_twice, silent),
    "is cancelled": (is_cancelled, silent),
    "fails when cancelled": (is_cancelled_and_fails, silent),
    **{
        name: (fault.handle, fault.client)
        for name, fault in FAULTS.items()
        if "drained" not in name
    },
}


@contextlib.contextmanager
def nothing_is_collected() -> Iterator[None]:
    """Without the collector of cycles, what is in one stays."""
    gc.collect()
    gc.disable()
    try:
        with logging_to(logging.StreamHandler(io.StringIO())):  # formats, and keeps nothing
            yield
    finally:
        gc.enable()


def found_in_cycles() -> list[str]:
    """What the collector would have to find: the library's objects."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        types = [type(found) for found in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    return [kind.__name__ for kind in types if kind.__module__.startswith("trioserver")]


@pytest.mark.parametrize("name", CYCLES)
async def test_ended_request_is_collected_at_once(name: str, autojump_clock: Any) -> None:
    """EX-13: no cycle keeps a handler or its connection, however the request ended."""
    handle, client_does = CYCLES[name]
    refs: list[weakref.ref[Any]] = []

    class Handler(trioserver.StreamRequestHandler):
        fails_in_finish = False

        async def setup(self) -> None:
            refs.extend([weakref.ref(self), weakref.ref(self.request)])

        async def handle(self) -> None:
            await handle(self)

        async def finish(self) -> None:
            if self.fails_in_finish:
                raise Kept
            await super().finish()

    class Server(MemoryServer):
        memory_capacity = 10

    server = memory(
        Handler,
        Server,
        timeouts=trioserver.Timeouts(idle=10, line=5, write=5),
        limits=trioserver.Limits(line=50, read=60),
    )
    with nothing_is_collected():
        async with server.serving():
            client = await server.connect()
            await trio.testing.wait_all_tasks_blocked()
            await client_does(client, server)
            await trio.sleep(20)
            assert [ref() for ref in refs] == [None, None]
            assert found_in_cycles() == []
            await client.aclose()


async def test_ended_requests_of_sockets_are_collected_at_once() -> None:
    """EX-13: the same on real sockets, for an answer, an error and a reset."""
    done = trio.Event()

    class Counts(trioserver.Observer):
        left = 3

        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            self.left -= 1
            if not self.left:
                done.set()

    server = trioserver.TCPServer(("127.0.0.1", 0), Increment, observers=[Counts()])
    with trio.fail_after(10), nothing_is_collected():
        async with server.serving():
            clients = [plain_client(server.server_address) for _ in range(3)]
            for client, data in zip(clients, [b"1\n", b"one\n", b"1"], strict=True):
                client.sendall(data)
            clients[0].shutdown(socket.SHUT_WR)
            clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            for client in clients:
                client.close()
            await done.wait()
            while server.statistics().lingering:  # noqa: ASYNC110  (nobody tells of a close)
                await trio.sleep(0.001)
            assert found_in_cycles() == []


async def test_reported_error_is_collected_at_once(autojump_clock: Any) -> None:
    """EX-13: when the log is written, the error itself is gone, with its traceback and frames."""
    refs: list[weakref.ref[Any]] = []

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
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
            await trio.testing.wait_all_tasks_blocked()
            assert [ref() for ref in refs] == [None]
