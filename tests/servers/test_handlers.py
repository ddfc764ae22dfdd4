"""Handlers: what may be one, in which order its methods run, and what a wrong one is told."""

from __future__ import annotations

import functools
import http.server
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, read_to_end

import trioserver
from trioserver.testing import MemoryServer

MEMORY = ("memory", 1)

# Building blocks --------------------------------------------------------------


class Recording(MemoryServer):
    """Keeps the errors that it is told of."""

    errors: list[BaseException | None] = attrs.field(factory=list)

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception())


@attrs.frozen
class Result:
    """How one request went."""

    reply: bytes
    errors: list[BaseException | None]
    record: trioserver.RequestRecord

    @property
    def outcome(self) -> str:
        return str(self.record.outcome)

    @property
    def error(self) -> BaseException:
        """The only error."""
        [error] = self.errors
        assert error is not None
        return error


async def serve_one(
    handler: Any, *, cancel_at: float | None = None, cleanup: float = 5, data: bytes = b""
) -> Result:
    """Have ``handler`` serve one request."""
    witness = Witness()
    timeouts = trioserver.Timeouts(cleanup=cleanup)
    server = Recording(MEMORY, handler, observers=[witness], timeouts=timeouts)
    async with server.serving():
        client = await server.connect()
        await client.send_all(data)
        await client.send_eof()
        if cancel_at is not None:
            await trio.sleep(cancel_at)
            server.cancel_request(1, "a test")
        reply = await read_to_end(client)
        await client.aclose()
    [record] = witness.records
    return Result(reply, server.errors, record)


# What may be a handler --------------------------------------------------------


async def say(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """The smallest handler."""
    await request.sendall(b"hello")


async def say_this(words: bytes, request: Any, client_address: Any, server: Any) -> None:
    """One that is given what to say, too."""
    await request.sendall(words)


class Say(trioserver.StreamRequestHandler):
    def __init__(self, *arguments: Any, words: bytes = b"hello") -> None:
        self.words = words
        super().__init__(*arguments)

    async def handle(self) -> None:
        await self.wfile.write(self.words)


class Application:
    def __init__(self, words: bytes) -> None:
        self.words = words

    async def serve(self, request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(self.words)

    async def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(self.words)

    @staticmethod
    async def static(request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(b"hello")

    @classmethod
    async def of_class(cls, request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(b"hello")

    def make(self, request: Any, client_address: Any, server: Any) -> Say:
        return Say(request, client_address, server, words=self.words)


def closure(words: bytes) -> Any:
    """An async function inside another."""

    async def serve(request: Any, client_address: Any, server: Any) -> None:
        await request.sendall(words)

    return serve


def plain_wrapper(function: Any) -> Any:
    """A plain function around another, without a word about it."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Awaitable:
    """Not derived from anything: constructed with the three arguments, and awaited."""

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request

    def __await__(self) -> Iterator[Any]:
        return self.request.sendall(b"hello").__await__()


HANDLERS = {
    "class": Say,
    "function": say,
    "partial of a function": partial(say_this, b"hello"),
    "partial of a class": partial(Say, words=b"hello"),
    "partial of a partial": partial(partial(say_this), b"hello"),
    "bound method": Application(b"hello").serve,
    "callable object": Application(b"hello"),
    "static method": Application.static,
    "class method": Application.of_class,
    "closure": closure(b"hello"),
    "lambda": lambda *arguments: say_this(b"hello", *arguments),
    "factory": lambda *arguments: Say(*arguments, words=b"hello"),
    "bound factory": Application(b"hello").make,
    "plain wrapper": plain_wrapper(say),
    "awaitable of one's own": Awaitable,
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS.keys())
async def test_handler_may_be(handler: Any, autojump_clock: object) -> None:
    """Whatever is called with the three arguments and returns an awaitable is a handler."""
    result = await serve_one(handler)
    assert result.reply == b"hello"
    assert result.outcome == "completed"
    assert result.errors == []


async def test_handler_base_class_does_nothing(autojump_clock: object) -> None:
    """The base classes themselves serve a request, and say nothing."""
    for handler in (trioserver.BaseRequestHandler, trioserver.StreamRequestHandler):
        result = await serve_one(handler)
        assert (result.reply, result.outcome) == (b"", "completed")


async def test_handler_is_new_for_each_request(autojump_clock: object) -> None:
    """No two requests share a handler object."""
    handlers = []

    class Remembered(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            handlers.append(self)

    async with MemoryServer(MEMORY, Remembered).serving() as server:
        for _ in range(2):
            await read_to_end(await server.connect())
    first, second = handlers
    assert first is not second


# What a handler has -----------------------------------------------------------


async def test_handler_attributes_from_construction(autojump_clock: object) -> None:
    """Everything is there in ``__init__`` already, files included."""
    seen: dict[str, Any] = {}

    class Curious(trioserver.StreamRequestHandler):
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            super().__init__(request, client_address, server)
            assert self.request is self.connection is request
            assert self.client_address == request.client_address == client_address
            assert self.server is server
            assert self.info is request.info
            assert self.cancel_scope is request.cancel_scope
            assert self.rfile.readable()
            assert self.wfile.writable()
            seen.update(vars(self))

    result = await serve_one(Curious)
    assert result.outcome == "completed"
    assert seen["client_address"] == result.record.info.client_address
    assert isinstance(seen["server"], Recording)


async def test_handler_may_move_its_deadline(autojump_clock: object) -> None:
    """TO-11: ``cancel_scope`` is the request's own; its deadline ends it, in time."""

    class Hasty(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            self.cancel_scope.deadline = trio.current_time() + 3
            await trio.sleep_forever()

    result = await serve_one(Hasty)
    assert result.outcome == "timed_out"
    assert result.record.duration == 3


async def test_handler_may_cancel_itself(autojump_clock: object) -> None:
    """The reason that it gives is the one in the record."""

    class Modest(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            self.cancel_scope.cancel(reason="not worth it")
            await trio.sleep_forever()

    result = await serve_one(Modest)
    assert result.outcome == "cancelled"
    assert result.record.reason == "not worth it"


async def test_handler_idle_is_the_connections(autojump_clock: object) -> None:
    """``self.idle()`` is the block of its connection: a drain ends it with `Draining`."""

    class Waiting(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.rfile.readline()
            with self.idle():
                await trio.sleep_forever()

    witness = Witness()
    async with MemoryServer(MEMORY, Waiting, observers=[witness]).serving() as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await trio.testing.wait_all_tasks_blocked()
    assert witness.outcomes == ["drained"]


# Its methods, in order --------------------------------------------------------


def scripted(
    events: list[str], *, fail_in: str = "", seconds: float = 0
) -> type[trioserver.BaseRequestHandler]:
    """A handler whose methods each take some time, write themselves down, and may fail."""

    class Scripted(trioserver.BaseRequestHandler):
        async def setup(self) -> None:
            await self._do("setup")

        async def handle(self) -> None:
            await self._do("handle")

        async def finish(self) -> None:
            await self._do("finish")

        async def _do(self, name: str) -> None:
            events.append(name)
            await trio.sleep(seconds)
            if name in fail_in.split():
                raise ValueError(name)
            events.append(f"{name} done")

    return Scripted


async def test_handler_methods_run_in_order(autojump_clock: object) -> None:
    """First setup, then handle, then finish, each when the one before it has returned."""
    events: list[str] = []
    await serve_one(scripted(events))
    assert events == ["setup", "setup done", "handle", "handle done", "finish", "finish done"]


@pytest.mark.parametrize(
    ("fail_in", "called"),
    [
        ("setup", ["setup"]),
        ("handle", ["setup", "setup done", "handle", "finish", "finish done"]),
        ("finish", ["setup", "setup done", "handle", "handle done", "finish"]),
    ],
)
async def test_handler_that_fails(fail_in: str, called: list[str], autojump_clock: object) -> None:
    """EX-01: ``finish`` runs if and only if ``setup`` returned; the error is told once."""
    events: list[str] = []
    result = await serve_one(scripted(events, fail_in=fail_in))
    assert events == called
    assert result.outcome == "failed"
    assert isinstance(result.error, ValueError)
    assert str(result.error) == fail_in


async def test_finish_error_never_replaces_the_handlers(autojump_clock: object) -> None:
    """An error in ``finish`` after one in ``handle`` is in its chain, and told with it."""
    result = await serve_one(scripted([], fail_in="handle finish"))
    assert str(result.error) == "handle"
    assert str(result.error.__context__) == "finish"
    assert result.error.__context__.__context__ is None


async def test_finish_error_comes_after_the_whole_chain(autojump_clock: object) -> None:
    """What led to the handler's error stays where it was; both stories can be read."""

    class Long(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            try:
                raise KeyError("first")
            except KeyError as error:
                raise ValueError("second") from error

        async def finish(self) -> None:
            try:
                raise OSError("third")
            except OSError as error:
                raise RuntimeError("fourth") from error

    error: BaseException | None = (await serve_one(Long)).error
    chain = []
    while error is not None:
        chain.append(type(error))
        error = error.__context__
    assert chain == [ValueError, KeyError, RuntimeError, OSError]


async def test_finish_that_raises_the_same_error(autojump_clock: object) -> None:
    """An error that ``finish`` raises again does not become a part of its own history."""

    class Again(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            self.error = ValueError("second")
            try:
                raise KeyError("first")
            except KeyError as error:
                raise self.error from error

        async def finish(self) -> None:
            raise self.error

    error = (await serve_one(Again)).error
    assert str(error) == "second"
    assert isinstance(error.__context__, KeyError)
    assert error.__context__.__context__ is None
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    ("cancel_at", "called", "ended_at"),
    [
        (1, ["setup"], 1),
        (3, ["setup", "setup done", "handle", "finish", "finish done"], 5),
        (5, ["setup", "setup done", "handle", "handle done", "finish"], 5),
    ],
)
async def test_handler_that_is_cancelled(
    cancel_at: float, called: list[str], ended_at: float, autojump_clock: object
) -> None:
    """CX-04: ``finish`` runs shielded after a cancelled ``handle``, and is ordinary otherwise."""
    events: list[str] = []
    result = await serve_one(scripted(events, seconds=2), cancel_at=cancel_at)
    assert events == called
    assert result.outcome == "cancelled"
    assert result.record.reason == "a test"
    assert result.record.duration == ended_at


async def test_finish_after_a_cancellation_is_bounded(autojump_clock: object) -> None:
    """``finish`` has ``timeouts.cleanup`` seconds, and not one more."""
    events: list[str] = []
    result = await serve_one(scripted(events, seconds=100), cancel_at=150, cleanup=7)
    assert events == ["setup", "setup done", "handle", "finish"]
    assert result.outcome == "cancelled"
    assert result.record.duration == 150 + 7


async def test_finish_after_an_error_is_bounded(autojump_clock: object) -> None:
    """After an error, too; the error is still the handler's."""

    class Slow(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise ValueError("handle")

        async def finish(self) -> None:
            await trio.sleep_forever()

    result = await serve_one(Slow, cleanup=7)
    assert str(result.error) == "handle"
    assert result.record.duration == 7


async def test_finish_error_after_a_cancellation(autojump_clock: object) -> None:
    """EX-05: an error in ``finish`` is told, and the request was cancelled all the same."""
    result = await serve_one(scripted([], fail_in="finish", seconds=2), cancel_at=3)
    assert result.outcome == "cancelled"
    assert isinstance(result.error, ExceptionGroup)
    [told] = result.error.exceptions
    assert str(told) == "finish"


async def test_handler_that_swallows_its_cancellation(autojump_clock: object) -> None:
    """A handler that caught the cancellation and returned has completed."""

    class Stubborn(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.server.greetings = "from the other side"

    assert (await serve_one(Stubborn, cancel_at=1)).outcome == "completed"


async def test_handler_that_closed_early_with_a_full_buffer(autojump_clock: object) -> None:
    """Closing early is no error, whatever ``wfile`` still had in its buffer."""

    class Rude(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self) -> None:
            await self.wfile.write(b"never mind")
            await self.request.aclose()

    result = await serve_one(Rude)
    assert (result.outcome, result.errors) == ("completed", [])


async def test_handler_that_goes_on_after_its_peer_is_gone(autojump_clock: object) -> None:
    """CM-13: one that caught `PeerGone` and returned has completed; its buffer is forgotten."""

    class Calm(trioserver.StreamRequestHandler):
        wbufsize = 10

        async def handle(self) -> None:
            await trio.sleep(2)
            with pytest.raises(trioserver.PeerGone):
                await self.wfile.write(b"too late for this")

    witness = Witness()
    server = Recording(MEMORY, Calm, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(1)
        client.reset()
        await trio.sleep(2)
    assert (witness.outcomes, server.errors) == (["completed"], [])


# Constructed and awaited ------------------------------------------------------


async def test_handler_constructor_that_raises(autojump_clock: object) -> None:
    """EX-10: an error in ``__init__`` is that request's error."""

    class Broken(trioserver.BaseRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            raise ValueError("no")

    result = await serve_one(Broken)
    assert str(result.error) == "no"
    assert result.outcome == "failed"


async def test_handler_awaited_twice(autojump_clock: object) -> None:
    """A handler handles its request once."""

    class Twice(Recording):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            handler = Say(request, client_address, self)
            await handler
            with pytest.raises(RuntimeError, match="Say was awaited twice for request 1"):
                await handler

    async with Twice(MEMORY, Say).serving() as server:
        assert await read_to_end(await server.connect()) == b"hello"
    assert server.errors == []


async def test_handler_never_awaited(autojump_clock: object) -> None:
    """EX-10: a ``finish_request`` ported without its ``await`` is told what it lacks."""

    class Forgetful(Recording):
        async def finish_request(self, request: Any, client_address: Any) -> None:
            self.RequestHandlerClass(request, client_address, self)

    async with Forgetful(MEMORY, Say).serving() as server:
        assert await read_to_end(await server.connect()) == b""
    [error] = server.errors
    assert isinstance(error, RuntimeError)
    assert "never awaited" in str(error)
    assert "await self.RequestHandlerClass(...)" in str(error)


async def test_handler_returned_by_an_async_factory(autojump_clock: object) -> None:
    """EX-10: an async function that returns a handler has not awaited it, and is told so."""

    async def make(request: Any, client_address: Any, server: Any) -> Say:
        return Say(request, client_address, server)

    assert "never awaited" in str((await serve_one(make)).error)


async def test_handler_awaited_by_an_async_factory(autojump_clock: object) -> None:
    """One that awaits it has chosen a handler after a wait, which is fine."""

    async def choose(request: Any, client_address: Any, server: Any) -> None:
        words = await request.recv(5)
        await Say(request, client_address, server, words=words[::-1])

    assert (await serve_one(choose, data=b"olleh")).reply == b"hello"


async def test_handler_constructed_beside_another(autojump_clock: object) -> None:
    """EX-10: of two handlers that were made for a request, both have to be awaited."""

    def undecided(*arguments: Any) -> Say:
        Say(*arguments)
        return Say(*arguments)

    assert "never awaited" in str((await serve_one(undecided)).error)


# Of the wrong colour, told when the server is built ---------------------------


def with_plain(name: str) -> type[trioserver.BaseRequestHandler]:
    """A handler class with a plain method of this name."""
    return type("Ported", (trioserver.StreamRequestHandler,), {name: lambda self: None})


@pytest.mark.parametrize("name", ["setup", "handle", "finish"])
def test_handler_with_a_plain_method(name: str) -> None:
    """EX-10: a plain method is told of at once, with the class, the method and the cure."""
    with pytest.raises(TypeError) as caught:
        trioserver.TCPServer(("127.0.0.1", 0), with_plain(name))
    for word in ("RequestHandlerClass", "Ported", f"{name}()", "`async def`"):
        assert word in str(caught.value)


def test_handler_with_an_inherited_plain_method() -> None:
    """A plain method of a mix-in that comes first counts, too."""

    class Plain:
        def handle(self) -> None: ...

    class Mixed(Plain, trioserver.BaseRequestHandler):
        pass

    with pytest.raises(TypeError, match=r"Mixed .* handle\(\)"):
        trioserver.TCPServer(("127.0.0.1", 0), Mixed)


def test_handler_with_a_plain_method_in_a_partial() -> None:
    """A partial does not hide the colour."""
    with pytest.raises(TypeError, match=r"Ported .* handle\(\)"):
        trioserver.TCPServer(("127.0.0.1", 0), partial(with_plain("handle")))


def test_handler_with_a_generator_for_a_method() -> None:
    """EX-10: an ``async def`` with a ``yield`` in it is no coroutine, and is refused, too."""

    class Yielding(trioserver.BaseRequestHandler):
        async def handle(self) -> Any:
            yield

    with pytest.raises(TypeError, match=r"Yielding has a `yield` in its handle\(\), so"):
        trioserver.TCPServer(("127.0.0.1", 0), Yielding)


def test_handler_with_a_decorated_method() -> None:
    """A decorator that used `functools.wraps` does not hide that a method is async."""

    def logged(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any) -> Any:
            return method(*arguments)

        return call

    class Decorated(trioserver.BaseRequestHandler):
        @logged
        async def handle(self) -> None: ...

    trioserver.TCPServer(("127.0.0.1", 0), Decorated)


@pytest.mark.parametrize(
    ("handler", "base"),
    [
        (socketserver.BaseRequestHandler, "trioserver.BaseRequestHandler"),
        (socketserver.StreamRequestHandler, "trioserver.StreamRequestHandler"),
        (type("Mine", (socketserver.StreamRequestHandler,), {}), "trioserver.StreamRequestHandler"),
        (http.server.SimpleHTTPRequestHandler, "trioserver.StreamRequestHandler"),
        (partial(http.server.SimpleHTTPRequestHandler), "trioserver.StreamRequestHandler"),
    ],
)
def test_handler_of_socketserver(handler: Any, base: str) -> None:
    """EX-10: a handler of the classic framework is refused, and the right base is named."""
    with pytest.raises(TypeError, match="synchronous handler of socketserver") as caught:
        trioserver.TCPServer(("127.0.0.1", 0), handler)
    assert f"derive it from {base}," in str(caught.value)


@pytest.mark.parametrize("handler", [None, "Upper", 5, object(), sys, ()])
def test_handler_that_is_not_callable(handler: Any) -> None:
    """EX-10: what cannot be called is refused, and shown."""
    with pytest.raises(TypeError, match="RequestHandlerClass must be a handler class") as caught:
        trioserver.TCPServer(("127.0.0.1", 0), handler)
    assert repr(handler) in str(caught.value)


def test_handler_function_that_yields() -> None:
    """EX-10: an async generator can be told from a handler, so it is."""

    async def talk(request: Any, client_address: Any, server: Any) -> Any:
        yield b"hello"

    with pytest.raises(TypeError, match="talk"):
        trioserver.TCPServer(("127.0.0.1", 0), talk)


async def two(request: Any, client_address: Any) -> None:
    """Lacks one."""


async def four(request: Any, client_address: Any, server: Any, database: str) -> None:
    """Needs one more."""


class OfTwo(trioserver.BaseRequestHandler):
    """Constructed with two."""

    def __init__(self, request: Any, client_address: Any) -> None: ...


class OfNone:
    """Constructed with nothing."""

    def __await__(self) -> Any: ...


def plain_two(request: Any, server: Any) -> None:
    """A synchronous one."""


class SyncOfTwo(socketserver.BaseRequestHandler):
    """A synchronous one, constructed with two."""

    def __init__(self, request: Any, server: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "handler", "name", "parameters"),
    [
        (trioserver.TCPServer, two, "two", "(request, client_address)"),
        (trioserver.TCPServer, four, "four", "(request, client_address, server, database)"),
        (trioserver.TCPServer, OfTwo, "OfTwo", "(request, client_address)"),
        (trioserver.TCPServer, OfNone, "OfNone", "()"),
        (trioserver.UDPServer, lambda: None, "<lambda>", "()"),
        (trioserver.ThreadingTCPServer, plain_two, "plain_two", "(request, server)"),
        (trioserver.ThreadingUDPServer, SyncOfTwo, "SyncOfTwo", "(request, server)"),
        (trioserver.ProcessTCPServer, plain_two, "plain_two", "(request, server)"),
        (trioserver.ProcessTCPServer, two, "two", "(request, client_address)"),
    ],
)
def test_handler_with_the_wrong_parameters(
    kind: Any, handler: Any, name: str, parameters: str
) -> None:
    """EX-10: who cannot be called with the three arguments is told of when the server is built."""
    with pytest.raises(TypeError) as caught:
        kind(("127.0.0.1", 0), handler)
    called = f"RequestHandlerClass {name} is called with (request, client_address, server)"
    assert str(caught.value) == f"{called}, and takes {parameters}"


@pytest.mark.parametrize("handler", [partial(four, database="x"), mock.Mock(), partial(int, "1")])
def test_handler_whose_parameters_fit_or_cannot_be_told(handler: Any) -> None:
    """A partial, a mock, a builtin: what fits, or cannot be told, is taken."""
    trioserver.TCPServer(("127.0.0.1", 0), handler)


@pytest.mark.parametrize("ours", [True, False])
def test_handler_with_a_method_that_takes_something(ours: bool) -> None:
    """EX-10: ``handle(self, request)`` would fail at the first request, and is refused at once."""
    base = trioserver.BaseRequestHandler if ours else socketserver.BaseRequestHandler

    async def handle(self: Any, request: Any) -> None: ...

    def sync_handle(self: Any, request: Any) -> None: ...

    kind = trioserver.TCPServer if ours else trioserver.ThreadingTCPServer
    handler = type("Takes", (base,), {"handle": handle if ours else sync_handle})
    message = r"Takes has a method handle\(self, request\), which is called with self alone"
    with pytest.raises(TypeError, match=message):
        kind(("127.0.0.1", 0), handler)


def test_handler_behind_a_decorator_that_adds_an_argument() -> None:
    """What counts are the parameters of the wrapper, not of what it wraps."""

    @functools.wraps(four)
    async def with_database(request: Any, client_address: Any, server: Any) -> None:
        await four(request, client_address, server, "database")

    trioserver.TCPServer(("127.0.0.1", 0), with_database)


async def test_handler_without_the_base_init(autojump_clock: object) -> None:
    """EX-10: an ``__init__`` that does not call the base one is told so, at the first request."""

    class Forgets(trioserver.StreamRequestHandler):
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            self.database = None

    result = await serve_one(Forgets)
    assert isinstance(result.error, TypeError)
    says = "Forgets.__init__ must call super().__init__(request, client_address, server)"
    assert str(result.error) == says
    assert result.outcome == "failed"


def test_handler_class_that_cannot_be_awaited() -> None:
    """EX-10: a class whose objects cannot be awaited can be told from a handler, so it is."""

    class Thing:
        def __init__(self, *arguments: Any) -> None: ...

    with pytest.raises(TypeError, match="Thing"):
        trioserver.TCPServer(("127.0.0.1", 0), Thing)


def test_handler_assigned_or_overridden_wrongly() -> None:
    """The check is the same for an assignment and for a class-level default."""
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper)
    with pytest.raises(TypeError, match="Ported"):
        server.RequestHandlerClass = with_plain("handle")
    assert server.RequestHandlerClass is Upper
    body = {"RequestHandlerClass": with_plain("handle")}
    with pytest.raises(TypeError, match="Ported"):
        type("Server", (trioserver.TCPServer,), body)


# Of the wrong colour, told at the first request -------------------------------


def plain(request: Any, client_address: Any, server: Any) -> None:
    """A handler function that was not made async."""


@pytest.mark.parametrize(
    ("handler", "name"),
    [(plain, "plain"), (partial(plain), "plain"), (lambda *_: "text", "<lambda>")],
)
async def test_handler_that_is_plain(handler: Any, name: str, autojump_clock: object) -> None:
    """EX-10: a plain function is told of at its first request, by name, with the cure."""
    error = (await serve_one(handler)).error
    assert isinstance(error, TypeError)
    for word in ("RequestHandlerClass", name, "`async def`", "trioserver.BaseRequestHandler"):
        assert word in str(error)


async def test_handler_that_is_plain_harms_nobody_else(autojump_clock: object) -> None:
    """EX-10: each request that meets a wrong handler fails; the server lives."""
    server = Recording(MEMORY, plain)
    async with server.serving():
        for _ in range(3):
            assert await read_to_end(await server.connect()) == b""
        assert server.draining is False
    assert len(server.errors) == 3


# The class attributes of stream handlers --------------------------------------


class Silent(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        await self.rfile.readline()


async def test_timeout_of_a_handler_class(autojump_clock: object) -> None:
    """``timeout`` overrides ``timeouts.idle`` for this handler, to the instant."""

    class Impatient(Silent):
        timeout = 3

    witness = Witness()
    async with MemoryServer(MEMORY, Impatient, observers=[witness]).serving() as server:
        client = await server.connect()
        assert await read_to_end(client) == b""
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 3


async def test_timeout_of_a_handler_class_bounds_writes(autojump_clock: object) -> None:
    """``timeout`` overrides ``timeouts.write``, too."""

    class Impatient(trioserver.StreamRequestHandler):
        timeout = 3

        async def handle(self) -> None:
            await self.wfile.write(bytes(1_000_000))

    witness = Witness()
    async with MemoryServer(MEMORY, Impatient, observers=[witness]).serving() as server:
        async with await server.connect():
            await trio.sleep(4)
    assert witness.outcomes == ["timed_out"]
    assert witness.records[0].duration == 3


async def test_timeout_of_a_handler_object(autojump_clock: object) -> None:
    """Set before the base ``__init__``, it counts for one object alone, as in the classic one."""
    seen = []

    class Graded(trioserver.StreamRequestHandler):
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            self.timeout = client_address[1]
            super().__init__(request, client_address, server)

        async def handle(self) -> None:
            seen.append((self.request.idle_timeout, self.request.write_timeout))

    async with MemoryServer(MEMORY, Graded).serving() as server:
        for seconds in (4, 5):
            await read_to_end(await server.connect(("client", seconds)))
    assert seen == [(4, 4), (5, 5)]


async def test_timeout_of_none_leaves_the_servers(autojump_clock: object) -> None:
    """None, the default, means the server's time-outs."""
    seen = []

    class Plain(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            seen.append((self.request.idle_timeout, self.request.write_timeout))

    timeouts = trioserver.Timeouts(idle=6, write=7)
    async with MemoryServer(MEMORY, Plain, timeouts=timeouts).serving() as server:
        await read_to_end(await server.connect())
    assert seen == [(6, 7)]


@pytest.mark.parametrize("seconds", [0, -1, "5"])
async def test_timeout_of_a_handler_class_is_validated(
    seconds: Any, autojump_clock: object
) -> None:
    """A time-out that makes no sense is an error of the request, and named."""
    handler = type("Odd", (Silent,), {"timeout": seconds})
    assert "must be a number of seconds" in str((await serve_one(handler)).error)


@pytest.mark.parametrize(("rbufsize", "portion"), [(10, 10), (0, 100), (-1, 100), (1, 1)])
async def test_rbufsize_of_a_handler_class(
    rbufsize: int, portion: int, autojump_clock: object
) -> None:
    """``rbufsize`` bounds what is taken from the transport at once."""
    seen = []

    class Sipping(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await trio.testing.wait_all_tasks_blocked()
            await self.rfile.peek()
            seen.append(self.request.bytes_received)

    Sipping.rbufsize = rbufsize
    await serve_one(Sipping, data=bytes(100))
    assert seen == [portion]


@pytest.mark.parametrize(("wbufsize", "sent"), [(0, 6), (1, 6), (6, 6), (7, 0), (-1, 0)])
async def test_wbufsize_of_a_handler_class(
    wbufsize: int, sent: int, autojump_clock: object
) -> None:
    """``wbufsize`` says how much is collected before it is sent."""
    seen = []

    class Writing(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            await self.wfile.write(b"123456")
            seen.append(self.request.bytes_sent)

    Writing.wbufsize = wbufsize
    assert (await serve_one(Writing)).reply == b"123456"
    assert seen == [sent]


@pytest.mark.parametrize("disabled", [True, False, None])
async def test_nagle_of_a_handler_class(disabled: bool | None) -> None:
    """Small writes go out at once unless a handler class says otherwise."""
    seen = []

    class Looking(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            assert self.request.socket is not None
            nodelay = self.request.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            seen.append(bool(nodelay))

    if disabled is not None:
        Looking.disable_nagle_algorithm = disabled
    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Looking).serving() as server:
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await read_to_end(client)
    assert seen == [disabled is not False]


async def test_nagle_where_there_is_none(autojump_clock: object) -> None:
    """Over a transport without Nagle's algorithm the attribute means nothing."""

    class Patient(Say):
        disable_nagle_algorithm = False

    assert (await serve_one(Patient)).reply == b"hello"
