"""`trioserver top` in a real terminal: what it shows, how it ends, and how it leaves that."""

import signal
import sys
from contextlib import asynccontextmanager

import pytest
import trio
from support.fake_monitor import FakeMonitor
from support.listening import on_linux
from support.scenes import table
from support.seen import HOSTILE, a_request, a_server
from support.terminals import in_terminal

from trioserver.testing import open_test_server

pytestmark = on_linux

SHOWN = "enter detail  p pause"
TWENTY = [a_request(number, age=100.0 - number) for number in range(1, 21)]


@asynccontextmanager
async def watching(folder, monitor, *arguments, **more):
    """A program that watches this monitor, and is ready."""
    async with open_test_server(monitor.handle, transport="unix", strict=False) as server:
        command = [sys.executable, "-m", "trioserver", "top", f"unix:{server.address}", *arguments]
        async with in_terminal(command, folder, **more) as program:
            await program.shows(SHOWN, "CLIENT")
            yield program


async def test_a_visit(tmp_path):
    """Look, choose, filter, look at one, cancel it, quit; and the terminal is as it was."""
    monitor = FakeMonitor([a_server(*TWENTY)], control=True)
    async with watching(tmp_path, monitor) as program:
        assert program.screen.other
        assert program.screen.cursor.hidden
        await program.shows("20 127.0.0.1:50020", "1 of 20", "+0.0/s -0.0/s")
        program.types("\x1b[B\x1b[B")
        await program.shows("3 of 20")
        program.types("/50007")
        await program.shows("filter: 50007_", "127.0.0.1:50007", without=["127.0.0.1:50006"])
        program.types("\r")
        await program.shows("[filter: 50007]", "1 of 1")
        program.types("\r")
        await program.shows("started at", "serve  [shielded, 2.5 s left]", "esc back")
        program.types("c")
        await program.shows("Cancel request 7? y/n")
        program.types("y")
        await program.shows("request 7 is cancelled")
        program.types("\x1b")
        await program.shows("CLIENT", SHOWN, without=["started at"])
        program.types("?")
        await program.shows("any key: back", "the same, a screen at a time")
        program.types("q")
        await program.shows(SHOWN)
        program.types("q")
        assert await program.ends() == 0
        assert not program.screen.other
        assert not program.screen.cursor.hidden


@table(
    ("ends_by", "status"),
    {
        "q": ("q", 0),
        "Ctrl-C": ("\x03", 128 + signal.SIGINT),
        "a polite signal": (signal.SIGTERM, 128 + signal.SIGTERM),
        "the terminal that goes": (signal.SIGHUP, 128 + signal.SIGHUP),
    },
)
async def test_terminal_is_as_it_was(ends_by, status, tmp_path):
    """Whatever ends it, nothing of its modes is left."""
    async with watching(tmp_path, FakeMonitor()) as program:
        while_it_runs = program.mode()
        if isinstance(ends_by, str):
            program.types(ends_by)
        else:
            program.process.send_signal(ends_by)
        assert await program.ends() == status
        assert program.mode() != while_it_runs
        assert program.mode()[3] & 0o12 == 0o12  # termios: ICANON and ECHO
        assert not program.screen.other
        assert not program.screen.cursor.hidden
        assert b"Traceback" not in program.raw


async def test_error_leaves_the_terminal(tmp_path):
    """An error of its own does so, too, and is seen."""
    broken = "import trioserver.monitoring._top.app as a; a.picture = None\n"
    code = f"{broken}import sys, trioserver.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
    async with open_test_server(FakeMonitor().handle, transport="unix", strict=False) as server:
        command = [sys.executable, "-c", code, "top", f"unix:{server.address}"]
        async with in_terminal(command, tmp_path) as program:
            assert await program.ends() == 1
            await program.shows("TypeError: 'NoneType' object is not callable")
            assert not program.screen.other


async def test_interrupted_before_there_is_a_screen(tmp_path):
    """Ctrl-C ends the wait for a monitor that says nothing, without a traceback."""
    came = trio.Event()

    async def say_nothing(request, client_address, server):
        await request.receive_some()
        came.set()
        await request.receive_some()

    async with open_test_server(say_nothing, transport="unix", strict=False) as server:
        command = [sys.executable, "-m", "trioserver", "top", f"unix:{server.address}"]
        async with in_terminal(command, tmp_path) as program:
            with trio.fail_after(10):
                await came.wait()
            program.types("\x03")
            assert await program.ends() == 128 + signal.SIGINT
            assert b"Traceback" not in program.raw


async def test_resize(tmp_path):
    """Another size is another picture, at once, and nothing of the old one is left."""
    async with watching(tmp_path, FakeMonitor([a_server(*TWENTY)])) as program:
        await program.shows("20 127.0.0.1:50020", "WHERE")
        program.resize(60, 10)
        await program.shows("5 127.0.0.1:50005", without=["127.0.0.1:50008", "WHERE"])
        program.resize(100, 24)
        await program.shows("20 127.0.0.1:50020", "WHERE", SHOWN)


async def test_suspended(tmp_path):
    """Ctrl-Z gives the terminal back; when it goes on, so does the picture."""
    async with watching(tmp_path, FakeMonitor()) as program:
        program.types("\x1a")
        with trio.fail_after(5):
            while program.screen.other:
                await program.changed()
        program.process.send_signal(signal.SIGCONT)
        await program.shows(SHOWN, "CLIENT")
        assert program.screen.other
        program.types("q")
        assert await program.ends() == 0


async def test_hostile_names(tmp_path):
    """What clients are called does nothing to the terminal."""
    monitor = FakeMonitor([a_server(a_request(1, HOSTILE), name=HOSTILE)])
    async with watching(tmp_path, monitor, columns=300) as program:
        await program.shows("[bold red]x[/]", r"\u202egnp.exe\u2066", r"\x1b]0;gone\x07")
        assert b"\x1b]0" not in program.raw
        assert program.screen.title == ""


@pytest.mark.parametrize("lost", [True, False])
async def test_lost_connection(lost, tmp_path):
    """It says so, and keeps the last picture."""
    async with trio.open_nursery() as nursery:
        over = trio.Event()
        server = await nursery.start(serve_until, over)
        command = [sys.executable, "-m", "trioserver", "top", f"unix:{server.address}"]
        async with in_terminal(command, tmp_path, columns=120) as program:
            await program.shows(SHOWN)
            if lost:
                over.set()
                await program.shows("STALE: ", "trying again every second", "127.0.0.1:50001")
            assert ("STALE" in program.text) == lost
            program.types("q")
            assert await program.ends() == 0
        over.set()


async def serve_until(over, task_status):
    """Serve a monitor until it is over."""
    async with open_test_server(FakeMonitor().handle, transport="unix", strict=False) as server:
        task_status.started(server)
        await over.wait()


async def test_few_pictures(tmp_path):
    """However much a monitor tells, there are two pictures a second; a burst of keys is one."""
    monitor = FakeMonitor([a_server(*TWENTY)])
    async with watching(tmp_path, monitor, "--interval", "100ms") as program:
        await program.shows("20 127.0.0.1:50020")
        states, before = monitor.at, program.raw.count(b"\x1b[1;1H")
        while monitor.at < states + 20:
            await program.changed()
        # The clock in the first line changes with each state, so each picture draws it.
        assert program.raw.count(b"\x1b[1;1H") - before <= 6
        before = program.raw.count(b"of 20")
        program.types("j" * 19)
        await program.shows("20 of 20")
        assert program.raw.count(b"of 20") - before <= 4


@table(
    ("colour", "arguments", "environment"),
    {
        "as usual": (True, [], {}),
        "without colours": (False, ["--no-colour"], {}),
        "without colours by the environment": (False, [], {"NO_COLOR": "1"}),
    },
)
async def test_colours(colour, arguments, environment, tmp_path):
    """Colours can be had or not; the selected row is seen either way."""
    monitor = FakeMonitor([a_server(*TWENTY, state="draining")])
    async with watching(tmp_path, monitor, *arguments, **environment) as program:
        assert (b"\x1b[33m" in program.raw) == colour
        assert b"\x1b[7m" in program.raw
