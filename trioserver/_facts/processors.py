"""How many processors there are to use."""

from __future__ import annotations

import os


def processors() -> int:
    """How many processors can be used."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
