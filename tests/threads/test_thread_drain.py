"""Drains of handlers in threads: waits between two requests end, requests do not."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import trio
from support import Witness, connect, read_to_end, running, until
from support.threads import THERE, Upper, on_tcp

import trioserver
from trioserver import Timeouts
from trioserver._requests.drain import NEW_CONNECTION_GRACE

SOON = 0.4
"""Seconds, generously, for what happens at once: the wrong way takes the grace."""


class Recv(socketserver.BaseRequestHandler):
    """Answers whatever it receives."""

    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data.upper())


class RecvInto(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        buffer = bytearray(100)
        while size := self.request.recv_into(buffer):
            self.request.sendall(buffer[:size].upper())


class Recvmsg(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recvmsg(100)[0]:
            self.request.sendall(data.upper())


class Peeks(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while self.request.recv(1, socket.MSG_PEEK):
            self.request.sendall(self.request.recv(100).upper())


class OwnTimeout(Upper):
    """Has a time-out of its own, for which Python makes the socket non-blocking."""

    timeout = 60


class Polls(socketserver.BaseRequestHandler):
    """Looks for input now and then, and does something else in between."""

    def handle(self) -> None:
        self.request.settimeout(0.02)
        while True:
            try:
                data = self.request.recv(100)
            except TimeoutError:
                continue
            if not data:
                return
            self.request.sendall(data.upper())


class Connections(socketserver.StreamRequestHandler):
    """Says good-bye when there is no more input."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())
        assert not self.rfile.readline()  # it stays that way
        self.wfile.write(b"good-bye")


HANDLERS = [Upper, Recv, RecvInto, Recvmsg, Peeks, OwnTimeout, Polls, Connections]


async def say(client: trio.SocketStream, words: bytes) -> None:
    """Say something that is answered at once."""
    await client.send_all(words)
    answer = b""
    while len(answer) < len(words):
        answer += await client.receive_some()
    assert answer == words.upper()


async def drained(server: Any, grace: float = 8) -> float:
    """Begin the drain, and wait until all requests have their outcome; how long that took."""
    began = time.perf_counter()
    server.shutdown(grace)
    await until(lambda: not server.requests)
    return time.perf_counter() - began


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_wait_between_two_requests_ends_at_once(handler: Any, where: str) -> None:
    """The handler sees the end of input, and can still write; the request is ``drained``."""
    server: Any = on_tcp(handler)
    if where == "unix":
        server = trioserver.ThreadingUnixStreamServer(b"\0trioserver-%d" % id(server), handler)
    async with running(server):
        async with await connect(server) as client:
            for _ in range(3):
                await say(client, b"one\n")
            assert await drained(server) < SOON
            assert await read_to_end(client) == (b"good-bye" if handler is Connections else b"")
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]
    assert report.clean


class KeepAlive(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1, which keeps a connection for the next request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.upper())

    def log_message(self, format: str, *arguments: Any) -> None: ...


@contextlib.contextmanager
def http_client(server: Any) -> Iterator[http.client.HTTPConnection]:
    """A client that keeps its connection."""
    with contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=10)) as it:
        yield it


def post(client: http.client.HTTPConnection, body: bytes) -> bytes:
    """One exchange."""
    client.request("POST", "/", body)
    return client.getresponse().read()


async def test_http_keep_alive() -> None:
    """`http.server` with HTTP/1.1, unmodified, between two requests."""
    async with running(server := on_tcp(KeepAlive)):
        with http_client(server) as client:
            for _ in range(3):
                assert await trio.to_thread.run_sync(post, client, b"what") == b"WHAT"
            assert await drained(server) < SOON
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]


async def test_many_connections_end_at_once() -> None:
    """However many threads wait."""
    async with running(server := on_tcp(Upper)):
        clients = [await connect(server) for _ in range(40)]
        for client in clients:
            await say(client, b"one\n")
        assert await drained(server) < SOON
        for client in clients:
            async with client:
                assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert len(report.drained) == 40


async def test_connection_that_never_said_a_byte() -> None:
    """Its first request may be on its way: it has half a second from its accept."""
    computed: list[float] = []

    class Measures(Upper):
        def handle(self) -> None:
            began = time.thread_time()
            super().handle()
            computed.append(time.thread_time() - began)

    async with running(server := on_tcp(Measures)):
        async with await connect(server) as client:
            await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"])
            await drained(server)
            assert await read_to_end(client) == b""
        report = await server.wait_closed()
    [record] = report.drained
    assert NEW_CONNECTION_GRACE <= record.duration < NEW_CONNECTION_GRACE + SOON
    assert computed[0] < 0.25  # seconds: it waits, and does not look all the time


async def test_first_request_of_a_new_connection_is_answered() -> None:
    """One that comes in that time is served."""
    async with running(server := on_tcp(Upper)):
        async with await connect(server) as client:
            await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"])
            server.shutdown(8)
            await trio.sleep(0.1)
            await say(client, b"one\n")
            assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]


@pytest.mark.parametrize("handler", [Upper, OwnTimeout], ids=lambda it: it.__name__)
async def test_request_that_has_begun_is_finished(handler: Any) -> None:
    """Half a line was read; the other half comes long after the drain has begun."""
    async with running(server := on_tcp(handler)):
        async with await connect(server) as client:
            await say(client, b"one\n")
            await client.send_all(b"tw")
            await until(lambda: [it.bytes_received for it in server.snapshot().requests] == [6])
            server.shutdown(8)
            await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
            assert len(server.requests) == 1
            await client.send_all(b"o\n")
            assert await read_to_end(client) == b"TWO\n"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]


@pytest.mark.parametrize("handler", [Upper, OwnTimeout], ids=lambda it: it.__name__)
async def test_request_that_begins_in_the_segment_of_another_is_finished(handler: Any) -> None:
    """Its beginning waits in the handler's file while the one before is answered."""
    async with running(server := on_tcp(handler)):
        async with await connect(server) as client:
            await client.send_all(b"one\ntw")
            assert await client.receive_some(100) == b"ONE\n"
            await until(lambda: [it.state for it in server.snapshot().requests] == ["reading"])
            server.shutdown(8)
            await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
            await client.send_all(b"o\n")
            assert await read_to_end(client) == b"TWO\n"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]


async def test_empty_write_is_no_answer() -> None:
    """A request whose handler has written nothing yet is read to its end."""

    class Writes(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = self.rfile.readline()
            self.wfile.write(b"")
            self.wfile.write(head + self.rfile.readline())

    async with running(server := on_tcp(Writes)):
        async with await connect(server) as client:
            await client.send_all(b"head\n")
            await until(lambda: [it.state for it in server.snapshot().requests] == ["reading"])
            server.shutdown(8)
            await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
            await client.send_all(b"body\n")
            assert await read_to_end(client) == b"head\nbody\n"
        await server.wait_closed()


class Halves(socketserver.BaseRequestHandler):
    """Reads one half of its request in one way, and the other in another way."""

    first: ClassVar[Any]

    def handle(self) -> None:
        type(self).first(self.request)
        self.request.sendall(self.request.recv(1))


FIRST_HALVES: dict[str, Any] = {
    "recv": lambda sock: sock.recv(1),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(1)]),
    "makefile": lambda sock: sock.makefile("rb", buffering=0).read(1),
}


@pytest.mark.parametrize("first", FIRST_HALVES)
async def test_request_begins_however_it_is_read(first: str) -> None:
    """Whichever method has read its first byte, the wait for the rest is not ended."""
    handler = type("HalvesHere", (Halves,), {"first": staticmethod(FIRST_HALVES[first])})
    async with running(server := on_tcp(handler)):
        async with await connect(server) as client:
            await client.send_all(b"a")
            await until(lambda: [it.bytes_received for it in server.snapshot().requests] == [1])
            await until(lambda: [it.state for it in server.snapshot().requests] == ["reading"])
            server.shutdown(8)
            await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
            await client.send_all(b"b")
            assert await read_to_end(client) == b"b"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["completed"]


async def test_request_that_was_peeked_at_is_finished() -> None:
    """``verify_request`` has received the first half already."""

    class PeeksFirst(trioserver.ThreadingTCPServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            return bool(await trioserver.RequestReader(request).peek())

    async with running(server := PeeksFirst(THERE, Upper)):
        async with await connect(server) as client:
            await client.send_all(b"on")
            await until(lambda: [it.state for it in server.snapshot().requests] == ["reading"])
            server.shutdown(8)
            await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
            await client.send_all(b"e\n")
            assert await read_to_end(client) == b"ONE\n"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]


async def test_handler_that_computes_ends_at_its_next_read() -> None:
    """It finishes its reply first."""
    go = threading.Event()

    class Computes(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                go.wait(10)
                self.wfile.write(line.upper())

    async with running(server := on_tcp(Computes)):
        async with await connect(server) as client:
            await client.send_all(b"one\n")
            await until(lambda: [it.bytes_received for it in server.snapshot().requests] == [4])
            server.shutdown(8)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(server.requests) == 1
            go.set()
            assert await read_to_end(client) == b"ONE\n"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]
    assert report.duration < SOON


async def test_request_that_is_there_when_the_handler_comes_to_read() -> None:
    """A request that arrived while the last one was at work is served, in the drain, too."""
    go = threading.Event()

    class Computes(socketserver.StreamRequestHandler):
        rbufsize = 0

        def handle(self) -> None:
            for line in iter(self.rfile.readline, b""):
                go.wait(10)
                self.wfile.write(line.upper())

    async with running(server := on_tcp(Computes)):
        async with await connect(server) as client:
            await client.send_all(b"one\n")
            await until(lambda: [it.bytes_received for it in server.snapshot().requests] == [4])
            server.shutdown(8)
            await client.send_all(b"two\n")
            go.set()
            assert await read_to_end(client) == b"ONE\nTWO\n"
        await server.wait_closed()


@contextlib.contextmanager
def slow_threads(seconds: float) -> Iterator[None]:
    """Let a thread that has something to do wait for its turn, as on a machine that is busy."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    stop = False

    def computes() -> None:
        while not stop:
            pass

    busy = threading.Thread(target=computes)
    busy.start()
    try:
        yield
    finally:
        stop = True
        busy.join()
        sys.setswitchinterval(before)


async def test_request_that_begins_at_the_very_moment_is_answered() -> None:
    """One whose first half arrives in the step of the drain is not cut, nor any pipelined one."""
    async with running(server := on_tcp(Upper)):
        clients = [await connect(server) for _ in range(30)]
        for client in clients:
            await say(client, b"one\n")
        words = (b"two\n", b"tw", b"two\nthree\n")
        with slow_threads(0.002):
            for number, client in enumerate(clients):
                client.socket._sock.send(words[number % 3])
                if number == 15:
                    server.shutdown(8)
            await trio.sleep(0.2)
            for number, client in enumerate(clients):
                if number % 3 == 1:
                    with contextlib.suppress(OSError):  # the second half of them comes too late
                        client.socket._sock.send(b"o\n")
        for number, client in enumerate(clients):
            async with client:
                with contextlib.suppress(trio.BrokenResourceError):
                    answer = await read_to_end(client)
                if number <= 15 or answer:
                    assert answer == (b"TWO\nTHREE\n" if number % 3 == 2 else b"TWO\n"), number
        report = await server.wait_closed()
    assert {str(it.outcome) for it in report.requests} == {"drained"}


async def test_large_uploads_in_a_drain_are_not_cut() -> None:
    """A request whose body comes in many pieces, all around the drain, is answered or not begun."""
    answers: list[int | None] = []
    body = bytes(300_000)

    async def uploads(server: Any) -> None:
        async with await connect(server) as client:
            while True:
                try:
                    await client.send_all(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
                    await client.send_all(body)
                    got = b""
                    while got.count(b"\0") < len(body):
                        more = await client.receive_some()
                        if not more:
                            break
                        got += more
                except trio.BrokenResourceError:
                    return
                if not got:
                    return
                answers.append(got.count(b"\0"))

    async with running(server := on_tcp(KeepAlive)):
        async with trio.open_nursery() as clients:
            for _ in range(10):
                clients.start_soon(uploads, server)
            await until(lambda: len(answers) > 50)
            server.shutdown(8)
        report = await server.wait_closed()
    assert set(answers) == {len(body)}
    assert {str(it.outcome) for it in report.requests} <= {"drained", "completed"}
    assert report.duration < 4


async def test_reply_is_not_lost_to_a_request_that_came_too_late() -> None:
    """A client that says more when its wait was ended gets what was sent, and its end."""
    async with running(server := on_tcp(Connections)):
        async with await connect(server) as client:
            await say(client, b"one\n")
            await drained(server)
            assert server.statistics().lingering == 1
            await client.send_all(b"two\n")
            assert await read_to_end(client) == b"good-bye"
        await server.wait_closed()


async def test_client_that_left_has_completed() -> None:
    """What the client did counts, whatever was about to be done to it."""
    async with running(server := on_tcp(Upper)):
        async with await connect(server) as client:
            await say(client, b"one\n")
            await client.send_eof()
            await drained(server)
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] in (["completed"], [])


class LeftToTheGrace(trioserver.ThreadingTCPServer):
    """The attribute in a class body."""

    ends_idle_reads = False


@pytest.mark.parametrize("off", ["field", "class"])
async def test_waits_are_left_to_the_grace(off: str) -> None:
    """``ends_idle_reads=False`` is for protocols that it is wrong for, in which clients listen."""
    server: Any
    server = (
        on_tcp(Upper, ends_idle_reads=False) if off == "field" else LeftToTheGrace(THERE, Upper)
    )
    async with running(server):
        async with await connect(server) as client:
            await say(client, b"one\n")
            server.shutdown(0.7)
            await trio.sleep(0.1)
            await say(client, b"two\n")
            assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["cancelled"]
    assert report.duration >= 0.7


async def test_reads_that_do_not_wait_are_left_alone() -> None:
    """A handler that only looks whether there is input sees no end of it."""
    seen: list[object] = []
    looks = threading.Event()

    class Looks(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(1))
            looks.wait(10)
            with contextlib.suppress(BlockingIOError):
                seen.append(self.request.recv(1, socket.MSG_DONTWAIT))
            self.request.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                seen.append(self.request.recv(1))
            self.request.setblocking(True)
            self.request.sendall(b"done")

    witness = Witness()
    async with running(server := on_tcp(Looks, observers=[witness])):
        async with await connect(server) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            server.shutdown(8)
            looks.set()
            assert await read_to_end(client) == b"done"
    assert seen == []
    assert witness.outcomes == ["completed"]


@pytest.mark.parametrize("own", [False, True])
async def test_idle_timeout_counts_in_a_drain(own: bool) -> None:
    """In a request that has begun, and left to the grace, a silent client is timed out."""
    handler = type("Impatient", (Upper,), {"timeout": 0.3}) if own else Upper
    timeouts = Timeouts() if own else Timeouts(idle=0.3)
    async with running(server := on_tcp(handler, timeouts=timeouts)):
        async with await connect(server) as client:
            await client.send_all(b"tw")
            await until(lambda: [it.bytes_received for it in server.snapshot().requests] == [2])
            assert await drained(server) < 0.3 + SOON
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["timed_out"]


async def test_queued_clients_are_served() -> None:
    """Who waits in the kernel for a slot when the drain begins is served; nobody idles any more."""
    async with running(server := on_tcp(Upper, max_threads=2)):
        clients = [await connect(server) for _ in range(8)]
        for client in clients:
            await client.send_all(b"one\n")
        await until(lambda: server.statistics().accepted == 2)
        server.shutdown(8)
        for client in clients:
            async with client:
                assert await read_to_end(client) == b"ONE\n"
        report = await server.wait_closed()
    assert report.clean
    assert len(report.requests) == 8
    assert report.duration < 2


async def test_server_can_drain_twice() -> None:
    """Each run has a bell of its own."""
    server = on_tcp(Upper)
    for _ in range(2):
        async with running(server):
            async with await connect(server) as client:
                await say(client, b"one\n")
                assert await drained(server) < SOON
            await server.wait_closed()


async def test_handle_request() -> None:
    """A server that is served one request at a time drains as well."""
    server = on_tcp(Upper)
    with trio.fail_after(10):
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(server.handle_request)
            async with await connect(server) as client:
                await say(client, b"one\n")
                server.shutdown(8)
                assert await read_to_end(client) == b""
