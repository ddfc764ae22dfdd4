"""Drains of handlers in threads: waits between two requests end, requests do not."""

import contextlib
import http.client
import http.server
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import connect, read_to_end, running, until
from support.scenes import table
from support.threads import (
    THERE,
    Upper,
    drained,
    met,
    of_both_families,
    on_tcp,
    outcomes,
    say,
    shows,
    takes,
    witnessed,
)

import trioserver
from trioserver import Timeouts
from trioserver._requests.drain import NEW_CONNECTION_GRACE

SOON = 0.4
"""Seconds, generously, for what happens at once: the wrong way takes the grace."""

stream = of_both_families(trioserver.ThreadingTCPServer, trioserver.ThreadingUnixStreamServer)


# Between two requests ----------------------------------------------------------------


def answers_with(read):
    """A handler that answers whatever it reads, in this way."""

    def answers(request, client_address, server):
        while data := read(request):
            request.sendall(data.upper())

    return answers


def _recv_into(sock):
    buffer = bytearray(100)
    return bytes(buffer[: sock.recv_into(buffer)])


def _polls(sock):
    sock.settimeout(0.02)
    while True:
        with contextlib.suppress(TimeoutError):
            return sock.recv(100)


class OwnTimeout(Upper):
    """Has a time-out of its own, for which Python makes the socket non-blocking."""

    timeout = 60


class SaysGoodbye(Upper):
    """When there is no more input."""

    def handle(self):
        super().handle()
        assert not self.rfile.readline()  # it stays that way
        self.wfile.write(b"good-bye")


@table(
    ("handler", "many"),
    {
        "in a file": (Upper, 1),
        "in as many threads as there are": (Upper, 40),
        "in a file, with a time-out": (OwnTimeout, 1),
        "it can still write then": (SaysGoodbye, 1),
        "in recv": (answers_with(lambda it: it.recv(100)), 1),
        "in recv_into": (answers_with(_recv_into), 1),
        "in recvmsg": (answers_with(lambda it: it.recvmsg(100)[0]), 1),
        "in a peek": (answers_with(lambda it: it.recv(1, socket.MSG_PEEK) and it.recv(100)), 1),
        "in a loop that does something else, too": (answers_with(_polls), 1),
    },
)
async def test_wait_between_two_requests_ends_at_once(handler, many, stream):
    """The handler sees the end of input; the request is ``drained``; also in a second run."""
    server = stream(handler)
    for _ in range(2):
        async with witnessed(server) as witness:
            clients = [await connect(server) for _ in range(many)]
            for client in clients * 3:
                await say(client, b"one\n")
            with takes(SOON):
                await drained(server)
            for client in clients:
                async with client:
                    goodbye = b"good-bye" if handler is SaysGoodbye else b""
                    assert await read_to_end(client) == goodbye
        assert witness.outcomes == ["drained"] * many
        assert (await server.wait_closed()).clean


class KeepAlive(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1, which keeps a connection for the next request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.upper())

    def log_message(self, format, *arguments): ...


async def test_http_keep_alive():
    """`http.server` with HTTP/1.1, unmodified, between two requests."""

    def post():
        client.request("POST", "/", b"what")
        return client.getresponse().read()

    async with running(server := on_tcp(KeepAlive)) as address:
        client = http.client.HTTPConnection(*address, timeout=10)
        with contextlib.closing(client):
            for _ in range(3):
                assert await trio.to_thread.run_sync(post) == b"WHAT"
            with takes(SOON):
                await drained(server)
        report = await server.wait_closed()
    assert outcomes(report) == ["drained"]


async def test_connection_that_never_said_a_byte():
    """Its first request may be on its way: it has half a second from its accept."""
    computed = []

    class Measures(Upper):
        def handle(self):
            began = time.thread_time()
            super().handle()
            computed.append(time.thread_time() - began)

    async with met(server := on_tcp(Measures)) as (client, _):
        await shows(server, state="idle")
        await drained(server)
        assert await read_to_end(client) == b""
    [record] = (await server.wait_closed()).drained
    assert NEW_CONNECTION_GRACE <= record.duration < NEW_CONNECTION_GRACE + SOON
    assert computed[0] < 0.25  # seconds: it waits, and does not look all the time


async def test_first_request_of_a_new_connection_is_answered():
    """One that comes in that time is served."""
    async with met(server := on_tcp(Upper)) as (client, witness):
        await shows(server, state="idle")
        server.shutdown(8)
        await trio.sleep(0.1)
        await say(client, b"one\n")
        assert await read_to_end(client) == b""
    assert witness.outcomes == ["drained"]


# Requests that have begun ------------------------------------------------------------


class WritesNothing(socketserver.StreamRequestHandler):
    """Before it has all of its request."""

    def handle(self):
        head = self.rfile.readline()
        self.wfile.write(b"")
        self.wfile.write(head + self.rfile.readline())


class PeeksFirst(trioserver.ThreadingTCPServer):
    """``verify_request`` has received the first half already."""

    async def verify_request(self, request, client_address):
        return bool(await trioserver.RequestReader(request).peek())


@attrs.frozen
class Begun:
    """A request of which one half comes before the drain, and the other long after."""

    handler: Any
    halves: tuple[bytes, bytes]
    shows: Mapping[str, Any]  # by a snapshot, before the drain
    gets: bytes  # after it has begun
    answered: bytes = b""  # said, and answered, before
    at_once: bytes = b""  # what the first half is answered
    outcome: str = "drained"
    kind: Any = trioserver.ThreadingTCPServer


def in_halves(read):
    """A request of two bytes, of which the first one is read in this way."""

    def reads(request, client_address, server):
        read(request)
        request.sendall(request.recv(1))

    shows = {"bytes_received": 1, "state": "reading"}
    return Begun(reads, (b"a", b"b"), shows, b"b", outcome="completed")


READING = {"state": "reading"}
LINE = Begun(Upper, (b"tw", b"o\n"), {"bytes_received": 6}, b"TWO\n", answered=b"one\n")
SEGMENT = Begun(Upper, (b"one\ntw", b"o\n"), READING, b"TWO\n", at_once=b"ONE\n")


@pytest.mark.slow
@table(
    "begun",
    {
        "half a line was read": LINE,
        "by a handler with a time-out": attrs.evolve(LINE, handler=OwnTimeout),
        "its beginning waits in the handler's file while the one before is answered": SEGMENT,
        "in that of a handler with a time-out": attrs.evolve(SEGMENT, handler=OwnTimeout),
        "an empty write is no answer": Begun(
            *(WritesNothing, (b"head\n", b"body\n"), READING, b"head\nbody\n"),
            outcome="completed",
        ),
        "verify_request has peeked at it": Begun(
            Upper, (b"on", b"e\n"), READING, b"ONE\n", kind=PeeksFirst
        ),
        "recv has read it": in_halves(lambda it: it.recv(1)),
        "recv_into has": in_halves(lambda it: it.recv_into(bytearray(1))),
        "recvfrom has": in_halves(lambda it: it.recvfrom(1)),
        "recvfrom_into has": in_halves(lambda it: it.recvfrom_into(bytearray(1))),
        "recvmsg has": in_halves(lambda it: it.recvmsg(1)),
        "recvmsg_into has": in_halves(lambda it: it.recvmsg_into([bytearray(1)])),
        "a file has": in_halves(lambda it: it.makefile("rb", buffering=0).read(1)),
    },
)
async def test_request_that_has_begun_is_finished(begun):
    """Whichever way its first half was read, the wait for the other is not ended."""
    async with met(server := begun.kind(THERE, begun.handler)) as (client, witness):
        await say(client, begun.answered)
        first, second = begun.halves
        await client.send_all(first)
        if begun.at_once:
            assert await client.receive_some(100) == begun.at_once
        await shows(server, **begun.shows)
        server.shutdown(8)
        await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
        assert len(server.requests) == 1
        await client.send_all(second)
        assert await read_to_end(client) == begun.gets
    assert witness.outcomes == [begun.outcome]


@table(
    ("second", "buffer"),
    {
        "its next read meets the end": (b"", -1),
        "a request that has come meanwhile is served, in the drain, too": (b"two\n", 0),
    },
)
async def test_handler_that_computes_ends_at_its_next_read(second, buffer):
    """It finishes its reply first."""
    go = threading.Event()

    class Computes(socketserver.StreamRequestHandler):
        rbufsize = buffer

        def handle(self):
            for line in iter(self.rfile.readline, b""):
                go.wait(10)
                self.wfile.write(line.upper())

    async with met(server := on_tcp(Computes), b"one\n") as (client, witness):
        await shows(server, bytes_received=4)
        server.shutdown(8)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(server.requests) == 1
        await client.send_all(second)
        go.set()
        assert await read_to_end(client) == b"ONE\n" + second.upper()
    report = await server.wait_closed()
    assert witness.outcomes == ["drained"]
    assert report.duration < SOON


@contextlib.contextmanager
def slow_threads(seconds):
    """Let a thread that has something to do wait for its turn, as on a machine that is busy."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    stop = False

    def computes():
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


async def test_request_that_begins_at_the_very_moment_is_answered():
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
    assert set(outcomes(report)) == {"drained"}


async def test_large_uploads_in_a_drain_are_not_cut():
    """A request whose body comes in many pieces, all around the drain, is answered or not begun."""
    answers = []
    body = bytes(300_000)

    async def uploads(server):
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
    assert set(outcomes(report)) <= {"drained", "completed"}
    assert report.duration < 4


async def test_reply_is_not_lost_to_a_request_that_came_too_late():
    """A client that says more when its wait was ended gets what was sent, and its end."""
    async with met(server := on_tcp(SaysGoodbye)) as (client, _):
        await say(client, b"one\n")
        await drained(server)
        assert server.statistics().lingering == 1
        await client.send_all(b"two\n")
        assert await read_to_end(client) == b"good-bye"


async def test_client_that_left_has_completed():
    """What the client did counts, whatever was about to be done to it."""
    async with met(server := on_tcp(Upper)) as (client, witness):
        await say(client, b"one\n")
        await client.send_eof()
        await drained(server)
    assert witness.outcomes in (["completed"], [])


class LeftToTheGrace(trioserver.ThreadingTCPServer):
    ends_idle_reads = False


@pytest.mark.slow
@table(
    "make",
    {
        "a field": partial(on_tcp, ends_idle_reads=False),
        "in a class": partial(LeftToTheGrace, THERE),
    },
)
async def test_waits_are_left_to_the_grace(make):
    """``ends_idle_reads=False`` is for protocols that it is wrong for, in which clients listen."""
    async with met(server := make(Upper)) as (client, witness):
        await say(client, b"one\n")
        server.shutdown(0.7)
        await trio.sleep(0.1)
        await say(client, b"two\n")
        assert await read_to_end(client) == b""
    report = await server.wait_closed()
    assert witness.outcomes == ["cancelled"]
    assert report.duration >= 0.7


async def test_reads_that_do_not_wait_are_left_alone():
    """A handler that only looks whether there is input sees no end of it."""
    seen = []
    go = threading.Event()

    def looks(request, client_address, server):
        request.sendall(request.recv(1))
        go.wait(10)
        with contextlib.suppress(BlockingIOError):
            seen.append(request.recv(1, socket.MSG_DONTWAIT))
        request.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            seen.append(request.recv(1))
        request.setblocking(True)
        request.sendall(b"done")

    async with met(server := on_tcp(looks)) as (client, witness):
        await say(client, b"!")
        server.shutdown(8)
        go.set()
        assert await read_to_end(client) == b"done"
    assert seen == []
    assert witness.outcomes == ["completed"]


class Impatient(Upper):
    timeout = 0.3


@table(
    ("handler", "timeouts"),
    {"its own": (Impatient, Timeouts()), "the server's": (Upper, Timeouts(idle=0.3))},
)
async def test_idle_timeout_counts_in_a_drain(handler, timeouts):
    """In a request that has begun, and left to the grace, a silent client is timed out."""
    async with met(server := on_tcp(handler, timeouts=timeouts), b"tw") as (_, witness):
        await shows(server, bytes_received=2)
        with takes(0.3 + SOON):
            await drained(server)
    assert witness.outcomes == ["timed_out"]


async def test_queued_clients_are_served():
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


async def test_handle_request():
    """A server that is served one request at a time drains as well."""
    server = on_tcp(Upper)
    with trio.fail_after(10):
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(server.handle_request)
            async with await connect(server) as client:
                await say(client, b"one\n")
                server.shutdown(8)
                assert await read_to_end(client) == b""
