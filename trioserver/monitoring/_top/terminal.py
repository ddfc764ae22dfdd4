"""The terminal: keys come from it, lines are drawn on it, and it is left as it was found.

It is opened anew, so that a write can be one that does not wait: a terminal that takes nothing
must not hold up a program that shows itself, and what is changed is ours alone.
"""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import trio

from .screen import Line

STYLES = {
    "plain": "",
    "title": "1",
    "head": "4",
    "selected": "7",
    "dim": "2",
    "good": "32",
    "warning": "33",
    "alarm": "1;31",
}
"""The codes of each style (ECMA-48, SGR)."""

_COLOURS = {"good": "", "warning": "", "alarm": "1"}
"""What stands for colours where there should be none."""

# The other screen, without wrapping and without a cursor.
_ENTER = "\x1b[?1049h\x1b[?7l\x1b[?25l\x1b[2J"
# First what ends a sequence that was cut.
_LEAVE = "\x18\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1049l"

_LAST_WORDS = 0.5
"""Seconds that a terminal has to take what leaves it as it was."""

_WITHOUT_SIZE = (80, 24)
_STDIN = 0


@attrs.define
class Terminal:
    """A terminal that is being drawn on; see `opened`."""

    _number: int
    _styles: dict[str, str]
    _before: list[Any]
    _drawn: list[Line] = attrs.field(factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        columns, lines = os.get_terminal_size(self._number)
        return (columns, lines) if columns and lines else _WITHOUT_SIZE

    async def read(self) -> bytes:
        """What is typed next; nothing if the terminal is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._number)
            try:
                return os.read(self._number, 4096)
            except BlockingIOError:
                continue  # another process has read it
            except OSError:  # it was hung up
                return b""

    async def draw(self, lines: Sequence[Line]) -> None:
        """Draw these lines, as far as they are others than before.

        Once cancelled, only a part may be drawn.
        """
        changed = [
            f"\x1b[{number};1H{self._styled(line)}\x1b[K"
            for number, line in enumerate(lines, 1)
            if number > len(self._drawn) or self._drawn[number - 1] != line
        ]
        self._drawn = list(lines)
        await self._write("".join(changed).encode(errors="replace"))

    def _styled(self, line: Line) -> str:
        text, style = line
        code = self._styles[style]
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    async def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._number, data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._number)
            except OSError:  # it was hung up, which who reads notices
                return
        await trio.lowlevel.checkpoint()

    def forget(self) -> None:
        """Have the next picture drawn whole, on a clear screen."""
        self._drawn = []
        self._write_now("\x1b[2J")

    def enter(self) -> None:
        """Take the terminal: no echo, keys at once, the other screen."""
        mode = termios.tcgetattr(self._number)
        mode[0] &= ~termios.IXON  # or Ctrl-S would stop it
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._number, termios.TCSANOW, mode)
        self._drawn = []
        self._write_now(_ENTER)

    def leave(self) -> None:
        """Leave it as it was found."""
        self._write_now(_LEAVE)
        with suppress(termios.error):  # it was hung up
            termios.tcsetattr(self._number, termios.TCSANOW, self._before)

    def _write_now(self, text: str) -> None:
        data, until = text.encode(), time.monotonic() + _LAST_WORDS
        while data and (left := until - time.monotonic()) > 0:
            try:
                data = data[os.write(self._number, data) :]
            except BlockingIOError:
                select.select([], [self._number], [], left)
            except OSError:
                return


def check_terminal() -> None:
    """See whether there is a terminal.

    Raises:
      RuntimeError: standard input is none.
    """
    if not os.isatty(_STDIN):
        raise RuntimeError("a terminal was expected as standard input")


@contextmanager
def opened(*, colour: bool | None = None) -> Iterator[Terminal]:
    """This program's terminal, for a block, after which it is as it was, whatever ends the block.

    Args:
      colour: whether to use colours; None: unless ``NO_COLOR`` is in the environment, or the
        terminal is said to be dumb.

    Raises:
      RuntimeError: standard input is no terminal.
    """
    check_terminal()
    number = _open_anew(_STDIN)
    before = termios.tcgetattr(number)
    if colour is None:
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    styles = STYLES if colour else {**STYLES, **_COLOURS}
    terminal = Terminal(number, styles, before)
    try:
        terminal.enter()
        yield terminal
    finally:
        terminal.leave()
        os.close(number)


def _open_anew(number: int) -> int:
    try:
        return os.open(os.ttyname(number), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # its name is none that is known here, as in some containers
        return os.dup(number)
