"""The same faults where handlers run in threads, whose steps nobody schedules."""

import socketserver
import threading

import pytest
import trio
from support.scenes import table
from support.sweeping import OnTCP, OnUnix, Setting, cancel, ctrl_c, shut_down, shut_down_at_once

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


class InThreads(trioserver.ThreadingMixIn):
    JUMP_AFTER = 1.0  # the clock must not jump while a thread is at work


class ThreadsOnTCP(InThreads, OnTCP): ...


class ThreadsOnUnix(InThreads, OnUnix): ...


GENTLE = {"gentle": True}
FEW = {"gentle": True, "limits": trioserver.Limits(requests=1)}
IMPATIENT = [[shut_down, fault] for fault in (cancel, ctrl_c, shut_down_at_once)]


@pytest.mark.slow
@table(
    ("faults", "handlers", "fields", "sweep", "steps"),
    {
        "CX-07: wherever it is cancelled, nothing is left and every request has a record": (
            *([[cancel]], [Careful, Calls], {}, {}, 60),
        ),
        "GS-11: wherever the drain begins, what was asked before it is answered, in full": (
            *([[shut_down]], [Careful, Calls], GENTLE, {}, 60),
        ),
        "GS-11: also where clients wait for a slot": ([[shut_down]], [Careful], FEW, {}, 60),
        "wherever Ctrl-C strikes, KeyboardInterrupt comes out, and everything is closed first": (
            *([[ctrl_c]], [Careful], {}, {}, 60),
        ),
        "whenever somebody loses patience with a drain, everything is closed all the same": (
            *(IMPATIENT, [Careful], {}, {"every": 3}, 30),
        ),
        "wherever one client is reset, the others get all their replies": (
            *([[ResetClient()]], [Careful], GENTLE, {"every": 5}, 5),
        ),
    },
)
@pytest.mark.parametrize("kind", [ThreadsOnTCP, ThreadsOnUnix])
def test_fault_after_every_step(kind, faults, handlers, fields, sweep, steps):
    """After each step of the run in turn."""
    for each in faults:
        for handler in handlers:
            assert Setting(kind, each, handler, **fields).sweep(**sweep) > steps
