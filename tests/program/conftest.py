"""Fixtures of the tests of whole programs."""

import signal
from functools import partial

import pytest
import trio
from trio.testing import MockClock

ENDING = [signal.SIGINT, signal.SIGTERM]
OTHERS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture
def handlers():
    """The signal handlers of the test's own: harmless, and as they were when it ends.

    Signals that a program heeds only if nobody else does have none.
    """
    own = {number: (lambda number, frame: None) for number in ENDING}
    own |= dict.fromkeys(OTHERS, signal.SIG_DFL)
    before = {number: signal.signal(number, own[number]) for number in own}
    yield own
    for number in own:
        signal.signal(number, before[number])


@pytest.fixture
def virtual_clock(monkeypatch):
    """That of every `trio.run` in the test."""
    clock = MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    return clock
