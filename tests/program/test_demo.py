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
from trioserver import __main__, _demo


def run_demo(folder):
    """The demonstration, run in ``folder``, which it also uses for temporary files."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-m", "trioserver", "demo"],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


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
        done = run_demo(Path(folder))
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


async def whispers(self):
    """Gives a wrong reply."""
    async for line in self.rfile:
        await self.wfile.write(line.lower())


async def stops_half_way(self):
    """Does not give the busy client its whole reply."""
    async for line in self.rfile:
        await self.wfile.write(line.upper().removesuffix(b", PLEASE\n"))
        if line.startswith(b"shut down"):
            self.server.shutdown()


async def shouts(self):
    """Says more than was asked for: a datagram is received whole."""
    await self.wfile.write(self.packet.upper() + b"!")


async def forgets(self):
    """Does not reply to the datagram that is being worked on at the drain."""
    if self.packet.startswith(b"shut down"):
        self.server.shutdown()
    else:
        await self.wfile.write(self.packet.upper())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "handle", "wrong"),
    [
        (_demo.Upper, whispers, r"1 received b'hello, trio\n', not b'HELLO, TRIO\n'"),
        (_demo.Upper, stops_half_way, r"2 received b'', not b', PLEASE\n'"),
        (_demo.UpperDatagram, shouts, "1 received b'HELLO, TRIO!', not b'HELLO, TRIO'"),
        (_demo.UpperDatagram, forgets, "2 received nothing, not b'SHUT DOWN, PLEASE'"),
    ],
)
def test_demo_fails_when_a_reply_is_wrong(
    handler,
    handle,
    wrong,
    monkeypatch,
    capsys,
):
    """A wrong reply is shown, and is the exit status."""
    monkeypatch.setattr(handler, "handle", handle)
    if "nothing" in wrong:
        monkeypatch.setattr(_demo, "PATIENCE", 1)
    assert __main__.main(["demo"]) == 1
    assert capsys.readouterr().out.endswith(f"\nWRONG: client {wrong}\n")


@pytest.mark.slow
@pytest.mark.parametrize("handler", [_demo.Upper, _demo.UpperDatagram])
def test_demo_ends_at_an_interrupt(handler, monkeypatch, capsys):
    """Ctrl-C in the middle of a request ends it with one line and the usual status."""

    async def interrupt(self):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr(handler, "handle", interrupt)
    monkeypatch.setattr(_demo, "PATIENCE", 1)
    assert __main__.main(["demo"]) == 130
    assert capsys.readouterr().out.endswith("\nInterrupted.\n")


@pytest.mark.slow
def test_demo_skips_what_the_system_lacks(monkeypatch, capsys):
    """Without Unix sockets it says so, and shows the rest."""
    other_system = {name: fact for name, fact in vars(socket).items() if name != "AF_UNIX"}
    monkeypatch.setattr(_demo, "socket", SimpleNamespace(**other_system))
    assert __main__.main(["demo"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^\w+Server on", told, re.MULTILINE) == ["TCPServer on", "UDPServer on"]
    assert "The Unix servers are skipped: this system has no Unix sockets.\n" in told
    assert told.endswith("Every reply was right, and nothing is left running.\n")


def test_main_without_arguments_prints_help(capsys):
    """Nothing to do is a question: the answer is the list of commands."""
    assert __main__.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m trioserver ")
    assert re.search(r"^ +demo  +\w", printed, re.MULTILINE)


def test_main_refuses_unknown_commands(capsys):
    """A command that does not exist is status 2, with the usage on standard error."""
    with pytest.raises(SystemExit) as exit_:
        __main__.main(["demonstrate"])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: python -m trioserver ")
    assert "demonstrate" in captured.err


def test_main_is_the_status_of_the_process(monkeypatch):
    """What `main` returns is the status that the process ends with."""
    monkeypatch.setattr(_demo, "demo", lambda: 3)
    monkeypatch.setattr(sys, "argv", ["trioserver", "demo"])
    # Not by runpy: pytest loads what comes with a plugin by a loader that it does not know.
    source = Path(trioserver.__file__).with_name("__main__.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        exec(source, {"__name__": "__main__", "__package__": "trioserver"})  # noqa: S102
    assert exit_.value.code == 3
