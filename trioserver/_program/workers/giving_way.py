"""How a worker lets other processes run: its clients and the other workers, on the same processors.

A worker that has answered looks whether the next requests are there. If its clients had no
processor meanwhile, they are not: then each look is in vain, and a wait costs three times as much
as a request that is there. So it gives its processor away for a moment before it looks. Where
nobody else wants that, it has it back at once.

Measured with two workers, 50 clients, and two processors for all of them (the row
``workers-pingpong-c50`` of ``tests/bench/table.py``, five rounds): 0.85 of what one process serves
became 1.13. To do so before each wait, too, gave 1.0; before waits alone, 0.85.
"""

from __future__ import annotations

import os

import trio


class GivesWay(trio.abc.Instrument):
    """Gives the processor away between two steps of Trio's loop."""

    def before_io_wait(self, timeout: float) -> None:
        """Trio is going to look what has come; it does not wait, as tasks can run."""
        if not timeout:
            os.sched_yield()


def give_way() -> None:
    """Have this `trio.run` do so, where the system can."""
    if hasattr(os, "sched_yield"):
        trio.lowlevel.add_instrument(GivesWay())
