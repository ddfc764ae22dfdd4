"""The monitor: what it shows to whom, and that nobody who looks is noticed by what is looked at."""

import json
import socket
import time
from contextlib import asynccontextmanager

import pytest
import trio
from support import hold
from support.scenes import table

import trioserver
from trioserver.monitoring import Linter, Monitor
from trioserver.testing import MemoryServer

ADDRESS = ("127.0.0.1", 0)


class Named(trioserver.TCPServer):
    """What is watched."""


@asynccontextmanager
async def watched(handler=hold, clients=1, server=None, **options):
    """A server with clients, and the address of a monitor of it."""
    server = server or Named(ADDRESS, handler, timeouts=trioserver.Timeouts(linger=0))
    async with server.serving(grace=0):
        streams = [await trio.open_tcp_stream(*server.server_address) for _ in range(clients)]
        while server.statistics().active < clients:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            monitor = Monitor([server], ADDRESS, **{"interval": 0.01, **options})
            address = await nursery.start(monitor.serve)
            yield server, address
            nursery.cancel_scope.cancel(reason="the test is over")
        for stream in streams:
            await stream.aclose()


class Viewer:
    """A program that converses with a monitor."""

    def __init__(self, stream):
        self.stream, self.buffer = stream, b""

    async def say(self, sent):
        line = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        await self.stream.send_all(line + b"\n")

    async def hear(self, kind=None):
        """The next line, or the next one of that type."""
        while True:
            while b"\n" not in self.buffer:
                more = await self.stream.receive_some()
                assert more, "it has ended the conversation"
                self.buffer += more
            line, _, self.buffer = self.buffer.partition(b"\n")
            heard = json.loads(line)
            if kind in {None, heard["type"]}:
                return heard


@asynccontextmanager
async def viewer_of(address):
    """A viewer who has connected."""
    async with await trio.open_tcp_stream(*address) as stream:
        yield Viewer(stream)


async def fetched(address, target="/", head="", method="GET", body=b"", host="localhost:1"):
    """What a browser gets: the status, the head, and the body."""
    async with await trio.open_tcp_stream(*address) as stream:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        text = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{head}{length}\r\n"
        await stream.send_all(text.encode() + body)
        heard = b""
        with trio.fail_after(10):
            async for part in stream:
                heard += part
    head, _, rest = heard.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), rest


# What programs are shown -------------------------------------------------------------


async def test_states():
    """A viewer is shown the servers with their requests, and the tasks, again and again."""
    async with watched(clients=3) as (server, address), viewer_of(address) as viewer:
        await viewer.say({"watch": {}})
        first, second = await viewer.hear(), await viewer.hear()
        [shown] = first["servers"]
        expected = json.loads(json.dumps(server.snapshot().as_json()))
        assert {**shown, "uptime": 0} == {
            **expected,
            "hidden": 0,
            "uptime": 0,
            "requests": shown["requests"],
        }
        assert [it["id"] for it in shown["requests"]] == [1, 2, 3]
        tasks = {task["id"]: task for task in first["tasks"]["tasks"]}
        for request in shown["requests"]:
            assert tasks[request["task"]]["request"] == request["id"]
        assert (first["type"], first["version"], first["control"]) == ("state", 1, False)
        assert second["at"] > first["at"]


@table(
    "wants, listed, hidden",
    {
        "the oldest first, unless it says otherwise": ({}, [1, 2, 3], 0),
        "the newest first": ({"sort": "-age"}, [3, 2, 1], 0),
        "not so many": ({"most": 1}, [1], 2),
        "none": ({"most": 0}, [], 3),
        "those with a text, in whatever letters": ({"filter": "#2 127"}, [2], 2),
        "those that nobody has": ({"filter": "nobody"}, [], 3),
    },
)
async def test_query(wants, listed, hidden):
    """What is listed is what the viewer wants, by programs and by browsers."""
    async with watched(clients=3) as (_, address):
        async with viewer_of(address) as viewer:
            await viewer.say({"watch": wants})
            [shown] = (await viewer.hear())["servers"]
            assert ([it["id"] for it in shown["requests"]], shown["hidden"]) == (listed, hidden)
        query = "&".join(f"{name}={value}" for name, value in wants.items())
        async with await trio.open_tcp_stream(*address) as stream:
            target = f"/events?{query.replace('#', '%23').replace(' ', '+')}"
            await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            heard = b""
            while b"}\n\n" not in heard:
                heard += await stream.receive_some()
            event = heard.partition(b"data: ")[2].partition(b"\n\n")[0].replace(b"\r\n", b"")
            assert f'"hidden":{hidden}' in event.decode()


@table(
    "sent, told",
    {
        "no JSON": (b"hello", '"watch", "show" or "control" was expected, as a line of JSON'),
        "too deep": (b"[" * 50_000, "was expected"),
        "another object": ({"look": 1}, '"watch", "show" or "control" was expected'),
        "a number": (b"7", '"watch", "show" or "control" was expected'),
        "no query": ({"watch": 7}, "an object with interval, most, sort, filter was expected"),
        "an unknown field": ({"watch": {"colour": 1}}, "colour: there is no such field"),
        "a wrong interval": ({"watch": {"interval": "soon"}}, "interval must be a number"),
        "a wrong number": ({"watch": {"most": -1}}, "most must be a number from 0 to 2000"),
        "a wrong sort": ({"watch": {"sort": "size"}}, "sort must be one of age, left"),
        "a wrong filter": ({"watch": {"filter": "x" * 201}}, "filter must be a text"),
        "no server": ({"show": {"server": 1, "request": 1}}, "server must be from 0 to 0, not 1"),
        "no request": ({"show": {"server": 0}}, "request must be a whole number"),
        "an order": ({"control": {"do": "drain", "server": 0}}, "allow_control=True"),
    },
)
async def test_wrong_words(sent, told):
    """What makes no sense is answered in words, and the viewer is shown what it asks for next."""
    async with watched() as (_, address), viewer_of(address) as viewer:
        await viewer.say(sent)
        heard = await viewer.hear()
        assert heard["type"] == "error"
        assert told in heard["message"]
        await viewer.say({"watch": {}})
        assert (await viewer.hear())["type"] == "state"


async def test_detail():
    """One request is shown with its tasks, and with the lines in which those wait."""

    async def parent(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, request, client_address, server)

    async with watched(parent) as (_, address), viewer_of(address) as viewer:
        await viewer.say({"show": {"server": 0, "request": 1}})
        heard = await viewer.hear()
        assert heard["request"]["id"] == 1
        assert [task["request"] for task in heard["tasks"]] == [1, 1]
        assert "in hold: await trio.sleep_forever()" in heard["text"]
        assert heard["text"].startswith("Named request 1 from")
        await viewer.say({"show": {"server": 0, "request": 2}})
        assert (await viewer.hear())["text"] == "there is no request 2: it has ended, or never was"


@table(
    "order, message, state, active",
    {
        "cancel": (
            *({"do": "cancel", "server": 0, "request": 1}, "request 1 of Named is cancelled"),
            *("serving", 0),
        ),
        "suspend": ({"do": "suspend", "server": 0}, "accepts nobody", "suspended", 1),
        "drain": ({"do": "drain", "server": 0}, "Named drains", "draining", 1),
        "nobody": ({"do": "cancel", "server": 0, "request": 9}, "no request 9", "serving", 1),
        "nonsense": ({"do": "dance", "server": 0}, "do must be one of cancel", "serving", 1),
    },
)
async def test_control(order, message, state, active):
    """Orders are obeyed where the program allows it, and answered in words."""
    async with watched(allow_control=True) as (server, address), viewer_of(address) as viewer:
        await viewer.say({"control": order})
        heard = await viewer.hear()
        assert message in heard["message"]
        while server.statistics().active > active:
            await trio.lowlevel.checkpoint()
        assert server.snapshot().state == state
        if state == "suspended":
            await viewer.say({"control": {"do": "resume", "server": 0}})
            assert "accepts again" in (await viewer.hear())["message"]
            assert server.snapshot().state == "serving"


# What browsers are shown -------------------------------------------------------------


@table(
    "asked, status, told",
    {
        "the page": ({}, 200, b"<!doctype html>"),
        "its parts": ({"target": "/rows.js"}, 200, b"export function rowsOf"),
        "without the body": ({"method": "HEAD"}, 200, b""),
        "states, without a body": ({"method": "HEAD", "target": "/events"}, 200, b""),
        "one request": ({"target": "/request?server=0&id=1"}, 200, b'"type": "request"'),
        "no request": ({"target": "/request?server=0&id=x"}, 400, b"request must be a whole"),
        "something else": ({"target": "/../monitor.py"}, 404, b"there are /, /events"),
        "in another way": ({"method": "PUT", "body": b"x"}, 405, b"GET or HEAD was expected"),
        "by a method of its own": ({"method": "LOOK"}, 405, b"GET or HEAD was expected"),
        "what is no URL": ({"target": "//["}, 400, b"a URL was expected"),
        "an order by GET": ({"target": "/control"}, 405, b"POST was expected"),
        "by another name": ({"host": "evil.example:80"}, 403, b"a Host of this machine"),
        "by no name": ({"host": ""}, 403, b"a Host of this machine"),
        "through a tunnel": ({"host": "127.0.0.1:9"}, 200, b"<!doctype html>"),
        "from another page": ({"head": "Origin: http://evil.example\r\n"}, 403, b"not for pages"),
        "from its own": ({"head": "Origin: http://localhost:1\r\n"}, 200, b"<!doctype html>"),
        "nonsense": ({"head": "no colon\r\n"}, 400, b"illegal header"),
        "a form": (
            *({"target": "/control", "method": "POST", "body": b"do=drain"}, 415),
            b"application/json was expected",
        ),
        "an order": (
            {
                "target": "/control",
                "method": "POST",
                "body": b'{"do": "drain", "server": 0}',
                "head": "Content-Type: application/json\r\n",
            },
            *(400, b"this monitor only shows"),
        ),
        "too much": (
            {"target": "/control", "method": "POST", "body": b"x" * 70_000},
            *(413, b"at most 65536 bytes"),
        ),
    },
)
async def test_web(asked, status, told, caplog):
    """Each request is answered as it should be, whoever sends it, and only to its own page."""
    async with watched() as (server, address):
        found, head, body = await fetched(address, **asked)
        assert found == status
        assert told in body or asked.get("method") == "HEAD"
        assert "default-src 'none'" in head
        assert "nosniff" in head
        assert (len(body) == 0) == (asked.get("method") == "HEAD")
        assert server.snapshot().state == "serving"
    assert not caplog.messages


@table("method", {name: name for name in ("POST", "OPTIONS", "TRACE", "LOOK", "control")})
async def test_orders_of_another_page(method):
    """A page that another name has brought here gives no orders: not as lines of a body, either."""
    body = b'{"control": {"do": "drain", "server": 0}}\n' * 2
    async with watched(allow_control=True) as (server, address):
        status, _, told = await fetched(address, method=method, body=body, host="evil.example:80")
        assert (status, b"a Host of this machine" in told) == (403, True)
        assert server.snapshot().state == "serving"


async def test_filter_that_looks_like_http():
    """A program may look for what is in lines of HTTP."""
    async with watched() as (_, address), viewer_of(address) as viewer:
        await viewer.say({"watch": {"filter": "GET / HTTP/1.1"}})
        assert (await viewer.hear())["servers"][0]["hidden"] == 1


async def test_web_without_h11(monkeypatch):
    """Without h11 a browser is told what to install, and programs are served."""
    monkeypatch.setitem(__import__("sys").modules, "h11", None)
    async with watched() as (_, address):
        status, _, body = await fetched(address)
        assert (status, b"pip install 'trioserver[monitor]'" in body) == (501, True)
        async with viewer_of(address) as viewer:
            await viewer.say({"watch": {}})
            assert (await viewer.hear())["type"] == "state"


async def test_findings():
    """What is wrong is shown, with the line in which a task waits; a block for a while after it."""
    enough = trio.Event()

    async def shields(request, client_address, server):
        await request.send_all(b"x")
        time.sleep(0.3)  # noqa: ASYNC251  (this is what is wrong)
        with trio.move_on_after(0), trio.CancelScope(shield=True):
            await enough.wait()

    linter = Linter(long_shield=0, blocked_loop=0.1)
    server = Named(ADDRESS, shields, timeouts=trioserver.Timeouts(cleanup=0, linger=0))
    with trio.fail_after(20):
        async with watched(shields, 0, server, linter=linter) as (server, address):
            async with viewer_of(address) as viewer:
                await viewer.say({"watch": {}})
                assert (await viewer.hear())["findings"] == []
                async with await trio.open_tcp_stream(*server.server_address):
                    found = {}
                    while len(found) < 2:
                        state = await viewer.hear()
                        found |= {it["lint"]: it["message"] for it in state["findings"]}
                    assert "in shields" in found["long-shield"]
                    assert "the loop did not turn" in found["blocked-loop"]
                    state = await viewer.hear()
                    assert "blocked-loop" in {it["lint"] for it in state["findings"]}
                    enough.set()


# What is not noticed -------------------------------------------------------------------


async def test_many_viewers_share_one_look(monkeypatch):
    """Fifty viewers cost as many snapshots as one."""
    looks = []

    class Counted(Named):
        def snapshot(self):
            looks.append(trio.current_time())
            return super().snapshot()

    server = Counted(ADDRESS, hold, timeouts=trioserver.Timeouts(linger=0))
    async with watched(server=server, interval=5.0) as (_, address):
        async with trio.open_nursery() as nursery:

            async def view():
                async with viewer_of(address) as viewer:
                    await viewer.say({"watch": {}})
                    await viewer.hear()

            for _ in range(50):
                nursery.start_soon(view)
    assert len(looks) == 1


async def test_viewer_that_never_reads():
    """It misses looks, which is counted, and costs nobody anything: others go on as before."""
    async with watched(clients=30, interval=0.001) as (server, address):
        lazy = socket.create_connection(address)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b'{"watch": {}}\n')
        with lazy:
            async with viewer_of(address) as viewer:
                await viewer.say({"watch": {}})
                for _ in range(100):
                    assert len((await viewer.hear())["servers"][0]["requests"]) == 30
        assert server.statistics().outcomes[trioserver.Outcome.FAILED] == 0


async def test_viewer_that_leaves(caplog):
    """One that goes at once, in the middle of a line or of a state, is gone, and that is all."""
    caplog.set_level("WARNING")
    async with watched(clients=3) as (server, address):
        browser = b"GET /events HTTP/1.1\r\nHost: localhost\r\n"
        for said in (b"", b'{"watch"', b'{"watch": {}}\n', browser, browser + b"\r\n"):
            gone = socket.create_connection(address)
            gone.sendall(said)
            gone.close()
        async with viewer_of(address) as viewer:
            await viewer.say({"watch": {}})
            for _ in range(3):
                await viewer.hear()
        assert server.snapshot().state == "serving"
    assert not caplog.messages


async def test_monitor_of_a_server_that_ends():
    """The monitor outlives what it watches: it shows a server that is unbound, and bound again."""
    server = Named(ADDRESS, hold, timeouts=trioserver.Timeouts(linger=0))
    async with trio.open_nursery() as nursery:
        address = await nursery.start(Monitor([server], ADDRESS, interval=0.01).serve)
        async with viewer_of(address) as viewer:
            await viewer.say({"watch": {}})
            for _ in range(2):
                while (await viewer.hear())["servers"][0]["state"] != "unbound":
                    pass
                async with server.serving():
                    while (await viewer.hear())["servers"][0]["state"] != "serving":
                        pass
        nursery.cancel_scope.cancel(reason="the test is over")


# Making one ----------------------------------------------------------------------------


@table(
    "fields, error, told",
    {
        "no servers": ({"servers": []}, TypeError, "servers must be a list of servers"),
        "one server": (
            {"servers": MemoryServer(("memory", 1), hold)},
            *(TypeError, "servers must be a list of servers"),
        ),
        "everybody": ({"address": ("0.0.0.0", 0)}, ValueError, "a host of this machine alone"),
        "all of IPv6": ({"address": ("::", 0)}, ValueError, "a host of this machine alone"),
        "another machine": ({"address": ("10.0.0.1", 0)}, ValueError, "of this machine alone"),
        "a name": ({"address": ("example.org", 0)}, ValueError, "of this machine alone"),
        "no address": ({"address": None}, ValueError, "address must be a path, or"),
        "no time": ({"interval": 0}, ValueError, "interval must be greater than 0"),
        "no number": ({"interval": "1"}, TypeError, "interval must be a number"),
        "too many": ({"most": 3000}, ValueError, "most must be from 0 to 2000"),
    },
)
def test_monitor_that_is_refused(fields, error, told):
    """Nothing wrong is kept until it serves, and nothing is shown beyond this machine."""
    fields = {"servers": [MemoryServer(("memory", 1), hold)], "address": ADDRESS, **fields}
    with pytest.raises(error, match=told):
        Monitor(**fields)


async def test_monitor_on_a_unix_socket(tmp_path):
    """A path is an address, too; its file goes with the monitor."""
    path = tmp_path / "monitor"
    async with trio.open_nursery() as nursery:
        server = MemoryServer(("memory", 1), hold)
        assert await nursery.start(Monitor([server], path, interval=0.01).serve) == str(path)
        async with await trio.open_unix_socket(path) as stream:
            viewer = Viewer(stream)
            await viewer.say({"watch": {}})
            assert (await viewer.hear())["servers"][0]["name"] == "MemoryServer"
        nursery.cancel_scope.cancel(reason="the test is over")
    assert not path.exists()
