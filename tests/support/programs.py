"""Programs, run as users run them, and their clients."""

import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from . import read_to_end
from .pages import EXAMPLES


class Client:
    """The other end, with a bound on every wait."""

    def __init__(self, stream):
        self.stream = stream

    async def says(self, line):
        with trio.fail_after(10):
            await self.stream.send_all(line)

    async def hears(self, expected):
        """Receives just that."""
        heard = b""
        with trio.fail_after(10):
            while left := len(expected) - len(heard):
                portion = await self.stream.receive_some(left)
                assert portion, heard
                heard += portion
        assert heard == expected

    async def asks(self, line, answer):
        await self.says(line)
        await self.hears(answer)

    async def hears_all(self):
        """Receives to the end, and leaves."""
        with trio.fail_after(10):
            heard = await read_to_end(self.stream)
        await self.stream.aclose()
        return heard


def command_of(name, arguments):
    """How a file, or an example, is run."""
    path = name if isinstance(name, Path) else EXAMPLES / f"{name}.py"
    return [sys.executable, "-X", "dev", str(path), *arguments]


@asynccontextmanager
async def program(name, *arguments):
    """A file, or an example, run as its docstring says; killed at the end if it is still there."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = await trio.lowlevel.open_process(command_of(name, arguments), **pipes)
    try:
        with trio.fail_after(20):
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for stream in (process.stdout, process.stderr):
            await stream.aclose()


async def listening(process):
    """The first address that a program says it listens on: host and port, or "unix" and path."""
    said = ""
    while (found := re.search(r"listening on ([^,\s]+):([^,\s]+)[,\n]", said)) is None:
        portion = await process.stderr.receive_some()
        assert portion, f"it ended and said {said!r}"
        said += portion.decode()
    return found.groups()


async def printed_lines(process, count):
    """The next lines that a program prints."""
    printed = b""
    while printed.count(b"\n") < count:
        portion = await process.stdout.receive_some()
        assert portion, f"it ended and printed {printed!r}"
        printed += portion
    return printed.decode().splitlines()


async def interrupted(process, by="SIGINT"):
    """What a program prints and logs from Ctrl-C on, at which it ends in order."""
    process.send_signal(signal.Signals[by])
    printed, logged = await read_to_end(process.stdout), await read_to_end(process.stderr)
    assert await process.wait() == 0
    assert b"Traceback" not in logged
    return printed.decode(), logged.decode()


async def output(name, *arguments):
    """What an example prints that ends by itself."""
    with trio.fail_after(20):
        done = await trio.run_process(command_of(name, arguments), capture_stdout=True)
    return done.stdout.decode()


def pytest_says(*arguments, cwd=None):
    """What pytest says of a suite, as a reader would run it."""
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout


def failures(told):
    """What pytest has shown of each test that fails, by the test's name."""
    shown = told.partition("= short test summary info =")[0]
    heading = r"^_+ (?:ERROR at setup of )?(test_\w+) _+$"
    _, *parts = re.split(heading, shown, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))
