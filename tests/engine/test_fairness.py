"""One client that asks for all it can get, and others that ask for little: nobody is forgotten."""

import pytest
import trio
from support.memory import memory

import trioserver
from trioserver._engine.accept import ENDS_AT_ONCE, STARTS_AT_ONCE
from trioserver.testing import MemoryDatagramServer

POLITE = 50
ANSWERS = 20
MOST_TURNS = 6
"""Turns of the loop from a polite client's question to its answer, its own included."""
MOST_LINES = 16
"""Lines that a task takes from a buffer before it lets others run."""


class Turns(trio.abc.Instrument):
    """Counts the turns of Trio's loop."""

    count = 0

    def before_io_wait(self, timeout):
        self.count += 1


@pytest.fixture
async def turns(autojump_clock):
    """The turns of this test's loop."""
    await trio.lowlevel.checkpoint()
    counted = Turns()
    trio.lowlevel.add_instrument(counted)
    yield counted
    trio.lowlevel.remove_instrument(counted)


class Answers(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            self.server.lines[line] += 1
            await self.wfile.write(line.upper())


class AnswersLate(Answers):
    wbufsize = -1


class OnlyReads(trioserver.StreamRequestHandler):
    """Answers the polite ones alone."""

    async def handle(self):
        async for line in self.rfile:
            self.server.lines[line] += 1
            if line != b"flood\n":
                await self.wfile.write(line.upper())


async def be_polite(server):
    """Ask for one thing after the other."""
    async with await server.connect() as stream:
        for _ in range(ANSWERS):
            await stream.send_all(b"polite\n")
            assert await stream.receive_some() == b"POLITE\n"


@pytest.mark.parametrize("handler", [Answers, AnswersLate, OnlyReads])
async def test_flood_beside_polite_clients(handler, turns):
    """Each polite client has its answer within a few turns, whatever comes of the other."""

    async def flood():
        async with await server.connect() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(listen, stream)
            while True:
                await stream.send_all(b"flood\n" * 1000)

    async def listen(stream):
        while True:
            await stream.receive_some()

    server = memory(handler)
    server.lines = {b"flood\n": 0, b"polite\n": 0}
    async with server.serving(grace=0), trio.open_nursery() as flooding:
        flooding.start_soon(flood)
        while not server.lines[b"flood\n"]:
            await trio.lowlevel.checkpoint()
        began, before = turns.count, server.lines[b"flood\n"]
        async with trio.open_nursery() as nursery:
            for _ in range(POLITE):
                nursery.start_soon(be_polite, server)
        took, flooded = turns.count - began, server.lines[b"flood\n"] - before
        flooding.cancel_scope.cancel()
    assert server.lines[b"polite\n"] == POLITE * ANSWERS
    assert took <= MOST_TURNS * (ANSWERS + 2)
    # Nor is the other one forgotten; and it has a turn that began before, and one that ends after.
    assert took / 4 <= flooded <= MOST_LINES * (took + 2)


@pytest.mark.parametrize(
    ("plain", "most"), [(True, ENDS_AT_ONCE), (False, STARTS_AT_ONCE)], ids=["plain", "task"]
)
async def test_flood_of_datagrams_lets_others_run(plain, most, turns):
    """So many are taken in a row, and then it is the turn of all others."""
    seen = []

    def answer(data, client_address, server):
        seen.append(turns.count)

    async def handle(request, client_address, server):
        seen.append(turns.count)

    server = MemoryDatagramServer(("memory", 1), answer if plain else handle)
    async with server.serving():
        client = server.client()
        for _ in range(3 * most):
            client.send_now(b"x")
        while len(seen) < 3 * most:
            await trio.lowlevel.checkpoint()
    assert {seen.count(turn) for turn in seen} == {most}
