"""`adopt`: objects of `socketserver`, built by somebody else, served as they are."""

from __future__ import annotations

import contextlib
import gc
import http.client
import http.server
import logging
import select
import socket
import socketserver
import ssl
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Witness, plain_client, until
from support.adopting import THERE, Upper, adopted, ask, in_thread

import trioserver
from trioserver.testing import open_descriptors

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


class UpperDatagram(socketserver.DatagramRequestHandler):
    """Answers a datagram with its upper-case form."""

    def handle(self) -> None:
        self.wfile.write(self.packet.upper())


# Every kind ----------------------------------------------------------------------------


@pytest.mark.parametrize("mixin", [None, socketserver.ThreadingMixIn])
@pytest.mark.parametrize("kind", ["TCP", "UnixStream"])
async def test_stream_server(mixin: Any, kind: str, tmp_path: Path) -> None:
    """Connections over TCP and Unix sockets, with threads and without."""
    base = getattr(socketserver, f"{kind}Server")
    bases = (base,) if mixin is None else (mixin, base)
    address = THERE if kind == "TCP" else str(tmp_path / "socket")
    server = type("Server", bases, {})(address, Upper)
    witness = Witness()
    async with adopted(server, observers=[witness]) as reports:
        for _ in range(3):
            assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: len(witness.records) == 3)
    assert witness.outcomes == ["completed"] * 3
    assert {record.info.mode for record in witness.records} == {"thread"}
    assert {(it.bytes_received, it.bytes_sent) for it in witness.records} == {(6, 6)}
    assert reports.report.clean
    assert server.fileno() == -1


@pytest.mark.parametrize("mixin", [None, socketserver.ThreadingMixIn])
@pytest.mark.parametrize("kind", ["UDP", "UnixDatagram"])
async def test_datagram_server(mixin: Any, kind: str, tmp_path: Path) -> None:
    """Datagrams over UDP and Unix sockets."""
    base = getattr(socketserver, f"{kind}Server")
    bases = (base,) if mixin is None else (mixin, base)
    address = THERE if kind == "UDP" else str(tmp_path / "socket")
    server = type("Server", bases, {})(address, UpperDatagram)
    witness = Witness()
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(THERE if kind == "UDP" else str(tmp_path / "client"))
        async with adopted(server, observers=[witness]):
            for word in (b"one", b"", b"two"):
                client.sendto(word, server.server_address)
                assert await in_thread(client.recv, 100) == word.upper()
            await until(lambda: len(witness.records) == 3)
    assert witness.outcomes == ["completed"] * 3


async def test_plain_server_handles_one_request_after_the_other() -> None:
    """As ever: without the mix-in, the second client waits for the first."""
    go, served = threading.Event(), []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        served.append(client_address)
        go.wait(10)

    server = socketserver.TCPServer(THERE, handler)  # type: ignore[arg-type]
    async with adopted(server):
        with plain_client(server.server_address), plain_client(server.server_address):
            await until(lambda: served)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert len(served) == 1
            go.set()
            await until(lambda: len(served) == 2)


async def test_threading_server_handles_many_at_once() -> None:
    """As many as ``max_threads``, and no more."""
    together = threading.Barrier(3)

    class Meets(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            together.wait(10)
            self.request.sendall(b"met")

    server = socketserver.ThreadingTCPServer(THERE, Meets)
    with contextlib.ExitStack() as stack:
        async with adopted(server, max_threads=3):
            clients = [stack.enter_context(plain_client(server.server_address)) for _ in range(3)]
            for client in clients:
                assert await in_thread(client.recv, 3) == b"met"
            stack.close()  # else the server lingers


# Their methods ---------------------------------------------------------------------------


class Books(socketserver.ThreadingTCPServer):
    """Writes down which of its methods were called, and in which thread."""

    calls: list[str]
    threads: set[int]

    def __init__(self, handler: Any = Upper) -> None:
        self.calls, self.threads = [], set()
        super().__init__(THERE, handler)

    def note(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.note("verify_request")
        return client_address[1] % 2 < 2

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.note("finish_request")
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.note(f"handle_error {sys.exception()!r}")

    def shutdown_request(self, request: Any) -> None:
        self.note("shutdown_request")
        super().shutdown_request(request)

    def close_request(self, request: Any) -> None:
        self.note("close_request")
        super().close_request(request)

    def server_close(self) -> None:
        self.note("server_close")
        super().server_close()


async def test_their_methods_are_called_in_order_and_not_in_trios_thread() -> None:
    """What may block is called in threads."""
    server = Books()
    async with adopted(server):
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: len(server.calls) == 4)
    assert server.calls == [
        *("verify_request", "finish_request", "shutdown_request", "close_request"),
        "server_close",
    ]
    assert threading.get_ident() not in server.threads


async def test_their_handle_error_is_called_with_the_error() -> None:
    """And the outcome is that of a failure."""

    def fails(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("no")

    server, witness = Books(fails), Witness()
    async with adopted(server, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: len(server.calls) == 5)
    assert "handle_error ValueError('no')" in server.calls
    assert witness.outcomes == ["failed"]


async def test_their_verify_request_turns_clients_away() -> None:
    """The handler is not called; the connection is closed."""

    class Picky(Books):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    server, witness = Picky(), Witness()
    async with adopted(server, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: len(server.calls) == 2)
    assert server.calls == ["shutdown_request", "close_request", "server_close"]
    assert witness.outcomes == ["refused"]


async def test_their_get_request_is_called_when_somebody_is_there() -> None:
    """As ever, so it may wait: not even a drain calls it for nobody."""
    somebody_was_there = []

    class Looks(socketserver.ThreadingTCPServer):
        def get_request(self) -> Any:
            somebody_was_there.append(bool(select.select([self.socket], [], [], 0)[0]))
            return super().get_request()

    server = Looks(THERE, Upper)
    async with adopted(server):
        for _ in range(2):
            assert await in_thread(ask, server.server_address) == b"HELLO\n"
    assert somebody_was_there == [True, True]


async def test_error_in_their_get_request_is_one_clients() -> None:
    """As ever: it costs nobody else anything."""

    class Strict(socketserver.ThreadingTCPServer):
        calls = 0

        def get_request(self) -> Any:
            self.calls += 1
            request, client_address = super().get_request()
            if self.calls == 1:
                request.close()
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client left in the handshake")
            return request, client_address

    server = Strict(THERE, Upper)
    async with adopted(server) as reports:
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
    assert reports.report.statistics.accept_errors == 1


@pytest.mark.parametrize("error", [BlockingIOError(), InterruptedError()])
async def test_their_get_request_finds_nobody(error: OSError) -> None:
    """What accept(2) raises then is nobody's error; who is there is served."""

    class Hesitates(Books):
        hesitates = True

        def get_request(self) -> Any:
            if self.hesitates:
                self.hesitates = False
                raise error
            return super().get_request()

    async with adopted(server := Hesitates(Upper)) as reports:
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
    assert reports.report.statistics.accept_errors == 0


async def test_handle_error_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Some let errors through on purpose; it ends nothing."""

    class PassesThrough(Books):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise  # noqa: PLE0704  (it is called while the error is handled)

    def fails(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("passed through")

    server = PassesThrough(fails)
    async with adopted(server):
        for _ in range(2):
            with plain_client(server.server_address) as client:
                assert await in_thread(client.recv, 1) == b""
        await until(lambda: caplog.text.count("passed through") >= 2)
    assert "handle_error raised" in caplog.text


async def test_first_error_is_never_lost(caplog: pytest.LogCaptureFixture) -> None:
    """A handle_error that fails, and hides what it was told of, has both of them logged."""

    class Hides(Books):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise RuntimeError("the second") from None

    def fails(request: Any, client_address: Any, server: Any) -> None:
        raise LookupError("the first")

    async with adopted(server := Hides(fails)):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: "the second" in caplog.text)
    assert "LookupError: the first" in caplog.text


async def test_service_actions_are_called() -> None:
    """In a thread, twice a second, until the drain."""
    called = threading.Event()

    class Acts(socketserver.TCPServer):
        def service_actions(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                called.set()

    async with adopted(Acts(THERE, Upper)):
        assert await in_thread(called.wait, 5)


async def test_what_is_bypassed_is_said() -> None:
    """Overrides that adopt() does not call are named."""

    class Pools(socketserver.ThreadingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            raise AssertionError

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            raise AssertionError

    server = Pools(THERE, Upper)
    with pytest.warns(UserWarning, match="not called under adopt") as warned:
        async with adopted(server):
            assert await in_thread(ask, server.server_address) == b"HELLO\n"
    said = [str(warning.message).partition(" ")[0] for warning in warned]
    assert said == ["Pools.serve_forever", "Pools.process_request"]


async def test_nothing_is_said_of_a_server_that_overrides_nothing() -> None:
    """Neither the mix-in's own methods nor the ready-made classes are overrides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with adopted(http.server.ThreadingHTTPServer(THERE, Upper)):
            pass


# shutdown() --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["task", "thread", "handler"])
async def test_shutdown_from_anywhere(where: str) -> None:
    """It returns when nobody else is let in, also where serve_forever would wait for itself."""

    class Stops(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            if where == "handler":
                self.server.shutdown()
            self.wfile.write(b"done")

    server = socketserver.ThreadingTCPServer(THERE, Stops)
    with trio.fail_after(10), plain_client(server.server_address) as client:
        async with trio.open_nursery() as nursery:
            await nursery.start(trioserver.adopt, server)
            if where == "task":
                server.shutdown()
            elif where == "thread":
                await in_thread(server.shutdown)
            client.sendall(b"go\n")
            assert await in_thread(client.recv, 10) == b"done"
            client.close()  # else the server lingers


async def test_shutdown_lets_nobody_else_in() -> None:
    """From then on the kernel refuses."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    address = server.server_address
    with plain_client(address) as client:
        async with adopted(server):
            client.sendall(b"x\n")
            assert await in_thread(client.recv, 10) == b"X\n"
            client.sendall(b"half a ")
            await in_thread(server.shutdown)
            with pytest.raises(ConnectionRefusedError):
                plain_client(address)
            client.sendall(b"line\n")
            client.shutdown(socket.SHUT_WR)
            assert await in_thread(client.recv, 100) == b"HALF A LINE\n"


async def test_shutdown_before_serving() -> None:
    """A thread that waits for the server to end is released as soon as it has begun."""
    server = socketserver.TCPServer(THERE, Upper)
    thread = threading.Thread(target=server.shutdown)
    thread.start()
    with trio.fail_after(10):
        await until(lambda: server._BaseServer__shutdown_request)  # type: ignore[attr-defined]
        report = await trioserver.adopt(server)
        await in_thread(thread.join)
    assert report.reason == "shutdown() was called"


async def test_shutdown_runs_overrides() -> None:
    """A subclass that does more in its shutdown() goes on doing it."""
    told = []

    class Tells(socketserver.ThreadingTCPServer):
        def shutdown(self) -> None:
            told.append("before")
            super().shutdown()
            told.append("after")

    async with adopted(Tells(THERE, Upper)):
        pass
    assert told == ["before", "after"]


async def test_shutdown_afterwards_returns() -> None:
    """As after serve_forever."""
    server = socketserver.TCPServer(THERE, Upper)
    async with adopted(server):
        pass
    await in_thread(server.shutdown)


# Endings -------------------------------------------------------------------------------------


class KeepAlive(http.server.BaseHTTPRequestHandler):
    """Answers over one connection as long as the client wants."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def test_idle_keep_alive_connection_is_drained() -> None:
    """It ends at once, though its handler waits in a read."""
    server = http.server.ThreadingHTTPServer(THERE, KeepAlive)
    host, port = server.server_address[:2]
    with contextlib.closing(http.client.HTTPConnection(str(host), port)) as client:

        def fetch() -> bytes:
            client.request("GET", "/")
            return client.getresponse().read()

        no_linger = trioserver.Timeouts(linger=0)  # else for the client, who is in no hurry
        async with adopted(server, timeouts=no_linger) as reports:
            for _ in range(3):
                assert await in_thread(fetch) == b"ok"
            # The thread is back in its read a moment after the answer is here.
            began = time.monotonic()
        assert time.monotonic() - began < 0.5
    assert [str(it.outcome) for it in reports.report.requests] == ["drained"]


async def test_grace_ends_a_blocked_read() -> None:
    """In the middle of a request, it has the grace and no more."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    with plain_client(server.server_address) as client:
        client.sendall(b"half a line")
        witness = Witness()
        timeouts = trioserver.Timeouts(shutdown=0.1)
        async with adopted(server, timeouts=timeouts, observers=[witness]) as reports:
            await until(lambda: "request_started" in witness.names)
            began = time.monotonic()
        assert 0.1 <= time.monotonic() - began < 0.3
    assert [str(it.outcome) for it in reports.report.requests] == ["cancelled"]


async def test_cancelled_from_outside() -> None:
    """Everything is closed, the object too."""
    server, witness = socketserver.ThreadingTCPServer(THERE, Upper), Witness()
    with plain_client(server.server_address) as client:
        client.sendall(b"x")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                start = nursery.start
                await start(_adopt_with, server, witness)
                await until(lambda: "request_started" in witness.names)
                nursery.cancel_scope.cancel()
    assert witness.outcomes == ["cancelled"]
    assert server.fileno() == -1


async def _adopt_with(
    server: Any, witness: Witness, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    await trioserver.adopt(server, observers=[witness], task_status=task_status)


async def test_thread_that_is_left_behind_closes_its_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody closes a descriptor under a thread that still works with it."""
    go, seen, ended = threading.Event(), [], threading.Event()
    before = open_descriptors()

    class Stubborn(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            go.wait(10)
            seen.append(self.request.fileno())

    class Server(socketserver.ThreadingTCPServer):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            ended.set()

    server = Server(THERE, Stubborn)
    timeouts = trioserver.Timeouts(shutdown=0, cleanup=0.05)
    with plain_client(server.server_address) as client:
        witness = Witness()
        async with adopted(server, timeouts=timeouts, observers=[witness]) as reports:
            await until(lambda: "request_started" in witness.names)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert await in_thread(client.recv, 1) == b""
        assert [str(it.outcome) for it in reports.report.requests] == ["abandoned"]
        assert "go.wait(10)" in caplog.text
        assert not ended.is_set()
        go.set()
        assert await in_thread(ended.wait, 5)
    assert seen != [-1]
    await until(lambda: open_descriptors() == before)


async def test_peer_that_resets_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    """Its doing: no handle_error, no traceback."""
    caplog.set_level(logging.INFO)
    server, witness = Books(), Witness()
    async with adopted(server, observers=[witness]):
        with plain_client(server.server_address) as client:
            client.sendall(b"x")
            await until(lambda: "finish_request" in server.calls)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: witness.records)
    assert witness.outcomes == ["disconnected"]
    assert not any(call.startswith("handle_error") for call in server.calls)
    assert "Traceback" not in caplog.text


async def test_time_outs_hold() -> None:
    """A silent client is timed out, as in any mode."""
    server, witness = socketserver.ThreadingTCPServer(THERE, Upper), Witness()
    timeouts = trioserver.Timeouts(idle=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: witness.records)
    assert witness.outcomes == ["timed_out"]


# What cannot be adopted --------------------------------------------------------------------------


async def test_forking_server_is_refused_unless_it_may_use_threads() -> None:
    """A running Trio program must not fork."""
    server = socketserver.ForkingTCPServer(THERE, Upper)
    with pytest.raises(TypeError, match=r'forks.*forking="threads"'):
        await trioserver.adopt(server)
    with pytest.raises(ValueError, match="forking must be None or"):
        await trioserver.adopt(server, forking="processes")  # type: ignore[arg-type]
    async with adopted(server, forking="threads"):
        assert await in_thread(ask, server.server_address) == b"HELLO\n"


async def test_what_is_no_server_is_refused() -> None:
    """With what was expected."""
    with pytest.raises(TypeError, match="takes a server object of socketserver"):
        await trioserver.adopt(object())  # type: ignore[arg-type]


async def test_server_without_a_socket_is_refused() -> None:
    """There is nothing to wait for a client with."""

    class Serial(socketserver.BaseServer):
        socket = None

    with pytest.raises(TypeError, match="Serial has no socket to serve with: its socket is None"):
        await trioserver.adopt(Serial(THERE, Upper))


async def test_server_that_derives_from_the_base_alone() -> None:
    """It may make its own socket, and need not have a ``fileno``."""

    class Own(socketserver.BaseServer):
        def __init__(self) -> None:
            super().__init__(THERE, Upper)
            self.socket = socket.create_server(THERE)
            self.server_address = self.socket.getsockname()

        def get_request(self) -> Any:
            return self.socket.accept()

        def server_close(self) -> None:
            self.socket.close()

    server, witness = Own(), Witness()
    async with adopted(server, observers=[witness]):
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: witness.records)
    assert witness.outcomes == ["completed"]


async def test_server_that_is_being_adopted_is_refused() -> None:
    """And goes on with who has it."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    async with adopted(server):
        with pytest.raises(RuntimeError, match="is being served by adopt\\(\\) already"):
            await trioserver.adopt(server)
        assert await in_thread(ask, server.server_address) == b"HELLO\n"


async def test_flags_that_are_not_quite_true() -> None:
    """Others have never had to be particular about them."""

    class Old(socketserver.ThreadingTCPServer):
        daemon_threads = 1  # type: ignore[assignment]
        block_on_close = 0  # type: ignore[assignment]
        ends_idle_reads = None

    server = Old(THERE, Upper)
    async with adopted(server):
        assert await in_thread(ask, server.server_address) == b"HELLO\n"


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.UDPServer])
async def test_server_that_is_not_ready_is_refused(kind: Any) -> None:
    """Not bound, not listening, closed: each says what to do, and nothing is closed."""
    server = kind(THERE, Upper, bind_and_activate=False)
    steps = [server.server_bind, server.server_activate]
    for make_ready in steps if kind is socketserver.TCPServer else steps[:1]:
        with pytest.raises(ValueError, match="not bound and listening"):
            await trioserver.adopt(server)
        make_ready()
    async with adopted(server):
        pass
    with pytest.raises(ValueError, match="is closed"):
        await trioserver.adopt(server)


async def test_server_is_closed_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """A server_close that hangs is left behind, and named."""
    go = threading.Event()

    class Hangs(socketserver.TCPServer):
        def server_close(self) -> None:
            super().server_close()
            go.wait(10)

    async with adopted(Hangs(THERE, Upper), timeouts=trioserver.Timeouts(cleanup=0.05)):
        pass
    go.set()
    assert "Hangs.server_close did not end within 0.05 s" in caplog.text


async def test_limits_hold() -> None:
    """Of ``limits.requests`` and ``max_threads`` the smaller counts."""
    server, witness = socketserver.ThreadingTCPServer(THERE, Upper), Witness()
    limits = trioserver.Limits(requests=1, when_full="refuse")
    with plain_client(server.server_address) as first:
        async with adopted(server, limits=limits, observers=[witness]):
            first.sendall(b"x\n")
            assert await in_thread(first.recv, 10) == b"X\n"
            with plain_client(server.server_address) as second:
                with pytest.raises(ConnectionResetError):
                    await in_thread(second.recv, 1)
    assert witness.names.count("request_refused") == 1


async def test_failed_requests_are_no_garbage() -> None:
    """Nothing of a request is in a cycle, which would keep it until a collection."""

    class Fails(Upper):
        def handle(self) -> None:
            super().handle()
            raise ValueError("on purpose")

    class Silent(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None: ...

    server, witness = Silent(THERE, Fails), Witness()

    async def one(number: int) -> None:
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: len(witness.records) == number)

    async with adopted(server, observers=[witness]):
        await one(1)
        gc.collect()
        gc.disable()
        try:
            for number in range(2, 22):
                await one(number)
            assert gc.collect() < 20  # less than one object a request
        finally:
            gc.enable()
    assert set(witness.outcomes) == {"failed"}
