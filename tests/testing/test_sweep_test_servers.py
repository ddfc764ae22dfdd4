"""Test servers are shut down, or cancelled, after every step of what their clients do.

The program under test may be in the midst of anything when its server ends: that is the
client's affair. The server ends in order, and nothing is left of it.
"""

import logging
import math
from contextlib import suppress

import pytest
import trio
from support import Upper
from support.speaking import Back

from trioserver.testing import (
    AcceptError,
    Bandwidth,
    Cancel,
    Duplicate,
    Faults,
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
    async for _ in client:
        pass
    await (await server.connect()).aclose()


async def send_datagrams(server):
    """All that clients of datagrams do."""
    for _ in range(2):
        client = await server.client()
        for word in (b"one", b"two"):
            await client.send(word)
            with trio.move_on_after(5):
                await client.receive()


def visit(handler, client, *faults, **options):
    """A scenario: a test server, its client, and whatever a test asks of the server then."""

    async def scenario(trial):
        wrong = faults or None
        async with open_test_server(handler, faults=wrong, guard=math.inf, **options) as server:
            trial.arm(server=server.server)
            with suppress(*GONE):
                await client(server)
            with trio.move_on_after(5), suppress(RuntimeError):  # there may have been none
                await server.wait_requests()
            await server.wait_idle()
            await server.stop()

    return scenario


async def follow_a_script(trial):
    """A scenario: a scripted server, and a client that does as it says unless it is stopped."""
    steps = (expect(b"hello\n"), reply(b"hi\n"), pause(1), expect(b"bye"), expect_eof())
    with suppress(Unmet):
        async with open_scripted_server(*steps, guard=math.inf) as server:
            trial.arm(server=server.server)
            with suppress(*GONE):
                client = await server.connect()
                await client.send_all(b"hello\n")
                await client.receive_some()
                await client.send_all(b"bye")
                await client.send_eof()
                async for _ in client:
                    pass


SCENARIOS = {
    "streams": visit(Upper, talk),
    "late": visit(Upper, talk, Latency(0.1), Slice(2)),
    "slow": visit(Upper, talk, Bandwidth(100)),
    "stalled": visit(Upper, talk, Stall(1)),
    "closed late": visit(Upper, talk, SlowClose(1)),
    "reset": visit(Upper, talk, Reset(3)),
    "cut": visit(Upper, talk, LimitData(3)),
    "refused": visit(Upper, talk, Refuse()),
    "accept error": visit(Upper, talk, AcceptError()),
    "datagrams": visit(Back, send_datagrams),
    "datagrams, late": visit(Back, send_datagrams, Latency(0.1)),
    "datagrams, twice": visit(Back, send_datagrams, Duplicate()),
    "datagrams, overtaken": visit(Back, send_datagrams, Reorder(1.0)),
    "datagrams, lost": visit(Back, send_datagrams, Loss()),
    "datagrams, accept error": visit(Back, send_datagrams, AcceptError()),
    "script": follow_a_script,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_server_ends_after_every_step(name):
    """However the test's client stands, a shutdown or a cancellation ends the server in order."""
    faults = [ShutDown(), ShutDown(0), Cancel()]
    sweep(SCENARIOS[name], faults=faults, seeds=[0])  # raises if anything is wrong


KERNEL = [("udp", Back), ("unix", Back), ("tcp", Upper), ("unix", Upper)]


@pytest.mark.parametrize("faulty", [False, True], ids=["no faults", "faults"])
@pytest.mark.parametrize(("transport", "handler"), KERNEL)
async def test_server_ends_after_so_many_checkpoints(transport, handler, faulty):
    """The same on real sockets, whose steps are not the same twice."""
    client = send_one if handler is Back else talk
    wrong = [Duplicate() if handler is Back else Slice(2)]
    for checkpoints in range(25):
        with trio.fail_after(10):
            async with (
                open_test_server(
                    handler, transport=transport, faults=wrong if faulty else None
                ) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(until_gone, client, server)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                server.server.shutdown()


async def send_one(server):
    """One datagram, and perhaps an answer."""
    client = await server.client()
    await client.send(b"one")
    with trio.move_on_after(0.02):
        await client.receive()


async def until_gone(client, server):
    """Do what the client does, as far as its server lives."""
    with suppress(*GONE):
        await client(server)


@pytest.mark.parametrize(
    "fault", [Loss(), Latency(100, towards="server"), Latency(100, towards="client"), Duplicate()]
)
async def test_no_datagram_keeps_the_socket_open(fault):
    """One that is lost, or still on its way when the server ends, has its way back closed."""
    before = open_descriptors()
    with trio.fail_after(10):
        async with open_test_server(Back, transport="udp", faults=Faults(fault)) as server:
            client = await server.client()
            for _ in range(3):
                await client.send(b"one")
            with trio.move_on_after(0.05):
                await client.receive()
    assert open_descriptors() == before
