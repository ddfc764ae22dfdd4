"""The same faults where handlers run in worker processes: after every step of the server's."""

import multiprocessing
import socketserver

import pytest
import trio
from support.sweeping import (
    NAMES,
    OnTCP,
    OnUnix,
    Setting,
    cancel,
    ctrl_c,
    shut_down,
    shut_down_at_once,
)

import trioserver


@pytest.fixture(autouse=True, scope="module")
def fork_server():
    """It belongs to the program, and would look like something left by the first server."""

    async def start_one():
        async with trioserver.ProcessTCPServer(("127.0.0.1", 0), Answers).serving():
            pass

    trio.run(start_one)


@pytest.fixture(autouse=True)
def no_worker_is_left():
    """Whatever was done to a server, its workers have ended, and were reaped."""
    yield
    assert multiprocessing.active_children() == []


class Answers(socketserver.StreamRequestHandler):
    """Answers lines in upper case. What it did is only known from its replies."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class FewWorkers(trioserver.ProcessMixIn):
    """With two workers, and all the time they need."""

    min_children = 2
    JUMP_AFTER = 10.0  # the clock must not jump while a worker starts, or is at work


class ProcessesOnTCP(FewWorkers, OnTCP):
    """Watched, on the loopback interface."""

    JUMP_AFTER = FewWorkers.JUMP_AFTER


class ProcessesOnUnix(FewWorkers, OnUnix):
    """Watched, on a Unix socket."""

    JUMP_AFTER = FewWorkers.JUMP_AFTER


EVERY = 5
"""Each trial starts workers; the soak sweeps.py takes every step."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ProcessesOnTCP, ProcessesOnUnix])
def test_cancelled_after_every_step(kind):
    """CX-01, PR-09: wherever it is cancelled, nothing is left and every request has a record."""
    assert Setting(kind, [cancel], Answers).sweep(seeds=(0,), every=EVERY) > 10


@pytest.mark.slow
def test_shut_down_after_every_step():
    """GS-11: wherever the drain begins, what was asked before it is answered, in full."""
    setting = Setting(ProcessesOnTCP, [shut_down], Answers, gentle=True)
    assert setting.sweep(seeds=(0,), every=EVERY) > 10


@pytest.mark.slow
def test_ctrl_c_after_every_step():
    """Wherever it strikes, `KeyboardInterrupt` comes out, and everything is closed first."""
    assert Setting(ProcessesOnTCP, [ctrl_c], Answers).sweep(seeds=(0,), every=EVERY) > 10


@pytest.mark.slow
@pytest.mark.parametrize("second", [cancel, shut_down_at_once], ids=NAMES.get)
def test_second_fault_during_a_shutdown(second):
    """Whenever somebody loses patience with a drain, everything is closed all the same."""
    setting = Setting(ProcessesOnTCP, [shut_down, second], Answers)
    assert setting.sweep(seeds=(0,), every=25) > 5
