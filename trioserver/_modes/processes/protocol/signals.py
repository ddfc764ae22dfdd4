"""What signals that end programs do in workers and in their fork server: nothing.

A service manager sends them to all processes of a program, and a terminal sends them to a
group. The server alone heeds them, and tells its workers by the line. So each process starts
with them blocked, whatever it imports, and the fork server stays so. A worker has a handler
that does nothing. Unlike ``SIG_IGN``, that does not outlive the start of another program, and
a child that a worker forks does not have it: both heed signals in the usual way.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ...._facts.signals import dispositions, install

ORDERS = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
"""The signals by which people and service managers tell a program what to do."""


@contextmanager
def held_back() -> Iterator[None]:
    """A block in which this thread starts processes that hear no such signal yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def do_nothing_at_signals() -> None:
    """Have this process, a worker, do nothing at such a signal, and its children the usual."""
    before = dispositions(ORDERS)
    heeded = {it: then for it, then in before.items() if then is not signal.SIG_IGN}
    install(_nothing, heeded)
    for number in heeded:
        signal.siginterrupt(number, False)
    hear_again()


def hear_again() -> None:
    """Hear such signals, in a process that was started with them blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)


def _nothing(number: int, frame: object) -> None:
    """Do nothing: see the top of this file for why it is not ``SIG_IGN``."""
