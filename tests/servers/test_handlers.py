"""Handlers: what may be one, in which order its methods run, and what a wrong one is told."""

import functools
import http.server
import socket
import socketserver
import sys
from functools import partial
from types import SimpleNamespace
from unittest import mock

import attrs
import pytest
import trio
from support import Upper, Witness, read_to_end, running
from support.pipes import does
from support.scenes import Scene, reset, table

import trioserver
from trioserver import BaseRequestHandler, StreamRequestHandler, TCPServer
from trioserver.testing import MemoryServer

MEMORY = ("memory", 1)
THERE = ("127.0.0.1", 0)


class Recording(MemoryServer):
    """Keeps the errors that it is told of."""

    errors: list[BaseException | None] = attrs.field(factory=list)

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())


async def serve_one(handler, *, cancel_at=None, data=b"", address=None, hooks=(), **timeouts):
    """How one request went: its reply, its record, and the errors that were told."""
    witness = Witness()
    kind, times = type("Recording", (Recording,), dict(hooks)), trioserver.Timeouts(**timeouts)
    server = kind(MEMORY, handler, observers=[witness], timeouts=times)
    async with server.serving():
        client = await server.connect(address)
        await client.send_all(data)
        await client.send_eof()
        if cancel_at is not None:
            await trio.sleep(cancel_at)
            server.cancel_request(1, "a test")
        reply = await read_to_end(client)
        await client.aclose()
    [outcome], [record] = witness.outcomes, witness.records
    return SimpleNamespace(reply=reply, outcome=outcome, record=record, errors=server.errors)


def handler_of(base=StreamRequestHandler, name="Handler", **body):
    """A handler class with this body."""
    return type(name, (base,), body)


# What may be a handler, and what it has ----------------------------------------


async def say_this(words, request, client_address, server):
    """A function that is given what to say."""
    await request.sendall(words)


say = partial(say_this, b"hello")


class Say(StreamRequestHandler):
    def __init__(self, *arguments, words=b"hello"):
        self.words = words
        super().__init__(*arguments)

    async def handle(self):
        await self.wfile.write(self.words)


class Application:
    async def __call__(self, request, client_address, server):
        await request.sendall(b"hello")


@functools.wraps(Say.handle)
def wrapper(*arguments):
    """A plain function around an async one."""
    return Say.handle(*arguments)


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


@table(
    "handler",
    {
        "class": Say,
        "function": choose,
        "partial of a function": say,
        "partial of a class": partial(Say, words=b"hello"),
        "callable object": Application(),
        "plain wrapper": lambda *arguments: say_this(b"hello", *arguments),
        "awaitable of one's own": Awaitable,
        "class with a decorated method": handler_of(handle=wrapper, words=b"hello"),
        "Nagle's algorithm on a transport without": handler_of(Say, disable_nagle_algorithm=False),
    },
)
async def test_handler_may_be(handler, autojump_clock):
    """Whatever is called with the three arguments and returns an awaitable is a handler."""
    result = await serve_one(handler, data=b"olleh")
    assert (result.reply, result.outcome, result.errors) == (b"hello", "completed", [])


async def test_handler_has_all_from_its_construction(autojump_clock):
    """Everything is there in ``__init__`` already, files included."""

    class Curious(StreamRequestHandler):
        def __init__(self, request, client_address, server):
            super().__init__(request, client_address, server)
            assert self.request is self.connection is request
            assert self.client_address == request.client_address == client_address
            assert (self.server, self.info) == (server, request.info)
            assert self.cancel_scope is request.cancel_scope
            assert (self.rfile.readable(), self.wfile.writable()) == (True, True)

    result = await serve_one(Curious, address="me")
    assert (result.outcome, result.record.info.client_address) == ("completed", "me")


class Waiting(StreamRequestHandler):
    async def handle(self):
        await self.rfile.readline()
        with self.idle():
            await trio.sleep_forever()


def expire_in(self, seconds):
    """Move the deadline of the request."""
    self.cancel_scope.deadline = trio.current_time() + seconds


def patient(self, *arguments):
    """An ``__init__`` that sets a time-out."""
    self.timeout = 4
    StreamRequestHandler.__init__(self, *arguments)


ENOUGH = {"cancels": lambda it: it.cancel_scope.cancel("enough")}


@table(
    {
        "The base classes themselves serve a request, and say nothing": Scene(
            BaseRequestHandler
        ).gives(b"", 0, "completed"),
        "Those of streams, too": Scene(StreamRequestHandler).gives(b"", 0, "completed"),
        "TO-11: `cancel_scope` is the request's own; its deadline ends it, in time": Scene(
            does("expire_in 3; sleep_forever", expire_in=expire_in)
        ).gives(None, 3, "timed_out"),
        "A handler may cancel itself; the reason that it gives is the one in the record": Scene(
            does("cancels; sleep_forever", **ENOUGH), reason="enough"
        ).gives(None, 0, "cancelled"),
        "`self.idle()` is the block of its connection: a drain ends it": Scene(
            Waiting, {0: b"hello\n"}, drain_at=1
        ).gives(None, 1, "drained"),
        "Closing early is no error, whatever `wfile` still had in its buffer": Scene(
            does("write b'never mind'; aclose", wbufsize=-1)
        ).gives(b"", 0, "completed"),
        "CM-13: one that caught `PeerGone` has completed, too; its buffer is forgotten": Scene(
            does("sleep 2; write b'too late for this' -> PeerGone", wbufsize=10), {1: reset}
        ).gives(outcomes=["completed"]),
        "`timeout` of a handler class overrides `timeouts.idle`, to the instant": Scene(
            does("readline", timeout=3)
        ).gives(b"", 3, "timed_out"),
        "One that is set before the base `__init__` counts for this object": Scene(
            does("readline", __init__=patient)
        ).gives(b"", 4, "timed_out"),
        "It overrides `timeouts.write`, too": Scene(
            does("fill", timeout=3, fill=lambda self: self.wfile.write(bytes(1_000_000))),
            reads_from=4,
        ).gives(outcomes=["timed_out"], duration=3, breaks=True),
    },
)
async def test_handler_in_a_scene(scene, autojump_clock):
    """What a handler does to its request, and to nobody else."""
    played = await attrs.evolve(scene, kind=Recording).play()
    assert played.server.errors == []


def scripted(events, fail_in="", seconds=0):
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
    "fail_in, seconds, cancel_at, called, ended_at",
    {
        "each when the one before it has returned": ("", 1, None, [*SETUP, *HANDLE, *FINISH], 3),
        "EX-01: no `finish` if `setup` did not return": ("setup", 1, None, ["setup"], 1),
        "EX-01: nor if it was cancelled": ("", 2, 1, ["setup"], 1),
        "EX-01: one after a failure": ("handle", 1, None, [*SETUP, "handle", *FINISH], 3),
        "bounded, too": ("handle", 100, None, [*SETUP, "handle", "finish"], 207),
        "its own error": ("finish", 1, None, [*SETUP, *HANDLE, "finish"], 3),
        "CX-04: one after a cancellation": ("", 2, 3, [*SETUP, "handle", *FINISH], 5),
        "CX-04: bounded, too": ("", 100, 150, [*SETUP, "handle", "finish"], 157),
        "EX-05: its error is told then": ("finish", 2, 3, [*SETUP, "handle", "finish"], 5),
        "none that was cancelled itself": ("", 2, 5, [*SETUP, *HANDLE, "finish"], 5),
    },
)
async def test_finish_after_setup_is_bounded(
    fail_in, seconds, cancel_at, called, ended_at, autojump_clock
):
    """EX-01: ``finish`` runs if and only if ``setup`` returned, shielded for ``timeouts.cleanup``.

    The error is told once; a request that was cancelled stays so.
    """
    events = []
    handler = scripted(events, fail_in, seconds)
    result = await serve_one(handler, cancel_at=cancel_at, cleanup=7)
    assert (events, result.record.duration) == (called, ended_at)
    if cancel_at is not None:
        assert (result.outcome, result.record.reason) == ("cancelled", "a test")
    else:
        assert result.outcome == ("failed" if fail_in else "completed")
    told = [each for it in result.errors for each in getattr(it, "exceptions", [it])]
    assert list(map(str, told)) == fail_in.split()


# What a wrong one is told ------------------------------------------------------


class Broken(BaseRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        raise ValueError("no")


async def make(request, client_address, server):
    """Has not awaited the handler that it returns."""
    return Say(request, client_address, server)


def undecided(*arguments):
    """Makes one that nobody awaits."""
    Say(*arguments)
    return Say(*arguments)


async def forgets_to_await(self, request, client_address):
    """A ``finish_request`` that was ported without its ``await``."""
    self.RequestHandlerClass(request, client_address, self)


async def awaits_twice(self, request, client_address):
    """A handler handles its request once."""
    handler = Say(request, client_address, self)
    await handler
    await handler


CURE = ["RequestHandlerClass", "`async def`", "trioserver.BaseRequestHandler"]
NEVER = ["never awaited", "await self.RequestHandlerClass(...)"]
Forgets = handler_of(name="Forgets", __init__=lambda *arguments: None)
BASE_INIT = "Forgets.__init__ must call super().__init__(request, client_address, server)"
TWICE = "Say was awaited twice for request 1"
SECONDS = "must be a number of seconds"


@table(
    "handler, hook, kind, words",
    {
        "an error in `__init__`": (Broken, None, ValueError, ["no"]),
        "an `__init__` without the base one": (Forgets, None, TypeError, [BASE_INIT]),
        "an async function that returns a handler": (make, None, RuntimeError, NEVER),
        "two handlers, one of them awaited": (undecided, None, RuntimeError, NEVER),
        "a plain function": (print, None, TypeError, ["print", *CURE]),
        "a lambda": (lambda *_: "text", None, TypeError, ["<lambda>", *CURE]),
        "a handler that a hook never awaits": (Say, forgets_to_await, RuntimeError, NEVER),
        "and one that it awaits twice": (Say, awaits_twice, RuntimeError, [TWICE]),
        "a time-out of zero": (handler_of(timeout=0), None, ValueError, [SECONDS]),
        "a time-out that is no number": (handler_of(timeout="5"), None, TypeError, [SECONDS]),
    },
)
async def test_handler_that_is_wrong(handler, hook, kind, words, autojump_clock):
    """EX-10: each request that meets a wrong handler fails, and tells why; the server lives."""
    result = await serve_one(handler, hooks={"finish_request": hook} if hook else {})
    [error] = result.errors
    assert (type(error), result.outcome) == (kind, "failed")
    assert [word for word in words if word not in str(error)] == []


async def yields(*_):
    """An async generator."""
    yield


PLAIN = {"handle": lambda self: None}
Mixed = type("Mixed", (type("Plain", (), PLAIN), BaseRequestHandler), {})
Sync, SyncStream = socketserver.BaseRequestHandler, socketserver.StreamRequestHandler
OfHttp = http.server.SimpleHTTPRequestHandler
METHOD = ["RequestHandlerClass", "Ported", "`async def`"]
CLASSIC = ["synchronous handler of socketserver", "derive it from trioserver.StreamRequestHandler,"]
TAKES = ["Takes has a method handle(self, request), which is called with self alone"]
ported, takes = partial(handler_of, name="Ported"), partial(handler_of, name="Takes")


@table(
    "handler, words",
    {
        "a plain setup": (ported(setup=lambda self: None), ["setup()", *METHOD]),
        "a plain handle": (ported(**PLAIN), ["handle()", *METHOD]),
        "a plain finish": (ported(finish=lambda self: None), ["finish()", *METHOD]),
        "in a mix-in": (Mixed, ["Mixed ", " handle()"]),
        "in a partial": (partial(ported(**PLAIN)), ["Ported ", " handle()"]),
        "a handle with a yield": (ported(handle=yields), ["Ported has a `yield` in its handle(),"]),
        "a handle that takes something": (takes(handle=lambda self, request: None), TAKES),
        "a function with a yield": (yields, ["yields is a generator"]),
        "of objects that cannot be awaited": (
            handler_of(object, "Thing", __init__=print),
            ["Thing cannot"],
        ),
        "classic": (Sync, [CLASSIC[0], "derive it from trioserver.BaseRequestHandler,"]),
        "of http.server": (OfHttp, CLASSIC),
        "a partial of that": (partial(OfHttp), CLASSIC),
        "nothing": (None, ["must be a handler class", "None"]),
        "a name": ("Upper", ["must be a handler class", "'Upper'"]),
    },
)
def test_handler_that_is_refused(handler, words):
    """EX-10: what can be told from a handler is, when the server is built, with the cure."""
    with pytest.raises(TypeError) as caught:
        TCPServer(THERE, handler)
    assert [word for word in words if word not in str(caught.value)] == []


def test_handler_that_is_refused_elsewhere():
    """EX-10: so is one for threads, one that is assigned, and one that is a class's default."""
    with pytest.raises(TypeError) as caught:
        trioserver.ThreadingTCPServer(THERE, takes(Sync, handle=lambda self, request: None))
    assert TAKES[0] in str(caught.value)
    server, wrong = TCPServer(THERE, Upper), ported(**PLAIN)
    with pytest.raises(TypeError, match="Ported"):
        server.RequestHandlerClass = wrong
    assert server.RequestHandlerClass is Upper
    with pytest.raises(TypeError, match="Ported"):
        type("Server", (TCPServer,), {"RequestHandlerClass": wrong})


async def four(request, client_address, server, database):
    """Needs one more."""


def test_handler_with_the_wrong_parameters():
    """EX-10: who cannot be called with the three arguments is told of when the server is built.

    A partial, a mock, a builtin, a wrapper: what fits, or cannot be told, is taken.
    """

    def init_of_two(self, request, server): ...

    of_two, sync_of_two = (handler_of(it, "OfTwo", __init__=init_of_two) for it in (Say, Sync))
    two = "(request, server)"
    for kind, handler, name, parameters in (
        (TCPServer, four, "four", "(request, client_address, server, database)"),
        (TCPServer, of_two, "OfTwo", two),
        (trioserver.UDPServer, lambda: None, "<lambda>", "()"),
        (trioserver.ThreadingTCPServer, lambda request, server: None, "<lambda>", two),
        (trioserver.ThreadingUDPServer, sync_of_two, "OfTwo", two),
        (trioserver.ProcessTCPServer, lambda request, server: None, "<lambda>", two),
    ):
        with pytest.raises(TypeError) as caught:
            kind(THERE, handler)
        called = f"RequestHandlerClass {name} is called with (request, client_address, server)"
        assert str(caught.value) == f"{called}, and takes {parameters}"
    # What counts are the parameters of a wrapper, not of what it wraps.
    wrapper = functools.wraps(four)(lambda request, client_address, server: None)
    for handler in (partial(four, database="x"), mock.Mock(), partial(int, "1"), wrapper):
        TCPServer(THERE, handler)


async def test_buffers_of_a_handler_class(autojump_clock):
    """``rbufsize`` bounds what is received at once, ``wbufsize`` says when what is sent."""
    for size, portion in [(10, 10), (0, 100), (-1, 100), (1, 1)]:
        handler = does(f"sleep 1; peek; bytes_received -> {portion}", rbufsize=size)
        assert (await serve_one(handler, data=bytes(100))).errors == []
    for size, sent in [(0, 6), (1, 6), (6, 6), (7, 0), (-1, 0)]:
        handler = does(f"write b'123456'; bytes_sent -> {sent}", wbufsize=size)
        result = await serve_one(handler)
        assert (result.reply, result.errors) == (b"123456", [])


@pytest.mark.parametrize("body", [{}, *({"disable_nagle_algorithm": it} for it in (True, False))])
async def test_nagle_of_a_handler_class(body):
    """Small writes go out at once unless a handler class says otherwise."""
    seen = []

    async def look(self):
        seen.append(self.request.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with running(TCPServer(THERE, handler_of(handle=look, **body))) as address:
        async with await trio.open_tcp_stream(*address) as client:
            await read_to_end(client)
    assert [bool(nodelay) for nodelay in seen] == [body != {"disable_nagle_algorithm": False}]
