"""`trioserver top` for scripts, and where it cannot be used."""

import json
import socket

import pytest
import trio
from support.fake_monitor import FakeMonitor
from support.scenes import table
from support.seen import a_request, a_server

from trioserver.__main__ import main
from trioserver.testing import open_test_server


async def status_of(monitor, *arguments):
    """The status of the command, which asks this monitor."""
    async with open_test_server(monitor.handle, transport="unix", strict=False) as server:
        words = ["top", f"unix:{server.address}", *arguments]
        return await trio.to_thread.run_sync(main, words)


async def test_once(capsys):
    """What is there now, as plain lines."""
    monitor = FakeMonitor([a_server(a_request(7, state="idle", time_left=3.0))])
    assert await status_of(monitor, "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "TCPServer  serving  up 00:03:12  active 1/100  total 1  on 127.0.0.1:9999"
    assert " ".join(lines[2].split()) == "ID CLIENT WHERE MODE STATE AGE LEFT IN OUT"
    row = "7 127.0.0.1:50007 127.0.0.1:9999 task idle 1.0s ===- 3.0s 0B 0B"
    assert " ".join(lines[3].split()) == row


async def test_json(capsys):
    """The same as JSON, as the monitor has told it."""
    monitor = FakeMonitor()
    assert await status_of(monitor, "--json", "--most", "5") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["type"], found["version"]) == ("state", 1)
    assert [request["id"] for request in found["servers"][0]["requests"]] == [1, 2]
    assert monitor.heard[0]["watch"]["most"] == 5


async def test_no_monitor(capsys):
    """Status 1, and one line that says where and why."""
    monitor = FakeMonitor(more={"version": 9})
    assert await status_of(monitor, "--once") == 1
    said = capsys.readouterr().err
    assert said.startswith("trioserver: error: unix:")
    assert said.endswith(": the monitor speaks version 9, and this trioserver only 1\n")


@pytest.mark.parametrize("how", ["--once", "--json"])
def test_nobody(how, capsys):
    """Status 1, too."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert main(["top", f"127.0.0.1:{port}", how]) == 1
    printed = capsys.readouterr()
    assert printed == ("", f"trioserver: error: 127.0.0.1:{port}: Connection refused\n")


def test_no_terminal(capsys):
    """Without one, and without a word on it, it is an error that says what to do."""
    assert main(["top", "1"]) == 2
    said = "trioserver: error: top needs a terminal; --once and --json are for pipes and files\n"
    assert capsys.readouterr().err == said


@table(
    ("arguments", "message"),
    {
        "nobody": ("", "the following arguments are required: ADDRESS"),
        "no address": ("here", "argument ADDRESS: an address was expected"),
        "both": ("1 --once --json", "--json: not allowed with argument --once"),
        "too often": ("1 --interval 1ms", "a time from 100ms to 1h was expected, not '1ms'"),
        "never": ("1 --interval inf", "a time from 100ms to 1h was expected, not 'inf'"),
        "no number": ("1 --most x", "argument --most: a whole number was expected, not 'x'"),
    },
)
def test_usage(arguments, message, capsys):
    """Status 2, and one line."""
    with pytest.raises(SystemExit) as end:
        main(["top", *arguments.split()])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
