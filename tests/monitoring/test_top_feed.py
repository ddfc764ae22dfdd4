"""The way from a monitor to `top`: what is asked, and what is said when it goes wrong."""

import json
import socket
from contextlib import suppress

import pytest
import trio
import trio.testing
from support.fake_monitor import FakeMonitor, say
from support.scenes import table
from support.seen import a_request, a_server

import trioserver
from trioserver.monitoring import MonitorError, ask_monitor
from trioserver.monitoring._top import feed, remote
from trioserver.monitoring._top.remote import Remote
from trioserver.monitoring._top.view import WATCH, View
from trioserver.testing import open_test_server


@pytest.mark.parametrize("transport", ["tcp", "unix"])
async def test_ask(transport):
    """One state, and how many requests are wanted."""
    monitor = FakeMonitor()
    async with open_test_server(monitor.handle, transport=transport) as server:
        state = await ask_monitor(server.address, most=7)
        assert [row.client for row in state.rows] == ["127.0.0.1:50001", "127.0.0.1:50002"]
        assert state.as_json()["servers"][0]["name"] == "TCPServer"
        shown = str(state).splitlines()
        assert (
            shown[1] == "TCPServer  serving  up 00:03:12  active 2/100  total 2  on 127.0.0.1:9999"
        )
    assert monitor.heard[0]["watch"]["most"] == 7


async def leave(request, client_address, server):
    """Not a word."""


async def stay_silent(request, client_address, server):
    """Nor an end."""
    await request.receive_some()
    await request.receive_some()


def says(data):
    """A handler that says only that."""

    async def handle(request, client_address, server):
        await request.receive_some()
        await request.send_all(data)

    return handle


async def of_another_version(request, client_address, server):
    """A monitor of a later trioserver."""
    await say(request, {**FakeMonitor().state(), "version": 2})


async def refuse(request, client_address, server):
    """A monitor that refuses."""
    await say(request, {"type": "error", "message": "no\x1b"})


@table(
    ("handler", "message"),
    {
        "one that leaves": (leave, "the connection is lost"),
        "one that is silent": (stay_silent, "no answer within 0.2 s"),
        "a web server": (
            says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "no monitor is there, but who says 'HTTP/1.1 400 Bad Request'",
        ),
        "one that says no text": (says(b"\xff\x00\x1b\n"), r"but who says '\xff\x00\x1b'"),
        "one that says no object": (says(b"[1, 2]\n"), "but who says '[1, 2]'"),
        "one that says too much": (says(b"[" * 100_000 + b"\n"), "no monitor is there, but who"),
        "another version": (of_another_version, "the monitor speaks version 2, and this"),
        "a monitor that refuses": (refuse, r"the monitor refuses: no\x1b"),
    },
)
async def test_who_is_no_monitor(handler, message):
    """A clear line, whoever is there."""
    async with open_test_server(handler, transport="tcp", strict=False) as server:
        with pytest.raises(MonitorError) as found:
            await ask_monitor(server.address, patience=0.2)
    assert message in str(found.value)
    assert str(found.value).isprintable()


async def test_nobody_there(tmp_path):
    """A clear line without the address, which is told already."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    for place, why in ((address, "Connection refused"), (str(tmp_path / "x"), "No such file or")):
        with pytest.raises(MonitorError, match=why):
            await ask_monitor(place)


async def test_endless_line(monkeypatch):
    """What never ends is not kept for ever."""
    monkeypatch.setattr(feed, "LONGEST_LINE", 100_000)

    async def handle(request, client_address, server):
        while True:
            await request.send_all(b"x" * 65_536)

    async with open_test_server(handler_of(handle), transport="tcp", strict=False) as server:
        with pytest.raises(MonitorError, match="a line has more than 100000 B"):
            await ask_monitor(server.address)


def handler_of(function):
    """The same handler, whose client may go."""

    async def handle(*arguments):
        with suppress(trioserver.PeerGone):
            await function(*arguments)

    return handle


# Following one -------------------------------------------------------------------------------


async def until(condition):
    """Wait until something is so."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  (it is not ours to say when)
            await trio.sleep(0.005)


async def test_lost_and_found(monkeypatch, tmp_path):
    """The last picture stays, is called stale, and goes on when the monitor is there again."""
    monkeypatch.setattr(remote, "_AGAIN", 0.01)
    path, view = str(tmp_path / "monitor"), View()
    monitor = FakeMonitor()
    follower = Remote(path, 0.1, 256)
    server = trioserver.UnixStreamServer(path, monitor.handle)
    async with trio.open_nursery() as nursery:
        async with server.serving(grace=0):
            nursery.start_soon(follower.follow, view, lambda: None)
            await until(lambda: view.shown)
            assert view.lost == ""
        await until(lambda: view.lost)
        assert len(view.table.rows) == 2
        assert view.lost.endswith("; trying again every second")
        follower.order({"control": {"do": "cancel", "server": 0, "request": 1}}, view)
        assert view.message == "nothing was done: the monitor takes no orders now"
        follower.order(WATCH, view)
        monitor.servers, monitor.heard = [a_server(a_request(5))], []
        async with server.evolve().serving(grace=0):
            await until(lambda: not view.lost)
            await until(lambda: [row.key[2] for row in view.table.rows] == [5])
            nursery.cancel_scope.cancel(reason="the test is over")
    assert [list(message) for message in monitor.heard] == [["watch"]]  # and no old order


async def test_silence_is_told(autojump_clock):
    """A program whose loop does not turn sends nothing: what is shown is called stale."""
    ours, theirs = trio.testing.memory_stream_pair()
    monitor, view = FakeMonitor(), View()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Remote(("memory", 1), 1.0, 256)._talk, feed.Feed(ours), view, str)
        await theirs.send_all(json.dumps(monitor.state()).encode() + b"\n")
        await trio.sleep(4.9)
        assert (view.shown.at, view.lost) == (1, "")
        await trio.sleep(0.2)
        assert view.lost == "nothing was heard for 5 s"
        await theirs.send_all(json.dumps(monitor.state()).encode() + b"\n")
        await trio.sleep(0.1)
        assert (view.shown.at, view.lost) == (2, "")
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_orders_and_answers(autojump_clock):
    """What is typed is sent, and what comes of it is shown."""
    monitor, view = FakeMonitor(control=True), View()
    async with open_test_server(monitor.handle) as server, trio.open_nursery() as nursery:
        follower = Remote(("memory", 1), 1.0, 256)
        client = feed.Feed(await server.connect())
        nursery.start_soon(follower._talk, client, view, lambda: None)
        await trio.sleep(0.5)
        said = []
        for keys in ("enter", "c y", "esc s"):
            for message in [one for key in keys.split() for one in view.press(key)]:
                follower.order(message, view)
            await trio.sleep(0.1)
            said.append(view.message)
        assert said == ["", "request 1 is cancelled", ""]
        assert "          client  127.0.0.1:50001" in view.detail
        kinds = [next(iter(message)) for message in monitor.heard]
        assert kinds == ["watch", "show", "control", "watch"]
        assert monitor.heard[-1]["watch"]["sort"] == "left"
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_orders_are_bounded():
    """A monitor that reads nothing does not fill the memory: orders are refused."""
    view = View()
    follower = Remote(("memory", 1), 1.0, 256)
    follower._orders, _ = trio.open_memory_channel(1)
    cancel = {"control": {"do": "cancel", "server": 0, "request": 1}}
    follower.order(cancel, view)
    assert view.message == ""
    follower.order(cancel, view)
    assert view.message == "nothing was done: the monitor takes no orders now"


async def test_parts_of_a_message():
    """A message may come in parts, and several at once; one that is cancelled loses nothing."""
    ours, theirs = trio.testing.memory_stream_pair()
    one = feed.Feed(ours)
    await theirs.send_all(b'{"a"')
    with trio.move_on_after(0.01):
        await one.receive()
    await theirs.send_all(b': 1}\n{"b": 2}\n{"c')
    assert [await one.receive(), await one.receive()] == [{"a": 1}, {"b": 2}]
    await one.send({"watch": {}})
    assert json.loads(await theirs.receive_some()) == {"watch": {}}
    await theirs.aclose()
    with pytest.raises(MonitorError, match="the connection is lost"):
        await one.receive()
