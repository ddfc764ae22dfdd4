"""Health checks of a program: whether it lives, and whether clients should be sent to it."""

import logging
import re

import pytest
import trio
from support import read_to_end, until
from support.in_memory_programs import on_visit, order
from support.listening import LOOPBACK, bound
from support.scenes import table

import trioserver
from trioserver.testing import MemoryServer

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the socket is on which checks are answered."""
    monkeypatch.chdir(tmp_path)


async def open_stream(address):
    """A connection to a path, or to a host and port."""
    if isinstance(address, str):
        return await trio.open_unix_socket(address)
    return await trio.open_tcp_stream(*address)


async def says(request, address="health"):
    """What is answered to a request, all of it."""
    with trio.fail_after(20):
        async with await open_stream(address) as stream:
            await stream.send_all(request)
            return (await read_to_end(stream)).decode()


async def check(path="/ready", address="health"):
    """The status, and the text."""
    answer = await says(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode(), address)
    head, _, text = answer.partition("\r\n\r\n")
    assert f"Content-Length: {len(text)}\r\n" in head
    return int(head.split()[1]), text


def run(act, *others, **options):
    """Run a program that acts as soon as it has a client, and then ends, if it does not yet."""

    async def act_and_end(server):
        try:
            await act(server)
        finally:
            if not (server.draining or options.get("ready_off")):
                order("SIGTERM")

    return trioserver.run(on_visit(act_and_end), *others, health="health", **options)


OK, BAD, NOWHERE, NOT_SO = "200 OK", "400 Bad Request", "404 Not Found", "405 Method Not Allowed"


@table(
    ("request_", "status", "text"),
    {
        "it lives": (b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", OK, "live\n"),
        "it is ready": (b"GET /ready HTTP/1.0\r\n\r\n", OK, "ready\n"),
        "a query changes nothing": (b"GET /ready?now=1 HTTP/1.1\r\n\r\n", OK, "ready\n"),
        "who ends lines as on Unix": (b"GET /live HTTP/1.1\n\n", OK, "live\n"),
        "without the text": (b"HEAD /live HTTP/1.1\r\n\r\n", OK, ""),
        "anything else": (
            *(b"GET / HTTP/1.1\r\n\r\n", NOWHERE),
            "there are /live and /ready here\n",
        ),
        "another method": (b"POST /live HTTP/1.1\r\n\r\n", NOT_SO, "GET was expected\n"),
        "no HTTP": (b"hello\r\n\r\n", BAD, "a request of HTTP/1.1 was expected\n"),
        "bytes that are no text": (
            *(b"\xff\x00\r\n\r\n", BAD),
            "a request of HTTP/1.1 was expected\n",
        ),
    },
)
def test_answers(request_, status, text):
    """Each to its question, and then the connection ends."""
    answers = []

    async def ask(server):
        answers.append(await says(request_))

    run(ask)
    head, _, body = answers[0].partition("\r\n\r\n")
    assert (head.partition("\r\n")[0], body) == (f"HTTP/1.1 {status}", text)


def test_head_without_end():
    """Who sends no end of his request is answered all the same, or is let go of in time."""
    answers = []

    async def ask(server):
        many = b"GET /live HTTP/1.1\r\n" + b"x: y\r\n" * 100
        answers.append(await says(many))

    run(ask)
    assert answers[0].startswith("HTTP/1.1 200 OK")


class Slow(MemoryServer):
    """Binds when it may."""

    may_bind = None

    async def server_bind(self):
        await self.may_bind.wait()
        return await super().server_bind()


async def hold(request, client_address, server):
    """Is never called."""
    raise AssertionError


def test_ready_when_all_listen():
    """Before that it lives, and is not ready; and neither is it when one has ended."""
    seen, slow = [], Slow(("memory", 2), hold)
    slow.may_bind = trio.Event()

    async def look(server):
        seen.append(await check())
        slow.may_bind.set()
        while (found := await check())[0] != 200:
            assert found == bound_only
        seen.append(found)
        slow.shutdown()
        await until(lambda: slow.snapshot().state == "unbound")
        seen.extend([await check(), await check("/live")])

    bound_only = (503, "not ready: Slow is bound\n")
    run(look, slow)
    unbound = (503, "not ready: Slow is unbound\n")
    assert seen == [bound_only, (200, "ready\n"), unbound, (200, "live\n")]


def test_suspended():
    """Nobody should send clients to a server that lets nobody in."""
    seen = []

    async def look(server):
        server.suspend()
        seen.append(await check())
        server.resume()
        seen.append(await check())

    run(look)
    assert seen == [(503, "not ready: Visited is suspended\n"), (200, "ready\n")]


@pytest.mark.parametrize("ready_off", [0, 60])
def test_ending(ready_off):
    """From the first signal on it is not ready, and it lives until the last request has ended."""
    seen = []

    async def look(server):
        order("SIGTERM")
        await trio.testing.wait_all_tasks_blocked()
        seen.extend([await check(), await check("/live"), server.draining])
        if ready_off:
            server.shutdown()

    (report,) = run(look, ready_off=ready_off)
    assert seen == [(503, "not ready: it is about to end\n"), (200, "live\n"), not ready_off]
    assert report.clean


def test_on_tcp(caplog):
    """The log says where."""
    seen = []

    async def look(server):
        where = re.search(r"listening on 127.0.0.1:(\d+)", caplog.text)
        seen.append(await check(address=("127.0.0.1", int(where[1]))))
        order("SIGTERM")

    with caplog.at_level(logging.INFO, "trioserver"):
        trioserver.run(on_visit(look), health=LOOPBACK)
    assert seen == [(200, "ready\n")]


def test_place_that_is_taken():
    """Then nothing is served."""

    async def never(server):
        raise AssertionError

    server = on_visit(never)
    with bound(address="health") as taken:
        taken.listen()
        with pytest.raises(OSError, match="cannot listen on unix:health"):
            trioserver.run(server, health="health")
    assert server.snapshot().state == "unbound"
