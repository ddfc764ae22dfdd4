"""Handlers: what may be one, in which order its methods run, and what a wrong one is told."""

import functools
import http.server
import socket
import socketserver
import sys
from functools import partial
from unittest import mock

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, read_to_end, running
from support.pipes import does
from support.scenes import Scene, table

import trioserver
from trioserver import BaseRequestHandler, StreamRequestHandler
from trioserver.testing import MemoryServer

MEMORY = ("memory", 1)
THERE = ("127.0.0.1", 0)

# Building blocks --------------------------------------------------------------


class Recording(MemoryServer):
    """Keeps the errors that it is told of."""

    errors: list[BaseException | None] = attrs.field(factory=list)

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())


@attrs.frozen
class Result:
    """How one request went."""

    reply: bytes
    errors: list[BaseException | None]
    record: trioserver.RequestRecord

    @property
    def outcome(self):
        return str(self.record.outcome)

    @property
    def error(self):
        """The only error."""
        [error] = self.errors
        assert error is not None
        return error


async def serve_one(
    handler,
    *,
    cancel_at=None,
    data=b"",
    kind=Recording,
    address=None,
    **timeouts,
):
    """Have ``handler`` serve one request."""
    witness = Witness()
    server = kind(MEMORY, handler, observers=[witness], timeouts=trioserver.Timeouts(**timeouts))
    async with server.serving():
        client = await server.connect(address)
        await client.send_all(data)
        await client.send_eof()
        if cancel_at is not None:
            await trio.sleep(cancel_at)
            server.cancel_request(1, "a test")
        reply = await read_to_end(client)
        await client.aclose()
    [record] = witness.records
    return Result(reply, server.errors, record)


def handler_of(base=StreamRequestHandler, name="Handler", **body):
    """A handler class with this body."""
    return type(name, (base,), body)


# What may be a handler --------------------------------------------------------


async def say(request, client_address, server):
    """The smallest handler."""
    await request.sendall(b"hello")


async def say_this(words, request, client_address, server):
    """One that is given what to say, too."""
    await request.sendall(words)


class Say(StreamRequestHandler):
    def __init__(self, *arguments, words=b"hello"):
        self.words = words
        super().__init__(*arguments)

    async def handle(self):
        await self.wfile.write(self.words)


class Application:
    async def serve(self, request, client_address, server):
        await request.sendall(b"hello")

    __call__ = serve
    static = staticmethod(say)
    of_class = classmethod(serve)

    def make(self, *arguments):
        return Say(*arguments)


def plain_wrapper(function, wraps=lambda call: call):
    """A plain function around another, with or without a word about it."""

    @wraps
    def call(*arguments):
        return function(*arguments)

    return call


def closure(words):
    """An async function inside another."""

    async def serve(request, client_address, server):
        await request.sendall(words)

    return serve


class Awaitable:
    """Not derived from anything: constructed with the three arguments, and awaited."""

    def __init__(self, request, client_address, server):
        self.request = request

    def __await__(self):
        return self.request.sendall(b"hello").__await__()


async def choose(request, client_address, server):
    """Awaits a handler that it has chosen after a wait."""
    words = await request.recv(5)
    await Say(request, client_address, server, words=words[::-1])


decorated = plain_wrapper(Say.handle, functools.wraps(Say.handle))
HANDLERS = {
    "class": Say,
    "function": say,
    "partial of a function": partial(say_this, b"hello"),
    "partial of a class": partial(Say, words=b"hello"),
    "partial of a partial": partial(partial(say_this), b"hello"),
    "bound method": Application().serve,
    "callable object": Application(),
    "static method": Application.static,
    "class method": Application.of_class,
    "closure": closure(b"hello"),
    "lambda": lambda *arguments: say_this(b"hello", *arguments),
    "factory": lambda *arguments: Say(*arguments, words=b"hello"),
    "bound factory": Application().make,
    "plain wrapper": plain_wrapper(say),
    "awaitable of one's own": Awaitable,
    "async function that awaits a handler": choose,
    "class with a decorated method": handler_of(handle=decorated, words=b"hello"),
    "Nagle's algorithm on a transport without": handler_of(Say, disable_nagle_algorithm=False),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS.keys())
async def test_handler_may_be(handler, autojump_clock):
    """Whatever is called with the three arguments and returns an awaitable is a handler."""
    result = await serve_one(handler, data=b"olleh")
    assert (result.reply, result.outcome, result.errors) == (b"hello", "completed", [])


@pytest.mark.parametrize("handler", [BaseRequestHandler, StreamRequestHandler])
async def test_handler_base_class_does_nothing(handler, autojump_clock):
    """The base classes themselves serve a request, and say nothing."""
    result = await serve_one(handler)
    assert (result.reply, result.outcome) == (b"", "completed")


# What a handler has -----------------------------------------------------------


async def test_handler_attributes_from_construction(autojump_clock):
    """Everything is there in ``__init__`` already, files included, and new for each request."""
    made = []

    class Curious(StreamRequestHandler):
        def __init__(self, request, client_address, server):
            super().__init__(request, client_address, server)
            assert self.request is self.connection is request
            assert self.client_address == request.client_address == client_address
            assert self.server is server
            assert self.info is request.info
            assert self.cancel_scope is request.cancel_scope
            assert self.rfile.readable()
            assert self.wfile.writable()
            made.append(self)

    for _ in range(2):
        result = await serve_one(Curious)
        assert result.outcome == "completed"
        assert made[-1].client_address == result.record.info.client_address
        assert isinstance(made[-1].server, Recording)
    assert made[0] is not made[1]


class Waiting(StreamRequestHandler):
    async def handle(self):
        await self.rfile.readline()
        with self.idle():
            await trio.sleep_forever()


def expire_in(self, seconds):
    """Move the deadline of the request."""
    self.cancel_scope.deadline = trio.current_time() + seconds


@table(
    "scene",
    {
        "TO-11: `cancel_scope` is the request's own; its deadline ends it, in time": Scene(
            does("expire_in 3; sleep_forever", expire_in=expire_in),
            ends_at=3,
            outcomes=["timed_out"],
        ),
        "A handler may cancel itself; the reason that it gives is the one in the record": Scene(
            does("cancels; sleep_forever", cancels=lambda it: it.cancel_scope.cancel("enough")),
            outcomes=["cancelled"],
            reason="enough",
        ),
        "`self.idle()` is the block of its connection: a drain ends it": Scene(
            Waiting, {0: b"hello\n"}, drain_at=1, ends_at=1, outcomes=["drained"]
        ),
        "Closing early is no error, whatever `wfile` still had in its buffer": Scene(
            does("write b'never mind'; aclose", wbufsize=-1), gets=b"", outcomes=["completed"]
        ),
        "`timeout` of a handler class overrides `timeouts.idle`, to the instant": Scene(
            does("readline", timeout=3), gets=b"", ends_at=3, outcomes=["timed_out"]
        ),
    },
)
async def test_handler_in_a_scene(scene, autojump_clock):
    """What a handler does to its request, and to nobody else."""
    played = await attrs.evolve(scene, kind=Recording).play()
    assert played.server.errors == []


# Its methods, in order --------------------------------------------------------


def scripted(events, *, fail_in="", seconds=0):
    """A handler whose methods each take some time, write themselves down, and may fail."""

    def method(name):
        async def run(self):
            events.append(name)
            await trio.sleep(seconds)
            if name in fail_in.split():
                raise ValueError(name)
            events.append(f"{name} done")

        return run

    return handler_of(BaseRequestHandler, **{n: method(n) for n in ("setup", "handle", "finish")})


SETUP, HANDLE, FINISH = ([name, f"{name} done"] for name in ("setup", "handle", "finish"))


@table(
    "fail_in, called",
    {
        "each when the one before it has returned": ("", [*SETUP, *HANDLE, *FINISH]),
        "EX-01: no `finish` if `setup` did not return": ("setup", ["setup"]),
        "EX-01: `finish` after a `handle` that failed": ("handle", [*SETUP, "handle", *FINISH]),
        "its own error": ("finish", [*SETUP, *HANDLE, "finish"]),
    },
)
async def test_handler_methods(fail_in, called, autojump_clock):
    """EX-01: ``finish`` runs if and only if ``setup`` returned; the error is told once."""
    events = []
    result = await serve_one(scripted(events, fail_in=fail_in))
    assert events == called
    assert result.outcome == ("failed" if fail_in else "completed")
    assert list(map(repr, result.errors)) == ([repr(ValueError(fail_in))] if fail_in else [])


class Long(BaseRequestHandler):
    async def handle(self):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    async def finish(self):
        try:
            raise OSError("third")
        except OSError as error:
            raise RuntimeError("fourth") from error


class Again(Long):
    async def handle(self):
        try:
            await super().handle()
        except ValueError as error:
            self.error = error
            raise

    async def finish(self):
        raise self.error


@table(
    "handler, chain",
    {
        "An error in `finish` after one in `handle` is in its chain, and told with it": (
            scripted([], fail_in="handle finish"),
            [ValueError("handle"), ValueError("finish")],
        ),
        "What led to the handler's error stays where it was; both stories can be read": (
            Long,
            [ValueError("second"), KeyError("first"), RuntimeError("fourth"), OSError("third")],
        ),
        "An error that `finish` raises again does not become a part of its own history": (
            Again,
            [ValueError("second"), KeyError("first")],
        ),
    },
)
async def test_finish_error_never_replaces_the_handlers(handler, chain, autojump_clock):
    """It comes after the whole chain."""
    error = (await serve_one(handler)).error
    assert not hasattr(error, "__notes__") or handler is not Again
    found = []
    while error is not None:
        found.append(repr(error))
        error = error.__context__
    assert found == list(map(repr, chain))


@pytest.mark.parametrize(
    ("cancel_at", "seconds", "called", "ended_at"),
    [
        (1, 2, ["setup"], 1),
        (3, 2, [*SETUP, "handle", *FINISH], 5),
        (5, 2, [*SETUP, *HANDLE, "finish"], 5),
        (150, 100, [*SETUP, "handle", "finish"], 157),
    ],
)
async def test_finish_after_a_cancellation_is_bounded(
    cancel_at, seconds, called, ended_at, autojump_clock
):
    """CX-04: ``finish`` is shielded after a cancelled ``handle``, for ``timeouts.cleanup``."""
    events = []
    result = await serve_one(scripted(events, seconds=seconds), cancel_at=cancel_at, cleanup=7)
    assert events == called
    assert (result.outcome, result.record.reason) == ("cancelled", "a test")
    assert result.record.duration == ended_at


async def test_finish_after_an_error_is_bounded(autojump_clock):
    """After an error, too; the error is still the handler's."""

    class Slow(Long):
        async def finish(self):
            await trio.sleep_forever()

    result = await serve_one(Slow, cleanup=7)
    assert str(result.error) == "second"
    assert result.record.duration == 7


async def test_finish_error_after_a_cancellation(autojump_clock):
    """EX-05: an error in ``finish`` is told, and the request was cancelled all the same."""
    result = await serve_one(scripted([], fail_in="finish", seconds=2), cancel_at=3)
    assert result.outcome == "cancelled"
    assert isinstance(result.error, ExceptionGroup)
    [told] = result.error.exceptions
    assert str(told) == "finish"


async def test_handler_that_swallows_its_cancellation(autojump_clock):
    """A handler that caught the cancellation and returned has completed."""
    result = await serve_one(does("sleep_forever -> Cancelled"), cancel_at=1)
    assert result.outcome == "completed"


async def test_handler_that_goes_on_after_its_peer_is_gone(autojump_clock):
    """CM-13: one that caught `PeerGone` and returned has completed; its buffer is forgotten."""
    witness = Witness()
    handler = does("sleep 2; write b'too late for this' -> PeerGone", wbufsize=10)
    server = Recording(MEMORY, handler, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(1)
        client.reset()
        await trio.sleep(2)
    assert (witness.outcomes, server.errors) == (["completed"], [])


# Told at the first request ------------------------------------------------------


def plain(request, client_address, server):
    """A handler function that was not made async."""


class Broken(BaseRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        raise ValueError("no")


class Forgetful(Recording):
    async def finish_request(self, request, client_address):
        self.RequestHandlerClass(request, client_address, self)


async def make(request, client_address, server):
    """Has not awaited the handler that it returns."""
    return Say(request, client_address, server)


def undecided(*arguments):
    """Makes one that nobody awaits."""
    Say(*arguments)
    return Say(*arguments)


CURE = ["RequestHandlerClass", "`async def`", "trioserver.BaseRequestHandler"]
NEVER = ["never awaited", "await self.RequestHandlerClass(...)"]
Forgets = handler_of(name="Forgets", __init__=lambda *arguments: None)
BASE_INIT = "Forgets.__init__ must call super().__init__(request, client_address, server)"


@table(
    "handler, kind, words",
    {
        "an error in `__init__`": (Broken, ValueError, ["no"]),
        "an `__init__` that does not call the base one": (Forgets, TypeError, [BASE_INIT]),
        "an async function that returns a handler": (make, RuntimeError, NEVER),
        "two handlers, one of them awaited": (undecided, RuntimeError, NEVER),
        "a plain function": (plain, TypeError, ["plain", *CURE]),
        "a partial of one": (partial(plain), TypeError, ["plain", *CURE]),
        "a lambda": (lambda *_: "text", TypeError, ["<lambda>", *CURE]),
    },
)
async def test_handler_that_is_wrong(handler, kind, words, autojump_clock):
    """EX-10: each request that meets a wrong handler fails, and tells why."""
    result = await serve_one(handler)
    assert (type(result.error), result.outcome) == (kind, "failed")
    for word in words:
        assert word in str(result.error)


async def test_handler_that_is_wrong_harms_nobody_else(autojump_clock):
    """EX-10: the server lives."""
    async with Recording(MEMORY, plain).serving() as server:
        for _ in range(3):
            assert await read_to_end(await server.connect()) == b""
        assert server.draining is False
    assert len(server.errors) == 3


async def test_handler_never_awaited(autojump_clock):
    """EX-10: a ``finish_request`` ported without its ``await`` is told what it lacks."""
    result = await serve_one(Say, kind=Forgetful)
    assert isinstance(result.error, RuntimeError)
    assert all(word in str(result.error) for word in NEVER)


async def test_handler_awaited_twice(autojump_clock):
    """A handler handles its request once."""

    class Twice(Recording):
        async def finish_request(self, request, client_address):
            handler = Say(request, client_address, self)
            await handler
            with pytest.raises(RuntimeError, match="Say was awaited twice for request 1"):
                await handler

    result = await serve_one(Say, kind=Twice)
    assert (result.reply, result.errors) == (b"hello", [])


# Told when the server is built --------------------------------------------------


def ported(**body):
    """A handler class with these methods."""
    return handler_of(name="Ported", **body)


def plain_method(self):
    """Not async."""


async def yields(self):
    """An async generator."""
    yield


async def talks(request, client_address, server):
    """An async generator for a function."""
    yield b"hello"


async def takes_more(self, request):
    """A method that takes something."""


async def two(request, client_address):
    """Lacks one."""


async def four(request, client_address, server, database):
    """Needs one more."""


@functools.wraps(four)
async def with_database(request, client_address, server):
    """What counts are the parameters of the wrapper, not of what it wraps."""


OfTwo = handler_of(name="OfTwo", __init__=lambda self, request, client_address: None)
OfNone = handler_of(object, "OfNone", __await__=lambda self: None)
Thing = handler_of(object, "Thing", __init__=lambda self, *arguments: None)
SyncOfTwo = handler_of(
    socketserver.BaseRequestHandler, "SyncOfTwo", __init__=lambda self, request, server: None
)


def plain_two(request, server):
    """A synchronous one that lacks one."""


class Mixed(type("Plain", (), {"handle": plain_method}), BaseRequestHandler):
    """Has a plain method of a mix-in that comes first."""


METHOD = ["RequestHandlerClass", "Ported", "`async def`"]
CLASSIC = ["synchronous handler of socketserver", "derive it from trioserver.StreamRequestHandler,"]
TAKES = "Takes has a method handle(self, request), which is called with self alone"
takes = partial(handler_of, name="Takes")


@table(
    "handler, words",
    {
        "a plain setup": (ported(setup=plain_method), ["setup()", *METHOD]),
        "a plain handle": (ported(handle=plain_method), ["handle()", *METHOD]),
        "a plain finish": (ported(finish=plain_method), ["finish()", *METHOD]),
        "in a mix-in": (Mixed, ["Mixed ", " handle()"]),
        "in a partial": (partial(ported(handle=plain_method)), ["Ported ", " handle()"]),
        "a handle with a yield": (
            ported(handle=yields),
            ["Ported has a `yield` in its handle(), so"],
        ),
        "a handle that takes something": (takes(handle=takes_more), [TAKES]),
        "a function with a yield": (talks, ["talk"]),
        "a class whose objects cannot be awaited": (Thing, ["Thing"]),
        "a classic handler": (
            socketserver.BaseRequestHandler,
            [CLASSIC[0], "derive it from trioserver.BaseRequestHandler,"],
        ),
        "a classic stream handler": (socketserver.StreamRequestHandler, CLASSIC),
        "derived from one": (handler_of(socketserver.StreamRequestHandler), CLASSIC),
        "of http.server": (http.server.SimpleHTTPRequestHandler, CLASSIC),
        "a partial of that": (partial(http.server.SimpleHTTPRequestHandler), CLASSIC),
        **{
            f"not callable: {it!r:.9}": (it, ["must be a handler class", repr(it)])
            for it in [None, "Upper", 5, object(), sys, ()]
        },
    },
)
def test_handler_that_is_refused(handler, words):
    """EX-10: what can be told from a handler is, when the server is built, with the cure."""
    with pytest.raises(TypeError) as caught:
        trioserver.TCPServer(THERE, handler)
    for word in words:
        assert word in str(caught.value)


def test_sync_handler_with_a_method_that_takes_something():
    """EX-10: the same of a handler for threads."""
    handler = handler_of(
        socketserver.BaseRequestHandler, "Takes", handle=lambda self, request: None
    )
    with pytest.raises(TypeError) as caught:
        trioserver.ThreadingTCPServer(THERE, handler)
    assert TAKES in str(caught.value)


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
def test_handler_with_the_wrong_parameters(kind, handler, name, parameters):
    """EX-10: who cannot be called with the three arguments is told of when the server is built."""
    with pytest.raises(TypeError) as caught:
        kind(THERE, handler)
    called = f"RequestHandlerClass {name} is called with (request, client_address, server)"
    assert str(caught.value) == f"{called}, and takes {parameters}"


@pytest.mark.parametrize(
    "handler", [partial(four, database="x"), mock.Mock(), partial(int, "1"), with_database]
)
def test_handler_whose_parameters_fit_or_cannot_be_told(handler):
    """A partial, a mock, a builtin, a wrapper: what fits, or cannot be told, is taken."""
    trioserver.TCPServer(THERE, handler)


def test_handler_assigned_or_overridden_wrongly():
    """The check is the same for an assignment and for a class-level default."""
    server = trioserver.TCPServer(THERE, Upper)
    wrong = ported(handle=plain_method)
    with pytest.raises(TypeError, match="Ported"):
        server.RequestHandlerClass = wrong
    assert server.RequestHandlerClass is Upper
    with pytest.raises(TypeError, match="Ported"):
        type("Server", (trioserver.TCPServer,), {"RequestHandlerClass": wrong})


# The class attributes of stream handlers --------------------------------------


async def test_timeout_of_a_handler_class_bounds_writes(autojump_clock):
    """``timeout`` overrides ``timeouts.write``, too."""
    witness = Witness()
    handler = does("fill", timeout=3, fill=lambda self: self.wfile.write(bytes(1_000_000)))
    async with MemoryServer(MEMORY, handler, observers=[witness]).serving() as server:
        async with await server.connect():
            await trio.sleep(4)
    assert (witness.outcomes, witness.records[0].duration) == (["timed_out"], 3)


@pytest.mark.parametrize("own", [None, 4, 5])
async def test_timeout_of_a_handler_object(own, autojump_clock):
    """Set before the base ``__init__``, it counts for one object; None means the server's."""
    seen = []

    class Graded(StreamRequestHandler):
        def __init__(self, request, client_address, server):
            if own is not None:
                self.timeout = client_address[1]
            super().__init__(request, client_address, server)
            seen.append((request.idle_timeout, request.write_timeout))

    await serve_one(Graded, address=("client", own), idle=6, write=7)
    assert seen == [(6, 7) if own is None else (own, own)]


@pytest.mark.parametrize("seconds", [0, -1, "5"])
async def test_timeout_of_a_handler_class_is_validated(seconds, autojump_clock):
    """A time-out that makes no sense is an error of the request, and named."""
    result = await serve_one(handler_of(timeout=seconds))
    assert "must be a number of seconds" in str(result.error)


@pytest.mark.parametrize(
    ("steps", "fields", "sends", "reply"),
    [
        *(
            (f"peek; bytes_received -> {portion}", {"rbufsize": size}, 100, b"")
            for size, portion in [(10, 10), (0, 100), (-1, 100), (1, 1)]
        ),
        *(
            (f"write b'123456'; bytes_sent -> {sent}", {"wbufsize": size}, 0, b"123456")
            for size, sent in [(0, 6), (1, 6), (6, 6), (7, 0), (-1, 0)]
        ),
    ],
)
async def test_buffers_of_a_handler_class(steps, fields, sends, reply, autojump_clock):
    """``rbufsize`` bounds what is received at once, ``wbufsize`` says when what is sent."""
    result = await serve_one(does(f"sleep 1; {steps}", **fields), data=bytes(sends))
    assert (result.reply, result.errors) == (reply, [])


@pytest.mark.parametrize("body", [{}, *({"disable_nagle_algorithm": it} for it in (True, False))])
async def test_nagle_of_a_handler_class(body):
    """Small writes go out at once unless a handler class says otherwise."""
    seen = []

    async def look(self):
        assert self.request.socket is not None
        seen.append(self.request.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with running(trioserver.TCPServer(THERE, handler_of(handle=look, **body))) as address:
        async with await trio.open_tcp_stream(*address) as client:
            await read_to_end(client)
    assert [bool(nodelay) for nodelay in seen] == [body != {"disable_nagle_algorithm": False}]
