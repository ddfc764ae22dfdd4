r"""One end of a connection in memory, without a server, and what happens to it, step by step.

::

    @table("dialogue", {
        "CM-16: what `rfile` has buffered comes out of `recv`": Dialogue(
            r"says b'first\nsec'; readline -> b'first\n'; recv 9 -> b'sec'; recv 9 -> waits"
        ),
    })
    async def test_reads(dialogue, autojump_clock):
        await dialogue.play()

A step is what is called, with its arguments, and what comes of it after an arrow:
a value; an error, by its kind, and what its message has in it (text) or what was read
(bytes); ``waits``, for what waits, and is cancelled then; or ``cancelled``, for what
notices that it is cancelled before it begins.
"""

import ast
import builtins
from collections.abc import Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryTransport, memory_pipe

from . import connection_over


@asynccontextmanager
async def waiting(operation):
    """In the block it waits; gives where its result will be, if it has one before the end."""
    results = []

    async def finish():
        results.append(await operation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        await wait_all_tasks_blocked()
        assert results == [], "it does not wait"
        yield results
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@attrs.frozen(eq=False)
class End:
    """The server's end of a connection, with the files over it, and the peer's raw end."""

    request: trioserver.Connection
    rfile: trioserver.RequestReader
    wfile: trioserver.RequestWriter
    far: MemoryTransport

    def says(self, data):
        assert self.far.send_now(data) == len(data)

    def takes(self, size):
        """Have the peer receive no more than that."""
        self.far.receive_now(size)

    def says_bye(self):
        self.far.send_eof()

    def breaks_off(self):
        self.far.reset()

    def hears(self):
        """What has come to the peer since; nothing at the end, None if there is nothing yet."""
        return self.far.receive_now(100_000)

    def now(self):
        return trio.current_time()

    async def fill(self, size, name="readinto"):
        """What `readinto` or `readinto1` puts into a target of ``size`` bytes."""
        target = bytearray(size)
        return bytes(target[: await getattr(self.rfile, name)(target)])

    async def do(self, name, *arguments):
        """What something of that name does: of this end, of its files, or of the connection."""
        return await do((self, self.rfile, self.wfile, self.request), name, *arguments)

    async def play(self, steps):
        await play(steps, self, self.rfile, self.wfile, self.request)


def does(steps, base=trioserver.StreamRequestHandler, **body):
    """A handler class that does these steps: its own, of its files, its request, server or Trio."""

    async def handle(self):
        parts = [getattr(self, name, None) for name in ("rfile", "wfile", "request", "server")]
        await play(steps, self, *parts, getattr(self.request, "socket", None), trio)

    return type("Does", (base,), {"handle": handle, **body})


async def do(owners, name, *arguments):
    """What something of that name does, of the first that has it."""
    called = getattr(next(owner for owner in owners if hasattr(owner, name)), name)
    result = called(*arguments) if callable(called) else called
    return await result if isinstance(result, Awaitable) else result


async def play(steps, *owners):
    """Do all steps with these, and compare."""
    for step in steps.split("; "):
        call, _, expected = step.partition(" -> ")
        name, _, arguments = call.partition(" ")
        operation = do(owners, name, *literals(arguments))
        kind, _, details = expected.partition(" ")
        if expected == "waits":
            async with waiting(operation):
                pass
        elif expected == "cancelled":
            with trio.CancelScope() as scope:
                scope.cancel()
                await operation
            assert scope.cancelled_caught, step
        elif kind in ERRORS:
            with pytest.raises(ERRORS[kind]) as caught:
                await operation
            for detail in literals(details):
                found = str(caught.value) if isinstance(detail, str) else caught.value.partial
                assert detail in found, step
        else:
            assert [await operation] == literals(expected) or not expected, step


EVERYTHING = {**vars(builtins), **vars(trio), **vars(trioserver)}
ERRORS = {name: kind for name, kind in EVERYTHING.items() if isinstance(kind, type)}


def literals(text):
    """What is written there, separated by commas."""
    return list(ast.literal_eval(f"({text},)")) if text else []


def end_over(transport, far=None, *, wbufsize=0, limits=None, timeouts=None):
    """The end that has a transport."""
    here = connection_over(transport, limits=limits, timeouts=timeouts)
    return End(here, trioserver.RequestReader(here), trioserver.RequestWriter(here, wbufsize), far)


def pipe(capacity=65_536, wbufsize=0, **timeouts):
    """One end of a pipe that holds so many bytes in each direction."""
    timing = trioserver.Timeouts(**timeouts)
    return end_over(*memory_pipe(capacity), wbufsize=wbufsize, timeouts=timing)


@attrs.frozen(eq=False)
class Dialogue:
    """What happens to one end of a pipe: the steps, also of the peer, in order."""

    steps: str
    of: Mapping[str, Any] = attrs.field(factory=dict)  # the fields of the `pipe`
    later: Mapping[float, str] = attrs.field(factory=dict)  # in the meantime, by instants

    async def play(self):
        end = pipe(**self.of)

        async def go_on():
            for instant, steps in self.later.items():
                await trio.sleep_until(instant)
                await end.play(steps)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await end.play(self.steps)
            nursery.cancel_scope.cancel()
