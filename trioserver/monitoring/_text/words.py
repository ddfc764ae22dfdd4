"""Addresses, times and sizes as people read them; on one line, whatever a client has named."""

from __future__ import annotations

import math

from ..._facts.address import describe, printable

__all__ = ["describe", "duration", "printable", "size"]

_UNITS = ("kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """Seconds as people read them off a clock: ``00:03:12``, after a day ``2 d 00:03:12``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock


def size(number: float) -> str:
    """A number of bytes as people say it: ``120 B``, ``4.0 kB``; by 1000."""
    if number < 1000:
        return f"{number} B"
    power = min(int(math.log(number, 1000)), len(_UNITS))
    if number / 1000**power >= 999.95 and power < len(_UNITS):
        power += 1  # 999 999 bytes are 1.0 MB
    return f"{number / 1000**power:.1f} {_UNITS[power - 1]}"
