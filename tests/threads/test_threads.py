"""Handlers in threads: those of the standard library, unmodified, and plain functions."""

import contextvars
import gc
import socket
import socketserver
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import trio
from support import descriptors, plain_client, read_to_end, reset, running, until
from support.adopting import in_thread, served, theirs
from support.scenes import table
from support.threads import (
    THERE,
    Upper,
    ask,
    ask_by_datagram,
    asked,
    cancelled,
    crowd,
    does,
    hooked,
    met,
    of_both_families,
    on_tcp,
    raising,
    shows,
    tried,
    witnessed,
)

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryMixIn

stream = of_both_families(trioserver.ThreadingTCPServer, trioserver.ThreadingUnixStreamServer)
datagram = of_both_families(trioserver.ThreadingUDPServer, trioserver.ThreadingUnixDatagramServer)


class Silent(trioserver.ThreadingTCPServer):
    async def handle_error(self, request, client_address): ...


def _greets(greeting, request, client_address, server):
    request.sendall(greeting + request.recv(100))


def _calls_trio(request, client_address, server):
    async def look():
        await trio.lowlevel.checkpoint()
        return b"%d" % trioserver.current_request().id

    request.sendall(trio.from_thread.run(look))


def _shuts_down(request, client_address, server):
    server.shutdown(5)
    request.sendall(b"bye")


@table(
    ("handler", "question", "answer"),
    {
        "StreamRequestHandler of socketserver works": (Upper, b"one\ntwo\n", b"ONE\nTWO\n"),
        "a plain function, also a partial one": (partial(_greets, b"hi "), b"you", b"hi you"),
        "trio.from_thread works in a handler": (_calls_trio, b"", b"1"),
        "shutdown works from the thread, and waits for it": (_shuts_down, b"", b"bye"),
    },
)
async def test_stream_handler(stream, handler, question, answer):
    """As it is, it talks to its client from a thread, and its bytes are counted."""
    record = await asked(stream(handler), question, answer)
    assert (record.outcome, record.info.mode) == ("completed", "thread")
    assert (record.bytes_received, record.bytes_sent) == (len(question), len(answer))


async def test_datagram_handler(datagram):
    """It gets the classic pair, whose ``sendto`` takes both classic forms, and the files work."""

    def handle(self):
        data, way_back = self.request
        assert way_back.getsockname() == self.server.server_address
        assert repr(way_back).startswith("<trioserver.SyncDatagramSocket: request 1 from ")
        with pytest.raises(TypeError, match="sendto takes"):
            way_back.sendto(data)
        assert way_back.sendto(data[::-1], self.client_address) == 5
        way_back.sendto(data, 0, self.client_address)
        self.wfile.write(self.rfile.read().upper())

    server = datagram(hooked(socketserver.DatagramRequestHandler, handle=handle))
    async with witnessed(server) as witness:
        assert await ask_by_datagram(server, b"hello", 3) == b"ollehhelloHELLO"
        await until(lambda: witness.records)
    [record] = witness.records
    assert (record.outcome, record.info.mode) == ("completed", "thread")
    assert (record.bytes_received, record.bytes_sent) == (5, 15)


_set_before = contextvars.ContextVar("_set_before", default="nothing")


async def test_thread_of_a_request():
    """TH-05: it is named after its client, and sees what was set before serving, and no more."""
    seen, idents = [], set()

    def looks(request, client_address, server):
        info = trioserver.current_request()
        name = "request {} from {}:{}".format(info.id, *client_address)
        assert threading.current_thread().name == name
        seen.append((info, _set_before.get()))
        idents.add(threading.get_ident())
        _set_before.set("in a request")

    _set_before.set("before")
    async with witnessed(server := on_tcp(looks)) as witness:
        for number in range(1, 4):
            assert await ask(server) == b""
            await until(lambda number=number: len(witness.records) == number)
    assert witness.outcomes == ["completed"] * 3
    assert seen == [(record.info, "before") for record in witness.records]
    assert len(idents) < 3  # or it proves nothing


# Slots ------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"max_threads": 4}, {"limits": Limits(requests=4)}])
async def test_fifth_client_waits_in_the_kernel(fields):
    """TH-02: with four stuck handlers nobody else is accepted; stopping is not held up."""
    go = threading.Semaphore(0)
    stuck = does("acquire True, 10; sendall b'done'", acquire=go.acquire)
    server = on_tcp(stuck, **{"max_threads": 100, **fields})
    async with running(server), crowd(server, 5) as clients:
        await until(lambda: len(server.requests) == 4)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.statistics().accepted == 4
        go.release()
        await until(lambda: server.statistics().accepted == 5)
        assert len(server.requests) == 4
        go.release(4)
        assert [await read_to_end(client) for client in clients] == [b"done"] * 5


async def test_slots_are_exact_under_load():
    """There are never more threads at once than slots, and all clients are served."""
    at_once = []
    here, lock = 0, threading.Lock()
    three = threading.Barrier(3)

    def counts(request, client_address, server):
        nonlocal here
        with lock:
            here += 1
            at_once.append(here)
            number = len(at_once)
        if number <= 99:
            three.wait(10)
        request.sendall(request.recv(10))
        with lock:
            here -= 1

    async def asks():
        for _ in range(21):
            assert await ask(server, b"x") == b"x"

    async with running(server := on_tcp(counts, max_threads=3)):
        async with trio.open_nursery() as clients:
            for _ in range(10):
                clients.start_soon(asks)
    assert (len(at_once), max(at_once)) == (210, 3)


async def test_stuck_threads_leave_others_alone():
    """TH-03: with every thread stuck, look-ups, file access and another server answer at once."""
    go, took = threading.Event(), []
    # As many as Trio's own limiter has tokens, which must not be what they take.
    async with running(server := on_tcp(lambda *_: go.wait(60))), crowd(server, 40):
        await until(lambda: len(server.requests) == 40)
        try:
            async with running(other := on_tcp(does("sendall b'here'"))):
                while len(took) < 5 and not (took and min(took) < 0.1):  # the machine may be busy
                    began = time.perf_counter()
                    await trio.socket.getaddrinfo("localhost", 80)
                    assert await trio.Path(__file__).exists()
                    assert await ask(other) == b"here"
                    took.append(time.perf_counter() - began)
        finally:
            go.set()
    assert min(took) < 0.1


# Errors -------------------------------------------------------------------------------


@table(
    "error",
    {
        "TH-04: it ends one request, and the server goes on": ValueError("what"),
        "also when Python has plans with it": StopIteration("what"),
        "and when it is no Exception": GeneratorExit(),
        "a reset of another connection is the handler's own error": ConnectionResetError("theirs"),
    },
)
async def test_error_ends_the_request_alone(error, caplog):
    """TH-04: it goes to ``handle_error``, with its traceback."""
    async with witnessed(server := on_tcp(raising(error))) as witness:
        assert await ask(server, b"x") == b""
        assert await ask(server) == b""
    assert witness.outcomes == ["failed", "completed"]
    [told] = [it for it in caplog.records if it.exc_info]
    assert told.name == "trioserver.error"
    assert "in fails" in caplog.text
    assert f"{type(error).__name__}: {error}".rstrip(": ") in caplog.text


@table(
    ("error", "at", "fields"),
    {
        "TH-04: SystemExit leaves, bare, after everything was closed": (SystemExit(), b"x", {}),
        "TH-04: so does KeyboardInterrupt": (KeyboardInterrupt(), b"x", {}),
        "it is not lost either after a cancellation": (SystemExit(), b"", {}),
        "and with propagate_errors, any error": (ValueError(), b"x", {"propagate_errors": True}),
    },
)
async def test_error_ends_the_server(error, at, fields):
    """It leaves ``serve_forever``."""
    before = descriptors()
    server = on_tcp(raising(error, at), **fields)
    with pytest.raises(type(error)):
        async with met(server, at):
            if not at:
                await shows(server, state="idle")
                await cancelled(server)
            await trio.sleep_forever()
    assert descriptors() == before
    assert server.socket is None


def _reads(handler):
    handler.rfile.readline()


def _writes_and_reads(handler):
    handler.wfile.write(b"more")
    handler.rfile.readline()


def _writes_on(handler):
    while True:
        handler.wfile.write(bytes(1000))


def _apologizes(handler):
    with pytest.raises(OSError):  # noqa: PT011
        handler.request.sendall(b"sorry")


finish = socketserver.StreamRequestHandler.finish


@table(
    ("goes_on", "finish", "size"),
    {
        "in a read": (_reads, finish, 0),
        "in a write": (_writes_on, finish, 0),
        "once more in finish(), whose flush hides its own error": (_writes_and_reads, finish, -1),
        "once more before the first error is on its way out": (_reads, _apologizes, 0),
    },
)
async def test_client_that_resets(goes_on, finish, size, caplog):
    """The peer's doing: ``disconnected``, one line at INFO, and no traceback."""
    caplog.set_level("INFO", "trioserver")
    was_reset = threading.Event()

    def handle(self):
        self.wfile.write(b"here")
        self.wfile.flush()
        was_reset.wait(10)
        goes_on(self)

    kind = hooked(socketserver.StreamRequestHandler, handle=handle, finish=finish, wbufsize=size)
    async with witnessed(server := on_tcp(kind)) as witness:
        with plain_client(server.server_address) as client:
            # The kernel resets a connection that is closed over unread input.
            await shows(server, bytes_sent=4)
            assert await trio.to_thread.run_sync(client.recv, 2) == b"he"
        was_reset.set()
        await until(lambda: witness.records)
    assert witness.outcomes == ["disconnected"]
    assert [it for it in caplog.records if it.levelname == "ERROR" or it.exc_info] == []


WITHOUT_THREADS = """
import threading, trio, trioserver; from trioserver.testing import open_descriptors

def back(request, client_address, server):
    request.sendall(request.recv(100))

async def main():
    before = open_descriptors()
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), back, max_threads=1)
    async with server.serving():
        for size in [2**40] * 3 + [0]:
            threading.stack_size(size)  # which the memory would not hold, so the system says no
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"x")
                print([chunk async for chunk in client], end=" ")
    outcomes = server.statistics().outcomes
    print(outcomes["failed"], outcomes["completed"], open_descriptors() == before)

trio.run(main)
"""


def test_thread_that_cannot_be_started():
    """TH-07: its request fails, its client is closed, its slot is free, no descriptor is left."""
    program = [sys.executable, "-W", "ignore", "-c", WITHOUT_THREADS]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] [] [] [b'x'] 3 1 True\n"
    assert "can't start new thread" in done.stderr


async def _asynchronous(*facts): ...


def _generator(*facts):
    yield


async def _async_generator(*facts):
    yield


def _handles(handle):
    return hooked(socketserver.StreamRequestHandler, handle=handle)


Tcp, Udp = trioserver.ThreadingTCPServer, trioserver.ThreadingUDPServer
DERIVE = r"derive it from socketserver\."


@pytest.mark.parametrize(
    ("kind", "handler", "message"),
    [
        (Tcp, _asynchronous, "is asynchronous, and this server runs handlers in threads"),
        (Tcp, _handles(_asynchronous), r"its handle\(\) must be a plain `def`"),
        (Tcp, _generator, "has a `yield`, so calling it runs nothing"),
        (Tcp, _handles(_generator), r"has a `yield` in its handle\(\), so calling it runs nothing"),
        (Tcp, _async_generator, "has a `yield`, so calling it runs nothing"),
        (Tcp, trioserver.BaseRequestHandler, f"{DERIVE}BaseRequestHandler, or the server"),
        (Tcp, trioserver.StreamRequestHandler, f"{DERIVE}StreamRequestHandler"),
        (Tcp, trioserver.DatagramRequestHandler, f"{DERIVE}DatagramRequestHandler"),
        (Tcp, partial(trioserver.StreamRequestHandler), f"{DERIVE}StreamRequestHandler"),
        (Tcp, socketserver.DatagramRequestHandler, f"{DERIVE}StreamRequestHandler"),
        (Udp, Upper, f"{DERIVE}DatagramRequestHandler"),
    ],
)
def test_wrong_colour_is_refused_at_once(kind, handler, message):
    """When the server is built, with the base to derive from."""
    with pytest.raises(TypeError, match=message):
        kind(THERE, handler)


@pytest.mark.parametrize("hidden", [_asynchronous, _generator, _async_generator])
async def test_hidden_wrong_colour_fails_the_request(hidden, caplog):
    """At the first request, if it cannot be told before: nothing is silently not done."""

    def hides(*facts):
        return hidden(*facts)

    record = await asked(on_tcp(hides), b"x")
    assert record.outcome == "failed"
    assert "in which nothing has run yet" in caplog.text
    assert "socketserver.BaseRequestHandler" in caplog.text


async def test_what_cannot_be_given_to_a_thread_is_refused(caplog):
    """A connection that ``get_request`` has wrapped, and one that is not the kernel's: said so."""

    class Wraps(Silent):
        def get_request(self, listener):
            accepted = super().get_request(listener)
            return None if accepted is None else ((accepted[0],), accepted[1])

        async def shutdown_request(self, request): ...

    assert "needs the Connection or Datagram itself" in (await asked(on_tcp(Upper, Wraps))).reason
    in_memory = type("InMemory", (MemoryMixIn, trioserver.ThreadingTCPServer), {})
    async with running(server := in_memory(("memory", 1), Upper)):
        async with await server.connect() as client:
            assert await read_to_end(client) == b""
    assert "a handler outside of Trio needs a kernel socket" in caplog.text


async def test_connection_that_is_lent_is_busy():
    """A hook that uses it while the thread does is told; it would keep Trio from running."""
    refused = 0

    class Meddles(trioserver.ThreadingTCPServer):
        async def process_request(self, request, client_address):
            nonlocal refused
            async with trio.open_nursery() as nursery:
                nursery.start_soon(super().process_request, request, client_address)
                await until(lambda: request.state == "idle")
                for use in (request.recv, partial(request.sendall, b"x"), request.send_eof):
                    with pytest.raises(trio.BusyResourceError):
                        await use()
                    refused += 1

    async with met(on_tcp(Upper, Meddles)) as (client, _):
        await until(lambda: refused == 3)
        await client.send_all(b"x\n")
        await client.send_eof()
        assert await read_to_end(client) == b"X\n"


async def test_handler_looks_at_the_server():
    """``requests``, ``statistics()`` and ``snapshot()`` work from any thread, all the time."""

    def looks(request, client_address, server):
        for _ in range(300):
            requests, _, tree = server.requests, server.statistics(), server.snapshot()
            assert 0 < len(requests) <= 20
            assert tree.requests[0].age >= 0
            assert tree.state == "serving"

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads meet in the middle of everything
    try:
        async with witnessed(server := on_tcp(looks)) as witness:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, server)
            await until(lambda: len(witness.outcomes) == 20)
    finally:
        sys.setswitchinterval(before)
    assert witness.outcomes == ["completed"] * 20


ODD = [(), ("127.0.0.1",), ("<broadcast>", 9), (1, 2), 5, "path", ("127.0.0.1", "x")]


async def test_datagrams_to_names_and_odd_addresses(monkeypatch):
    """``sendto`` says of every address what that of a socket says, be it none at all.

    Names are looked up in the handler's thread, so that it keeps nobody else waiting.
    """
    threads, look_up = [], socket.getaddrinfo

    def noted(*arguments, **options):
        threads.append(threading.current_thread().name)
        return look_up(*arguments, **options)

    def sends(request, client_address, server):
        data, way_back = request
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            ours, theirs = ([tried(it.sendto, b"x", to) for to in ODD] for it in (way_back, plain))
        assert ours == theirs
        way_back.sendto(data, (data.decode(), client_address[1]))

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    async with running(server := trioserver.ThreadingUDPServer(THERE, sends)):
        for name in (b"localhost", b""):
            assert await ask_by_datagram(server, name) == name
    assert {name.partition(" ")[0] for name in threads if "Main" not in name} == {"request"}


async def test_nothing_is_left():
    """TH-10: descriptors and threads are as many as before, whatever the clients did."""
    before, kept = descriptors(), []

    def fails(request, client_address, server):
        kept.append(request.makefile("rb"))  # and never closed
        if request.recv(1) == b"f":
            raise ValueError

    async with running(server := on_tcp(fails, Silent, max_threads=5)):
        threads = threading.active_count()
        for data in (b"x", b"f", b"") * 30:
            await ask(server, data)
        assert threading.active_count() <= threads + 5
    assert descriptors() == before
    # Trio keeps a thread for ten seconds, for its next call, under another name.
    assert [it for it in threading.enumerate() if it.name.startswith("request ")] == []
    assert all(file.raw.fileno() == -1 for file in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ends", ["completed", "failed", "timed_out", "disconnected", "cancelled", "adopted"]
)
async def test_no_garbage_however_it_ends(ends):
    """TH-10: nothing of a request is in a cycle, which would keep it until a collection."""

    def handle(self):
        Upper.handle(self)
        if ends in ("failed", "adopted"):
            raise ValueError(ends)

    async def one(number):
        with it.client() as client:
            client.sendall(b"x\n")
            assert await in_thread(client.recv, 2) == b"X\n"
            if ends == "cancelled":
                it.server.cancel_request(number, ends)
            elif ends == "disconnected":
                reset(client)
            elif ends != "timed_out":
                client.shutdown(socket.SHUT_WR)
            await it.ended(number)
        await trio.testing.wait_all_tasks_blocked()

    timeouts = Timeouts(idle=0.02 if ends == "timed_out" else 10)
    handler = hooked(Upper, handle=handle)
    server = on_tcp(handler, Silent)
    if ends == "adopted":
        server = theirs(handler, handle_error=lambda *_: None)
    async with served(server, timeouts=timeouts) as it:
        await one(1)
        gc.collect()
        gc.disable()
        try:
            for number in range(2, 22):
                await one(number)
            assert gc.collect() < 20  # less than one object a request
        finally:
            gc.enable()
    assert set(it.outcomes) == {"failed" if ends == "adopted" else ends}
