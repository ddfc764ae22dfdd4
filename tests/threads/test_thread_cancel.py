"""Threads whose requests are cancelled: most end at once, and the others harm nobody."""

import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import connect, plain_client, read_to_end, running, until
from support.scenes import table
from support.threads import (
    THERE,
    Upper,
    ask,
    met,
    on_tcp,
    outcomes,
    run_program,
    shows,
    takes,
    witnessed,
)

import trioserver
from trioserver import Limits, Outcome, Timeouts
from trioserver.testing import open_descriptors

SOON = 0.5
"""Seconds, generously, for what happens at once: the wrong way takes seconds."""


# How handlers wait -----------------------------------------------------------------------


class Waits(socketserver.StreamRequestHandler):
    """Waits in its own way, and notes when that was over."""

    began: threading.Event
    way: "Way"
    ended_at: list[float]

    def handle(self):
        self.began.set()
        try:
            while self.way.wait(self) is None:
                pass
        finally:
            self.ended_at.append(time.perf_counter())


@attrs.frozen
class Way:
    """A way to wait: again and again, until something comes of it."""

    wait: Callable[[Any], Any]
    says: bytes = b""
    states: frozenset[str] = frozenset({"idle", "reading", "writing"})
    attributes: dict[str, Any] = attrs.field(factory=dict)

    def handler(self):
        """One that waits like that."""
        facts = {"began": threading.Event(), "way": self, "ended_at": [], **self.attributes}
        return type("WaitsHere", (Waits,), facts)


def _reads_a_line(handler):
    return handler.rfile.readline()


def _sends_a_file(handler):
    with Path("/dev/zero").open("rb") as zeros:
        handler.request.sendfile(zeros)


def _asks(handler):
    trio.from_thread.check_cancelled()
    time.sleep(0.001)


def _waits_in_trio(handler):
    trio.from_thread.run(trio.sleep, 0.001)
    trio.from_thread.check_cancelled()


MEGABYTE = bytes(1_000_000)
WORKING = frozenset({"working"})


@pytest.fixture
def handler(way):
    """One that waits in this way."""
    return way.handler()


every_way = table(
    "way",
    {
        "in recv": Way(lambda it: it.request.recv(100)),
        "in readline": Way(_reads_a_line),
        "in readline, of a request that has begun": Way(_reads_a_line, b"x"),
        "in readline, with a time-out of its own": Way(_reads_a_line, attributes={"timeout": 60}),
        "in sendall": Way(lambda it: it.request.sendall(MEGABYTE)),
        "in a buffered write, with a time-out of its own": Way(
            lambda it: it.wfile.write(MEGABYTE) and None,
            attributes={"timeout": 60, "wbufsize": -1},
        ),
        "in sendfile": Way(_sends_a_file),
        "in its computations, in which it asks now and then": Way(_asks, states=WORKING),
        "in a call of Trio's": Way(_waits_in_trio, states=WORKING),
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
        way = handler.way
        return it.state in way.states and stands and it.bytes_received == len(way.says)

    await until(is_there)


# Who cancels ----------------------------------------------------------------------------


@every_way
async def test_cancelled_request(way, handler, caplog):
    """However it waits in its socket, or asks Trio, a thread ends within 0.1 s of a cancel."""
    caplog.set_level(logging.INFO, "trioserver.error")
    took = []
    async with witnessed(server := on_tcp(handler)) as witness:
        while len(took) < 5 and not (took and min(took) < 0.1):  # the machine may be busy
            handler.began.clear()
            async with await connect(server) as client:
                await client.send_all(way.says)
                await waits(server, handler)
                began = time.perf_counter()
                assert server.cancel_request(len(took) + 1, "enough")
                await until(lambda: len(witness.records) > len(took))
                took.append(time.perf_counter() - began)
                assert handler.ended_at[-1] - began <= took[-1]
    assert min(took) < 0.1
    assert {(it.outcome, it.reason) for it in witness.records} == {(Outcome.CANCELLED, "enough")}
    assert caplog.records == []  # whatever it raised is what was done to it


@every_way
async def test_grace_is_over(way, handler):
    """The same at the end of the grace; the server has closed by then."""
    async with met(server := on_tcp(handler, ends_idle_reads=False), way.says):
        await waits(server, handler)
        with takes(0.02 + SOON):
            server.shutdown(0.02)
            report = await server.wait_closed()
    assert [it.reason for it in report.cancelled] == ["the grace is over"]
    assert not report.clean


@every_way
async def test_outer_scope_is_cancelled(way, handler):
    """The same when the program around the server is cancelled."""
    with trio.CancelScope() as outer:
        async with met(server := on_tcp(handler), way.says) as (_, witness):
            await waits(server, handler)
            began = time.perf_counter()
            outer.cancel(reason="home time")
            await trio.lowlevel.checkpoint()
    assert time.perf_counter() - began < SOON
    assert witness.outcomes == ["cancelled"]
    assert handler.ended_at[0] - began < SOON


@every_way
async def test_request_takes_too_long(way, handler):
    """The same when ``Timeouts.request`` is over."""
    async with met(on_tcp(handler, timeouts=Timeouts(request=0.3)), way.says) as (_, witness):
        await until(lambda: witness.records)
    [record] = witness.records
    assert record.outcome is Outcome.TIMED_OUT
    assert record.reason == "the request took too long (request)"
    assert 0.3 <= record.duration < 0.3 + SOON


async def test_datagram_that_finds_no_room():
    """A ``sendto`` that waits for a full queue ends when its request is cancelled."""
    errors = []

    def floods(request, client_address, server):
        try:
            while True:
                request[1].sendto(bytes(1000), client_address)
        except BaseException as error:
            errors.append(error)
            raise

    name = b"\0trioserver-%d-" % os.getpid()
    server = trioserver.ThreadingUnixDatagramServer(name, floods)
    async with witnessed(server) as witness:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(name + b"client")
            client.sendto(b"go", server.server_address)
            await shows(server, state="writing")
            with takes(SOON):
                server.cancel_request(1, "enough")
                await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]
    assert [type(error) for error in errors] == [trio.ClosedResourceError]


async def test_half_a_reply_does_not_look_like_a_whole_one():
    """A client whose reply was cut sees an error, not an end."""

    def sends(request, client_address, server):
        request.sendall(bytes(20_000_000))

    async with met(server := on_tcp(sends)) as (client, witness):
        await shows(server, state="writing")
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


# What is raised after it ------------------------------------------------------------------


def raises_at_the_end(error):
    """A handler that raises when it meets the end of its input."""

    def raises(request, client_address, server):
        if not request.recv(1):
            raise error

    return raises


async def test_error_after_a_cancellation_is_told(caplog):
    """One line at INFO, without a traceback; `handle_error` is not called."""
    caplog.set_level(logging.INFO, "trioserver.error")
    async with met(server := on_tcp(raises_at_the_end(ValueError("what now?")))):
        await shows(server, state="idle")
        server.cancel_request(1, "enough")
        await until(lambda: not server.requests)
    [told] = caplog.records
    assert (told.levelname, told.exc_info) == ("INFO", None)
    assert told.getMessage().endswith("raised after it was cancelled: ValueError: what now?")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_what_ends_programs_goes_on_after_a_cancellation(kind):
    """``SystemExit`` is never lost."""

    async def serve():
        async with met(server := on_tcp(raises_at_the_end(kind("now")))):
            await shows(server, state="idle")
            server.cancel_request(1, "enough")
            await trio.sleep_forever()

    with pytest.raises(kind, match="now"):
        await serve()


# Threads that take no notice ----------------------------------------------------------------


@attrs.define
class Deaf:
    """A handler that waits for something else than its socket; tells how it goes."""

    go: threading.Event = attrs.field(factory=threading.Event)
    sock: Any = None
    calls: int = 0
    after: Callable[[Any], object] = lambda request: None
    said: list[object] = attrs.field(factory=list)
    is_over: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, request, client_address, server):
        self.sock = request
        self.calls += 1
        try:
            self.go.wait(20)
            self.said.append(self.after(request))
        except BaseException as error:
            self.said.append(error)
            raise
        finally:
            self.is_over.set()

    @asynccontextmanager
    async def serves(self, server=None, **fields):
        """A server with one client whom this handler serves."""
        server = server or on_tcp(self, **fields)
        async with met(server) as (_, witness):
            await until(lambda: self.sock is not None)
            yield server, witness

    async def ends(self):
        """Let it end."""
        self.go.set()
        await until(self.is_over.is_set)


@pytest.fixture
def deaf():
    """One, which ends with the test."""
    handler = Deaf()
    yield handler
    handler.go.set()
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("request ") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def hold_open(server, task_status):
    """A client that does nothing."""
    async with await connect(server):
        task_status.started()
        await trio.sleep_forever()


AT_ONCE = Timeouts(cleanup=0)
"""Nobody waits for a thread that was cancelled."""


async def test_thread_is_left_behind(deaf, caplog):
    """After ``timeouts.cleanup``: named once, with its stack; in the report, which is not clean."""
    async with deaf.serves(timeouts=Timeouts(cleanup=0.2)) as (server, witness):
        with takes(0.2 + SOON, least=0.2):
            server.shutdown(0)
            report = await server.wait_closed()
    assert outcomes(report) == ["abandoned"]
    assert report.abandoned == tuple(witness.records)
    assert report.abandoned[0].reason == "the grace is over"
    assert not report.clean
    assert "1 abandoned" in report.summary
    [told] = [it for it in caplog.records if it.levelname == "ERROR"]
    assert "still runs 0.2 s after it was cancelled; left behind" in told.getMessage()
    assert "self.go.wait(20)" in told.getMessage()
    assert not deaf.is_over.is_set()


class SlowLoop(trio.abc.Clock):
    """Whoever looks at it takes a hundredth of a second for it."""

    now = 0.0

    def start_clock(self):
        pass

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
    async with server.serving(), trio.open_nursery() as nursery:
        for _ in range(10):
            await nursery.start(hold_open, server)
        while deaf.calls < 10:
            await trio.lowlevel.checkpoint()
        server.shutdown(0)
        assert len((await server.wait_closed()).abandoned) == 10
        nursery.cancel_scope.cancel()
    told = [it.getMessage() for it in caplog.records if it.levelname == "ERROR"]
    assert sum("left behind" in message for message in told) == len(told) == 10


async def test_datagram_thread_is_left_behind(deaf):
    """The same for a datagram; the way back is closed, and ends what the thread then tries."""
    deaf.after = lambda request: request[1].sendto(b"late", ("127.0.0.1", 9))
    server = trioserver.ThreadingUDPServer(THERE, deaf, timeouts=Timeouts(cleanup=0.05))
    async with running(server) as address:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", address)
            await until(lambda: deaf.sock is not None)
            server.shutdown(0)
            report = await server.wait_closed()
        await deaf.ends()
    assert len(report.abandoned) == 1
    assert [type(it) for it in deaf.said] == [trio.ClosedResourceError]


UNBLOCKED = {"block_on_close": False, "timeouts": Timeouts(cleanup=0.3)}


@table(
    ("fields", "cancel", "least"),
    {
        "with daemon_threads, nobody waits for a thread that was cancelled": (
            *({"daemon_threads": True}, lambda server: server.cancel_request(1, "enough"), 0),
        ),
        "nor for one at the end of the grace": (
            *({"daemon_threads": True}, lambda server: server.shutdown(0), 0),
        ),
        "without block_on_close, cancelling waits for the cleanup": (
            *(UNBLOCKED, lambda server: server.cancel_request(1, "enough"), 0.3),
        ),
        "but closing waits for the grace, and no longer": (
            *(UNBLOCKED, lambda server: server.shutdown(0.1), 0.1),
        ),
    },
)
async def test_how_long_a_thread_is_waited_for(fields, cancel, least, deaf):
    """It is left behind then."""
    async with deaf.serves(**fields) as (server, witness):
        with takes(least + SOON if least < 0.3 else 10, least):
            cancel(server)
            await until(lambda: witness.records)
    assert witness.outcomes == ["abandoned"]


async def test_daemon_thread_that_ends_is_not_left_behind():
    """One that waits in its socket is given the moment that it takes to end."""
    async with met(server := on_tcp(Upper, daemon_threads=True), b"half a line") as (_, witness):
        await shows(server, bytes_received=11)
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]


async def test_block_on_close_when_cancelled(deaf):
    """Without it, nobody waits either when the program around the server is cancelled."""
    with trio.CancelScope() as outer:
        async with deaf.serves(block_on_close=False):
            began = time.perf_counter()
            outer.cancel()
            await trio.lowlevel.checkpoint()
    assert time.perf_counter() - began < SOON


async def test_thread_outlives_its_server(deaf):
    """One that ends when the server is gone hurts nobody, and leaves no descriptor."""
    before = open_descriptors()
    deaf.after = lambda request: request.recv(1)
    async with deaf.serves(timeouts=AT_ONCE) as (server, _):
        server.shutdown(0)
        await server.wait_closed()
    assert len(open_descriptors() - before) == 1  # the thread's own
    await deaf.ends()
    await until(lambda: open_descriptors() == before)
    assert deaf.said == [b""]


async def test_server_serves_again_while_a_thread_is_left(deaf):
    """The next run of the same server has its own slots."""
    handlers = [deaf]

    def deaf_once(*facts):
        (handlers.pop() if handlers else Upper)(*facts)

    server = on_tcp(deaf_once, max_threads=1, timeouts=AT_ONCE)
    async with deaf.serves(server):
        server.shutdown(0)
        await server.wait_closed()
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


async def test_error_of_a_thread_that_was_left_behind_is_told(deaf, caplog):
    """In one line, when it comes."""
    caplog.set_level(logging.INFO, "trioserver")
    deaf.after = lambda request: [].pop()
    async with deaf.serves(timeouts=AT_ONCE) as (server, witness):
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        deaf.go.set()
        await until(lambda: "pop from empty list" in caplog.text)
    assert "which was left behind, has raised: IndexError: pop from empty list" in caplog.text


async def test_cancelled_handler_is_fed_no_more():
    """What is queued is not for it any more: its next read meets the end of the input."""
    reads = []

    def slow(sock, client_address, server):
        while data := sock.recv(1000):
            reads.append(len(data))
            if len(reads) == 3:
                server.cancel_request(1, "enough")
                wait.wait(10)

    wait = threading.Event()
    async with met(on_tcp(slow), bytes(100_000)) as (_, witness):
        await until(lambda: len(reads) == 3)
        await trio.testing.wait_all_tasks_blocked(0.01)
        wait.set()
        with trio.fail_after(SOON):
            await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]
    assert len(reads) == 3


async def test_thread_that_ends_before_its_outcome_keeps_no_slot(deaf):
    """A hook may take its time after a thread was left behind, which may end meanwhile."""

    class Dawdles(trioserver.ThreadingTCPServer):
        async def process_request(self, request, client_address):
            try:
                await super().process_request(request, client_address)
            finally:
                deaf.go.set()
                with trio.CancelScope(shield=True):
                    thread = request._fate.left_behind
                    await until(lambda: thread is None or thread._over)

    server = Dawdles(THERE, deaf, max_threads=1, timeouts=AT_ONCE)
    async with deaf.serves(server) as (_, witness):
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        async with await connect(server) as client:
            assert await read_to_end(client) == b""
    assert witness.outcomes == ["abandoned", "completed"]


CALLS_BACK = """
import threading, trio, trioserver

go, over, said = threading.Event(), threading.Event(), []

def calls_back(request, client_address, server):
    go.wait(10)
    try:
        trio.from_thread.run(trio.sleep, 0)
    except BaseException as error:
        said.append(type(error).__name__)
        raise
    finally:
        over.set()

async def main():
    timeouts = trioserver.Timeouts(cleanup=0)
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), calls_back, timeouts=timeouts)
    async with server.serving(grace=0):
        await trio.open_tcp_stream(*server.server_address)
        while not server.requests:
            await trio.sleep(0.001)

trio.run(main)
go.set()
over.wait(10)
print(said)
"""


def test_thread_calls_back_when_trio_is_gone():
    """TH-08: a call into a Trio that has ended raises there, and nothing hangs."""
    done = run_program(CALLS_BACK)
    assert done.stdout == "['RunFinishedError']\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("outlasts", [False, True])
async def test_thread_waits_in_trio_during_shutdown(outlasts):
    """TH-08: what a handler awaits in Trio is not cancelled with it, so it may be left behind."""
    go, began, over = trio.Event(), threading.Event(), threading.Event()

    async def waits_in_trio():
        began.set()
        await go.wait()

    def calls_back(request, client_address, server):
        try:
            trio.from_thread.run(waits_in_trio)
        finally:
            over.set()

    timeouts = Timeouts(cleanup=0.05 if outlasts else 5)
    async with met(server := on_tcp(calls_back, timeouts=timeouts)) as (client, _):
        await until(began.is_set)
        server.shutdown(0)
        if not outlasts:
            assert await read_to_end(client) == b""  # it is being cancelled
            go.set()
        report = await server.wait_closed()
    go.set()
    await until(over.is_set)
    assert outcomes(report) == ["abandoned" if outlasts else "cancelled"]


# The numbers of descriptors -------------------------------------------------------------------


@contextmanager
def all_free_numbers_taken():
    """Open so many pipes that every number that is free below the highest one is somebody's."""
    top = max(open_descriptors())
    ends = []
    while not ends or max(ends) < top + 8:
        ends += os.pipe()
    try:
        for end in ends:
            os.set_blocking(end, False)
        yield ends
    finally:
        for end in ends:
            os.close(end)


def unharmed(ends):
    """Whether nobody has closed, or written to, any of the pipes."""
    for reader, writer in zip(ends[::2], ends[1::2], strict=True):
        with suppress(BlockingIOError):
            os.read(reader, 1)
            return False
        os.write(writer, b"!")
        if os.read(reader, 2) != b"!":
            return False
    return True


def _reads(sock):
    assert sock.recv(100) == b""


def _writes(sock):
    with pytest.raises(OSError):  # noqa: PT011
        sock.sendall(b"late")


def _shuts(sock):
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


every_harm = pytest.mark.parametrize("late", [_reads, _writes, lambda sock: sock.close(), _shuts])


@every_harm
async def test_thread_left_behind_hits_nobody_else(late, deaf):
    """TH-09: its late read, write or close; its number is not free before it has ended."""
    deaf.after = late
    async with deaf.serves(timeouts=AT_ONCE) as (server, witness):
        before = open_descriptors()
        server.cancel_request(1, "enough")
        await until(lambda: witness.outcomes == ["abandoned"])
        assert open_descriptors() == before
        with all_free_numbers_taken() as ends:
            await deaf.ends()
            await until(lambda: len(before - open_descriptors()) == 1)
            with all_free_numbers_taken() as others:
                assert set(others) & before  # or it proves nothing
                with suppress(OSError):
                    late(deaf.sock)
                assert unharmed(ends + others)
    assert deaf.said == [None]


@every_harm
@pytest.mark.parametrize("of", ["socket", "file"])
async def test_what_a_handler_keeps_hits_nobody_else(late, of):
    """TH-09: nor does a socket, or a file made of it, that is used after the request's end."""
    kept = []

    def keeps(request, client_address, server):
        kept.append(request if of == "socket" else request.makefile("rwb", buffering=0))

    async with running(server := on_tcp(keeps)):
        before = open_descriptors()
        assert await ask(server, b"") == b""
        await until(lambda: len(open_descriptors()) <= len(before) + 2)  # and a wake-up pipe
        with all_free_numbers_taken() as ends:
            with suppress(OSError):
                late(kept[0] if of == "socket" else kept[0]._sock)
            kept.clear()
            assert unharmed(ends)


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR, "close"])
async def test_handler_shuts_its_own_socket(how, caplog):
    """TH-09: no harm is done, there is one record, and the client sees the end at once."""
    caplog.set_level(logging.INFO, "trioserver.error")
    go = threading.Event()

    def shuts(request, client_address, server):
        request.sendall(request.recv(100))
        (request.close if how == "close" else partial(request.shutdown, how))()
        go.wait(10)

    before = open_descriptors()
    async with met(on_tcp(shuts), b"x") as (client, witness):
        assert await client.receive_some() == b"x"
        if how == socket.SHUT_RD:
            go.set()
        with trio.fail_after(5):
            assert await client.receive_some() == b""  # and not when the handler returns
        go.set()
        await until(lambda: witness.records)
    assert witness.outcomes == ["completed"]
    assert caplog.records == []
    assert open_descriptors() == before


async def test_request_is_cancelled_when_its_handler_has_closed_it():
    """TH-09: there is nothing left to shut, and that is all right."""
    closed = threading.Event()

    def closes(request, client_address, server):
        request.shutdown(socket.SHUT_RDWR)
        request.close()
        closed.set()
        while True:
            trio.from_thread.check_cancelled()
            time.sleep(0.001)

    async with witnessed(server := on_tcp(closes)) as witness:
        plain_client(server.server_address).close()
        await until(closed.is_set)
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
    assert witness.outcomes == ["cancelled"]


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
    [record] = [it for it in witness.records if it.info.id == 1]
    assert (record.outcome, record.reason) == (Outcome.CANCELLED, "somebody's wish")


async def test_many_requests_cancelled_at_once():
    """All threads end in parallel, with limits of their own."""

    def waits_there(request, client_address, server):
        request.recv(1)

    server = on_tcp(waits_there, ends_idle_reads=False, limits=Limits(requests=30))
    async with running(server):
        clients = [await connect(server) for _ in range(30)]
        await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"] * 30)
        server.shutdown(0)
        report = await server.wait_closed()
        assert report.duration < 3 * SOON
        for client in clients:
            await client.aclose()
    assert len(report.cancelled) == 30
