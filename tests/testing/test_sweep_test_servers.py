"""Test servers are shut down, or cancelled, after every step of what their clients do.

The program under test may be in the midst of anything when its server ends: that is the
client's affair. The server ends in order, and nothing is left of it.
"""

import logging
import math
from contextlib import suppress

import pytest
import trio
from support import Upper, read_to_end
from support.speaking import Back

from trioserver.testing import (
    AcceptError,
    Bandwidth,
    Cancel,
    Duplicate,
    Latency,
    LimitData,
    Loss,
    Refuse,
    Reorder,
    Reset,
    ShutDown,
    Slice,
    SlowClose,
    Stall,
    Unmet,
    expect,
    expect_eof,
    open_descriptors,
    open_scripted_server,
    open_test_server,
    pause,
    reply,
    sweep,
)

GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a client can meet whose server has ended."""


@pytest.fixture(autouse=True)
def _quiet():
    """A sweep meets its accept errors hundreds of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def talk(server):
    """All that a client of streams does."""
    client = await server.connect()
    await client.send_all(b"hello\n")
    await client.receive_some()
    await client.send_eof()
    await read_to_end(client)
    await (await server.connect()).aclose()


async def send_datagrams(server, patience=5):
    """All that clients of datagrams do."""
    for _ in range(2):
        client = await server.client()
        for word in (b"one", b"two"):
            await client.send(word)
            with trio.move_on_after(patience):
                await client.receive()


STREAMS = [
    *([], [Latency(0.1), Slice(2)], [Bandwidth(100)], [Stall(1)], [SlowClose(1)], [Reset(3)]),
    *([LimitData(3)], [Refuse()], [AcceptError()]),
]
DATAGRAMS = [[], [Latency(0.1)], [Duplicate()], [Reorder(1.0)], [Loss()], [AcceptError()]]


@pytest.mark.parametrize(
    ("handler", "faults"),
    [*((Upper, faults) for faults in STREAMS), *((Back, faults) for faults in DATAGRAMS)],
    ids=lambda it: str(it) if isinstance(it, list) else it.__name__,
)
def test_server_ends_after_every_step(handler, faults):
    """However the test's client stands, a shutdown or a cancellation ends the server in order."""

    async def scenario(trial):
        async with open_test_server(handler, faults=faults or None, guard=math.inf) as server:
            trial.arm(server=server.server)
            with suppress(*GONE):
                await (talk if handler is Upper else send_datagrams)(server)
            with trio.move_on_after(5), suppress(RuntimeError):  # there may have been none
                await server.wait_requests()
            await server.wait_idle()
            await server.stop()

    sweep(scenario, faults=[ShutDown(), ShutDown(0), Cancel()], seeds=[0])


def test_scripted_server_ends_after_every_step():
    """The same, of one whose client does as the script says unless it is stopped."""
    steps = (expect(b"hello\n"), reply(b"hi\n"), pause(1), expect(b"bye"), expect_eof())

    async def scenario(trial):
        with suppress(Unmet):
            async with open_scripted_server(*steps, guard=math.inf) as server:
                trial.arm(server=server.server)
                with suppress(*GONE):
                    client = await server.connect()
                    await client.send_all(b"hello\n")
                    await client.receive_some()
                    await client.send_all(b"bye")
                    await client.send_eof()
                    await read_to_end(client)

    sweep(scenario, faults=[ShutDown(), ShutDown(0), Cancel()], seeds=[0])


@pytest.mark.parametrize("faulty", [False, True], ids=["no faults", "faults"])
@pytest.mark.parametrize(
    ("transport", "handler"), [("udp", Back), ("unix", Back), ("tcp", Upper), ("unix", Upper)]
)
async def test_server_ends_after_so_many_checkpoints(transport, handler, faulty):
    """The same on real sockets, whose steps are not the same twice."""
    faults = [Duplicate() if handler is Back else Slice(2)] if faulty else None

    async def visit(server):
        with suppress(*GONE):
            await (talk(server) if handler is Upper else send_datagrams(server, patience=0.02))

    for checkpoints in range(25):
        with trio.fail_after(10):
            async with (
                open_test_server(handler, transport=transport, faults=faults) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(visit, server)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                server.server.shutdown()


@pytest.mark.parametrize(
    "fault", [Loss(), Latency(100, towards="server"), Latency(100, towards="client"), Duplicate()]
)
async def test_no_datagram_keeps_the_socket_open(fault):
    """One that is lost, or still on its way when the server ends, has its way back closed."""
    before = open_descriptors()
    async with open_test_server(Back, transport="udp", faults=[fault]) as server:
        client = await server.client()
        for _ in range(3):
            await client.send(b"one")
        with trio.move_on_after(0.05):
            await client.receive()
    assert open_descriptors() == before
