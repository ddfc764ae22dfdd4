"""What signals order: to end in steps, to reload, to show the tasks."""

import logging
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import trio
from support.in_memory_programs import Visited, on_visit, order, until_draining
from support.scenes import table

import trioserver
from trioserver.testing import MemoryServer

pytestmark = pytest.mark.usefixtures("handlers")

TERM = 128 + signal.SIGTERM


# Ending in steps --------------------------------------------------------------------


def test_unready_before_it_drains(virtual_clock):
    """GS-15: with `ready_off`, the first signal lets everybody in for so many seconds more."""
    drains_at = []

    async def look(server):
        if server.statistics().accepted == 1:
            order("SIGTERM")
            await trio.sleep(4)
            server.listener.connect_now()
            await trio.sleep(4)

    tells = SimpleNamespace(draining=lambda grace: drains_at.append(trio.current_time()))
    (report,) = trioserver.run(on_visit(look, observers=[tells]), ready_off=5)
    assert (drains_at, report.clean, report.statistics.accepted) == ([5], True, 2)


@table(
    ("signals", "status", "times"),
    {
        "the second one cuts the pause": (["SIGTERM", "SIGINT"], None, [0, 2]),
        "the third one cancels": (["SIGTERM", "SIGINT", "SIGTERM"], TERM, [0, 2, 4]),
        "when the pause is over, the second one cancels": (["SIGINT", "SIGTERM"], TERM, [0, 7]),
    },
)
def test_pause_and_more_signals(signals, status, times, virtual_clock):
    """Each signal is one step more, and so is the end of the pause."""
    came = []

    async def send(server):
        for at, name in zip(times, signals, strict=True):
            await trio.sleep_until(at)
            came.append((trio.current_time(), server.draining))
            order(name)
        await until_draining(server)
        if status is not None:
            await trio.sleep_forever()

    server = on_visit(send)
    if status is None:
        assert trioserver.run(server, ready_off=5)[0].clean
    else:
        with pytest.raises(SystemExit) as caught:
            trioserver.run(server, ready_off=5)
        assert caught.value.code == status
    assert came == [(at, at > 2) for at in times]
    assert virtual_clock.current_time() == times[-1]


def test_servers_that_end_in_the_pause(virtual_clock):
    """There is nothing left to wait for then."""

    async def leave(server):
        order("SIGTERM")
        server.shutdown()

    trioserver.run(on_visit(leave), ready_off=60)
    assert virtual_clock.current_time() == 0


SLOW = """
import signal, sys
import trioserver

async def handle(request, client_address, server):
    pass

for name in sys.argv[1:]:
    signal.raise_signal(signal.Signals[name])  # while this module is being imported
server = trioserver.TCPServer(("127.0.0.1", 0), handle)
print("imported", flush=True)
"""


@table(
    ("signals", "status", "prints"),
    {
        "one ends it as soon as it can": (["SIGTERM"], 0, "imported\nTrue\n"),
        "Ctrl-C does, too": (["SIGINT"], 0, "imported\nTrue\n"),
        "two end it there": (["SIGINT", "SIGTERM"], TERM, ""),
        "others wait": (["SIGHUP", "SIGUSR1", "SIGTERM"], 0, "imported\nTrue\n"),
    },
)
def test_signals_while_a_module_is_imported(signals, status, prints, tmp_path):
    """SG-08: they are heard before anything else happens."""
    (tmp_path / "slow.py").write_text(SLOW)
    program = "import sys; sys.path.insert(0, '.')\n"
    program += "import trioserver; print(trioserver.run('slow:server')[0].clean)"
    command = [sys.executable, "-c", program, *signals]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout) == (status, prints)
    assert "Traceback" not in done.stderr


def test_grace_that_is_over(caplog):
    """Whoever it has cut is told of in the log; the program ends in order all the same."""

    async def stay(server):
        order("SIGTERM")
        await trio.sleep_forever()

    (report,) = trioserver.run(on_visit(stay), grace=0)
    assert len(report.cancelled) == 1
    (record,) = [it for it in caplog.records if it.name == "trioserver.program"]
    assert record.getMessage() == "the grace of 0 s was over: Visited has cancelled 1 requests"


# Reloading --------------------------------------------------------------------------


RELOADED = []


class Reloads(MemoryServer):
    """Has files of its own to read."""

    def reload(self):
        RELOADED.append(type(self).__name__)


class ReloadsInVain(Reloads):
    error = ValueError("line 3 is wrong")

    def reload(self):
        super().reload()
        raise self.error


@pytest.fixture
def log():
    """Who has reloaded."""
    RELOADED.clear()
    return RELOADED


async def nobody(request, client_address, server):
    """Is never called."""
    raise AssertionError


@table(
    ("error", "is_shown"),
    {
        "a file that is wrong says so": (ValueError("line 3 is wrong"), False),
        "a fault of the program has a traceback": (LookupError("line 3 is wrong"), True),
    },
)
def test_reload(error, is_shown, log, caplog, monkeypatch):
    """SG-04: each server that can reload does; one that fails says so, and all serve on."""
    monkeypatch.setattr(ReloadsInVain, "error", error)

    async def reload(server):
        order("SIGHUP")
        while len(log) < 2:
            await trio.lowlevel.checkpoint()
        log.append(server.snapshot().state)
        order("SIGTERM")

    others = [kind(("memory", 2), nobody) for kind in (ReloadsInVain, Reloads)]
    with caplog.at_level(logging.INFO, "trioserver"):
        trioserver.run(on_visit(reload), *others)
    assert log == ["ReloadsInVain", "Reloads", "serving"]
    (told,) = [it for it in caplog.records if it.levelno == logging.ERROR]
    expected = "ReloadsInVain could not reload, and goes on as it was: line 3 is wrong"
    assert told.getMessage() == expected
    assert bool(told.exc_info) == is_shown
    assert "SIGHUP: reloaded 1 of the 2 servers that can" in caplog.text


@table(
    "disposition",
    {
        "under nohup(1) it is ignored": signal.SIG_IGN,
        "the program has a handler of its own": lambda number, frame: None,
    },
)
def test_hangup_that_is_not_for_us(disposition, log):
    """It stays so."""
    signal.signal(signal.SIGHUP, disposition)

    class ReloadsOnVisit(Reloads, Visited):
        pass

    async def hang_up(server):
        order("SIGHUP")
        await trio.lowlevel.checkpoint()
        order("SIGTERM")

    trioserver.run(on_visit(hang_up, ReloadsOnVisit))
    assert log == []
    assert signal.getsignal(signal.SIGHUP) is disposition


def test_reload_of_a_program_that_drains(log):
    """Nobody comes any more to whom it would make a difference."""

    class ReloadsOnVisit(Reloads, Visited):
        pass

    async def reload(server):
        order("SIGTERM")
        await until_draining(server)
        order("SIGHUP")
        await trio.testing.wait_all_tasks_blocked()

    trioserver.run(on_visit(reload, ReloadsOnVisit))
    assert log == []


def test_servers_that_end_before_all_listen(virtual_clock):
    """One that its own handler ends is missed by nobody."""

    async def end(server):
        server.shutdown()

    class Slow(Visited):
        async def server_bind(self):
            await trio.sleep(3)
            return await super().server_bind()

    ready = []
    trioserver.run(on_visit(end), on_visit(end, Slow), on_ready=ready.append)
    assert ready == [(("memory", 1),)]


# Showing the tasks ------------------------------------------------------------------


def test_tasks_are_shown(caplog):
    """All of them, with the lines in which they wait, at a level that is seen without set-up.

    And so are the servers, with their requests.
    """

    async def ask(server):
        order("SIGUSR1")
        while "SIGUSR1" not in caplog.text:
            await trio.lowlevel.checkpoint()  # waits here
        order("SIGTERM")

    trioserver.run(on_visit(ask))
    (record,) = [it for it in caplog.records if it.name == "trioserver.program"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("SIGUSR1: the tasks are\n<init>")
    assert "await trio.lowlevel.checkpoint()  # waits here" in record.getMessage()
    assert re.search(r"^Visited  serving .*active 1  slots ", record.getMessage(), re.MULTILINE)
    assert re.search(r"^   └─ #1 .*  task  working ", record.getMessage(), re.MULTILINE)


UPPER = """
import types
import trioserver

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        await request.sendall(line.upper())

tells = types.SimpleNamespace(server_listening=lambda addresses: print(*addresses[0], flush=True))
trioserver.run(trioserver.TCPServer(("127.0.0.1", 0), handle, observers=[tells]))
print("ended", flush=True)
"""


@pytest.mark.slow
def test_storm_of_signals():
    """SG-05: SIGHUP and SIGUSR1 by the hundred end nothing, and no reply is cut or sent twice."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", UPPER], **pipes) as process:
        try:
            host, port = process.stdout.readline().split()
            with socket.create_connection((host, int(port)), timeout=10) as client:
                for number in range(300):
                    process.send_signal((signal.SIGHUP, signal.SIGUSR1)[number % 2])
                    client.sendall(b"%05d\n" % number)
                    assert client.recv(100) == b"%05d\n" % number
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "ended\n"
            assert process.wait(10) == 0
        finally:
            process.kill()


STOPPED = """
import os, types
import trioserver

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        await request.sendall(line.upper())

tells = types.SimpleNamespace(server_listening=lambda addresses: print(*addresses[0], flush=True))
trioserver.run(trioserver.TCPServer(
    ("127.0.0.1", 0), handle, observers=[tells], timeouts=trioserver.Timeouts(idle=0.5)
))
"""


@pytest.mark.slow
def test_program_that_was_stopped():
    """SG-09: who has spoken while it stood still is answered, though his time was over."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as process:
        try:
            host, port = process.stdout.readline().split()
            clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(20)]
            for client in clients:
                client.sendall(b"hello\n")
                assert client.recv(6) == b"HELLO\n"
            process.send_signal(signal.SIGSTOP)
            for client in clients[:10]:
                client.sendall(b"again\n")
            time.sleep(1)  # beyond `idle`; the others have said nothing
            process.send_signal(signal.SIGCONT)
            answers = [client.recv(6) for client in clients]
            assert answers == [b"AGAIN\n"] * 10 + [b""] * 10
            for client in clients:
                client.close()
        finally:
            process.kill()


# Arguments --------------------------------------------------------------------------

HERE = """
import trioserver

async def handle(request, client_address, server):
    pass

def ending(kind):
    server = kind(("127.0.0.1", 0), handle)
    server.shutdown()
    return server

class Space:
    server = ending(trioserver.TCPServer)

def make():
    return [Space.server, ending(trioserver.UDPServer)]

number = 5
nothing = []
raises = {}["no such key"] if __name__ == "broken" else None
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A module of servers, called ``place``, and one that fails, called ``broken``."""
    for name in ("place", "broken"):
        (tmp_path / f"{name}.py").write_text(HERE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@table(
    ("given", "count"),
    {
        "an attribute of an attribute": ("place:Space.server", 1),
        "a function that makes several": ("place:make", 2),
    },
)
def test_servers_by_their_place(given, count, place):
    """They are imported, or made, and served."""
    reports = trioserver.run(given)
    assert [report.reason for report in reports] == ["shutdown() was called"] * count


@table(
    ("arguments", "kind", "message"),
    {
        "no module": ({"given": ":server"}, ValueError, "must be module:attribute"),
        "no attribute": ({"given": "place"}, ValueError, "'place' must be module:attribute"),
        "no such module": ({"given": "nowhere:server"}, ImportError, "nowhere"),
        "no such attribute": ({"given": "place:server"}, AttributeError, "server"),
        "something else": (
            {"given": "place:number"},
            TypeError,
            "what place:number is must be a server",
        ),
        "none at all": ({"given": "place:nothing"}, TypeError, r"or several, not \[\]"),
        "a class": ({"given": "place:Space"}, TypeError, "what place:Space is must be a server"),
        "no server and no place": ({"given": 5}, TypeError, r"must be a server, or several, not 5"),
        "a module that fails": ({"given": "broken:server"}, KeyError, "no such key"),
        "a time that is none": ({"ready_off": -1}, ValueError, "ready_off must be at least 0"),
        "a place for checks that is none": ({"health": 80}, TypeError, "health must be None, a pa"),
        "a port that is none": ({"health": ("", 65536)}, ValueError, "health must be .* 65535"),
    },
)
def test_arguments_that_make_no_sense(arguments, kind, message, place, handlers):
    """They are named, with what was expected, and nobody is served."""
    given = arguments.pop("given", None) or trioserver.TCPServer(("127.0.0.1", 0), nobody)
    with pytest.raises(kind, match=message):
        trioserver.run(given, **arguments)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
