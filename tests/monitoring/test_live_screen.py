"""A program that shows itself in its own terminal: the picture, its log, and what is left."""

import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import trio
from support import plain_client
from support.listening import on_linux
from support.terminals import in_terminal

pytestmark = on_linux

PROGRAM = """
import logging, os, sys
import trio, trioserver
from trioserver.monitoring import LiveScreen

logging.basicConfig(level="INFO", format="%(message)s")

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        word = line.decode().strip()
        if word == "many":
            for number in range(2000):
                logging.info("line %d %s", number, "x" * 100)
        elif word == "worker":
            await trio.run_process(["sh", "-c", "echo from a worker >&2"], stderr=2)
        elif word == "hostile":
            os.write(2, b"\\x1b]0;gone\\x07 \\xff\\n")
        elif word == "fail":
            server.the_scope.cancel(reason="a test")
        logging.info("heard %s", word)
        await request.sendall(line)

async def main():
    server = trioserver.UnixStreamServer("socket", handle)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        logging.info("it serves")
        with trio.open_signal_receiver(15, 2) as signals:
            nursery.start_soon(screen.show, [server])
            async for number in signals:
                break
        if number == 2:
            raise ValueError("it broke")
        nursery.cancel_scope.cancel(reason="a signal")

with LiveScreen() as screen:
    trio.run(main)
print("the end")
"""


@asynccontextmanager
async def live(folder, **more):
    """The program, when its screen is there."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    command = [sys.executable, "-X", "dev", path.name]
    async with in_terminal(command, folder, **more) as program:
        await program.shows("UnixStreamServer  serving", "q quit")
        yield program


async def talk(folder, word):
    """Say a word to the server, and hear it."""

    def say():
        with plain_client(str(folder / "socket")) as client:
            client.sendall(f"{word}\n".encode())
            assert client.recv(100) == f"{word}\n".encode()

    with trio.fail_after(10):
        await trio.to_thread.run_sync(say)


async def test_picture_and_log(tmp_path):
    """It shows its requests, and what it logs below them, also what a process of it writes."""
    async with live(tmp_path, columns=160) as program:
        assert program.screen.other
        with plain_client(str(tmp_path / "socket")):
            await program.shows("1 unix:(unnamed)", "active 1/")
            program.types("\r")
            await program.shows("started at", "in handle: async for l")
            program.types("c")
            await program.shows("Cancel request 1? y/n")
            program.types("y")
            await program.shows("request 1 is cancelled")
        program.types("\x1b")
        for word in ("hello", "worker", "hostile"):
            await talk(tmp_path, word)
            await program.shows(f"heard {word}")
        await program.shows("from a worker", r"\x1b]0;gone\x07 \xff")
        assert b"\x1b]0" not in program.raw
        assert program.screen.other


async def test_q_goes_on_serving(tmp_path):
    """Then the log is on the terminal, that of before, too; a signal ends the program."""
    async with live(tmp_path) as program:
        await talk(tmp_path, "one")
        await program.shows("heard one")
        program.types("q")
        await program.shows("heard one", without=["q quit"])
        assert not program.screen.other
        await talk(tmp_path, "two")
        await program.shows("heard one", "heard two")
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
        await program.shows("the end")


async def test_log_does_not_hold_it_up(tmp_path):
    """A program that logs more than a pipe holds is not stuck; what is too much is counted."""
    async with live(tmp_path) as program:
        await talk(tmp_path, "many")
        await program.shows("heard many", "line 1999 xxx")
        program.types("q")
        await program.shows("heard many", without=["q quit"])
        [dropped] = re.findall(rb"\((\d+) lines were dropped\)", program.raw)
        assert 1801 <= int(dropped) <= 1810  # and some of the server's own
        assert b"line 1900 x" in program.raw
        assert b"line 100 x" not in program.raw


async def test_whatever_ends_it(tmp_path):
    """A signal that the program heeds, or an error, leaves the terminal as it was."""
    for ends_by, status in ((signal.SIGTERM, 0), (signal.SIGINT, 1)):
        folder = tmp_path / str(status)
        folder.mkdir()
        async with live(folder, lines=80) as program:
            await talk(folder, "hello")
            program.process.send_signal(ends_by)
            assert await program.ends() == status
            await program.shows("heard hello", "the end" if status == 0 else "it broke")
            assert not program.screen.other
            assert not program.screen.cursor.hidden
            assert program.mode()[3] & 0o12 == 0o12  # termios: ICANON and ECHO


def test_no_terminal(tmp_path):
    """It says so before anything is served."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: a terminal was expected as standard input\n")


async def test_output_that_is_no_terminal(tmp_path):
    """A log that goes to a file still does, while the screen is shown."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["sh", "-c", f"exec {sys.executable} program.py 2>log"]
    async with in_terminal(command, tmp_path) as program:
        await program.shows("UnixStreamServer  serving", "q quit")
        await talk(tmp_path, "hello")
        assert "heard hello" in (tmp_path / "log").read_text()
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
        await program.shows("the end")
