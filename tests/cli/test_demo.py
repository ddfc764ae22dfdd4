"""``python -m trioserver``, and its demonstration: the first thing that people see."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

import trioserver
from trioserver import __main__
from trioserver._cli import demo

CONVERSATION = r"""
{server} on {address}
  client 1  connects
  client 1  sends     b'hello, trio\n'
  server    receives  b'hello, trio\n' from client 1
  server    sends     b'HELLO, TRIO\n' to client 1
  client 1  receives  b'HELLO, TRIO\n'
  client 2  connects
  client 2  sends     b'shut down, please\n'
  server    receives  b'shut down, please\n' from client 2
  server    sends     b'SHUT DOWN' to client 2, and drains
"""

# These come from two clients at once, and may do so in any order.
DRAIN = r"""
  client 2  receives  b'SHUT DOWN'
  client 1  receives  the end
  server    sends     b', PLEASE\n' to client 2
  client 2  receives  b', PLEASE\n'
  client 2  receives  the end
"""

REPORT = r"""
Report: shutdown\(\) was called: ended in [01]\.\d+ s of 2 s grace, 1 completed, 1 drained, 0 unaccepted
  request 1 from \S+ drained after .*
  request 2 from \S+ completed after .*
"""  # noqa: E501  (as it is printed)


DATAGRAMS = r"""
{server} on {address}
  client 1  sends     b'hello, trio'
  server    receives  b'hello, trio' from client 1
  server    sends     b'HELLO, TRIO' to client 1
  client 1  receives  b'HELLO, TRIO'
  client 2  sends     b'shut down, please'
  server    receives  b'shut down, please' from client 2
  server    drains    while it works for client 2
  server    sends     b'SHUT DOWN, PLEASE' to client 2
  client 2  receives  b'SHUT DOWN, PLEASE'
"""

REPORT_OF_DATAGRAMS = r"""
Report: shutdown\(\) was called: ended in [01]\.\d+ s of 2 s grace, 1 completed, 0 unaccepted
  request 2 from \S+ completed after .*
"""


def chapter(server, address, conversation, transcript):
    """What the demonstration says of one server after that conversation."""
    found = re.search(rf"^{server} on ({address})\n.*?(?=^$)", transcript, re.MULTILINE | re.DOTALL)
    assert found, transcript
    expected = conversation.format(server=server, address=found[1]).lstrip("\n")
    assert found[0].startswith(expected)
    return found[0].removeprefix(expected)


@pytest.mark.slow
def test_demo_tells_the_life_of_four_servers():
    """From any directory: four conversations, four drains, four reports, and nothing is left."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-m", "trioserver", "demo"],
            cwd=folder,
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert list(Path(folder).iterdir()) == []
    assert (done.returncode, done.stderr) == (0, "")
    loopback, path = r"127\.0\.0\.1:\d+", rf"{re.escape(folder)}/\S+"
    for server, address in (("TCPServer", loopback), ("UnixStreamServer", path)):
        told = chapter(server, address, CONVERSATION, done.stdout)
        for line in DRAIN.strip("\n").split("\n"):
            assert told.count(line) == 1, told
        assert re.search(REPORT, told), told
    for server, address in (("UDPServer", loopback), ("UnixDatagramServer", path)):
        told = chapter(server, address, DATAGRAMS, done.stdout)
        assert re.fullmatch(REPORT_OF_DATAGRAMS.lstrip("\n"), told), told
    assert done.stdout.endswith("\nEvery reply was right, and nothing is left running.\n")


def half(line):
    """The first half of a reply."""
    return line.upper().removesuffix(b", PLEASE\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "reply", "wrong"),
    [
        (demo.Upper, bytes.lower, r"1 received b'hello, trio\n', not b'HELLO, TRIO\n'"),
        (demo.Upper, half, r"2 received b'', not b', PLEASE\n'"),
        (demo.UpperDatagram, bytes.title, "1 received b'Hello, Trio', not b'HELLO, TRIO'"),
        (demo.UpperDatagram, None, "1 received nothing, not b'HELLO, TRIO'"),
    ],
)
def test_demo_fails_when_a_reply_is_wrong(handler, reply, wrong, monkeypatch, capsys):
    """A wrong reply, or none, is shown, and is the exit status."""

    async def handle(self):
        async for line in self.rfile:
            if reply:
                await self.wfile.write(reply(line))
            if line.startswith(b"shut down"):
                self.server.shutdown()

    monkeypatch.setattr(handler, "handle", handle)
    monkeypatch.setattr(demo, "PATIENCE", 1 if reply is None else demo.PATIENCE)
    assert __main__.main(["demo"]) == 1
    assert capsys.readouterr().out.endswith(f"\nWRONG: client {wrong}\n")


@pytest.mark.slow
def test_demo_ends_at_an_interrupt(monkeypatch, capsys):
    """Ctrl-C in the middle of a request ends it with one line and the usual status."""

    async def interrupt(self):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr(demo.Upper, "handle", interrupt)
    monkeypatch.setattr(demo, "PATIENCE", 1)
    assert __main__.main(["demo"]) == 130
    assert capsys.readouterr().out.endswith("\nInterrupted.\n")


@pytest.mark.slow
def test_demo_skips_what_the_system_lacks(monkeypatch, capsys):
    """Without Unix sockets it says so, and shows the rest."""
    other_system = {name: fact for name, fact in vars(socket).items() if name != "AF_UNIX"}
    monkeypatch.setattr(demo, "socket", SimpleNamespace(**other_system))
    assert __main__.main(["demo"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^\w+Server on", told, re.MULTILINE) == ["TCPServer on", "UDPServer on"]
    assert "The Unix servers are skipped: this system has no Unix sockets.\n" in told
    assert told.endswith("Every reply was right, and nothing is left running.\n")


def test_main_without_a_command(capsys):
    """With no arguments it lists the commands; an unknown one is status 2, and told as an error."""
    assert __main__.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: trioserver ")
    assert re.search(r"^ +demo  +\w", printed, re.MULTILINE)
    with pytest.raises(SystemExit) as exit_:
        __main__.main(["demonstrate"])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trioserver: error: argument COMMAND: invalid choice: 'demonst")


def test_main_is_the_status_of_the_process(monkeypatch):
    """What `main` returns is the status that the process ends with."""
    monkeypatch.setattr(demo, "demo", lambda: 3)
    monkeypatch.setattr(sys, "argv", ["trioserver", "demo"])
    # Not by runpy: pytest loads what comes with a plugin by a loader that it does not know.
    source = Path(trioserver.__file__).with_name("__main__.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        exec(source, {"__name__": "__main__", "__package__": "trioserver"})  # noqa: S102
    assert exit_.value.code == 3
