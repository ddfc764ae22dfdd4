"""Programs that can be watched: by a monitor, and in their own terminals."""

import json
import signal
import subprocess
import sys

import pytest
import trio
from support import plain_client
from support.listening import on_linux
from support.scenes import table
from support.terminals import in_terminal

from trioserver.__main__ import main
from trioserver.monitoring._top.feed import connected
from trioserver.monitoring._top.selection import SORTS

pytestmark = on_linux

BUSY = [sys.executable, "-m", "trioserver", "serve", "app:stuck", "--bind", "unix:busy"]


async def test_live(tmp_path):
    """The screen is there with the log, and the drain ends it; the ready line is not lost."""
    async with in_terminal([*BUSY, "--live", "--grace", "0"], tmp_path) as program:
        await program.shows("UnixStreamServer  serving", "ready on unix:busy", "q quit")
        with plain_client(str(tmp_path / "busy")):
            await program.shows("unix:(unnamed)", "active 1/")
            program.types("\x03")
            assert await program.ends() == 0
        assert not program.screen.other
        await program.shows("ready on unix:busy")


async def test_live_with_workers(tmp_path):
    """Workers are shown with their requests, and what they log is part of the screen."""
    command = [*BUSY, "--live", "--workers", "2", "--grace", "0"]
    async with in_terminal(command, tmp_path, lines=40) as program:
        await program.shows("worker ", "generation 1", "ready on unix:busy", "q quit")
        with plain_client(str(tmp_path / "busy")):
            await program.shows("unix:(unnamed)", "active 1")
            assert program.screen.other
            program.process.send_signal(signal.SIGTERM)
            assert await program.ends() == 0
        assert not program.screen.other


async def test_monitor(command, tmp_path):
    """``top`` sees what the program serves, and may cancel it if that is allowed."""
    watched = "--monitor unix:monitor --monitor-control --grace 0"
    with command("serve app:stuck --bind unix:busy", watched) as program:
        program.says("ready on")
        with plain_client(str(tmp_path / "busy")) as client:
            assert client.recv(5) == b"stuck"
            top = [sys.executable, "-m", "trioserver", "top", "unix:monitor"]
            done = await trio.run_process([*top, "--json"], cwd=tmp_path, capture_stdout=True)
            state = json.loads(done.stdout)
            assert state["pid"] == program.process.pid
            assert state["servers"][0]["statistics"]["active"] == 1
            async with in_terminal(top, tmp_path, columns=160) as screen:
                await screen.shows("UnixStreamServer  serving", "unix:(unnamed)")
                screen.types("\r")
                await screen.shows("started at", "in stuck: await trio.sleep_forever()")
                screen.types("c")
                await screen.shows("Cancel request 1? y/n")
                screen.types("y")
                assert await trio.to_thread.run_sync(client.recv, 5) == b""
                screen.types("\x1b")
                await screen.shows("active 0/", "no requests")
                screen.types("q")
                assert await screen.ends() == 0
        program.stops()


async def test_all_that_can_be_watched(command, tmp_path):
    """The monitor knows each order of rows that ``top`` asks for, and the other way round."""
    with command("serve app:stuck --bind unix:busy --monitor unix:monitor") as program:
        program.says("ready on")
        async with connected(str(tmp_path / "monitor"), 5) as feed:
            for sort in [f"{sign}{name}" for sign in ("", "-") for name in SORTS]:
                watch = {"interval": 1.0, "most": 5, "sort": sort, "filter": "x"}
                await feed.send({"watch": watch})
                assert (await feed.receive())["type"] == "state", sort
        program.stops()


@table(
    ("arguments", "message"),
    {
        "no terminal": ("--live", "--live needs a terminal: leave it out where there is none"),
        "control of nothing": ("--monitor-control", "--monitor was expected, too: there is"),
        "no address": ("--monitor x", "argument --monitor: an address was expected"),
    },
)
def test_usage(arguments, message, capsys):
    """Status 2, and one line."""
    try:
        status = main(["serve", "app:Upper", *arguments.split()])
    except SystemExit as end:
        status = end.code
    [line] = capsys.readouterr().err.splitlines()
    assert status == 2
    assert message in line


@pytest.mark.parametrize("name", ["serve", "echo", "exec"])
def test_help(name):
    """All commands that serve have the options."""
    line = [sys.executable, "-m", "trioserver", name, "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True, timeout=30).stdout
    assert all(option in shown for option in ("--monitor ADDRESS", "--monitor-control", "--live"))
