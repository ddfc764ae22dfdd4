"""A program in a terminal of its own, whose screen a test can read."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from contextlib import asynccontextmanager

import attrs
import pyte
import trio

SECONDS = 10
"""After which a screen that does not show what it should fails its test."""


class Bench(pyte.HistoryScreen):
    """A screen that knows which of its two screens is shown."""

    other = False

    def set_mode(self, *modes, **options):
        self.other |= 1049 in modes
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes, **options):
        if self.other and 1049 in modes:
            self.other = False
            self.erase_in_display(2)
        super().reset_mode(*modes, **options)


@attrs.define(eq=False)
class InTerminal:
    """A program, and what it has drawn.

    Attributes:
      process: the program.
      screen: what can be seen.
      raw: all that it has written.
      user: our end of the terminal.
    """

    process: subprocess.Popen
    screen: Bench
    user: int
    raw: bytes = b""
    _stream: pyte.ByteStream = None
    _more: trio.Event = attrs.field(factory=trio.Event)

    async def read(self):
        """Draw what it writes, until it has gone."""
        self._stream = pyte.ByteStream(self.screen)
        while True:
            await trio.lowlevel.wait_readable(self.user)
            try:
                data = os.read(self.user, 65_536)
            except OSError:  # nobody has it any more
                data = b""
            if not data:
                break
            self.raw += data
            self._stream.feed(data)
            more, self._more = self._more, trio.Event()
            more.set()
        self._more.set()

    @property
    def text(self):
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    async def changed(self):
        """Wait until it writes something."""
        await self._more.wait()

    async def shows(self, *parts, without=()):
        """Wait until the screen has all of these, and none of those."""
        with trio.move_on_after(SECONDS):
            while not self._is_there(parts, without):
                await self._more.wait()
        assert self._is_there(parts, without), f"{parts} {without}\n{self.text}"

    def _is_there(self, parts, without):
        text = self.text
        return all(part in text for part in parts) and not any(part in text for part in without)

    def types(self, keys):
        """Type these."""
        os.write(self.user, keys.encode() if isinstance(keys, str) else keys)

    def resize(self, columns, lines):
        """Give the terminal another size."""
        self.screen.resize(lines, columns)
        set_size(self.user, columns, lines)

    async def ends(self):
        """Wait for its end; its status."""
        with trio.fail_after(SECONDS):
            return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)

    def mode(self):
        """How the terminal is set up: what `termios.tcgetattr` tells."""
        return termios.tcgetattr(self.user)


def set_size(number, columns, lines):
    """Set the size of a terminal."""
    fcntl.ioctl(number, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


OPENS_IT = 'exec "$@" <>"$0" >&0 2>&0'
"""For a shell that leads a session: the terminal that it opens is that of the session."""


@asynccontextmanager
async def in_terminal(command, folder, *, columns=100, lines=24, **environment):
    """Run a command in a terminal of this size; it is killed after the block."""
    user, terminal = pty.openpty()
    set_size(terminal, columns, lines)
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment}
    process = subprocess.Popen(  # noqa: ASYNC220  (it is not waited for)
        ["sh", "-c", OPENS_IT, os.ttyname(terminal), *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    program = InTerminal(process, Bench(columns, lines), user)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.read)
            try:
                yield program
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(SECONDS)
                nursery.cancel_scope.cancel(reason="the test is over")
    finally:
        os.close(user)
        os.close(terminal)  # kept, or there would be an end before the program has opened it
