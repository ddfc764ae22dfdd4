"""The client, and a server that does what the test wants, on a network that does so, too."""

from functools import partial
from typing import Any

import pytest
import trio
from weather import Unavailable, Unknown, degrees

import trioserver
from trioserver.testing import Latency, Refuse, Reset, ServerFactory, Slice, Stall


class Thermometer(trioserver.StreamRequestHandler):
    timeout = 3600  # longer than any test waits

    async def handle(self) -> None:
        async for line in self.rfile:
            answer = b"OK 21.5\n" if line == b"GET Oslo\n" else b"UNKNOWN\n"
            await self.wfile.write(answer)


async def breaks(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    await request.receive_some()
    raise RuntimeError("the sensor is gone")


async def test_place(trio_server: ServerFactory) -> None:
    server = await trio_server(Thermometer)
    assert await degrees(server.connect, "Oslo") == 21.5
    [exchange] = await server.wait_requests()
    assert exchange.received == b"GET Oslo\n"


async def test_unknown_place(trio_server: ServerFactory) -> None:
    server = await trio_server(Thermometer)
    with pytest.raises(Unknown):
        await degrees(server.connect, "Atlantis")


async def test_over_tcp(trio_server: ServerFactory) -> None:
    server = await trio_server(Thermometer, transport="tcp")
    with trio.fail_after(10):
        assert await degrees(partial(trio.open_tcp_stream, *server.address), "Oslo") == 21.5


async def test_thirty_minutes(trio_server: ServerFactory, autojump_clock: object) -> None:
    """The network is slow, and the client patient."""
    server = await trio_server(Thermometer, faults=[Latency(900)])
    assert await degrees(server.connect, "Oslo", patience=3600) == 21.5
    assert trio.current_time() == 1800


async def test_in_pieces(trio_server: ServerFactory, autojump_clock: object) -> None:
    """The answer arrives byte by byte."""
    server = await trio_server(Thermometer, faults=[Slice(1, delay=0.1)])
    assert await degrees(server.connect, "Oslo") == 21.5


async def test_nobody_listens(trio_server: ServerFactory, autojump_clock: object) -> None:
    """Three attempts, one and five seconds apart."""
    server = await trio_server(Thermometer, faults=[Refuse()])
    with pytest.raises(Unavailable):
        await degrees(server.connect, "Oslo")
    assert trio.current_time() == 6


async def test_reset_at_first(trio_server: ServerFactory, autojump_clock: object) -> None:
    """The first connection breaks in the middle of the answer; the second one is whole."""
    server = await trio_server(Thermometer, faults=[Reset(after=3, towards="client")])

    async def mend() -> None:
        await trio.sleep(0.5)
        server.faults.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        assert await degrees(server.connect, "Oslo") == 21.5
    assert trio.current_time() == 1
    assert len(server.exchanges) == 2


async def test_silence(trio_server: ServerFactory, autojump_clock: object) -> None:
    """Nothing comes: half a minute for each attempt, and the pauses."""
    server = await trio_server(Thermometer, faults=[Stall(towards="client")])
    with pytest.raises(Unavailable):
        await degrees(server.connect, "Oslo")
    assert trio.current_time() == 3 * 30 + 6


async def test_server_that_breaks(trio_server: ServerFactory, autojump_clock: object) -> None:
    """Its error is expected here; without that it would fail the test."""
    server = await trio_server(breaks)
    async with server.expect_error(RuntimeError) as errors:
        with pytest.raises(Unavailable):
            await degrees(server.connect, "Oslo")
    assert len(errors) == 3
