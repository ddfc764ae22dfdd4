"""`adopt`: objects of `socketserver`, built by somebody else, served as they are."""

import contextlib
import gc
import http.client
import http.server
import logging
import math
import select
import socket
import socketserver
import threading
import time

import pytest
import trio
from support import plain_client, until
from support.adopting import THERE, Upper, adopted, fails, in_thread
from support.scenes import table

from trioserver import Limits, Timeouts, adopt
from trioserver.testing import open_descriptors

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


# Every kind ----------------------------------------------------------------------------


class UpperDatagram(socketserver.DatagramRequestHandler):
    """Answers a datagram with its upper-case form."""

    def handle(self):
        self.wfile.write(self.packet.upper())


def theirs(kind, folder, handler):
    """A server of that kind."""
    address = str(folder / "socket") if "Unix" in kind else THERE
    return getattr(socketserver, f"{kind}Server")(address, handler)


@pytest.mark.parametrize("kind", ["TCP", "UnixStream", "ThreadingTCP", "ThreadingUnixStream"])
async def test_stream_server(kind, tmp_path):
    """Connections over TCP and Unix sockets, with threads and without."""
    async with adopted(theirs(kind, tmp_path, Upper)) as it:
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
        await it.ended(3)
    assert it.outcomes == ["completed"] * 3
    assert {record.info.mode for record in it.records} == {"thread"}
    assert {(record.bytes_received, record.bytes_sent) for record in it.records} == {(6, 6)}
    assert it.report.clean
    assert it.server.fileno() == -1


@pytest.mark.parametrize("kind", ["UDP", "UnixDatagram", "ThreadingUDP", "ThreadingUnixDatagram"])
async def test_datagram_server(kind, tmp_path):
    """Datagrams over UDP and Unix sockets."""
    server = theirs(kind, tmp_path, UpperDatagram)
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(str(tmp_path / "client") if "Unix" in kind else THERE)
        async with adopted(server) as it:
            for word in (b"one", b"", b"two"):
                client.sendto(word, server.server_address)
                assert await in_thread(client.recv, 100) == word.upper()
            await it.ended(3)
    assert it.outcomes == ["completed"] * 3


# Their methods ---------------------------------------------------------------------------


@table(
    "error",
    {
        "lets errors through on purpose": None,
        "fails, and hides what it was told of": RuntimeError("the second"),
    },
)
async def test_handle_error_that_raises(error, caplog):
    """It ends nothing, and everything is logged: the first error is never lost."""

    class Raises(socketserver.ThreadingTCPServer):
        def handle_error(self, request, client_address):
            if error is None:
                raise  # noqa: PLE0704  (it is called while the error is handled)
            raise error from None

    async with adopted(Raises(THERE, fails)) as it:
        for _ in range(2):
            await it.hangs_up()
        await until(lambda: caplog.text.count("ValueError: no") >= 2)
        await until(lambda: str(error or "") in caplog.text)
    assert "handle_error raised" in caplog.text


async def test_what_is_bypassed_is_said():
    """Overrides that adopt() does not call are named."""

    class Pools(socketserver.ThreadingTCPServer):
        def process_request(self, request, client_address):
            raise AssertionError

        def serve_forever(self, poll_interval=0.5):
            raise AssertionError

    with pytest.warns(UserWarning, match="not called under adopt") as warned:
        async with adopted(Pools(THERE, Upper)) as it:
            assert await it.ask() == b"HELLO\n"
    said = [str(warning.message).partition(" ")[0] for warning in warned]
    assert said == ["Pools.serve_forever", "Pools.process_request"]


# shutdown() --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["task", "thread", "handler"])
async def test_shutdown_from_anywhere(where):
    """It returns when nobody else is let in, also where serve_forever would wait for itself."""

    class Stops(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            if where == "handler":
                self.server.shutdown()
            self.wfile.write(b"done")

    server = socketserver.ThreadingTCPServer(THERE, Stops)
    with trio.fail_after(10), plain_client(server.server_address) as client:
        async with trio.open_nursery() as nursery:
            await nursery.start(adopt, server)
            if where == "task":
                server.shutdown()
            elif where == "thread":
                await in_thread(server.shutdown)
            client.sendall(b"go\n")
            assert await in_thread(client.recv, 10) == b"done"
            client.close()  # else the server lingers


async def test_shutdown_lets_nobody_else_in():
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


async def test_shutdown_before_serving():
    """A thread that waits for the server to end is released as soon as it has begun."""
    server = socketserver.TCPServer(THERE, Upper)
    thread = threading.Thread(target=server.shutdown)
    thread.start()
    with trio.fail_after(10):
        await until(lambda: server._BaseServer__shutdown_request)
        report = await adopt(server)
        await in_thread(thread.join)
    assert report.reason == "shutdown() was called"


async def test_shutdown_runs_overrides():
    """A subclass that does more in its shutdown() goes on doing it; afterwards it returns."""
    told = []

    class Tells(socketserver.ThreadingTCPServer):
        def shutdown(self):
            told.append("before")
            super().shutdown()
            told.append("after")

    async with adopted(Tells(THERE, Upper)) as it:
        pass
    assert told == ["before", "after"]
    await in_thread(it.server.shutdown)


# Endings -------------------------------------------------------------------------------------


class KeepAlive(http.server.BaseHTTPRequestHandler):
    """Answers over one connection as long as the client wants."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        """Say nothing."""


async def test_idle_keep_alive_connection_is_drained():
    """It ends at once, though its handler waits in a read.

    Nor is anything said of a ready-made class: it overrides nothing.
    """
    server = http.server.ThreadingHTTPServer(THERE, KeepAlive)
    host, port = server.server_address[:2]
    with contextlib.closing(http.client.HTTPConnection(str(host), port)) as client:

        def fetch():
            client.request("GET", "/")
            return client.getresponse().read()

        # No linger, which is for the client, who is in no hurry.
        async with adopted(server, timeouts=Timeouts(linger=0)) as it:
            for _ in range(3):
                assert await in_thread(fetch) == b"ok"
            # The thread is back in its read a moment after the answer is here.
            began = time.monotonic()
        assert time.monotonic() - began < 0.5
    assert [str(record.outcome) for record in it.report.requests] == ["drained"]


@pytest.mark.parametrize("how", ["the grace", "a cancellation"])
async def test_blocked_read_is_ended(how):
    """In the middle of a request, it has the grace and no more; everything is closed."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    with plain_client(server.server_address) as client, trio.CancelScope() as scope:
        client.sendall(b"half a line")
        began = math.inf
        async with adopted(server, timeouts=Timeouts(shutdown=0.1)) as it:
            await until(lambda: "request_started" in it.witness.names)
            began = time.monotonic()
            if how == "a cancellation":
                scope.cancel()
    took = time.monotonic() - began
    assert took < 0.1 if how == "a cancellation" else 0.1 <= took < 0.3
    assert it.outcomes == ["cancelled"]
    assert server.fileno() == -1


async def test_thread_that_is_left_behind_closes_its_request(caplog):
    """Nobody closes a descriptor under a thread that still works with it."""
    go, seen, ended = threading.Event(), [], threading.Event()
    before = open_descriptors()

    class Stubborn(socketserver.BaseRequestHandler):
        def handle(self):
            go.wait(10)
            seen.append(self.request.fileno())

    class Server(socketserver.ThreadingTCPServer):
        def shutdown_request(self, request):
            super().shutdown_request(request)
            ended.set()

    server = Server(THERE, Stubborn)
    with plain_client(server.server_address) as client:
        async with adopted(server, timeouts=Timeouts(shutdown=0, cleanup=0.05)) as it:
            await until(lambda: "request_started" in it.witness.names)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert await in_thread(client.recv, 1) == b""
        assert [str(record.outcome) for record in it.report.requests] == ["abandoned"]
        assert "go.wait(10)" in caplog.text
        assert not ended.is_set()
        go.set()
        assert await in_thread(ended.wait, 5)
    assert seen != [-1]
    await until(lambda: open_descriptors() == before)


async def test_peer_that_resets_is_disconnected(caplog, capsys):
    """Its doing: no handle_error, which prints, no traceback."""
    caplog.set_level(logging.INFO)
    async with adopted(socketserver.ThreadingTCPServer(THERE, Upper)) as it:
        with it.client() as client:
            client.sendall(b"x")
            await until(lambda: "request_started" in it.witness.names)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await it.ended()
    assert it.outcomes == ["disconnected"]
    assert "Traceback" not in caplog.text
    assert capsys.readouterr().err == ""


# What is asked of the server ----------------------------------------------------------------------


async def test_time_outs_hold():
    """A silent client is timed out, as in any mode."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    async with adopted(server, timeouts=Timeouts(idle=0.05)) as it:
        await it.hangs_up()
        await it.ended()
    assert it.outcomes == ["timed_out"]


async def test_limits_hold():
    """Of ``limits.requests`` and ``max_threads`` the smaller counts."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    limits = Limits(requests=1, when_full="refuse")
    async with adopted(server, limits=limits) as it:
        with it.client() as first:
            first.sendall(b"x\n")
            assert await in_thread(first.recv, 10) == b"X\n"
            with it.client() as second, pytest.raises(ConnectionResetError):
                await in_thread(second.recv, 1)
    assert it.witness.names.count("request_refused") == 1


async def test_failed_requests_are_no_garbage():
    """Nothing of a request is in a cycle, which would keep it until a collection."""

    class Fails(Upper):
        def handle(self):
            super().handle()
            raise ValueError("on purpose")

    class Silent(socketserver.ThreadingTCPServer):
        def handle_error(self, request, client_address): ...

    try:
        async with adopted(Silent(THERE, Fails)) as it:
            for number in range(1, 22):
                assert await it.ask() == b"HELLO\n"
                await it.ended(number)
                if number == 1:
                    gc.collect()
                    gc.disable()
            assert gc.collect() < 20  # less than one object a request
    finally:
        gc.enable()
    assert set(it.outcomes) == {"failed"}


# What cannot be adopted --------------------------------------------------------------------------


class Serial(socketserver.BaseServer):
    socket = None


def forks():
    """One that makes processes."""
    return socketserver.ForkingTCPServer(THERE, Upper)


def serial():
    """One with nothing to wait for a client with."""
    return Serial(THERE, Upper)


@table(
    "make, options, error, fault",
    {
        "a running Trio program must not fork": (forks, {}, TypeError, 'forks.*forking="threads"'),
        "nor otherwise": (forks, {"forking": "processes"}, ValueError, "must be None or"),
        "no server": (object, {}, TypeError, "takes a server object of socketserver"),
        "no socket": (serial, {}, TypeError, "Serial has no socket to serve with: .* is None"),
    },
)
async def test_what_is_refused(make, options, error, fault):
    """With what was expected; nothing is closed."""
    with contextlib.ExitStack() as stack:
        server = make()
        if make is forks:
            stack.enter_context(server)
        with pytest.raises(error, match=fault):
            await adopt(server, **options)
        assert make is not forks or server.fileno() != -1


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.UDPServer])
async def test_server_that_is_not_ready_is_refused(kind):
    """Not bound, not listening, closed: each says what to do, and nothing is closed."""
    server = kind(THERE, Upper, bind_and_activate=False)
    steps = [server.server_bind, server.server_activate]
    for make_ready in steps if kind is socketserver.TCPServer else steps[:1]:
        with pytest.raises(ValueError, match="not bound and listening"):
            await adopt(server)
        make_ready()
    async with adopted(server):
        pass
    with pytest.raises(ValueError, match="is closed"):
        await adopt(server)


async def test_server_that_is_being_adopted_is_refused():
    """And goes on with who has it."""
    async with adopted(socketserver.ThreadingTCPServer(THERE, Upper)) as it:
        with pytest.raises(RuntimeError, match="is being served by adopt\\(\\) already"):
            await adopt(it.server)
        assert await it.ask() == b"HELLO\n"


class Own(socketserver.BaseServer):
    """Makes its own socket, and has no ``fileno``."""

    def __init__(self, address, handler):
        super().__init__(address, handler)
        self.socket = socket.create_server(address)
        self.server_address = self.socket.getsockname()

    def get_request(self):
        return self.socket.accept()

    def server_close(self):
        self.socket.close()


class Old(socketserver.ThreadingTCPServer):
    """Has flags that are not quite true: others have never had to be particular about them."""

    daemon_threads = 1
    block_on_close = 0
    ends_idle_reads = None


@table(
    "kind, options",
    {
        "one that derives from the base alone": (Own, {}),
        "one with flags that are not quite true": (Old, {}),
        "one that forks": (socketserver.ForkingTCPServer, {"forking": "threads"}),
    },
)
async def test_unusual_server(kind, options):
    """It is served all the same."""
    async with adopted(kind(THERE, Upper), **options) as it:
        assert await it.ask() == b"HELLO\n"
        await it.ended()
    assert it.outcomes == ["completed"]


async def test_their_get_request_is_called_when_somebody_is_there():
    """As ever, so it may wait: not even a drain calls it for nobody."""
    somebody_was_there = []

    class Looks(socketserver.ThreadingTCPServer):
        def get_request(self):
            somebody_was_there.append(bool(select.select([self.socket], [], [], 0)[0]))
            return super().get_request()

    async with adopted(Looks(THERE, Upper)) as it:
        for _ in range(2):
            assert await it.ask() == b"HELLO\n"
    assert somebody_was_there == [True, True]
