"""A schedule of Trio's that can be repeated, for which there is no public switch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

SWITCHES = ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r")
"""Private names in Trio: the switch that its own plugin for Hypothesis flips, and the dice."""


class TrioHasChanged(Exception):
    """A private name of Trio's, by which schedules are fixed, is not there any more."""


def _scheduler() -> Any:
    """Where Trio has its switches.

    Raises:
      TrioHasChanged: it has them no more.
    """
    scheduler: Any = trio._core._run
    for name in SWITCHES:
        if not hasattr(scheduler, name):
            raise TrioHasChanged(f"trio {trio.__version__} has no trio._core._run.{name}")
    return scheduler


def is_there() -> bool:
    """Whether schedules can be fixed with this version of Trio."""
    try:
        _scheduler()
    except TrioHasChanged:
        return False
    return True


@contextmanager
def fixed_schedule(seed: int) -> Iterator[None]:
    """Have the runs of Trio in the block take turns as the seed says.

    Raises:
      TrioHasChanged: that cannot be had.
    """
    scheduler = _scheduler()
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        scheduler._r.setstate(state)
