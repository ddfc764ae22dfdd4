"""What signals that end programs do in workers and in their fork server: nothing.

A service manager sends them to all processes of a program, a terminal to a group. What
they mean is for the server to say, by the line. So each process starts with them blocked,
whatever it imports. The fork server stays so. Workers have a handler that does nothing,
which, unlike ``SIG_IGN``, ends with the start of another program, and which a child that
they fork does not have: those heed signals as ever.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ...._facts.signals import dispositions, install

ORDERS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
"""What a program may be told by them is told to its server."""


@contextmanager
def held_back() -> Iterator[None]:
    """Who is started in the block, by this thread, hears of none until it says so itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def do_nothing_at_signals() -> None:
    """Have this process, a worker, do nothing at them, and its children what is usual."""
    before = dispositions(ORDERS)
    heeded = {it: then for it, then in before.items() if then is not signal.SIG_IGN}
    install(_nothing, heeded)
    for number in heeded:
        signal.siginterrupt(number, False)
    hear_again()


def hear_again() -> None:
    """Hear of them, in a process that was started with them blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)


def _nothing(number: int, frame: object) -> None:
    """As ``SIG_IGN``."""
