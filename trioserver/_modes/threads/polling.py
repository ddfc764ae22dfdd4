"""Waiting for one descriptor in a thread: for input, for room, or for the drain to begin."""

from __future__ import annotations

import math
import select
import sys
import time

from ..._facts.validators import LARGEST_INT


def has_input(number: int) -> bool:
    """Whether the descriptor has input now, or its end; of a listener: a client."""
    return wait_for(number, -math.inf)


def wait_for(number: int, deadline: float, *, output: bool = False, wakeup: int = -1) -> bool:
    """Wait until the descriptor has input or its end.

    Args:
      number: the descriptor.
      deadline: until when, by `time.monotonic`; one that has passed: only look.
      output: wait until it takes output instead.
      wakeup: a second descriptor, whose input ends the wait, too; -1: there is none.

    Returns:
      False if the time is up, or if only ``wakeup`` has input.
    """
    left = deadline - time.monotonic()
    seconds = None if left == math.inf else min(max(0.0, left), LARGEST_INT / 1000)
    pipes = [] if wakeup == -1 else [wakeup]
    if sys.platform == "win32":
        reads, writes = ([], [number]) if output else ([number], [])
        ready = select.select(reads + pipes, writes, [], seconds)
        return any(number in numbers for numbers in ready)
    poll = select.poll()
    poll.register(number, select.POLLOUT if output else select.POLLIN)
    for one in pipes:
        poll.register(one, select.POLLIN)
    found = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
    return any(which == number for which, _ in found)
