"""Programs of servers, each in a process of its own, which may start its own successor."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import attrs

from . import plain_client
from .process_state import is_running

SECONDS = 20
"""After which a program, and all that it has started, is killed."""

READY = "the program serves"
"""What programs log when they do, behind their number (see `PRELUDE`)."""

PRELUDE = """
import logging, os, sys, time
import trio, trioserver

logging.basicConfig(level="INFO", format="%(process)d %(message)s")

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        await request.sendall(b"%d %s" % (os.getpid(), line))

"""
"""Its servers answer each line with it, and with the number of their process."""


PASSING = """
import json, os, sys
numbers, environment, *command = sys.argv[1:]
numbers = json.loads(numbers)
for place, number in enumerate(numbers):
    os.dup2(number, 100 + place)
    os.close(number)
for place, number in enumerate(numbers):
    os.dup2(100 + place, 3 + place)
    os.close(100 + place)
for name, value in json.loads(environment).items():
    identity = os.fstat(os.pidfd_open(os.getpid())).st_ino
    os.environ[name] = value.format(pid=os.getpid(), identity=identity)
os.execv(command[0], command)
"""
"""Puts descriptors where a program looks for them, and becomes that program."""


def passing(numbers, command, environment):
    """A command that becomes this one, to which these descriptors were passed as systemd does."""
    environment = {"LISTEN_PID": "{pid}", **environment}
    return [sys.executable, "-c", PASSING, json.dumps(numbers), json.dumps(environment), *command]


@attrs.define(eq=False)
class RunningProgram:
    """A program, and those that it has started to take its place.

    Attributes:
      process: the first of them.
      folder: where it runs.
      said: all that they have logged so far.
    """

    process: subprocess.Popen
    folder: Path
    said: list[str] = attrs.field(factory=list)
    _changed: threading.Condition = attrs.field(factory=threading.Condition)

    def _read(self):
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.rstrip())
                self._changed.notify_all()

    def says(self, pattern, times=1):
        """The groups of what it says by and by, at the n-th time."""
        until = time.monotonic() + SECONDS / 2
        with self._changed:
            while True:
                found = [it for it in (re.search(pattern, line) for line in self.said) if it]
                if len(found) >= times:
                    return found[times - 1].groups()
                assert self._changed.wait(until - time.monotonic()), self.said

    def address(self, nth=0):
        """The nth address that its first process serves, by the ready line or by its log."""
        (text,) = self.says(r"(?:ready on|program serves) (.*)")
        text = text.split(", ")[nth]
        if text.startswith("unix:"):
            return str(Path(self.folder, text.removeprefix("unix:")))
        host, _, port = text.rpartition(":")
        return host, int(port)

    def order(self, name, pid=None):
        """Send it, or its successor, a signal."""
        os.kill(pid or self.process.pid, signal.Signals[name])

    def ends(self, *statuses):
        """Wait for the end of the first program, with one of these statuses, or with 0."""
        assert self.process.wait(SECONDS / 2) in (statuses or (0,)), self.said

    def stops(self):
        """Drain it by a signal, and wait for its end, with status 0."""
        self.order("SIGTERM")
        self.ends()

    def hands_over(self):
        """Order a handover, and wait until it is done; the new process."""
        times = sum(READY in line for line in self.said)
        old = self.says(rf"^(\d+) {READY}", times)[0]
        self.order("SIGUSR2", int(old))
        (new,) = self.says(rf"^(\d+) {READY}", times + 1)
        self.says(rf"^{old} the program goes on as process {new}")
        return int(new)

    def has_gone(self, pid):
        """Wait for the end of a successor, which is nobody's child here."""
        until = time.monotonic() + SECONDS / 2
        while is_running(pid):
            assert time.monotonic() < until, self.said
            time.sleep(0.01)


@contextmanager
def running(command, folder, passed=(), **environment):
    """Run a command in a folder; whatever is left of it, and of what it starts, is killed.

    It is passed the descriptors of ``passed``, pairs of a name and a number, as systemd does.
    """
    numbers = [number for _, number in passed]
    if passed:
        names = ":".join(name for name, _ in passed)
        told = {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": names}
        command = passing(numbers, command, told)
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that all of them can be ended, and nobody else
    ) as process:
        program = RunningProgram(process, folder)
        reader = threading.Thread(target=program._read, daemon=True)
        reader.start()
        kill = threading.Timer(SECONDS, os.killpg, [process.pid, signal.SIGKILL])
        kill.start()
        try:
            yield program
        finally:
            kill.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            reader.join(SECONDS)


@contextmanager
def running_program(path, source, passed=(), **environment):
    """Run this program from a file, in the folder of that; see `running`."""
    path.write_text(PRELUDE + source)
    command = [sys.executable, "-W", "error::ResourceWarning", path.name]
    with running(command, path.parent, passed, **environment) as program:
        yield program


def guarded(source):
    """A program that workers can import: what starts it is not for them."""
    return 'if __name__ == "__main__":\n' + textwrap.indent(source, "    ")


def who_answers(address):
    """The process that answers a new client."""
    with plain_client(address) as client:
        client.sendall(b"hello\n")
        return heard(client, b"hello\n")


def heard(client, line):
    """The process that answers a client's line."""
    answer = b""
    while not answer.endswith(b"\n") and (data := client.recv(100)):
        answer += data
    number, _, rest = answer.partition(b" ")
    assert rest == line, answer
    return int(number)
