"""The documentation: its code runs, and its tables leave nothing out."""

from __future__ import annotations

import ast
import errno
import http.server
import importlib.util
import inspect
import io
import itertools
import logging
import math
import os
import re
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, closing, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import read_to_end, until

import trioserver
import trioserver.monitoring
import trioserver.testing
from trioserver._engine.accept_errors import Tier, tier_of
from trioserver._facts.verdict import _PEER_OUTCOMES
from trioserver.testing import MemoryDatagramServer, MemoryMixIn, MemoryServer, Trial

DOCS = Path(__file__).resolve().parents[2] / "docs"
MEMORY = ("memory", 1)


def snippet(name: str) -> ModuleType:
    """A file of ``docs/snippets``, as a module; one snippet may import another by its name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DOCS / "snippets" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def page(name: str) -> str:
    """The source of a page."""
    return (DOCS / f"{name}.rst").read_text(encoding="utf-8")


# The snippets ------------------------------------------------------------------


async def test_tutorial_echo(autojump_clock: trio.testing.MockClock) -> None:
    """The first server of the tutorial echoes, and says who is there."""
    with redirect_stdout(io.StringIO()) as printed:
        async with MemoryServer(MEMORY, snippet("tutorial_echo").echo).serving() as server:
            client = await server.connect(("you", 1))
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
            await client.send_eof()
            assert await client.receive_some() == b""
    assert printed.getvalue() == "('you', 1) is here\n('you', 1) is gone\n"


async def test_tutorial_timer(autojump_clock: trio.testing.MockClock) -> None:
    """Two clients' timers run side by side; one client's run one after the other."""
    async with MemoryServer(MEMORY, snippet("tutorial_timer").Timer).serving() as server:
        first, second = await server.connect(), await server.connect()
        await first.send_all(b"20 egg\n20 toast\n")
        await second.send_all(b"10 tea\n")
        assert await second.receive_some() == b"tea is ready\n"
        assert trio.current_time() == 10
        assert await first.receive_some() == b"egg is ready\n"
        assert trio.current_time() == 20
        assert await first.receive_some() == b"toast is ready\n"
        assert trio.current_time() == 40


async def test_tutorial_timer_met_with_nonsense(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """A line that is not a timer ends its own client, with one ERROR record."""
    async with MemoryServer(MEMORY, snippet("tutorial_timer").Timer).serving() as server:
        bystander, client = await server.connect(), await server.connect(("you", 1))
        await client.send_all(b"soon\n")
        assert await client.receive_some() == b""
        await bystander.send_all(b"0 tea\n")
        assert await bystander.receive_some() == b"tea is ready\n"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "error while serving you:1"
    assert "ValueError: not enough values to unpack" in (caplog.text)


async def test_tutorial_timers_end_with_their_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A client that vanishes takes its timers with it: the first that rings ends the others."""
    server = MemoryServer(MEMORY, snippet("tutorial_timers").Timers)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"180 tea\n360 egg\n")
        await trio.testing.wait_all_tasks_blocked()
        client.reset()
        await trio.sleep(180)
        await trio.testing.wait_all_tasks_blocked()
        assert not server.requests
        assert server.statistics().outcomes[trioserver.Outcome.DISCONNECTED] == 1


async def test_tutorial_timers_ring_in_a_drain(autojump_clock: trio.testing.MockClock) -> None:
    """A drain lets running timers ring, as long as the grace lasts, and cuts the rest."""
    async with MemoryServer(MEMORY, snippet("tutorial_timers").Timers).serving() as server:
        hopeful, hopeless = await server.connect(), await server.connect()
        await hopeful.send_all(b"10 tea\n")
        await hopeless.send_all(b"360 egg\n")
        await trio.testing.wait_all_tasks_blocked()
        server.shutdown()
        assert await hopeful.receive_some() == b"tea is ready\n"
        assert trio.current_time() == 10
        assert await hopeless.receive_some() == b""
        assert trio.current_time() == 15
        report = await server.wait_closed()
    assert len(report.drained) == 1
    assert len(report.cancelled) == 1


async def test_tutorial_timer_kept_waiting(autojump_clock: trio.testing.MockClock) -> None:
    """With the default time-outs, a timer of more than five minutes ends with its silent client."""

    class Impatient(snippet("tutorial_timers").Timers):  # type: ignore[misc]
        timeout = None

    async with MemoryServer(MEMORY, Impatient).serving() as server:
        client = await server.connect()
        await client.send_all(b"360 egg\n")
        assert await client.receive_some() == b""
        assert trio.current_time() == 300


async def test_tutorial_test(autojump_clock: trio.testing.MockClock) -> None:
    """The test that the tutorial ends with passes."""
    snippet("tutorial_timers")
    await snippet("tutorial_test").test_tea_is_ready_before_the_egg(autojump_clock)


async def test_stop_as_a_task_and_as_a_block() -> None:
    """Both ways to serve inside a program answer, drain and report."""
    stop = snippet("stop")
    server = trioserver.TCPServer(("127.0.0.1", 0), stop.Upper)
    for way in (stop.as_a_task, stop.as_a_block):
        with trio.fail_after(10), redirect_stdout(io.StringIO()) as printed:
            await way(server)
        assert "b'HELLO\\n'" in printed.getvalue()
        assert "shutdown() was called" in printed.getvalue()


async def test_stop_several() -> None:
    """Two servers under one nursery both answer, and both end."""
    stop = snippet("stop")
    first = trioserver.TCPServer(("127.0.0.1", 0), stop.Upper)
    with trio.fail_after(10), redirect_stdout(io.StringIO()) as printed:
        await stop.several(first, first.evolve())
    assert printed.getvalue() == "b'HELLO\\n'\n" * 2


@pytest.mark.skipif(os.name != "posix", reason="needs SIGUSR2")
async def test_stop_by_signal() -> None:
    """A signal of the program's own choice drains the server."""
    stop = snippet("stop")
    server = trioserver.TCPServer(("127.0.0.1", 0), stop.Upper, observers=[SignalWhenListening()])
    with trio.fail_after(10):
        await stop.by_signal(server)
    assert not server.draining


class SignalWhenListening(trioserver.Observer):
    """Sends this process the signal, once the receiver had time to be there."""

    def server_listening(self, addresses: Any) -> None:
        trio.lowlevel.spawn_system_task(self._signal)

    async def _signal(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGUSR2)


async def test_stop_with_a_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    """A handler whose loop was ended by a drain can still speak."""
    async with MemoryServer(MEMORY, snippet("stop").Polite).serving() as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        server.shutdown()
        assert await client.receive_some() == b"BYE\n"
        assert await client.receive_some() == b""


async def test_stop_without_a_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    """The same handler says nothing to a client that ends by itself."""
    async with MemoryServer(MEMORY, snippet("stop").Polite).serving() as server:
        client = await server.connect()
        await client.send_eof()
        assert await client.receive_some() == b""


async def test_stop_from_a_handler(autojump_clock: trio.testing.MockClock) -> None:
    """A handler may shut its own server down, and still gets its reply out."""
    async with MemoryServer(MEMORY, snippet("stop").Stoppable).serving() as server:
        client = await server.connect()
        await client.send_all(b"stop the server\n")
        assert await client.receive_some() == b"STOP THE SERVER\n"
        assert server.draining
        assert await client.receive_some() == b""
        report = await server.wait_closed()
    assert report.grace == 1


async def test_stop_idle_echo(autojump_clock: trio.testing.MockClock) -> None:
    """A function whose wait stands in an idle block echoes, and ends when the server drains."""
    async with MemoryServer(MEMORY, snippet("stop").echo).serving() as server:
        client = await server.connect()
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        server.shutdown()
        assert await client.receive_some() == b""
        assert trio.current_time() == 0


@pytest.mark.parametrize("handler", ["Reverse", "ReverseSoon"])
async def test_keep_alive_requests(handler: str, autojump_clock: trio.testing.MockClock) -> None:
    """Requests follow each other on one connection, however they are cut."""
    async with MemoryServer(MEMORY, getattr(snippet("keep_alive"), handler)).serving() as server:
        client = await server.connect()
        await client.send_all(b"\0\0\0\x03abc\0\0")
        assert await client.receive_some() == b"\0\0\0\x03cba"
        await client.send_all(b"\0\x02de")
        assert await client.receive_some() == b"\0\0\0\x02ed"
        server.shutdown()
        assert await client.receive_some() == b""
        report = await server.wait_closed()
    assert len(report.drained) == 1


async def test_keep_alive_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A request gets ten seconds, the wait for the next one sixty."""
    async with MemoryServer(MEMORY, snippet("keep_alive").ReverseSoon).serving() as server:
        slow, silent = await server.connect(), await server.connect()
        await trio.sleep(50)
        await slow.send_all(b"\0\0\0\x03a")
        assert await slow.receive_some() == b""
        assert trio.current_time() == 60
        assert await silent.receive_some() == b""
        assert trio.current_time() == 60
        assert server.statistics().outcomes[trioserver.Outcome.TIMED_OUT] == 2


async def test_keep_alive_size(autojump_clock: trio.testing.MockClock) -> None:
    """A request that says that it is too large is not waited for."""
    async with MemoryServer(MEMORY, snippet("keep_alive").Reverse).serving() as server:
        client = await server.connect()
        await client.send_all(b"\xff\xff\xff\xff")
        assert await client.receive_some() == b""
        assert trio.current_time() == 0


async def test_keep_alive_news(autojump_clock: trio.testing.MockClock) -> None:
    """News arrive while there are some; a drain ends the wait with a goodbye."""
    keep_alive = snippet("keep_alive")
    server = MemoryServer(MEMORY, keep_alive.News)
    server.readers = set()
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        keep_alive.publish(server, b"rain\n")
        assert await client.receive_some() == b"rain\n"
        server.shutdown()
        assert await client.receive_some() == b"that was the news\n"
    assert server.readers == set()


async def test_keep_alive_news_that_nobody_takes(autojump_clock: trio.testing.MockClock) -> None:
    """A reader whose channel is full is told so, and publishing does not wait for it."""
    keep_alive = snippet("keep_alive")
    server = MemoryServer(MEMORY, keep_alive.News)
    server.readers = set()
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(1 + 10 + 1):  # one goes straight to the wait, ten are kept
            keep_alive.publish(server, b"rain\n")
        assert server.readers == set()
        assert await read_to_end(client) == b"rain\n" * 11 + b"you read too slowly\n"


def in_memory(server: Any) -> Any:
    """The same server, in memory."""

    class InMemory(MemoryMixIn, type(server)):  # type: ignore[misc]
        pass

    fields = attrs.fields_dict(type(server)).values()
    values = {field.alias: getattr(server, field.name) for field in fields}
    return InMemory(**{**values, "server_address": MEMORY})


async def test_limits_explained(autojump_clock: trio.testing.MockClock) -> None:
    """A client that finds the server full is told so."""
    server = in_memory(snippet("limits").explain)
    async with server.serving():
        guests = [await server.connect() for _ in range(100)]
        unlucky = await server.connect()
        assert await unlucky.receive_some() == b"421 too busy, try again later\r\n"
        for guest in guests:
            await guest.aclose()


async def test_limits_refused(autojump_clock: trio.testing.MockClock) -> None:
    """A client that finds the server full is reset."""
    server = in_memory(snippet("limits").refuse)
    async with server.serving():
        guests = [await server.connect() for _ in range(100)]
        unlucky = await server.connect()
        with pytest.raises(trio.BrokenResourceError):
            await unlucky.receive_some()
        for guest in guests:
            await guest.aclose()


@pytest.mark.parametrize(("name", "most"), [("wait", 100), ("one_by_one", 1)])
async def test_limits_waited_for(
    name: str, most: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A client that finds the server full waits, and is served when a slot falls free."""
    server = in_memory(getattr(snippet("limits"), name))
    async with server.serving():
        guests = [await server.connect() for _ in range(most + 1)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.requests) == most
        await guests[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [info.id for info in server.requests][-1] == most + 1
        for guest in guests[1:]:
            await guest.aclose()


async def test_limits_per_client(autojump_clock: trio.testing.MockClock) -> None:
    """One address gets five connections, and another one is not concerned."""
    server = in_memory(snippet("limits").fair)
    async with server.serving():
        guests = [await server.connect(("192.0.2.1", port)) for port in range(5)]
        greedy = await server.connect(("192.0.2.1", 5))
        guests.append(await server.connect(("192.0.2.2", 0)))
        with pytest.raises(trio.BrokenResourceError):
            await greedy.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.requests) == 6
        for guest in guests:
            await guest.aclose()


async def test_limits_verified(autojump_clock: trio.testing.MockClock) -> None:
    """A client from elsewhere is turned away before its request begins."""
    limits = snippet("limits")
    server = in_memory(limits.Private(("localhost", 0), snippet("tutorial_echo").echo))
    with redirect_stdout(io.StringIO()):
        async with server.serving():
            friend = await server.connect(("10.1.2.3", 1))
            stranger = await server.connect(("192.0.2.1", 1))
            assert await stranger.receive_some() == b""
            await friend.send_all(b"hello")
            assert await friend.receive_some() == b"hello"
            await friend.send_eof()
            await friend.receive_some()


async def test_logs_name_the_request(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Records of a handler's own logger carry the id of its request."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        snippet("logs").set_up_logging()
        async with MemoryServer(MEMORY, snippet("logs").Upper).serving() as server:
            client = await server.connect()
            await client.send_all(b"hello\n")
            assert await client.receive_some() == b"HELLO\n"
    finally:
        root.setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "INFO trioserver.access [None] listening on memory:1",
        "INFO upper [1] a line of 6 bytes",
    ]


async def test_logs_counter(autojump_clock: trio.testing.MockClock) -> None:
    """An observer counts how requests ended."""
    logs = snippet("logs")
    counter = logs.Counter()
    limits = trioserver.Limits(requests=1, when_full="refuse")
    server = MemoryServer(MEMORY, logs.Upper, observers=[counter], limits=limits)
    async with server.serving():
        client, unlucky = await server.connect(), await server.connect()
        with pytest.raises(trio.BrokenResourceError):
            await unlucky.receive_some()
        await client.send_eof()
        await client.receive_some()
    assert counter.outcomes == {trioserver.Outcome.COMPLETED: 1}
    assert counter.refused == 1


async def test_logs_handle_error(autojump_clock: trio.testing.MockClock) -> None:
    """An overridden handle_error has the exception, and can still answer."""

    async def fail(request: Any, client_address: Any, server: Any) -> None:
        raise LookupError("no such page")

    server = in_memory(snippet("logs").Reporting(("localhost", 0), fail))
    async with server.serving():
        client = await server.connect()
        assert await client.receive_some() == b"500 that was our fault\r\n"
    assert isinstance(server.last_error, LookupError)


@pytest.mark.skipif(sys.platform != "linux", reason="needs peer credentials")
async def test_sockets_unix(tmp_path: Path) -> None:
    """A Unix server knows its clients, has the mode it was given, and leaves no file."""
    path = tmp_path / "whoami"
    async with snippet("sockets").on_a_path(path).serving():
        assert path.stat().st_mode & 0o777 == 0o660
        with trio.fail_after(10):
            async with await trio.open_unix_socket(path) as client:
                assert await client.receive_some() == b"you are user %d\n" % os.getuid()
    assert not path.exists()


async def test_sockets_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that a parent bound are found by their numbers, and served."""
    sockets, stop = snippet("sockets"), snippet("stop")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        monkeypatch.setattr(sockets, "FIRST", os.dup(bound.fileno()))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        server = sockets.inherited(stop.Upper)
        with trio.fail_after(10), redirect_stdout(io.StringIO()) as printed:
            async with server.serving():
                await stop.talk_to(bound.getsockname())
    assert printed.getvalue() == "b'HELLO\\n'\n"


async def test_listener_tap() -> None:
    """A server over wrapped transports serves as before, and what passes is shown."""
    server = snippet("listener").TappedServer(("127.0.0.1", 0), snippet("stop").Upper)
    with trio.fail_after(10), redirect_stdout(io.StringIO()) as printed:
        async with server.serving():
            await snippet("stop").talk_to(server.server_address)
    assert printed.getvalue() == "< b'hello\\n'\n> b'HELLO\\n'\nb'HELLO\\n'\n"


async def test_datagrams_answered(autojump_clock: trio.testing.MockClock) -> None:
    """Class, function and the class for both kinds answer a datagram with one."""
    datagrams = snippet("datagrams")
    for handler, sent, answer in (
        (datagrams.Upper, b"hello", b"HELLO"),
        (datagrams.echo, b"hello", b"hello"),
        (datagrams.Add, b"1 2\n3\n4 5", b"3\n3\n9\n"),
    ):
        async with MemoryDatagramServer(MEMORY, handler).serving() as server:
            client = server.client()
            await client.send(sent)
            with trio.fail_after(60):
                assert await client.receive() == answer
            await trio.testing.wait_all_tasks_blocked()
            assert client.received() == []


async def test_datagrams_and_streams_by_one_class() -> None:
    """The same class adds up over both; over TCP it answers each line as it comes."""
    by_stream, by_datagram = snippet("datagrams").on_both(("127.0.0.1", 0))
    with trio.fail_after(10):
        async with by_stream.serving(), by_datagram.serving():
            async with await trio.open_tcp_stream(*by_stream.server_address) as client:
                for line, total in ((b"1 2\n", b"3\n"), (b"3\n", b"3\n")):
                    await client.send_all(line)
                    assert await client.receive_some() == total
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sender:
                await sender.sendto(b"1 2\n3\n", by_datagram.server_address)
                assert await sender.recv(100) == b"3\n3\n"


async def test_datagrams_in_parts(autojump_clock: trio.testing.MockClock) -> None:
    """A report that is too large for one datagram comes in several, which are numbered."""
    server = MemoryDatagramServer(MEMORY, snippet("datagrams").in_parts)
    server.report = b"x" * 2500
    async with server.serving():
        client = server.client()
        await client.send(b"report, please")
        await trio.testing.wait_all_tasks_blocked()
        parts = [part.partition(b"\n") for part in client.received()]
    assert [(number, len(text)) for number, _, text in parts] == [
        (b"1 of 3", 1200),
        (b"2 of 3", 1200),
        (b"3 of 3", 100),
    ]


async def test_datagrams_relayed(autojump_clock: trio.testing.MockClock) -> None:
    """What one guest says all others hear; one who is gone is forgotten, and harms nobody."""
    server = MemoryDatagramServer(MEMORY, snippet("datagrams").Relay)
    server.guests = set()
    async with server.serving():
        ann, bob, cid = (server.client() for _ in range(3))
        for guest in (ann, bob, cid):
            await guest.send(b"I am here")
            await trio.testing.wait_all_tasks_blocked()
        assert [len(guest.received()) for guest in (ann, bob, cid)] == [2, 1, 0]
        bob.close()
        await ann.send(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert (ann.received(), cid.received()) == ([], [b"hello"])
        assert server.guests == {ann.address, cid.address}
        assert server.statistics().outcomes["completed"] == 4


async def test_datagrams_relayed_for_a_hundred(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever claims many addresses cannot make the server remember more than a hundred."""
    server = MemoryDatagramServer(MEMORY, snippet("datagrams").Relay)
    server.guests = set()
    async with server.serving():
        for _ in range(150):
            await server.client().send(b"me, too")
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.guests) == 100


def datagrams_in_memory(server: trioserver.UDPServer) -> Any:
    """The same datagram server, in memory."""
    return MemoryDatagramServer(MEMORY, server.RequestHandlerClass, limits=server.limits)


async def test_datagrams_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """One at a time: the replies come in the order of the datagrams."""

    async def slower_at_first(request: trioserver.Datagram, address: Any, server: Any) -> None:
        await trio.sleep(10 / int(request.data))
        await request.reply(request.data)

    server = datagrams_in_memory(snippet("datagrams").in_order(("localhost", 0), slower_at_first))
    async with server.serving():
        client = server.client()
        for number in range(1, 6):
            await client.send(b"%d" % number)
        with trio.fail_after(60):
            replies = [await client.receive() for _ in range(5)]
        assert replies == [b"1", b"2", b"3", b"4", b"5"]


async def test_datagrams_for_many() -> None:
    """The buffer that was asked for is there, as far as the system goes."""
    sockopt = (socket.SOL_SOCKET, socket.SO_RCVBUF)
    with socket.socket(type=socket.SOCK_DGRAM) as usual:
        usual.setsockopt(*sockopt, 4 * 2**20)
        given = usual.getsockopt(*sockopt)
    datagrams = snippet("datagrams")
    async with datagrams.for_many(("127.0.0.1", 0), datagrams.Upper) as server:
        assert server.socket.getsockopt(*sockopt) == given
        assert server.limits.requests == 200


async def test_datagrams_for_slow_readers(tmp_path: Path) -> None:
    """The same for what was not read yet."""
    sockopt = (socket.SOL_SOCKET, socket.SO_SNDBUF)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as usual:
        usual.setsockopt(*sockopt, 4 * 2**20)
        given = usual.getsockopt(*sockopt)
    datagrams = snippet("datagrams")
    path = str(tmp_path / "socket")
    async with datagrams.for_slow_readers(path, datagrams.Upper) as server:
        assert server.socket.getsockopt(*sockopt) == given


async def test_datagrams_refused_with_an_excuse(autojump_clock: trio.testing.MockClock) -> None:
    """Those who find the server full are told so."""

    async def sleep(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await trio.sleep(1)

    server = datagrams_in_memory(snippet("datagrams").with_an_excuse(("localhost", 0), sleep))
    async with server.serving():
        first, unlucky = server.client(), server.client()
        for _ in range(200):
            await first.send(b"work")
        await unlucky.send(b"work")
        with trio.fail_after(60):
            assert await unlucky.receive() == b"busy, ask again later\n"
        assert first.received() == []


async def test_datagrams_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    """What the observer prints of one is what the page shows."""
    datagrams = snippet("datagrams")
    server = trioserver.UDPServer(
        ("127.0.0.1", 0), datagrams.echo, max_packet_size=1000, observers=[datagrams.TooLarge()]
    )
    with trio.fail_after(10), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        async with server.serving():
            for size in (1001, 1000):
                await client.sendto(b"x" * size, server.server_address)
            assert await client.recv(2000) == b"x" * 1000
            assert server.statistics().accept_errors == 1
        port = client.getsockname()[1]
    assert_shown(capsys.readouterr().out.replace(f":{port} ", ":51022 "), "how-to/datagrams")


snippet("datagrams")  # which the tests import
DATAGRAM_TESTS = [name for name in vars(snippet("datagrams_test")) if name.startswith("test_")]


@pytest.mark.parametrize("test", DATAGRAM_TESTS)
async def test_datagrams_test(test: str, autojump_clock: trio.testing.MockClock) -> None:
    """The tests on the page about datagrams pass, each on a virtual clock of its own."""
    await getattr(snippet("datagrams_test"), test)(autojump_clock)


async def test_multicast() -> None:
    """Two servers of one machine that have joined a group both answer who asks it."""
    multicast, lo = snippet("multicast"), "127.0.0.1"
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        joined = socket.inet_aton(multicast.GROUP) + socket.inet_aton(lo)
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        except OSError as error:
            pytest.skip(f"no multicast on the loopback interface: {error}")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def member(port: int) -> trioserver.UDPServer:
                serve = partial(multicast.serve_group, multicast.GROUP, port, multicast.here, lo)
                server: trioserver.UDPServer = await nursery.start(serve)
                return server

            first = await member(0)
            port = first.server_address[1]
            await member(port)

            def ask_group() -> list[tuple[str, str]]:
                answers = multicast.who_is_there(multicast.GROUP, port, lo, seconds=5)
                return list(itertools.islice(answers, 2))

            answers = await trio.to_thread.run_sync(ask_group)
            nursery.cancel_scope.cancel()
    assert answers == [(lo, socket.gethostname())] * 2


async def test_threads_upper() -> None:
    """A handler of socketserver answers line after line; a drain ends it between two."""
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), snippet("threads").Upper)
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                for line in (b"hello\n", b"again\n"):
                    await client.send_all(line)
                    assert await client.receive_some() == line.upper()
                server.shutdown()
                assert await read_to_end(client) == b""
        assert len((await server.wait_closed()).drained) == 1


async def test_threads_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one client waits for the function to sleep, another one is served."""
    threads, awake = snippet("threads"), threading.Event()
    monkeypatch.setattr(threads, "time", SimpleNamespace(sleep=lambda seconds: awake.wait(10)))
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), threads.slow)
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as first:
                async with await trio.open_tcp_stream(*server.server_address) as second:
                    await until(lambda: len(server.requests) == 2)
                    awake.set()
                    for client in (first, second):
                        assert await read_to_end(client) == b"sorry for the delay\n"


@pytest.mark.parametrize(("guests", "answer"), [("127.0.0.1\n", b"HELLO\n"), ("10.0.0.1\n", b"")])
async def test_threads_guarded(guests: str, answer: bytes, tmp_path: Path) -> None:
    """Who is on the list is served; the hook is asynchronous, the handler is not."""
    guest_list = tmp_path / "guests"
    guest_list.write_text(guests, encoding="utf-8")
    threads = snippet("threads")
    server = threads.Guarded(("127.0.0.1", 0), threads.Upper, guest_list=guest_list)
    assert server.max_threads == 100
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"hello\n")
                assert await client.receive_some() == answer


async def test_threads_smallest_factor() -> None:
    """It finds the factor; in a search that would take years, it notices its cancellation."""
    handler = snippet("threads").SmallestFactor
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"91\n")
                assert await read_to_end(client) == b"7\n"
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"%d\n" % (2**61 - 1))
                await until(lambda: any(it.bytes_received for it in server.snapshot().requests))
                server.shutdown(grace=0)
                assert [it.outcome for it in (await server.wait_closed()).requests] == ["cancelled"]


async def test_threads_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has Trio do has a bound of its own, and goes on although the request is cancelled."""
    threads = snippet("threads")
    rings, heard = trio.Event(), trio.Event()
    opened = []

    async def somebody_opens(bell: bytes) -> bytes:
        if bell == b"back\n":
            rings.set()
            await heard.wait()
        opened.append(bell)
        return b"come in\n"

    monkeypatch.setattr(threads, "somebody_opens", somebody_opens)
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), threads.Door)
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"front\n")
                assert await client.receive_some() == b"come in\n"
                await client.send_all(b"back\n")
                await rings.wait()
                server.shutdown(grace=0)
                assert await read_to_end(client) == b""  # it has been cancelled
                heard.set()
        (record,) = (await server.wait_closed()).requests
        assert record.outcome == "cancelled"
    assert opened == [b"front\n", b"back\n"]


async def test_threads_door_that_nobody_opens(autojump_clock: trio.testing.MockClock) -> None:
    """Its bound is five seconds."""
    assert await snippet("threads").ring(b"front\n") == b"come in\n"
    assert trio.current_time() == 3
    assert await snippet("threads").ring(b"back\n") == b"nobody is at home\n"
    assert trio.current_time() == 8


def take_mail(request: socket.socket, client_address: Any, server: Any) -> None:
    """The part of SMTP that the guess of a drain is wrong for."""
    request.recv(100)
    request.sendall(b"354 go ahead\r\n")
    message = request.recv(100)
    request.sendall(b"250 ok\r\n" if message else b"451 and your message?\r\n")


@pytest.mark.parametrize(
    ("server_class", "answer"),
    [
        (trioserver.ThreadingTCPServer, b"451 and your message?\r\n"),
        (snippet("threads").Mail, b"250 ok\r\n"),
    ],
)
async def test_threads_mail(server_class: Any, answer: bytes) -> None:
    """After DATA, a drain cuts the message off where the page says so, and not if it is told."""
    server = server_class(("127.0.0.1", 0), take_mail)
    with trio.fail_after(10):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"DATA\r\n")
                assert await client.receive_some() == b"354 go ahead\r\n"
                await until(lambda: server.snapshot().requests[0].state == "idle")
                server.shutdown()
                if not server.ends_idle_reads:
                    await client.send_all(b"hello\r\n.\r\n")
                assert await read_to_end(client) == answer


async def test_threads_datagrams() -> None:
    """Each datagram has a reply, an empty one included."""
    server = snippet("threads").on_datagrams(("127.0.0.1", 0))
    with trio.fail_after(10), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        async with server.serving():
            for packet in (b"hello", b""):
                await client.sendto(packet, server.server_address)
                assert await client.recv(100) == packet.upper()


async def test_threads_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """What the pages show of a thread that goes on is what is logged of one."""
    caplog.set_level(logging.INFO)
    enough = threading.Event()

    def hang(request: socket.socket, client_address: Any, server: Any) -> None:
        enough.wait(10)

    timeouts = trioserver.Timeouts(request=0.05, cleanup=0.05)
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), hang, timeouts=timeouts)
    try:
        with trio.fail_after(10):
            async with server.serving():
                async with await trio.open_tcp_stream(*server.server_address) as client:
                    assert await read_to_end(client) == b""
                await until(lambda: server.statistics().outcomes[trioserver.Outcome.ABANDONED])
    finally:
        enough.set()
    named, record = (it for it in caplog.messages if "request 1" in it)
    named = re.sub(r"from \S+ still runs 0.05 s", "from 127.0.0.1:51022 still runs 5 s", named)
    assert "enough.wait(10)" in named
    assert_shown(named.splitlines()[0], "how-to/threads")
    record = re.sub(r"^request 1 from \S+", "request 4 from 192.0.2.1:51028", record)
    assert_shown(re.sub(r"after \S+ s, .*", "after 405.000 s, ...", record), "explanation/errors")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The snippet about processes, where a worker finds it, too: a module that can be imported."""
    monkeypatch.syspath_prepend(DOCS / "snippets")
    return snippet("processes")


async def answer_to(server: trioserver.TCPServer, request: bytes) -> bytes:
    """Send a request, and receive to the end."""
    async with await trio.open_tcp_stream(*server.server_address) as client:
        await client.send_all(request)
        await client.send_eof()
        return await read_to_end(client)


@pytest.mark.parametrize("handler", ["Primes", "PrimesInTrio"])
async def test_processes_primes(handler: str, processes: ModuleType) -> None:
    """Handlers of both colours count, side by side; a drain ends them between two requests."""
    server = trioserver.ProcessTCPServer(
        ("127.0.0.1", 0), getattr(processes, handler), min_children=1
    )
    with trio.fail_after(20):
        async with server.serving():
            assert await answer_to(server, b"10\n100\n") == b"4\n25\n"
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"10\n")
                assert await client.receive_some() == b"4\n"
                assert len(server.active_children) == 1
                server.shutdown()
                assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert len(report.drained) == 1
    assert server.active_children == []


async def test_processes_greeter(processes: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """A worker's server has its fields and own attributes, and not what cannot be pickled."""
    server = processes.Greeter(
        ("127.0.0.1", 0), processes.greet, greeting="good morning", min_children=1
    )
    server.lock = threading.Lock()
    with trio.fail_after(20):
        async with server.serving():
            assert await answer_to(server, b"") == b"good morning"
    (warning,) = (it for it in caplog.records if it.levelno == logging.WARNING)
    assert_shown(warning.getMessage(), "how-to/processes")


async def test_processes_refuse_what_does_not_pickle(processes: ModuleType) -> None:
    """The error on the page is that of a server whose handler is no worker's to import."""
    server = trioserver.ProcessTCPServer(("127.0.0.1", 0), lambda *arguments: None)
    with pytest.raises(TypeError) as caught, trio.fail_after(20):
        async with server.serving():
            pass
    assert str(caught.value).startswith("ProcessTCPServer.RequestHandlerClass does not pickle")
    assert_shown(str(caught.value).partition(" (")[0], "how-to/processes")


async def test_processes_dictionary(processes: ModuleType, tmp_path: Path) -> None:
    """Each worker opens the database for itself, before its first request."""
    path = tmp_path / "words"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE words (word, meaning)")
        database.execute("INSERT INTO words VALUES ('trio', 'three people')")
    server = processes.dictionary(("127.0.0.1", 0), path)
    with trio.fail_after(20):
        async with server.serving():
            for _ in range(3):
                assert await answer_to(server, b"trio\nquartet\n") == b"three people\n\n"
    assert processes.database is None  # a worker's is its own


async def test_processes_log(
    processes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a handler logs in its worker looks as it does in a task, with the id of its request."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    logs = snippet("logs")
    server = trioserver.ProcessTCPServer(("127.0.0.1", 0), logs.Upper, min_children=1)
    try:
        logs.set_up_logging()
        with trio.fail_after(20):
            async with server.serving():
                assert await answer_to(server, b"hello\n") == b"HELLO\n"
    finally:
        root.setLevel(level)
    assert "INFO upper [1] a line of 6 bytes" in capsys.readouterr().err.splitlines()


async def test_processes_bounded(processes: ModuleType) -> None:
    """It begins with two workers, has more when more clients are there, and never above eight."""
    server = processes.bounded(("127.0.0.1", 0))
    with trio.fail_after(30):
        async with server.serving(), AsyncExitStack() as clients:
            assert len(server.active_children) == 2
            for _ in range(9):
                client = await trio.open_tcp_stream(*server.server_address)
                await clients.enter_async_context(client)
            await until(lambda: len(server.active_children) == 8)
            await until(lambda: len(server.requests) == 8)


async def test_processes_crashes(processes: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that is killed from outside is what the hook takes it for; the next is unharmed."""
    caplog.set_level(logging.INFO)
    server = processes.Watched(("127.0.0.1", 0), processes.Primes, min_children=1)
    with trio.fail_after(20):
        async with server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                await client.send_all(b"10\n")
                assert await client.receive_some() == b"4\n"
                (pid,) = server.active_children
                os.kill(pid, signal.SIGKILL)
                assert await read_to_end(client) == b""
            assert await answer_to(server, b"10\n") == b"4\n"
            assert await answer_to(server, b"ten\n") == b""
    (told,) = (it for it in caplog.records if it.name == "primes")
    assert told.getMessage() == f"worker {pid}: out of memory?"
    crashed, failed = (it for it in caplog.messages if " failed (" in it)
    crashed = crashed.replace(str(pid), "4711")
    crashed = re.sub(r"^request 1 from \S+", "request 5 from 192.0.2.1:51030", crashed)
    assert_shown(re.sub(r" after \S+ s, .*", "", crashed), "explanation/errors")
    failed = re.sub(r"^request 3 from \S+", "request 6 from 192.0.2.1:51032", failed)
    assert_shown(re.sub(r" after \S+ s, .*", "", failed), "explanation/errors")


async def test_processes_killed(processes: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Who computes for too long is killed, whatever it does, and the record says so."""
    caplog.set_level(logging.INFO)
    server = processes.bounded(("127.0.0.1", 0)).evolve(
        timeouts=trioserver.Timeouts(request=0.2), min_children=1
    )
    with trio.fail_after(20):
        async with server.serving():
            assert await answer_to(server, b"10000000\n") == b""
            assert await answer_to(server, b"10\n") == b"4\n"
    (killed,) = (it for it in caplog.messages if " killed (" in it)
    killed = re.sub(r"^request 1 from \S+", "request 7 from 192.0.2.1:51034", killed)
    assert_shown(re.sub(r" after \S+ s, .*", "", killed), "explanation/errors")


async def test_part_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks in a task is sent to a thread."""
    part = snippet("part")
    look_up = SimpleNamespace(getfqdn=lambda host: f"{host} by {threading.current_thread().name}")
    monkeypatch.setattr(part, "socket", look_up)
    async with MemoryServer(MEMORY, part.Names).serving() as server:
        with trio.fail_after(10):
            client = await server.connect()
            await client.send_all(b"127.0.0.1\n")
            answer = await client.receive_some()
    assert answer.startswith(b"127.0.0.1 by ")
    assert threading.current_thread().name.encode() not in answer


@pytest.mark.skipif(os.name != "posix", reason="there, sort is something else")
async def test_part_sorted() -> None:
    """What another program can do is given to it."""
    async with MemoryServer(MEMORY, snippet("part").Sorted).serving() as server:
        with trio.fail_after(10):
            client = await server.connect()
            await client.send_all(b"pear\napple\n")
            await client.send_eof()
            assert await read_to_end(client) == b"apple\npear\n"


class Page(http.server.BaseHTTPRequestHandler):
    """One page, and no word about it."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, text: str, *values: Any) -> None:
        pass


def http_server() -> http.server.ThreadingHTTPServer:
    """One as others build it."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)


async def test_adopt_beside_others() -> None:
    """An adopted server is a task of a nursery, and ends by its own shutdown."""
    server = http_server()
    with trio.fail_after(10), redirect_stdout(io.StringIO()) as printed:
        await snippet("adopt").beside_others(server)
    assert printed.getvalue() == "b'404'\n"
    assert server.fileno() == -1


async def test_adopt_serve_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first lines of the page serve, until shutdown, and print the report."""
    adopt, server = snippet("adopt"), http_server()

    def build(address: Any, handler: Any) -> http.server.ThreadingHTTPServer:
        assert (address, handler) == (("localhost", 9999), http.server.SimpleHTTPRequestHandler)
        return server

    monkeypatch.setattr(http.server, "ThreadingHTTPServer", build)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt.serve_files)
            await adopt.talk_to(server.server_address)
            await trio.to_thread.run_sync(server.shutdown)
    assert re.match(r"b'404'\nshutdown\(\) was called: ended in ", capsys.readouterr().out)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
async def test_adopt_until_signal() -> None:
    """A signal of the program drains the server."""
    server = http_server()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snippet("adopt").until_signal, server)
            with redirect_stdout(io.StringIO()):
                await snippet("adopt").talk_to(server.server_address)
            os.kill(os.getpid(), signal.SIGTERM)
    assert server.fileno() == -1


async def test_adopt_within_bounds() -> None:
    """The bounds are in force: the eleventh client of one address is refused."""
    server = http_server()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(snippet("adopt").within_bounds(server))
            clients = [await trio.open_tcp_stream(*server.server_address) for _ in range(10)]
            with pytest.raises((OSError, trio.BrokenResourceError)):
                async with await trio.open_tcp_stream(*server.server_address) as unlucky:
                    await unlucky.receive_some()
            for client in clients:
                await client.aclose()
            server.shutdown()


IN_MEMORY = [name for name in vars(snippet("in_memory")) if name.startswith("test_")]
ON_A_SOCKET = IN_MEMORY.pop()


@pytest.mark.parametrize("test", IN_MEMORY)
async def test_in_memory_test(test: str, autojump_clock: trio.testing.MockClock) -> None:
    """The tests on the page about testing pass, each on a virtual clock of its own."""
    await getattr(snippet("in_memory"), test)(autojump_clock)


async def test_in_memory_socket_test() -> None:
    """The last of them, on a real socket, passes by a real clock."""
    assert ON_A_SOCKET == "test_greets_on_a_socket"
    with trio.fail_after(10):
        await snippet("in_memory").test_greets_on_a_socket()


def ask(address: tuple[str, int]) -> bytes:
    """What the classic example's server answers."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(b"hello world\n")
        return client.makefile("rb").read()


async def test_porting_example() -> None:
    """The example before and after porting answers and prints the same."""
    outputs = []
    with redirect_stdout(io.StringIO()) as printed:
        before = snippet("porting_before").Upper
        with socketserver.TCPServer(("127.0.0.1", 0), before) as classic:
            thread = threading.Thread(target=classic.handle_request)
            thread.start()
            outputs.append(ask(classic.server_address))
            thread.join()
    outputs.append(printed.getvalue())
    with redirect_stdout(io.StringIO()) as printed:
        server = trioserver.TCPServer(("127.0.0.1", 0), snippet("porting_after").Upper)
        async with server.serving():
            with trio.fail_after(10):
                outputs.append(await trio.to_thread.run_sync(ask, server.server_address))
    outputs.append(printed.getvalue())
    assert (
        outputs[:2]
        == outputs[2:]
        == [
            b"HELLO WORLD",
            "127.0.0.1 wrote:\nb'hello world'\n",
        ]
    )


async def test_nested_servers_drain_together(autojump_clock: trio.testing.MockClock) -> None:
    """A server in a request of another drains along with it."""
    inner = MemoryServer(("inner", 1), snippet("tutorial_timer").Timer)
    outer = MemoryServer(("outer", 1), snippet("nested").Outer)
    outer.inner = inner
    async with outer.serving():
        await outer.connect()
        await trio.testing.wait_all_tasks_blocked()
        client = await inner.connect()
        await client.send_all(b"3 tea\n")
        await trio.testing.wait_all_tasks_blocked()
        outer.shutdown()
        await trio.sleep(0.5)  # since it never sent a byte, the outer client may just be new
        await trio.testing.wait_all_tasks_blocked()
        assert inner.draining
        assert await client.receive_some() == b"tea is ready\n"
    assert (await inner.wait_closed()).clean


@pytest.mark.parametrize(("talks_until", "ended_at"), [(0, 30), (110, 120)])
async def test_limits_strict(
    talks_until: float, ended_at: float, autojump_clock: trio.testing.MockClock
) -> None:
    """The strict server ends a silent client after 30 s, and a busy one after 120 s."""
    server = in_memory(snippet("limits").strict(("localhost", 0), snippet("stop").Upper))
    async with server.serving():
        client = await server.connect()
        while trio.current_time() < talks_until:
            await client.send_all(b"hello\n")
            await client.receive_some()
            await trio.sleep(10)
        assert await client.receive_some() == b""
        assert trio.current_time() == ended_at


async def test_limits_ban(autojump_clock: trio.testing.MockClock) -> None:
    """One client's requests are ended, with the reason in their records, and no others."""
    async with MemoryServer(MEMORY, snippet("limits").hold).serving() as server:
        bad, good = await server.connect(("192.0.2.1", 1)), await server.connect(("192.0.2.2", 1))
        await trio.testing.wait_all_tasks_blocked()
        snippet("limits").ban(server, "192.0.2.1")
        assert await bad.receive_some() == b""
        assert [info.client_address[0] for info in server.requests] == ["192.0.2.2"]
        await good.aclose()


# What the pages show ---------------------------------------------------------


def assert_shown(lines: str, name: str) -> None:
    """Each line is somewhere on the page."""
    shown = page(name)
    for line in lines.splitlines():
        assert line in shown


async def test_shown_report(autojump_clock: trio.testing.MockClock) -> None:
    """The report in the explanation of the shutdown is a real one."""
    limits = trioserver.Limits(requests=1)
    timer = snippet("tutorial_timer").Timer
    async with MemoryServer(MEMORY, timer, limits=limits).serving() as server:
        for port, line in ((51022, b"3 tea\n"), (51024, b"9 egg\n"), (51026, b""), (51028, b"")):
            client = await server.connect(("192.0.2.1", port))
            await client.send_all(line)
            if line.startswith(b"3"):
                await trio.sleep(1)
        server.shutdown(5)
        report = await server.wait_closed()
    assert_shown(str(report), "explanation/shutdown")


async def test_shown_report_of_the_tutorial(autojump_clock: trio.testing.MockClock) -> None:
    """So is the one at the end of the tutorial."""
    async with MemoryServer(MEMORY, snippet("tutorial_timers").Timers).serving() as server:
        first = await server.connect(("127.0.0.1", 51022))
        await trio.sleep(1)
        second = await server.connect(("127.0.0.1", 51024))
        await second.send_all(b"100 egg\n")
        await trio.sleep(2)
        await first.send_all(b"10 tea\n")
        await trio.sleep(1)
        server.shutdown()
        report = await server.wait_closed()
    assert_shown(str(report), "tutorial")


async def test_shown_endings(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The three endings in the explanation of errors are real records."""
    caplog.set_level(logging.INFO)

    async def listen(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        request.idle_timeout = {51022: 300, 51024: math.inf, 51026: math.inf}[client_address[1]]
        if client_address[1] == 51024:
            request.cancel_scope.deadline = 400
        await request.recv()
        await request.recv()

    async with MemoryServer(MEMORY, listen).serving() as server:
        for port in (51022, 51024, 51026):
            client = await server.connect(("192.0.2.1", port))
            if port != 51022:
                await client.send_all(b"x")
        await trio.sleep(400)
        server.shutdown()
    records = [message for message in caplog.messages if message.startswith("request")]
    assert len(records) == 3
    assert_shown("\n".join(record.partition(", ")[0] for record in records), "explanation/errors")


async def test_shown_log(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The lines on the page about logging are real ones."""
    caplog.set_level(logging.INFO)

    async def answer(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await trio.sleep(0.013)
        await request.sendall(await request.recv(6))

    limits = trioserver.Limits(requests=1, when_full="refuse")
    async with MemoryServer(("127.0.0.1", 9999), answer, limits=limits).serving() as server:
        client = await server.connect(("127.0.0.1", 51022))
        await client.send_all(b"hello\n")
        await server.connect(("127.0.0.1", 51024))
        await client.receive_some()
    shown = [f"{it.levelname}:{it.name}:{it.getMessage()}" for it in caplog.records]
    assert len(shown[:-2]) == 3  # and one for the drain, one for the end
    assert_shown("\n".join(shown[:-2]), "how-to/log")


# Suites ------------------------------------------------------------------------


def suite(name: str) -> str:
    """What pytest says of a snippet that is a file of tests, as a reader would run it."""
    file = DOCS / "snippets" / f"{name}.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return finished.stdout


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("client_test", 8),
        ("dictionary_test", 8),
        ("network_test", 12),
        ("script_test", 3),
        ("sync_client_test", 4),
        pytest.param("sweep_test", 6, marks=pytest.mark.slow),
    ],
)
def test_suite(name: str, passed: int) -> None:
    """The tests on the pages about testing pass, all of them."""
    told = suite(name)
    assert f" {passed} passed in " in told.splitlines()[-1], told


def plain(text: str) -> str:
    """A text without the frames of groups, folders, and breaks between lines."""
    lines = [re.sub(r"^(E  )?[\s|+-]*", "", line) for line in text.splitlines()]
    bare = " ".join(lines).replace(f"{DOCS / 'snippets'}{os.sep}", "")
    return " ".join(re.sub(r"trioserver\.testing\._\w+\.", "", bare).split())


def assert_quoted(quoted: str, told: str) -> None:
    """What is quoted on a page has come; lines with three dots stand for what is left out."""
    for part in re.split(r"^ *\.\.\.$", quoted, flags=re.MULTILINE):
        assert part.strip()
        assert plain(part) in plain(told)


def failures(name: str) -> dict[str, str]:
    """What pytest shows of each test of a snippet whose tests fail."""
    told = suite(name).partition("= short test summary info =")[0]
    heading = r"^_+ (?:ERROR at setup of )?(test_\w+) _+$"
    _, *parts = re.split(heading, told, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(
    ("name", "shown_on"),
    [
        ("wrong_tests", "how-to/testing/failures"),
        pytest.param("wrong_thread", "how-to/testing/thread", marks=pytest.mark.slow),
        ("dictionary_wrong", "tutorial-testing"),
    ],
)
def test_wrong_tests(name: str, shown_on: str) -> None:
    """Each of them fails, with the message that stands below it."""
    told = failures(name)
    block = r"\.\. code-block:: text\n((?:\n   .*|\n(?=\n))+)"
    below = rf"{name}\.py\n   :pyobject: (test_\w+)\n(?:(?!:pyobject:)[\s\S])*?{block}"
    quoted = dict(re.findall(below, page(shown_on)))
    assert sorted(quoted) == sorted(told)
    for test, message in quoted.items():
        assert_quoted(message, told[test])


def messages(name: str) -> list[str]:
    """Those that are quoted on a page."""
    return re.findall(r"code-block:: text\n\n((?:   .*\n|\n)+)", page(name))


@pytest.mark.parametrize(
    ("said", "ends_with"),
    [
        ([b"EHLO me\r\n", b"RCPT TO:<a@b>\r\n"], "got b'RCPT TO:<a@b>\\r\\n'"),
        ([b"EHLO me\r\n", b"MAIL FROM:<a@b>\r\n"], "got nothing, and the test was over"),
        (None, "the first of 7 steps is reply(b'220 mail.example\\r\\n')"),
    ],
)
async def test_script_that_is_not_met(
    said: list[bytes] | None, ends_with: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The messages on the page about scripts are those of clients that go other ways."""
    with pytest.RaisesGroup(trioserver.testing.Unmet, allow_unwrapped=True) as caught:
        async with trioserver.testing.open_scripted_server(
            *snippet("script_test").SCRIPT
        ) as server:
            if said is not None:
                client = await server.connect()
                for line in said:
                    await client.send_all(line)
    error: BaseException = caught.value
    (unmet,) = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    assert str(unmet).endswith(ends_with)
    assert_shown(f"Unmet: {unmet}", "how-to/testing/script")


async def three_steps(trial: Trial) -> None:
    """A scenario that nothing can harm."""
    trial.arm()
    for _ in range(3):
        await trio.lowlevel.checkpoint()


async def unarmed(trial: Trial) -> None:
    """A scenario that is never harmed."""


def erratic() -> Any:
    """A scenario that is longer each time."""
    lengths = itertools.count(1)

    async def scenario(trial: Trial) -> None:
        trial.arm()
        for _ in range(next(lengths)):
            await trio.lowlevel.checkpoint()

    return scenario


def breaks(trial: Trial) -> None:
    """A fault that fails."""
    raise ZeroDivisionError


def test_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages on the page about sweeps are what `sweep` says of such scenarios."""
    sweeps = snippet("sweep_test")
    cancel = trioserver.testing.Cancel()
    findings: list[Callable[[], object]] = [
        lambda: trioserver.testing.sweep(partial(sweeps.visit, handler=sweeps.Guests)),
        lambda: trioserver.testing.sweep(erratic()),
        lambda: trioserver.testing.sweep(unarmed),
        lambda: trioserver.testing.run_trial(three_steps, cancel, at=[1000]).check(),
        lambda: trioserver.testing.sweep(three_steps, faults=[breaks]),
    ]
    for find, quoted in zip(findings, messages("how-to/testing/sweep"), strict=True):
        if find is findings[-1]:
            monkeypatch.setattr("trioserver.testing._schedule.SWITCHES", ["_of_another_version"])
        with pytest.raises(trioserver.testing.Finding) as found:
            find()
        assert_quoted(quoted, f"Finding: {found.value}")


# What the pages cover ----------------------------------------------------------

PUBLIC = (trioserver, trioserver.monitoring, trioserver.testing)
DOCUMENTED = sorted(f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__)
REFERENCE = [f"reference/{file.stem}" for file in sorted((DOCS / "reference").glob("*.rst"))]


def described(name: str) -> list[str]:
    """The names that a page of the reference describes, with their modules."""
    module, found = "", []
    for line in page(name).splitlines():
        directive = re.match(r"\.\. (\w+):: ([\w.]+)", line)
        if directive is not None and directive[1] in {"currentmodule", "module"}:
            module = directive[2]
        elif directive is not None and directive[1].startswith("auto"):
            found.append(f"{module}.{directive[2]}")
    return found


def test_reference_describes_every_public_name_once() -> None:
    """Every name of ``__all__`` is in the reference, in one place, and nothing else is."""
    assert sorted(name for each in REFERENCE for name in described(each)) == DOCUMENTED


def test_reference_describes_every_member_of_a_server() -> None:
    """The grouped members of `BaseServer` are all there are."""
    names = re.findall(
        r"^   \.\. auto(?:method|property):: (\w+)", page("reference/servers"), re.MULTILINE
    )
    fields = {field.name for field in attrs.fields(trioserver.BaseServer)}
    public = {name for name in dir(trioserver.BaseServer) if not name.startswith("_")} - fields
    assert sorted(names) == sorted(public)


def table(name: str, under: str) -> list[list[str]]:
    """The rows of the first list-table after the line ``under``, but for its header."""
    _, found, after = page(name).partition(f"\n{under}\n")
    assert found, under
    rows: list[list[str]] = []
    for line in after[after.index("   * - ") :].splitlines():
        if line.startswith("   * -"):
            rows.append([line[6:]])
        elif line.startswith("     -"):
            rows[-1].append(line[6:])
        elif not line or line.startswith("       "):
            rows[-1][-1] += " " + line.strip()
        else:
            break
    return [[cell.strip() for cell in row] for row in rows[1:]]


def literals(cell: str) -> list[str]:
    """The literals in a cell."""
    return re.findall(r"``(.+?)``", cell)


def as_shown(default: Any) -> str:
    """A field's default, as the tables show it."""
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return f"{default.factory.__name__}()"
    if isinstance(default, int) and default >= 2**16:
        return f"{default >> 20} MiB" if default >= 2**20 else f"{default >> 10} KiB"
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize(
    ("title", "cls", "base"),
    [
        ("`BaseServer`", trioserver.BaseServer, None),
        ("`TCPServer`, besides", trioserver.TCPServer, trioserver.BaseServer),
        ("`UDPServer`, besides", trioserver.UDPServer, trioserver.BaseServer),
        ("`UnixStreamServer`, besides", trioserver.UnixStreamServer, trioserver.TCPServer),
        ("`UnixDatagramServer`, besides", trioserver.UnixDatagramServer, trioserver.UDPServer),
        ("`ThreadingMixIn`, besides", trioserver.ThreadingMixIn, trioserver.BaseServer),
        ("`ProcessMixIn`, besides", trioserver.ProcessMixIn, trioserver.BaseServer),
        ("`Timeouts`", trioserver.Timeouts, None),
        ("`Limits`", trioserver.Limits, None),
    ],
)
def test_field_table(title: str, cls: Any, base: Any) -> None:
    """The tables of fields have every field, with its default, in order."""
    inherited = set() if base is None else {field.name for field in attrs.fields(base)}
    expected = [
        [field.alias, [] if field.default is attrs.NOTHING else [as_shown(field.default)]]
        for field in attrs.fields(cls)
        if field.name not in inherited
    ]
    rows = table("reference/fields", f".. list-table:: {title}")
    assert [[literals(name)[0], literals(default)] for name, default, _ in rows] == expected
    assert all(meaning for _, _, meaning in rows)


def test_docstrings_name_every_field() -> None:
    """Every field is documented in its class, or in the one it comes from."""
    servers = (trioserver.UnixStreamServer, trioserver.UnixDatagramServer)
    mix_ins = (trioserver.ThreadingMixIn, trioserver.ProcessMixIn)
    for cls in (*servers, *mix_ins, trioserver.Timeouts, trioserver.Limits):
        documented = "".join(inspect.getdoc(base) or "" for base in cls.__mro__)
        for field in attrs.fields(cls):
            assert re.search(rf"^ +{field.alias}: ", documented, re.MULTILINE), field.alias


def classic_names(cls: type) -> set[str]:
    """The public names a class of socketserver defines, and those its objects get."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    targets = [
        leaf
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        for leaf in ast.walk(target)
    ]
    attributes = {
        leaf.attr
        for leaf in targets
        if isinstance(leaf, ast.Attribute)
        and isinstance(leaf.ctx, ast.Store)
        and isinstance(leaf.value, ast.Name)
        and leaf.value.id == "self"
    }
    names = {name for name in {*vars(cls), *attributes} if not name.startswith("_")}
    return names | ({"__enter__", "__exit__"} & vars(cls).keys())


CLASSIC = sorted({"BaseServer", *socketserver.__all__})


@pytest.mark.parametrize("name", CLASSIC)
def test_porting_covers(name: str) -> None:
    """The porting page has every class of socketserver, and all that it defines."""
    cls = getattr(socketserver, name)
    ready_made = "MixIn" not in name and name.startswith(("Threading", "Forking"))
    title = "Ready-made servers" if ready_made else name
    title = "UnixStreamServer, UnixDatagramServer" if name.startswith("Unix") else title
    rows = table("how-to/porting", title)
    covered = {literal for row in rows for literal in literals(row[0])}
    assert {name, *classic_names(cls)} - covered == set()


def test_porting_invents_nothing() -> None:
    """Every name in the porting tables is one of socketserver's, be it of 3.12 and newer."""
    titles = re.findall(r"^(.+)\n~+$", page("how-to/porting"), re.MULTILINE)
    mentioned = {
        literal
        for title in titles
        for row in table("how-to/porting", title)
        for literal in literals(row[0])
    }
    known = {*CLASSIC, "bind_and_activate", "ForkingUnixStreamServer", "ForkingUnixDatagramServer"}
    known.update(*(classic_names(getattr(socketserver, name)) for name in CLASSIC))
    assert mentioned - known == set()


PORTED = {
    "BaseServer": trioserver.BaseServer,
    "TCPServer": trioserver.TCPServer,
    "UDPServer": trioserver.UDPServer,
    "UnixStreamServer, UnixDatagramServer": trioserver.UnixStreamServer,
    "ThreadingMixIn": trioserver.ThreadingTCPServer,
    "ForkingMixIn": trioserver.ForkingTCPServer,
    "Ready-made servers": trioserver.TCPServer,
    "BaseRequestHandler": trioserver.BaseRequestHandler,
    "StreamRequestHandler": trioserver.StreamRequestHandler,
    "DatagramRequestHandler": trioserver.DatagramRequestHandler,
}


@pytest.mark.parametrize("title", PORTED)
def test_porting_says_what_is_there(title: str) -> None:
    """What a table calls the same is there, of the same colour; what is gone or to come is not."""
    cls = PORTED[title]
    there = {"request", "client_address", "server", "connection", "packet", *dir(cls)}
    there.update(trioserver.__all__)
    there.update(field.alias for field in (attrs.fields(cls) if attrs.has(cls) else ()))
    for names, here, _ in table("how-to/porting", title):
        for name in literals(names):
            if "the same" in here:
                assert name in there, name
                is_async = inspect.iscoroutinefunction(getattr(cls, name, None))
                assert is_async == here.startswith(("``async``", "``await``")), name
            elif here == "gone":
                assert name not in there, name
            elif here.startswith("later"):
                assert name not in trioserver.__all__, name


def test_errnos_of_the_accept_tiers() -> None:
    """The tiers on the page about accept errors are those of the code."""
    rows = table(
        "explanation/accept-errors",
        "Accepting a client can fail, and the errors mean three different things.",
    )
    shown = {row[0]: {getattr(errno, it) for it in literals(row[1])} for row in rows}
    for number in errno.errorcode:
        tier = tier_of(OSError(number, ""))
        assert (number in shown["one client"]) == (tier is Tier.CONNECTION), errno.errorcode[number]
        assert (number in shown["capacity"]) == (tier is Tier.CAPACITY), errno.errorcode[number]
        nobody = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR}
        assert (number in nobody) == (tier is Tier.NOBODY), errno.errorcode[number]


def pages() -> list[str]:
    """The names of all pages."""
    return [str(file.relative_to(DOCS).with_suffix("")) for file in sorted(DOCS.rglob("*.rst"))]


def test_outcomes_of_the_errors() -> None:
    """The outcomes in the table of a client's errors are what handlers that raise them end with."""
    rows = table(
        "explanation/errors",
        "program. A read or send raises one of these, and a handler may catch it:",
    )
    shown = {row[0].strip("`"): literals(row[2])[0] for row in rows}
    real = {kind.__name__: outcome.value for kind, outcome in _PEER_OUTCOMES}
    assert shown == real


def sections(name: str) -> dict[str, str]:
    """The sections of a page, by their titles."""
    _, *parts = re.split(r"^(\S.*)\n-{3,}$", page(name), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


PROMISES = {
    title: text for title, text in sections("explanation/promises").items() if title[0].isdigit()
}


def test_promises_are_ten() -> None:
    """They are numbered, and none is lost."""
    assert [int(title.partition(".")[0]) for title in PROMISES] == list(range(1, 11))


@pytest.mark.parametrize("title", PROMISES)
def test_promise_is_held_by_tests(title: str) -> None:
    """Each promise names tests, and all of them are there."""
    named = re.findall(
        r"^- ``tests/(\w+/test_\w+\.py)::(test_\w+)``$", PROMISES[title], re.MULTILINE
    )
    assert named
    assert len(named) == len(set(named)) == PROMISES[title].count("``tests/")
    for file, name in named:
        tree = ast.parse((DOCS.parent / "tests" / file).read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, file


def test_glossary_has_only_words_that_are_used() -> None:
    """Each term of the glossary is in order, and on some other page."""
    terms = re.findall(r"^   (\w.*)$", page("glossary").partition(".. glossary::")[2], re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms)
    prose = " ".join(page(name) for name in pages() if name != "glossary")
    words = " ".join(prose.split()).lower().replace("back-pressure*", "back-pressure")
    assert [term for term in terms if term not in words] == []


def test_every_snippet_is_shown() -> None:
    """A snippet that no page includes is dead; Sphinx finds those that do not exist."""
    shown = {
        Path(name).name for each in pages() for name in re.findall(r"(snippets/\S+)", page(each))
    }
    assert shown == {file.name for file in (DOCS / "snippets").glob("*.py")}
