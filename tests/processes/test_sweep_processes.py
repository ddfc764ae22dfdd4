"""The same faults where handlers run in worker processes: after every step of the server's."""

import multiprocessing

import pytest
import trio
from support.process_handlers import Upper as Answers
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

pytestmark = pytest.mark.slow


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


class FewWorkers(trioserver.ProcessMixIn):
    min_children = 2
    JUMP_AFTER = 10.0  # the clock must not jump while a worker starts, or is at work


class ProcessesOnTCP(FewWorkers, OnTCP): ...


class ProcessesOnUnix(FewWorkers, OnUnix): ...


@pytest.mark.parametrize("kind", [ProcessesOnTCP, ProcessesOnUnix])
def test_cancelled_after_every_step(kind):
    """CX-01, PR-09: wherever it is cancelled, nothing is left and every request has a record.

    Each trial starts workers, so not after every step; the soak sweeps.py takes all of them.
    """
    assert Setting(kind, [cancel], Answers).sweep(every=5) > 10


@pytest.mark.parametrize("fault", [shut_down, ctrl_c], ids=NAMES.get)
def test_ended_after_every_step(fault):
    """GS-11: wherever the drain begins, what was asked before it is answered, in full.

    Wherever Ctrl-C strikes, `KeyboardInterrupt` comes out, and everything is closed first.
    """
    setting = Setting(ProcessesOnTCP, [fault], Answers, gentle=fault is shut_down)
    assert setting.sweep(every=5) > 10


@pytest.mark.parametrize("second", [cancel, shut_down_at_once], ids=NAMES.get)
def test_second_fault_during_a_shutdown(second):
    """Whenever somebody loses patience with a drain, everything is closed all the same."""
    setting = Setting(ProcessesOnTCP, [shut_down, second], Answers)
    assert setting.sweep(every=25) > 5
