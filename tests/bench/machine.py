"""Who used the CPU: the server, we, or others (Linux: it reads /proc).

The machine's total counts softirq time, because a process's own clock includes
the softirq work done in its context (all of loopback TCP). Leaving it out hid
others' load.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Fields of the "cpu" line of /proc/stat that are work: user, nice, system, irq,
# softirq, steal; between them idle and iowait.
WORK = (0, 1, 2, 5, 6, 7)

# Fields of /proc/PID/stat after the command's name (proc(5) counts from 3).
SESSION = 3
CPU_TIMES = slice(11, 15)  # utime, stime, and those of reaped children


def cpu_of_machine() -> float:
    """CPU seconds spent on anything, over all cores."""
    fields = (PROC / "stat").read_text().partition("\n")[0].split()[1:]
    return sum(int(fields[i]) for i in WORK) / TICKS_PER_SECOND


def cpu_of_session(leader: int) -> float:
    """CPU seconds of a session's processes and their reaped children."""
    ticks = 0
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[SESSION]) == leader:
            ticks += sum(map(int, fields[CPU_TIMES]))
    return ticks / TICKS_PER_SECOND


def cpu_of_self() -> float:
    """CPU seconds of this process and its reaped children."""
    return sum(os.times()[:4])


class Bystanders:
    """The share of a core that programs took which are neither the server nor ours.

    Not clamped at zero: a clearly negative share means the accounting is broken.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._since = time.monotonic()
        self._at_start = self._seconds()

    def _seconds(self) -> float:
        return cpu_of_machine() - cpu_of_session(self._server) - cpu_of_self()

    def share(self) -> float:
        """Their share of one core since this object was made."""
        return (self._seconds() - self._at_start) / (time.monotonic() - self._since)


def wait_until_quiet(patience: float, *, limit: float = 0.12, look: float = 0.3) -> None:
    """Wait until less than ``limit`` of a core is used, for ``patience`` seconds at most."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before, since = cpu_of_machine(), time.monotonic()
        time.sleep(look)
        if (cpu_of_machine() - before) / (time.monotonic() - since) < limit:
            return
