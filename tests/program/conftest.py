"""Fixtures of the tests of whole programs."""

import signal
from functools import partial

import pytest
import trio
from trio.testing import MockClock

HEEDED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture
def handlers():
    """The signal handlers of the test's own: harmless, and as they were when it ends."""
    harmless = {number: (lambda number, frame: None) for number in HEEDED}
    before = {number: signal.signal(number, harmless[number]) for number in HEEDED}
    yield harmless
    for number in HEEDED:
        signal.signal(number, before[number])


@pytest.fixture
def virtual_clock(monkeypatch):
    """That of every `trio.run` in the test."""
    clock = MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    return clock
