"""How people use trioserver, for type checkers only: this file is never run.

A ``type: ignore`` in here is a promise, too: the error that it names must be
found, or the checker says that the comment is not needed.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, assert_type

import attrs
import trio

import trioserver
import trioserver.testing

# Handlers -----------------------------------------------------------------------


class Upper(trioserver.StreamRequestHandler):
    """A handler class."""

    timeout = 5.0
    rbufsize = 4096
    wbufsize = -1
    disable_nagle_algorithm = False

    async def setup(self) -> None:
        self.lines = 0

    async def handle(self) -> None:
        async for line in self.rfile:
            self.lines += 1
            await self.wfile.write(line.upper())
        self.cancel_scope.deadline += 1
        with self.idle():
            first = await self.rfile.readline()
        assert_type(first, bytes)
        await self.wfile.writelines([first, *await self.rfile.readlines()])

    async def finish(self) -> None:
        print(self.info, self.lines)


class Named(trioserver.BaseRequestHandler):
    """A handler class with an argument of its own."""

    def __init__(
        self, request: trioserver.Connection, client_address: Any, server: Any, *, name: str = ""
    ) -> None:
        super().__init__(request, client_address, server)
        self.name = name

    async def handle(self) -> None:
        await self.request.sendall(self.name.encode())


async def echo(
    request: trioserver.Connection, client_address: object, server: trioserver.BaseServer
) -> None:
    """A function as a handler."""
    while data := await request.recv(4096):
        await request.sendall(data)


class Application:
    """A method as a handler."""

    async def serve(
        self, request: trioserver.Connection, client_address: Any, server: trioserver.TCPServer
    ) -> int:
        return await trioserver.RequestWriter(request, 0).write(b"hi")


def choose(request: trioserver.Connection, client_address: Any, server: Any) -> Upper | Named:
    """A factory as a handler."""
    handler = Upper if request.socket is None else Named
    return handler(request, client_address, server)


def plain(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Not a handler."""


async def files(request: trioserver.Connection) -> None:
    """Everything that a handler reads and writes with."""
    rfile, wfile = trioserver.RequestReader(request), trioserver.RequestWriter(request, -1)
    assert_type(await rfile.more(), bool)
    assert_type(await rfile.read(), bytes)
    assert_type(await rfile.read(10), bytes)
    assert_type(await rfile.read1(), bytes)
    assert_type(await rfile.readinto(bytearray(5)), int)
    assert_type(await rfile.readinto1(memoryview(bytearray(5))), int)
    assert_type(await rfile.readline(10), bytes)
    assert_type(await rfile.readlines(10), list[bytes])
    assert_type(await rfile.readuntil(b"\r\n", limit=100), bytes)
    assert_type(await rfile.readexactly(10), bytes)
    assert_type(await rfile.peek(), bytes)
    assert_type(rfile.at_eof(), bool)
    assert_type(await wfile.write(bytearray(b"x")), int)
    await wfile.writelines([b"x", memoryview(b"y")])
    await wfile.flush()
    assert_type((rfile.closed, wfile.writable(), rfile.fileno()), tuple[bool, bool, int])
    await wfile.write("text")  # type: ignore[arg-type]
    await rfile.readinto(b"read-only")  # type: ignore[arg-type]


async def connection(request: trioserver.Connection) -> None:
    """Everything else that a connection has."""
    stream: trio.abc.HalfCloseableStream = request
    await stream.send_all(b"x")
    assert_type(await request.receive_some(), bytes)
    request.idle_timeout = request.write_timeout = math.inf
    request.cancel_scope.cancel(reason="enough")
    assert_type(request.info, trioserver.RequestInfo)
    assert_type(request.timeouts, trioserver.Timeouts)
    assert_type(request.limits, trioserver.Limits)
    assert_type(request.proxy, trioserver.ProxyInfo | None)
    assert_type(request.socket, socket.socket | None)
    assert_type(request.peer_credentials, trioserver.PeerCredentials | None)
    assert_type(request.bytes_received + request.bytes_sent, int)
    with request.idle():
        await trio.sleep(1)
    await request.send_eof()
    request.reset()
    await request.recv("5")  # type: ignore[arg-type]
    request.idle_timeout = None  # type: ignore[assignment]


async def errors(request: trioserver.Connection) -> None:
    """What a handler can meet."""
    try:
        await request.recv(1)
    except trioserver.IncompleteRead as error:
        assert_type(error.partial, bytes)
    except (trioserver.IdleTimeout, trioserver.WriteTimeout) as error:
        late: TimeoutError = error
        print(late)
    except trioserver.PeerGone as error:
        gone: ConnectionError = error
        print(gone)
    except (trioserver.Draining, trioserver.LimitExceeded) as error:
        ended: trioserver.RequestEnded = error
        print(ended.info)


# Servers ----------------------------------------------------------------------------


class Loud(trioserver.TCPServer):
    """A server with an override, a field of its own, and hooks."""

    request_queue_size = 100
    greeting: bytes = b"HELLO\n"
    names: list[str] = attrs.field(factory=list)

    def get_request(
        self, listener: trioserver.Listener
    ) -> tuple[trioserver.Connection, Any] | None:
        print(listener.address)
        return super().get_request(listener)

    async def verify_request(self, request: object, client_address: object) -> bool:
        return bool(self.greeting)

    async def process_request(self, request: Any, client_address: Any) -> None:
        with trio.move_on_after(5):
            await super().process_request(request, client_address)

    async def service_actions(self) -> None:
        if self.statistics().accepted > 10:
            self.shutdown(grace=1)

    async def server_close(self) -> None:
        await super().server_close()
        self.names.clear()


class Database(trioserver.TCPServer):
    """A server with an ``__init__`` of its own."""

    def __init__(self, address: tuple[str, int], database: str) -> None:
        super().__init__(address, Upper, limits=trioserver.Limits(requests=10))
        self.database = database

    def reopened(self) -> Self:
        """A copy of its own kind."""
        return self.evolve(timeout=5)


class Tap(trioserver.BaseServer):
    """A server over something else than sockets."""

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        return [trioserver.testing.MemoryListener(self.server_address)]


class Quiet(trioserver.testing.MemoryMixIn, Loud):
    """A server in memory."""


@attrs.frozen
class Watcher(trioserver.Observer):
    """An observer."""

    ended: list[trioserver.Outcome] = attrs.field(factory=list)

    def request_finished(
        self,
        info: trioserver.RequestInfo,
        outcome: trioserver.Outcome,
        record: trioserver.RequestRecord,
    ) -> None:
        self.ended.append(outcome)


class Wrong(trioserver.TCPServer):
    """What checkers find before a class is made."""

    request_queue_size = "100"  # type: ignore[assignment]

    def verify_request(self, request: Any, client_address: Any) -> bool:  # type: ignore[override]
        return True

    async def get_request(self, listener: Any) -> Any:  # type: ignore[override]
        return None


async def apologize(connection: trioserver.Connection) -> None:
    """Tells a client that there is no room."""
    await connection.sendall(b"sorry\n")


server = trioserver.TCPServer(
    ("localhost", 0),
    Upper,
    limits=trioserver.Limits(requests=10, when_full="refuse", per_client=5),
    timeouts=trioserver.Timeouts(idle=60, request=math.inf),
    observers=[Watcher()],
    socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
    address_family=socket.AF_INET,
    allow_reuse_port=True,
    request_queue_size=None,
    propagate_errors=True,
    timeout=None,
)
unix = trioserver.UnixStreamServer(Path("/run/upper"), echo, mode=0o600)
adopted = trioserver.TCPServer([socket.socket()], Application().serve)
chosen = trioserver.TCPServer(("localhost", 0), choose)
named = trioserver.TCPServer(server_address=("", 0), RequestHandlerClass=partial(Named, name="x"))
apologetic = trioserver.TCPServer(("", 0), echo, limits=trioserver.Limits(when_full=apologize))
loud = Loud(("localhost", 0), echo, greeting=b"hi\n")
quiet = Quiet(("memory", 1), echo, greeting=b"hi\n")
assert_type(loud.evolve(limits=trioserver.Limits(requests=1)), Loud)
assert_type(attrs.evolve(loud, greeting=b""), Loud)
assert_type(attrs.evolve(trioserver.Limits(), requests=5), trioserver.Limits)
assert_type(Database(("localhost", 0), "postgres").reopened(), Database)
server.limits = trioserver.Limits(requests=1)
server.server_address = ("localhost", 80)

trioserver.TCPServer(("localhost", 0), plain)  # type: ignore[arg-type]
trioserver.TCPServer(("localhost", 0), Upper, True)  # type: ignore[call-arg]
trioserver.TCPServer(("localhost", 0), Upper, limits=10)  # type: ignore[arg-type]
trioserver.TCPServer(("localhost", 0))  # type: ignore[call-arg]
trioserver.TCPServer(("localhost", 0), Upper, mode=0o600)  # type: ignore[call-arg]
trioserver.Limits(when_full="reject")  # type: ignore[arg-type]
trioserver.Timeouts(60)  # type: ignore[call-arg]
trioserver.Timeouts(idle=None)  # type: ignore[arg-type]
trioserver.Limits().requests = 5  # type: ignore[misc]
server.timeouts = 5  # type: ignore[assignment]
with server:  # type: ignore[attr-defined]
    pass


# Serving -------------------------------------------------------------------------------


async def serve() -> trioserver.ShutdownReport:
    """The ways to serve."""
    async with trio.open_nursery() as nursery:
        started: trioserver.TCPServer = await nursery.start(server.serve_forever)
        started.shutdown(grace=5)
        assert_type(await server.wait_closed(), trioserver.ShutdownReport)
    async with unix.serving(grace=1) as serving:
        assert_type(serving, trioserver.UnixStreamServer)
        assert unix.fileno() >= 0
    async with loud as bound:
        assert_type(bound, Loud)
        await loud.handle_request()
    async with quiet.serving():
        assert_type(await quiet.connect(), trioserver.Connection)
    return await server.serve_forever(poll_interval=1)


def look() -> None:
    """What can be asked of a server."""
    assert_type(server.socket, socket.socket | None)
    assert_type(server.sockets, tuple[socket.socket, ...])
    assert_type(server.draining, bool)
    assert_type(server.requests, tuple[trioserver.RequestInfo, ...])
    assert_type(server.cancel_request(1, "a reason"), bool)
    statistics = server.statistics()
    assert_type(statistics, trioserver.Statistics)
    assert_type(statistics.outcomes[trioserver.Outcome.COMPLETED], int)
    snapshot = server.snapshot()
    assert_type(snapshot, trioserver.ServerSnapshot)
    assert_type(snapshot.requests, tuple[trioserver.RequestSnapshot, ...])
    assert_type(snapshot.listeners, tuple[trioserver.ListenerSnapshot, ...])
    server.draining = True  # type: ignore[misc]


def judge(report: trioserver.ShutdownReport) -> str:
    """What a report tells."""
    assert_type(report.requests, tuple[trioserver.RequestRecord, ...])
    assert_type(report.clean, bool)
    info = trioserver.current_request()
    assert_type(info, trioserver.RequestInfo | None)
    return f"{report.summary}: {[record.outcome for record in report.completed]}"


logging.getLogger().addFilter(trioserver.RequestLogFilter())
assert_type(trioserver.run(server, unix, grace=5), tuple[trioserver.ShutdownReport, ...])


# Transports ---------------------------------------------------------------------------------


def transports() -> None:
    """What is in memory fits where sockets do."""
    near, far = trioserver.testing.memory_pipe(capacity=10)
    transport: trioserver.Transport = near
    listener: trioserver.Listener = trioserver.testing.MemoryListener(("memory", 1))
    print(transport.receive_now(5), far.send_now(b"x"), listener.accept_now())


async def scripts() -> None:
    """Steps are values; a script is served like any handler."""
    greeting: list[trioserver.testing.Step] = [trioserver.testing.reply(b"220\r\n")]
    script = [*greeting, trioserver.testing.expect(b"QUIT\r\n"), trioserver.testing.pause(0.5)]
    async with trioserver.testing.open_scripted_server(*script, transport="tcp") as server:
        assert_type(server, trioserver.testing.RunningServer)
    trioserver.testing.expect("QUIT")  # type: ignore[arg-type]
    trioserver.testing.open_scripted_server(b"QUIT")  # type: ignore[arg-type]


# Tests --------------------------------------------------------------------------------------


def test_without_trio() -> None:
    """A server for a plain test."""
    with trioserver.testing.serve_in_thread(Quiet, faults=[trioserver.testing.Refuse()]) as there:
        assert_type(there, trioserver.testing.ThreadServer)
        assert_type(there.connect(timeout=1), socket.socket)
        assert_type(there.wait_requests(), list[trioserver.testing.Exchange])
        with there.expect_error((KeyError, ValueError)) as errors, there.faults.during():
            assert_type(errors, list[Exception])
        assert_type(there.stop(grace=1), trioserver.ShutdownReport)
