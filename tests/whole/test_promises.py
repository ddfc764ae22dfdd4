"""Promises that no single file of the library keeps: any segments, any number, nothing left."""

import atexit
import contextlib
import gc
import logging
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from support import Upper, plain_client, read_to_end, running
from support.memory import ask, come
from support.pages import example
from support.protocols import Delimited, Framed
from support.scenes import heard_by, in_memory, on_tcp

import trioserver
from trioserver import Limits
from trioserver.testing import open_descriptors

ROOT = Path(__file__).resolve().parents[2]


def handler_of(name):
    """The handler of an example's server."""
    return example(name).make_server(0).RequestHandlerClass


# Segments ----------------------------------------------------------------------

LINES = st.lists(st.sampled_from([b"add 2", b"ADD 40", b"total", b"quit", b"", b"\xff", b"x" * 99]))
PARTS = [b"\r", b"\n", b"\r\n\r\n", b"a"]
PROTOCOLS = {
    "upper": (Upper, st.binary(max_size=40)),
    "line_protocol": (handler_of("line_protocol"), LINES.map(b"\n".join)),
    "frames": (Framed, st.lists(st.sampled_from([b"\0\0", b"\0\1x", b"\0\3\0\0\n"])).map(b"".join)),
    "delimited": (Delimited, st.lists(st.sampled_from(PARTS)).map(b"".join)),
    "function_handler": (handler_of("function_handler"), st.binary(max_size=40)),
}


async def reply_to(handler, pieces):
    """What a client gets who sends these pieces one by one, and then ends."""

    async def speak():
        for piece in pieces:
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()

    async with in_memory(handler).serving() as server:
        async with await server.connect(("client", 1)) as client, trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            return await read_to_end(client)


@pytest.mark.parametrize("name", PROTOCOLS)
@given(data=st.data())
@settings(max_examples=40)
def test_replies_do_not_depend_on_segments(name, data):
    """CM-04: however a request is cut into segments, the reply is that to one in one piece."""
    handler, requests = PROTOCOLS[name]
    request = data.draw(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(request)), max_size=8)))
    pieces = [request[a:b] for a, b in zip([0, *cuts], [*cuts, len(request)], strict=True)]
    whole = trio.run(reply_to, handler, [request])
    assert trio.run(reply_to, handler, pieces) == whole
    assert trio.run(reply_to, handler, [bytes([byte]) for byte in request]) == whole


@pytest.mark.parametrize("position", range(7))
async def test_urgent_byte_anywhere(position):
    """CM-12: wherever in a request an urgent byte comes, the reply is the same without it."""
    line = b"hello\n"
    async with running(on_tcp()) as address:
        with plain_client(address) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(line[:position])
            client.send(b"!", socket.MSG_OOB)
            await trio.testing.wait_all_tasks_blocked()
            client.sendall(line[position:])
            client.shutdown(socket.SHUT_WR)
            assert await heard_by(client) == line.upper()


async def test_queue_that_overflowed():
    """CM-18: after a flood of half-open clients is gone, a new one is served as ever."""
    server = on_tcp(limits=Limits(requests=1), request_queue_size=3)
    async with running(server) as address:
        with contextlib.ExitStack() as flood:
            for _ in range(200):
                half_open = flood.enter_context(socket.socket())
                half_open.setblocking(False)
                half_open.connect_ex(address)
            await trio.testing.wait_all_tasks_blocked()
            assert len(server.requests) == 1
        assert await ask(server) == b"HELLO\n"


async def test_idle_connections_cost_little():
    """BP-10: an idle connection in memory takes less than 16 KiB, both of its ends together."""
    async with in_memory().serving(grace=0) as server:
        warm_up = await come(server, 10)
        gc.collect()
        tracemalloc.start()
        try:
            clients = await come(server, 500)
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(server.requests) == 510
        for client in [*warm_up, *clients]:
            client.close()
    print(f"{taken / 500 / 1024:.1f} KiB an idle connection, both ends")
    assert taken / 500 < 16 * 1024


# What is left of many servers ------------------------------------------------------


def things_of_the_process():
    """What a server could leave behind in places that belong to the program."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        "signal handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "atexit": atexit._ncallbacks(),
        "loggers": len(loggers),
        "log handlers": sum(len(getattr(logger, "handlers", ())) for logger in loggers),
        "log filters": sum(len(getattr(logger, "filters", ())) for logger in loggers),
        "descriptors": open_descriptors(),
    }


def live_objects():
    """How many objects of the library's own classes there are, by class."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return Counter(k.__qualname__ for k in kinds if str(k.__module__).startswith("trioserver."))


class Quits(Upper):
    """Answers one line, and shuts the server down."""

    async def handle(self):
        await self.wfile.write(await self.rfile.readline())
        self.server.shutdown(grace=1)


class Asks(trioserver.Observer):
    """A client for each server: asks once when it listens."""

    def server_listening(self, addresses):
        self.client = plain_client(addresses[0])
        self.client.sendall(b"hello\n")
        self.client.shutdown(socket.SHUT_WR)

    def server_closed(self, report):
        self.client.close()


def come_and_go(programs, runs):
    """Run so many programs, each of a server for one client, and one server so many times."""
    for _ in range(programs):
        trioserver.run(on_tcp(Quits, observers=[Asks()]))
    trio.run(serve_many, runs)


async def serve_many(count):
    """Serve a server again and again; no task is left."""
    server = in_memory()
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(count):
        async with server.serving():
            assert await ask(server) == b"HELLO\n"
    assert trio.lowlevel.current_statistics().tasks_living == tasks


@pytest.mark.slow
def test_many_servers_leave_nothing():
    """LK-06: programs and servers come and go, and the process is as it was after the first."""
    come_and_go(2, 2)
    things, objects, threads = things_of_the_process(), live_objects(), threading.active_count()
    come_and_go(60, 300)
    assert things_of_the_process() == things
    assert live_objects() - objects == Counter()
    assert threading.active_count() <= threads


# This suite itself -----------------------------------------------------------------

LEAKS = """
import socket, threading, trio

def fail(self=None):
    raise ValueError("where nobody catches it")

def test_socket():
    socket.socket()

def test_never_awaited():
    trio.sleep(1)

def test_unraisable():
    type("Fails", (), {"__del__": fail})()

def test_thread():
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()

def test_clean():
    pass
"""


@pytest.mark.slow
def test_suite_fails_for_what_is_left(tmp_path):
    """LK-05: an unclosed socket, a coroutine never awaited, an error in a finalizer fail a test."""
    (tmp_path / "test_leaks.py").write_text(LEAKS, encoding="utf-8")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    for leak in ("socket", "never_awaited", "unraisable", "thread"):
        assert f"::test_{leak} FAILED" in done.stdout, done.stdout
    for text in ("::test_clean PASSED", "ResourceWarning", "was never awaited"):
        assert text in done.stdout
