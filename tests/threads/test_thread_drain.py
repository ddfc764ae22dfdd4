"""Drains of handlers in threads: waits between two requests end, requests do not."""

import contextlib
import socket
import sys
import threading
import time

import pytest
import trio
from support import read_to_end, running
from support.scenes import table
from support.threads import (
    Upper,
    crowd,
    does,
    drained,
    hooked,
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

SOON = 2.0  # seconds, generously, for what happens at once: the wrong way takes the grace

stream = of_both_families(trioserver.ThreadingTCPServer, trioserver.ThreadingUnixStreamServer)


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


def _says_goodbye(handler):
    Upper.handle(handler)
    assert not handler.rfile.readline()  # it stays that way
    handler.wfile.write(b"good-bye")


own_timeout = hooked(Upper, timeout=60)  # for which Python makes the socket non-blocking
says_goodbye = hooked(Upper, handle=_says_goodbye)


@table(
    ("handler", "many"),
    {
        "in a file": (Upper, 1),
        "in as many threads as there are": (Upper, 40),
        "in a file, with a time-out": (own_timeout, 1),
        "it can still write then": (says_goodbye, 1),
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
        async with witnessed(server) as witness, crowd(server, many) as clients:
            for client in clients * 3:
                await say(client, b"one\n")
            with takes(SOON):
                await drained(server)
            goodbye = b"good-bye" if handler is says_goodbye else b""
            assert [await read_to_end(client) for client in clients] == [goodbye] * many
        assert witness.outcomes == ["drained"] * many
        assert (await server.wait_closed()).clean


@pytest.mark.parametrize("words", [b"", b"one\n"])
async def test_new_connection(words):
    """Its first request may be on its way: it has half a second for it from its accept."""
    computed = []

    def handle(self):
        began = time.thread_time()
        Upper.handle(self)
        computed.append(time.thread_time() - began)

    async with met(server := on_tcp(hooked(Upper, handle=handle))) as (client, _):
        await shows(server, state="idle")
        server.shutdown(8)
        await trio.sleep(0.1)
        await say(client, words)
        assert await read_to_end(client) == b""
    [record] = (await server.wait_closed()).drained
    assert words or NEW_CONNECTION_GRACE <= record.duration < NEW_CONNECTION_GRACE + SOON
    assert computed[0] < 0.25  # seconds: it waits, and does not look all the time


# Requests that have begun ------------------------------------------------------------


class PeeksFirst(trioserver.ThreadingTCPServer):
    """``verify_request`` has received the first half already."""

    async def verify_request(self, request, client_address):
        return bool(await trioserver.RequestReader(request).peek())


def _writes_nothing(handler):
    head = handler.rfile.read(4)
    handler.wfile.write(b"")
    handler.wfile.write(head + handler.rfile.readline())


def in_halves(read):
    """A request of two bytes, of which the first one is read in this way."""

    def reads(request, client_address, server):
        read(request)
        request.sendall(request.recv(1))

    return reads, [b"a"], b"b", b"b"


peeked_at = hooked(Upper)
writes_nothing = hooked(Upper, handle=_writes_nothing)


@pytest.mark.slow
@table(
    ("handler", "before", "after", "answer"),
    {
        "half a line was read": (Upper, [b"one\n", b"tw"], b"o\n", b"TWO\n"),
        "by a handler with a time-out": (own_timeout, [b"one\n", b"tw"], b"o\n", b"TWO\n"),
        "its beginning waits in the handler's file": (Upper, [b"one\ntw"], b"o\n", b"TWO\n"),
        "in that of a handler with a time-out": (own_timeout, [b"one\ntw"], b"o\n", b"TWO\n"),
        "an empty write is no answer": (writes_nothing, [b"head"], b"body\n", b"headbody\n"),
        "verify_request has peeked at it": (peeked_at, [b"on"], b"e\n", b"ONE\n"),
        "recv has read it": in_halves(lambda it: it.recv(1)),
        "recv_into has": in_halves(lambda it: it.recv_into(bytearray(1))),
        "recvfrom has": in_halves(lambda it: it.recvfrom(1)),
        "recvfrom_into has": in_halves(lambda it: it.recvfrom_into(bytearray(1))),
        "recvmsg has": in_halves(lambda it: it.recvmsg(1)),
        "recvmsg_into has": in_halves(lambda it: it.recvmsg_into([bytearray(1)])),
        "a file has": in_halves(lambda it: it.makefile("rb", buffering=0).read(1)),
    },
)
async def test_request_that_has_begun_is_finished(handler, before, after, answer):
    """Whichever way its first half was read, the wait for the other is not ended."""
    kind = PeeksFirst if handler is peeked_at else trioserver.ThreadingTCPServer
    async with met(server := on_tcp(handler, kind)) as (client, witness):
        for words in before:
            await client.send_all(words)
            if b"\n" in words:
                assert await client.receive_some(100) == b"ONE\n"
        await shows(server, state="reading", bytes_received=len(b"".join(before)))
        server.shutdown(8)
        await trio.sleep(NEW_CONNECTION_GRACE + 0.1)
        assert len(server.requests) == 1
        await client.send_all(after)
        assert await read_to_end(client) == answer
    loops = handler in (Upper, own_timeout, peeked_at)
    assert witness.outcomes == ["drained" if loops else "completed"]


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
    async with running(server := on_tcp(Upper)), crowd(server, 30) as clients:
        for client in clients:
            await say(client, b"one\n")
        words = (b"two\n", b"tw", b"two\nthree\n")
        with slow_threads(0.002):
            for number, client in enumerate(clients):
                client.socket._sock.send(words[number % 3])
                if number == 15:
                    server.shutdown(8)
            await trio.sleep(0.2)
            for client in clients[1::3]:
                with contextlib.suppress(OSError):  # the second half of them comes too late
                    client.socket._sock.send(b"o\n")
        for number, client in enumerate(clients):
            answer = b""
            with contextlib.suppress(trio.BrokenResourceError):
                answer = await read_to_end(client)
            if number <= 15 or answer:
                assert answer == (b"TWO\nTHREE\n" if number % 3 == 2 else b"TWO\n"), number
        report = await server.wait_closed()
    assert set(outcomes(report)) == {"drained"}


async def test_waits_are_left_to_the_grace():
    """``ends_idle_reads=False`` is for protocols that it is wrong for, in which clients listen."""
    async with met(server := on_tcp(Upper, ends_idle_reads=False)) as (client, witness):
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
    go = threading.Event()
    looks = does(
        f"recv 1; sendall b'!'; wait 10; recv 1, {socket.MSG_DONTWAIT:d} -> BlockingIOError; "
        "setblocking False; recv 1 -> BlockingIOError; setblocking True; sendall b'done'",
        wait=go.wait,
    )
    async with met(server := on_tcp(looks)) as (client, witness):
        await say(client, b"!")
        server.shutdown(8)
        go.set()
        assert await read_to_end(client) == b"done"
    assert witness.outcomes == ["completed"]


@pytest.mark.parametrize(
    ("handler", "timeouts"),
    [(hooked(Upper, timeout=0.3), Timeouts()), (Upper, Timeouts(idle=0.3))],
)
async def test_idle_timeout_counts_in_a_drain(handler, timeouts):
    """In a request that has begun, and left to the grace: the handler's own, or the server's."""
    async with met(server := on_tcp(handler, timeouts=timeouts), b"tw") as (_, witness):
        await shows(server, bytes_received=2)
        with takes(0.3 + SOON):
            await drained(server)
    assert witness.outcomes == ["timed_out"]
