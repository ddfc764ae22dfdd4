"""The same faults where handlers run in threads, whose steps nobody schedules."""

import os
import select
import socketserver
import threading

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
from trioserver.testing import ResetClient


class Careful(socketserver.StreamRequestHandler):
    """Answers lines in upper case, and keeps its books."""

    one_at_a_time = threading.Lock()

    def setup(self):
        super().setup()
        with self.one_at_a_time:
            self.server.books.calls["setup"] += 1

    def handle(self):
        for line in self.rfile:
            self.answer(line.upper())

    def answer(self, reply):
        self.wfile.write(reply)
        with self.one_at_a_time:
            self.server.books.written[self.client_address] += 1

    def finish(self):
        with self.one_at_a_time:
            self.server.books.calls["finish"] += 1
        super().finish()


async def upper(line):
    """As `bytes.upper`, in two steps."""
    await trio.lowlevel.checkpoint()
    return line.upper()


class Calls(Careful):
    """Has Trio's thread do the work."""

    def handle(self):
        for line in self.rfile:
            self.answer(trio.from_thread.run(upper, line))


class Selects(Careful):
    """Does not read before the kernel says that something is there."""

    def handle(self):
        select.select([self.request], [], [])
        super().handle()


class ReadsByNumber(Careful):
    """Reads its first byte from the descriptor."""

    def handle(self):
        if first := os.read(self.request.fileno(), 1):
            self.answer((first + self.rfile.readline()).upper())
        super().handle()


class ThreadsOnTCP(trioserver.ThreadingMixIn, OnTCP):
    """Watched, on the loopback interface."""

    JUMP_AFTER = 1.0  # the clock must not jump while a thread is at work


class ThreadsOnUnix(trioserver.ThreadingMixIn, OnUnix):
    """Watched, on a Unix socket."""

    JUMP_AFTER = 1.0


all_kinds = pytest.mark.parametrize("kind", [ThreadsOnTCP, ThreadsOnUnix])
both_handlers = pytest.mark.parametrize("handler", [Careful, Calls])


@pytest.mark.slow
@both_handlers
@all_kinds
def test_cancelled_after_every_step(kind, handler):
    """CX-07: wherever it is cancelled, nothing is left and every request has a record."""
    assert Setting(kind, [cancel], handler).sweep() > 60


@pytest.mark.slow
@pytest.mark.parametrize("handler", [Careful, Calls, Selects, ReadsByNumber])
@all_kinds
def test_shut_down_after_every_step(kind, handler):
    """GS-11: wherever the drain begins, what was asked before it is answered, in full."""
    assert Setting(kind, [shut_down], handler, gentle=True).sweep() > 60


@pytest.mark.slow
@all_kinds
def test_shut_down_after_every_step_with_few_slots(kind):
    """The same where clients wait for a slot."""
    limits = trioserver.Limits(requests=1)
    assert Setting(kind, [shut_down], Careful, gentle=True, limits=limits).sweep() > 60


@pytest.mark.slow
@all_kinds
def test_ctrl_c_after_every_step(kind):
    """Wherever it strikes, `KeyboardInterrupt` comes out, and everything is closed first."""
    assert Setting(kind, [ctrl_c], Careful).sweep() > 60


@pytest.mark.slow
@all_kinds
@pytest.mark.parametrize("second", [cancel, ctrl_c, shut_down_at_once], ids=NAMES.get)
def test_second_fault_during_a_shutdown(kind, second):
    """Whenever somebody loses patience with a drain, everything is closed all the same."""
    assert Setting(kind, [shut_down, second], Careful).sweep(seeds=(0,), every=3) > 30


@pytest.mark.slow
@all_kinds
def test_client_reset_after_every_step(kind):
    """Wherever one client is reset, the others get all their replies."""
    assert Setting(kind, [ResetClient()], Careful, gentle=True).sweep(seeds=(0,), every=5) > 5
