"""What a program writes to its terminal, caught while a screen is shown there.

Descriptors are put in the place of the terminal, and not objects of Python, since worker
processes write there, too. A thread reads what comes: the program's own thread may be the one that
writes, and must never wait for itself.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from .._text.words import printable

KEPT_LINES = 200
"""Lines that are kept while the screen is shown; of more, the last ones, and the others counted."""

_LONGEST_LINE = 4096
_OUTPUTS = (1, 2)


@attrs.define(eq=False)
class Captured:
    """What is written to the terminal goes here, from ``begin`` to ``end``.

    It is passed on as long as nothing is shown there, and kept otherwise.
    Those that are kept are the last ones.
    """

    _lines: deque[str] = attrs.field(factory=lambda: deque(maxlen=KEPT_LINES))
    _dropped: int = 0
    _real: dict[int, int] = attrs.field(factory=dict)
    _thread: threading.Thread | None = None
    _pipe: int = -1
    _stop: int = -1
    _changed: Callable[[], object] | None = None
    _part: bytes = b""
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def begin(self) -> None:
        """Put a pipe in the place of the terminal, wherever that is an output."""
        outputs = [number for number in _OUTPUTS if os.isatty(number)]
        self._pipe, writing = os.pipe()
        stopped, self._stop = os.pipe()
        for number in outputs:
            self._real[number] = os.dup(number)
            os.dup2(writing, number)
        os.close(writing)
        self._thread = threading.Thread(
            target=self._read, args=(stopped,), name="trioserver live", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Put the terminal back; what was written until now has been passed on then."""
        for number, real in self._real.items():
            os.dup2(real, number)
        os.close(self._stop)  # a worker that has not ended may hold the pipe open
        if self._thread is not None:
            self._thread.join()
        os.close(self._pipe)
        for real in self._real.values():
            os.close(real)

    def keep(self, changed: Callable[[], object]) -> None:
        """From now on something is shown: keep what comes, and call this, in any thread."""
        with self._lock:
            self._changed = changed

    def kept(self) -> Sequence[str]:
        """The lines that are kept now."""
        with self._lock:
            return tuple(self._lines)

    def pass_on(self) -> None:
        """Nothing is shown any more: pass on what was kept, and what comes."""
        with self._lock:
            self._changed = None
            if self._dropped:
                self._write(f"({self._dropped} lines were dropped)\n".encode())
            kept = [*self._lines, self._part.decode(errors="backslashreplace")]
            self._write("\n".join(kept).encode(errors="backslashreplace"))
            self._lines.clear()
            self._dropped, self._part = 0, b""

    def _read(self, stopped: int) -> None:
        ends = False
        while not ends:
            ready: Sequence[int] = select.select([self._pipe, stopped], [], [])[0]
            ends = stopped in ready
            # What is in the pipe at the end is read, too, and nothing is waited for.
            while select.select([self._pipe], [], [], 0)[0]:
                data = os.read(self._pipe, 65_536)
                if not data:
                    ends = True
                    break
                self._take(data)
        os.close(stopped)

    def _take(self, data: bytes) -> None:
        with self._lock:
            if self._changed is None:
                self._write(data)
                return
            *whole, self._part = (self._part + data).split(b"\n")
            if len(self._part) > _LONGEST_LINE:
                whole, self._part = [*whole, self._part], b""
            for line in whole:
                self._dropped += len(self._lines) == KEPT_LINES
                self._lines.append(printable(line.decode(errors="backslashreplace"), _LONGEST_LINE))
            self._changed()

    def _write(self, data: bytes) -> None:
        """Write to the terminal itself, by the last output that is one: that of errors."""
        for number in sorted(self._real, reverse=True)[:1]:
            while data:
                try:
                    data = data[os.write(self._real[number], data) :]
                except OSError:  # it was hung up
                    return
