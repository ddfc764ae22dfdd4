import logging
import re
import threading
from types import SimpleNamespace

import pytest
import trio
import trioserver
from support import connect, read_to_end, running, until
from support.pages import assert_shown
from support.threads import on_tcp

import threads


async def test_upper():
    """A handler of socketserver answers line after line; a drain ends it between two."""
    server = on_tcp(threads.Upper)
    async with running(server), await connect(server) as client:
        for line in (b"hello\n", b"again\n"):
            await client.send_all(line)
            assert await client.receive_some() == line.upper()
        server.shutdown()
        assert await read_to_end(client) == b""
    assert len((await server.wait_closed()).drained) == 1


async def test_slow(monkeypatch):
    """While one client waits for the function to sleep, another one is served."""
    awake, server = threading.Event(), on_tcp(threads.slow)
    monkeypatch.setattr(threads, "time", SimpleNamespace(sleep=lambda _: awake.wait(10)))
    async with running(server), await connect(server) as first, await connect(server) as second:
        await until(lambda: len(server.requests) == 2)
        awake.set()
        for client in (first, second):
            assert await read_to_end(client) == b"sorry for the delay\n"


@pytest.mark.parametrize(("guests", "answer"), [("127.0.0.1\n", b"HELLO\n"), ("10.0.0.1\n", b"")])
async def test_guarded(guests, answer, tmp_path):
    """Who is on the list is served; the hook is asynchronous, the handler is not."""
    guest_list = tmp_path / "guests"
    guest_list.write_text(guests, encoding="utf-8")
    server = threads.Guarded(("127.0.0.1", 0), threads.Upper, guest_list=guest_list)
    assert server.max_threads == 100
    async with running(server), await connect(server) as client:
        await client.send_all(b"hello\n")
        assert await client.receive_some() == answer


async def test_smallest_factor():
    """It finds the factor; in a search that would take years, it notices its cancellation."""
    server = on_tcp(threads.SmallestFactor)
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"91\n")
            assert await read_to_end(client) == b"7\n"
        async with await connect(server) as client:
            await client.send_all(b"%d\n" % (2**61 - 1))
            await until(lambda: any(it.bytes_received for it in server.snapshot().requests))
            server.shutdown(grace=0)
            assert [it.outcome for it in (await server.wait_closed()).requests] == ["cancelled"]


async def test_door(monkeypatch):
    """What it has Trio do has a bound of its own, and goes on although the request is cancelled."""
    rings, heard, opened = trio.Event(), trio.Event(), []

    async def somebody_opens(bell):
        if bell == b"back\n":
            rings.set()
            await heard.wait()
        opened.append(bell)
        return b"come in\n"

    monkeypatch.setattr(threads, "somebody_opens", somebody_opens)
    server = on_tcp(threads.Door)
    async with running(server), await connect(server) as client:
        await client.send_all(b"front\n")
        assert await client.receive_some() == b"come in\n"
        await client.send_all(b"back\n")
        await rings.wait()
        server.shutdown(grace=0)
        assert await read_to_end(client) == b""  # it has been cancelled
        heard.set()
    assert [it.outcome for it in (await server.wait_closed()).requests] == ["cancelled"]
    assert opened == [b"front\n", b"back\n"]


async def test_door_that_nobody_opens(autojump_clock):
    """Its bound is five seconds."""
    for bell, told, instant in ((b"front", b"come in\n", 3), (b"back", b"nobody is at home\n", 8)):
        assert await threads.ring(bell + b"\n") == told
        assert trio.current_time() == instant


def take_mail(request, client_address, server):
    """The part of SMTP that the guess of a drain is wrong for."""
    request.recv(100)
    request.sendall(b"354 go ahead\r\n")
    message = request.recv(100)
    request.sendall(b"250 ok\r\n" if message else b"451 and your message?\r\n")


@pytest.mark.parametrize(
    ("server_class", "answer"),
    [
        (trioserver.ThreadingTCPServer, b"451 and your message?\r\n"),
        (threads.Mail, b"250 ok\r\n"),
    ],
)
async def test_mail(server_class, answer):
    """After DATA, a drain cuts the message off where the page says so, and not if it is told."""
    server = server_class(("127.0.0.1", 0), take_mail)
    async with running(server), await connect(server) as client:
        await client.send_all(b"DATA\r\n")
        assert await client.receive_some() == b"354 go ahead\r\n"
        await until(lambda: server.snapshot().requests[0].state == "idle")
        server.shutdown()
        if not server.ends_idle_reads:
            await client.send_all(b"hello\r\n.\r\n")
        assert await read_to_end(client) == answer


async def test_datagrams():
    """Each datagram has a reply, an empty one included."""
    server = threads.on_datagrams(("127.0.0.1", 0))
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        async with running(server) as address:
            for packet in (b"hello", b""):
                await client.sendto(packet, address)
                assert await client.recv(100) == packet.upper()


async def test_left_behind(caplog):
    """What the pages show of a thread that goes on is what is logged of one."""
    caplog.set_level(logging.INFO)
    enough = threading.Event()

    def hang(request, client_address, server):
        enough.wait(10)

    server = on_tcp(hang, timeouts=trioserver.Timeouts(request=0.05, cleanup=0.05))
    try:
        async with running(server):
            async with await connect(server) as client:
                assert await read_to_end(client) == b""
            await until(lambda: server.statistics().outcomes["abandoned"])
    finally:
        enough.set()
    named, record = (it for it in caplog.messages if "request 1" in it)
    named = re.sub(r"from \S+ still runs 0.05 s", "from 127.0.0.1:51022 still runs 5 s", named)
    assert "enough.wait(10)" in named
    assert_shown(named.splitlines()[0], "how-to/threads")
    record = re.sub(r"^request 1 from \S+", "request 4 from 192.0.2.1:51028", record)
    assert_shown(re.sub(r"after \S+ s, .*", "after 405.000 s, ...", record), "explanation/errors")
