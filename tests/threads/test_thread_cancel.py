"""Threads whose requests are cancelled: most end at once, and the others harm nobody."""

import errno
import logging
import os
import socket
import socketserver
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio
from support import connect, descriptors, read_to_end, running, until
from support.scenes import table
from support.threads import (
    Upper,
    ask,
    cancelled,
    crowd,
    does,
    hooked,
    met,
    on_tcp,
    outcomes,
    raising,
    shows,
    takes,
    witnessed,
)

import trioserver
from trioserver import Outcome, Timeouts
from trioserver._requests import drain

SOON = 2.0  # seconds, generously, for what happens at once: the wrong way takes seconds


class Waits(socketserver.StreamRequestHandler):
    """Waits in its own way, until something comes of it, and notes when that was over."""

    says = b""
    may_end = None
    states = ("idle", "reading", "writing")

    def handle(self):
        self.began.set()
        try:
            while self.wait() is None:
                pass
        finally:
            self.ended_at.append(time.perf_counter())
            assert self.may_end is None or self.may_end.wait(10)


def _reads_a_line(handler):
    return handler.rfile.readline()


def _sends_a_file(handler):
    with Path("/dev/zero").open("rb") as zeros:
        handler.request.sendfile(zeros)


def _writes_buffered(handler):
    handler.wfile.write(MEGABYTE)


def _asks(handler):
    trio.from_thread.check_cancelled()
    time.sleep(0.001)


def _waits_in_trio(handler):
    trio.from_thread.run(trio.sleep, 0.001)
    trio.from_thread.check_cancelled()


def _closes_and_asks(handler):
    handler.request.close()
    _asks(handler)


@pytest.fixture
def handler(way):
    """One that waits in this way."""
    return hooked(Waits, began=threading.Event(), ended_at=[], **way)


MEGABYTE = bytes(1_000_000)
BUFFERED = {"wait": _writes_buffered, "wbufsize": -1}
WORKING = {"states": ("working",)}

every_way = table(
    "way",
    {
        "in recv": {"wait": lambda it: it.request.recv(100)},
        "in readline": {"wait": _reads_a_line},
        "in readline, of a request that has begun": {"wait": _reads_a_line, "says": b"x"},
        "in readline, with a time-out of its own": {"wait": _reads_a_line, "timeout": 60},
        "in sendall": {"wait": lambda it: it.request.sendall(MEGABYTE)},
        "in a buffered write, with a time-out of its own": {**BUFFERED, "timeout": 60},
        "in sendfile": {"wait": _sends_a_file},
        "in its computations, in which it asks now and then": {"wait": _asks, **WORKING},
        "TH-09: so when there is no socket left to shut": {"wait": _closes_and_asks, **WORKING},
        "in a call of Trio's": {"wait": _waits_in_trio, **WORKING},
    },
)


async def waits(server, handler):
    """The only request's handler has come to where it waits."""
    await until(handler.began.is_set)
    before = -1

    def is_there():
        nonlocal before
        [it] = server.snapshot().requests
        stands, before = it.bytes_sent == before, it.bytes_sent
        return it.state in handler.states and stands and it.bytes_received == len(handler.says)

    await until(is_there)


@every_way
async def test_cancelled_request(handler, caplog):
    """However it waits in its socket, or asks Trio, a thread ends within 0.1 s of a cancel."""
    caplog.set_level(logging.INFO, "trioserver.error")
    took = []
    async with witnessed(server := on_tcp(handler)) as witness:
        while len(took) < 5 and not (took and min(took) < 0.1):  # the machine may be busy
            handler.began.clear()
            async with await connect(server) as client:
                await client.send_all(handler.says)
                await waits(server, handler)
                began = time.perf_counter()
                assert server.cancel_request(len(took) + 1, "enough")
                await until(lambda: len(witness.records) > len(took))
                took.append(time.perf_counter() - began)
                assert handler.ended_at[-1] - began <= took[-1]
    assert min(took) < 0.1
    assert {(it.outcome, it.reason) for it in witness.records} == {(Outcome.CANCELLED, "enough")}
    assert caplog.records == []  # whatever it raised is what was done to it


@table(
    ("by", "reason"),
    {
        "at the end of the grace; the server has closed by then": ("grace", "the grace is over"),
        "when the program around the server is cancelled": ("program", "home time"),
        "when Timeouts.request is over": ("time", "the request took too long (request)"),
    },
)
@every_way
async def test_whoever_cancels(handler, by, reason):
    """The same, and soon."""
    timeouts = Timeouts(request=0.3 if by == "time" else 60)
    server = on_tcp(handler, ends_idle_reads=False, timeouts=timeouts)
    with trio.CancelScope() as outer:
        async with met(server, handler.says) as (_, witness):
            await waits(server, handler)
            began = time.perf_counter()
            if by == "grace":
                server.shutdown(0.02)
                await server.wait_closed()
            elif by == "program":
                outer.cancel(reason=reason)
            await until(lambda: witness.records)
    assert handler.ended_at[0] <= time.perf_counter() < began + 0.3 + SOON
    [record] = witness.records
    outcome = Outcome.TIMED_OUT if by == "time" else Outcome.CANCELLED
    assert (record.outcome, record.reason) == (outcome, reason)
    assert by != "time" or record.duration >= 0.3
    assert not (await server.wait_closed()).clean or by == "time"


def _knows_its_number(handler):
    handler.request.fileno()
    handler.request.sendall(50 * MEGABYTE)  # between two of them it might wait by that number


@table(
    "way",
    {
        "by sendall": {"wait": lambda it: it.request.sendall(MEGABYTE)},
        "by sendall, knowing its number": {"wait": _knows_its_number},
        "by send": {"wait": lambda it: it.request.send(MEGABYTE) and None},
        "by a buffered write": BUFFERED,
        "by sendfile": {"wait": _sends_a_file},
    },
)
@pytest.mark.parametrize("takes_all", [False, True])
async def test_half_a_reply_does_not_look_like_a_whole_one(handler, takes_all):
    """A client whose reply was cut sees an error, not an end; also if it has taken all there is."""
    handler.may_end, handler.states, got = threading.Event(), ("writing",), 0
    async with met(server := on_tcp(handler)) as (client, _):
        await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
        await waits(server, handler)  # not between two writes
        assert server.cancel_request(1, "enough")
        await until(lambda: handler.ended_at)
        [cut] = server.snapshot().requests
        while takes_all and got < cut.bytes_sent:
            got += len(await client.receive_some())
        handler.may_end.set()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


@table("way", {"in sendall": {"wait": lambda it: it.request.sendall(MEGABYTE)}})
async def test_cancelled_write_when_no_descriptor_is_left(handler, monkeypatch):
    """Nothing can wake it then, but it looks now and then."""
    monkeypatch.setattr(drain, "socket_pair", Mock(side_effect=OSError(errno.EMFILE, "too many")))
    async with met(server := on_tcp(handler)):
        await waits(server, handler)
        with takes(SOON):
            await cancelled(server)


async def test_handler_cancels_another_request():
    """``self.server.cancel_request`` works from a thread; of one that is over it says so."""
    answers = []

    def cancels(request, client_address, server):
        if request.recv(1) == b"c":
            answers.extend(server.cancel_request(number, "somebody's wish") for number in (1, 9))

    async with met(server := on_tcp(cancels)) as (client, witness):
        await shows(server, state="idle")
        assert await ask(server, b"c") == b""
        with trio.fail_after(SOON):
            assert await read_to_end(client) == b""
        await until(lambda: len(witness.records) == 2)
    assert answers == [True, False]
    assert "somebody's wish" in {it.reason for it in witness.records if it.outcome == "cancelled"}


async def test_error_after_a_cancellation_is_told(caplog):
    """One line at INFO, without a traceback; `handle_error` is not called."""
    caplog.set_level(logging.INFO, "trioserver.error")
    async with met(server := on_tcp(raising(ValueError("what now?"), b""))):
        await shows(server, state="idle")
        await cancelled(server)
    [told] = caplog.records
    assert (told.levelname, told.exc_info) == ("INFO", None)
    assert told.getMessage().endswith("raised after it was cancelled: ValueError: what now?")


# Threads that take no notice ----------------------------------------------------------------


class Deaf:
    """A handler that waits for something else than its socket; tells how it goes."""

    def __init__(self):
        self.go, self.is_over = threading.Event(), threading.Event()
        self.sock, self.calls, self.said = None, 0, []
        self.after = lambda request: None

    def __call__(self, request, client_address, server):
        self.sock = request
        self.calls += 1
        try:
            self.go.wait(20)
            self.said.append(self.after(request))
        except BaseException as error:
            self.said.append(type(error))
            raise
        finally:
            self.is_over.set()

    @asynccontextmanager
    async def serves(self, **fields):
        """A server with one client whom this handler serves."""
        async with met(server := on_tcp(self, **fields)) as (_, witness):
            await until(lambda: self.sock is not None)
            yield server, witness

    async def ends(self):
        self.go.set()
        await until(self.is_over.is_set)


def soon(condition):
    """Wait without Trio."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def deaf():
    """One, which ends with the test."""
    handler = Deaf()
    yield handler
    handler.go.set()
    soon(lambda: not any(it.name.startswith("request ") for it in threading.enumerate()))


AT_ONCE = Timeouts(cleanup=0)  # nobody waits for a thread that was cancelled


async def test_thread_is_left_behind(deaf, caplog):
    """After ``timeouts.cleanup``: named once, with its stack; in the report, which is not clean.

    An error that it has later is told in one line.
    """
    caplog.set_level(logging.INFO, "trioserver")
    deaf.after = lambda request: [].pop()
    async with deaf.serves(timeouts=Timeouts(cleanup=0.2)) as (server, witness):
        with takes(0.2 + SOON, least=0.2):
            server.shutdown(0)
            report = await server.wait_closed()
    assert not deaf.is_over.is_set()
    assert outcomes(report) == ["abandoned"]
    assert report.abandoned == tuple(witness.records)
    assert report.abandoned[0].reason == "the grace is over"
    assert not report.clean
    assert "1 abandoned" in report.summary
    [told] = [it.getMessage() for it in caplog.records if it.levelname == "ERROR"]
    assert "still runs 0.2 s after it was cancelled; left behind" in told
    assert "self.go.wait(20)" in told
    await deaf.ends()
    told = "which was left behind, has raised: IndexError: pop from empty list"
    await until(lambda: told in caplog.text)


class SlowLoop(trio.abc.Clock):
    """Whoever looks at it takes a hundredth of a second for it."""

    now = 0.0

    def start_clock(self): ...

    def current_time(self):
        self.now += 0.01
        return self.now

    def deadline_to_sleep_time(self, deadline):
        return min(0.001, max(0, deadline - self.now))


@pytest.fixture
def slow_loop():
    """The clock of a test."""
    return SlowLoop()


async def test_threads_left_behind_are_named_once_each(deaf, caplog, slow_loop):
    """Their waits began after the cut's, which is as long; so it ends before them."""
    server = on_tcp(deaf, timeouts=Timeouts(cleanup=2))
    async with server.serving(), crowd(server, 10):
        while deaf.calls < 10:
            await trio.lowlevel.checkpoint()
        server.shutdown(0)
        assert len((await server.wait_closed()).abandoned) == 10
    told = [it.getMessage() for it in caplog.records if it.levelname == "ERROR"]
    assert sum("left behind" in message for message in told) == len(told) == 10


@pytest.mark.parametrize("outcome", ["abandoned", "cancelled"])
async def test_datagram(outcome, deaf):
    """The same: the way back is closed, which ends a ``sendto`` that waits, and one that comes."""
    name = b"\0trioserver-%d-" % os.getpid()

    def floods(request):
        while True:
            request[1].sendto(bytes(1000), name + b"client")

    deaf.after = floods
    if outcome == "cancelled":
        deaf.go.set()
    timeouts = Timeouts(cleanup=0.05 if outcome == "abandoned" else 5)
    server = trioserver.ThreadingUnixDatagramServer(name, deaf, timeouts=timeouts)
    async with witnessed(server) as witness:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(name + b"client")
            client.sendto(b"go", name)
            await shows(server, state="writing" if outcome == "cancelled" else "working")
            with takes(SOON):
                await cancelled(server)
            await deaf.ends()
    assert witness.outcomes == [outcome]
    assert deaf.said == [trio.ClosedResourceError]


UNBLOCKED = {"block_on_close": False, "timeouts": Timeouts(cleanup=0.3)}
DAEMON = {"daemon_threads": True}


@table(
    ("fields", "what", "least"),
    {
        "with daemon_threads, nobody waits for a thread that was cancelled": (DAEMON, "request", 0),
        "nor for one at the end of the grace": (DAEMON, "server", 0),
        "without block_on_close, cancelling waits for the cleanup": (UNBLOCKED, "request", 0.3),
        "but closing waits for the grace, and no longer": (UNBLOCKED, "server", 0.1),
        "and nobody waits for a program that is cancelled": (UNBLOCKED, "program", 0),
    },
)
async def test_how_long_a_thread_is_waited_for(fields, what, least, deaf):
    """It is left behind then."""
    with trio.CancelScope() as program:
        async with deaf.serves(**fields) as (server, witness):
            began = time.perf_counter()
            if what == "program":
                program.cancel()
            elif what == "server":
                server.shutdown(least)
            else:
                server.cancel_request(1, "enough")
            await until(lambda: witness.records)
    assert least <= time.perf_counter() - began < (least + SOON if least < 0.3 else 10)
    assert witness.outcomes == ["abandoned"]


async def test_daemon_thread_that_ends_is_not_left_behind():
    """One that waits in its socket is given the moment that it takes to end."""
    async with met(server := on_tcp(Upper, daemon_threads=True), b"half a line") as (_, witness):
        await shows(server, bytes_received=11)
        await cancelled(server)
    assert witness.outcomes == ["cancelled"]


async def test_thread_left_behind_keeps_its_slot(deaf):
    """TH-02: the next client is accepted when the thread ends, and not before."""
    async with deaf.serves(max_threads=1, timeouts=AT_ONCE) as (server, witness):
        async with await connect(server) as second:
            await cancelled(server)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.statistics().accepted == 1
            await deaf.ends()
            assert await read_to_end(second) == b""
    assert witness.outcomes == ["abandoned", "completed"]


async def test_server_serves_again_while_a_thread_is_left(deaf):
    """The next run of the same server has its own slots."""
    async with deaf.serves(max_threads=1, timeouts=AT_ONCE) as (server, _):
        server.shutdown(0)
        await server.wait_closed()
    server.RequestHandlerClass = Upper
    async with running(server):
        assert await ask(server, b"x\n") == b"X\n"
        await deaf.ends()
        assert await ask(server, b"y\n") == b"Y\n"


async def test_thread_that_has_ended_is_not_left_behind(deaf):
    """Though Trio has not heard of its end yet, because it was kept from listening."""
    async with deaf.serves(timeouts=Timeouts(cleanup=0.1)) as (server, witness):
        server.cancel_request(1, "enough")
        await trio.lowlevel.checkpoint()
        deaf.go.set()
        assert deaf.is_over.wait(10)
        time.sleep(0.2)  # noqa: ASYNC251  (Trio hears of both at once)
        await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]


async def test_cancelled_handler_is_fed_no_more(deaf):
    """What is queued is not for it any more: its next read meets the end of the input."""
    deaf.after = lambda request: [request.recv(1000), request.recv(1000)]

    def reads(request, client_address, server):
        assert len(request.recv(1000)) == 1000
        deaf(request, client_address, server)

    async with met(server := on_tcp(reads), bytes(100_000)) as (_, witness):
        await until(lambda: deaf.sock is not None)
        server.cancel_request(1, "enough")
        await trio.testing.wait_all_tasks_blocked(0.01)
        deaf.go.set()
        with trio.fail_after(SOON):
            await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]
    assert deaf.said == [[b"", b""]]


async def test_thread_that_ends_before_its_outcome_keeps_no_slot(deaf):
    """A hook may take its time after a thread was left behind, which may end meanwhile."""

    class Dawdles(trioserver.ThreadingTCPServer):
        async def process_request(self, request, client_address):
            try:
                await super().process_request(request, client_address)
            finally:
                deaf.go.set()
                with trio.CancelScope(shield=True):
                    thread = request._left_behind
                    await until(lambda: thread is None or thread._over)

    async with deaf.serves(kind=Dawdles, max_threads=1, timeouts=AT_ONCE) as (server, witness):
        await cancelled(server)
        assert await ask(server) == b""
    assert witness.outcomes == ["abandoned", "completed"]


def test_thread_outlives_its_server_and_trio(deaf, caplog):
    """TH-08: a call into a Trio that has ended raises there; nothing hangs, nothing stays open."""
    before = descriptors()

    def calls_back(request):
        assert request.recv(1) == b""
        trio.from_thread.run(trio.sleep, 0)

    async def serve():
        async with deaf.serves(timeouts=AT_ONCE) as (server, _):
            server.shutdown(0)

    deaf.after = calls_back
    trio.run(serve)
    assert descriptors() - before == {deaf.sock.fileno()}
    deaf.go.set()
    assert deaf.is_over.wait(10)
    assert deaf.said == [trio.RunFinishedError]
    assert "Traceback" not in caplog.text
    deaf.sock = None
    soon(lambda: descriptors() == before)


@pytest.mark.parametrize("outlasts", [False, True])
async def test_thread_waits_in_trio_during_shutdown(outlasts, deaf):
    """TH-08: what a handler awaits in Trio is not cancelled with it, so it may be left behind."""
    go, began = trio.Event(), trio.Event()

    async def waits_in_trio():
        began.set()
        await go.wait()

    deaf.after = lambda request: trio.from_thread.run(waits_in_trio)
    deaf.go.set()
    timeouts = Timeouts(cleanup=0.05 if outlasts else 5)
    async with met(server := on_tcp(deaf, timeouts=timeouts)) as (client, _):
        await began.wait()
        server.shutdown(0)
        if not outlasts:
            assert await read_to_end(client) == b""  # it is being cancelled
            go.set()
        report = await server.wait_closed()
    go.set()
    await until(deaf.is_over.is_set)
    assert outcomes(report) == ["abandoned" if outlasts else "cancelled"]


# The numbers of descriptors -------------------------------------------------------------------


@contextmanager
def strangers(number):
    """Others, of whom one has got that number; nobody does anything to them in the block."""
    pairs = []
    while number not in {end.fileno() for pair in pairs for end in pair}:  # lower ones come first
        assert len(pairs) < 100
        pairs.append(socket.socketpair())
    yield
    for one, other in pairs:
        one.sendall(b"x")
        other.sendall(b"y")
        assert (other.recv(2), one.recv(2)) == (b"x", b"y")
        one.close()
        other.close()


every_harm = pytest.mark.parametrize(
    "late", ["recv 100 -> b''", "sendall b'late' -> OSError", "close", "shutdown 2"]
)


@every_harm
async def test_thread_left_behind_hits_nobody_else(late, deaf):
    """TH-09: its late read, write or close; its number is not free before it has ended."""
    deaf.after = lambda request: does(late)(request, None, None)
    async with deaf.serves(timeouts=AT_ONCE) as (server, _):
        before, number = descriptors(), deaf.sock.fileno()
        await cancelled(server)
        assert descriptors() == before
        await deaf.ends()
        await until(lambda: before - descriptors() == {number})
        with strangers(number), suppress(OSError):
            deaf.after(deaf.sock)
    assert deaf.said == [None]


@every_harm
@pytest.mark.parametrize("of", ["socket", "file"])
async def test_what_a_handler_keeps_hits_nobody_else(late, of):
    """TH-09: nor does a socket, or a file made of it, that is used after the request's end."""
    kept = []

    def keeps(request, client_address, server):
        file = request.makefile("rwb", buffering=0)
        kept.extend([request.fileno(), request if of == "socket" else file._sock])

    async with running(server := on_tcp(keeps)):
        assert await ask(server) == b""
        await until(lambda: kept[0] not in descriptors())
        with strangers(kept[0]), suppress(OSError):
            does(late)(kept[1], None, None)


@pytest.mark.parametrize("how", ["shutdown 0", "shutdown 1", "shutdown 2", "close"])
async def test_handler_shuts_its_own_socket(how, caplog):
    """TH-09: no harm is done, there is one record, and the client sees the end at once."""
    caplog.set_level(logging.INFO, "trioserver.error")
    go, before = threading.Event(), descriptors()
    shuts = does(f"recv 1; sendall b'x'; {how}; wait 10", wait=go.wait)
    async with met(on_tcp(shuts), b"x") as (client, witness):
        assert await client.receive_some() == b"x"
        if how == "shutdown 0":  # of the input alone
            go.set()
        with trio.fail_after(5):
            assert await client.receive_some() == b""  # and not when the handler returns
        go.set()
        await until(lambda: witness.records)
    assert witness.outcomes == ["completed"]
    assert caplog.records == []
    assert descriptors() == before
