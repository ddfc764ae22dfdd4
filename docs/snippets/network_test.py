import pytest
import trio
import trioserver
from trioserver.testing import AcceptError, Duplicate, Faults, Latency, Loss, Refuse, Reset, Slice

from client_test import Dictionary, look_up


async def test_slow_network(trio_server, autojump_clock):
    server = await trio_server(Dictionary, faults=[Latency(30), Slice(1)])
    assert await look_up(await server.connect(), b"dog") == b"chien"
    assert trio.current_time() == 60


async def test_network_that_becomes_slow(trio_server, autojump_clock):
    server = await trio_server(Dictionary)
    stream = await server.connect()
    assert await look_up(stream, b"dog") == b"chien"
    with server.faults.during(Latency(30)), trio.move_on_after(10) as patience:
        await look_up(stream, b"cat")
    assert patience.cancelled_caught


async def test_connection_that_breaks(trio_server, autojump_clock):
    server = await trio_server(Dictionary, faults=[Reset(after=2, towards="client")])
    stream = await server.connect()
    with pytest.raises(trio.BrokenResourceError):
        await look_up(stream, b"cat")


async def test_network_that_is_mended(trio_server, autojump_clock):
    server = await trio_server(Dictionary, faults=[Refuse()])
    with pytest.raises(ConnectionRefusedError):
        await server.connect()
    server.faults.clear()
    assert await look_up(await server.connect(), b"cat") == b"chat"


async def test_server_short_of_descriptors(trio_server, autojump_clock):
    server = await trio_server(Dictionary, faults=[AcceptError(times=3)])
    assert await look_up(await server.connect(), b"cat") == b"chat"
    assert server.server.statistics().accept_errors == 3


@pytest.mark.parametrize("seed", range(5))
async def test_by_chance(seed, trio_server, autojump_clock):
    faults = Faults(Latency(20, jitter=10), Slice(1), seed=seed)
    server = await trio_server(Dictionary, faults=faults)
    assert await look_up(await server.connect(), b"dog") == b"chien"
    assert 20 <= trio.current_time() <= 60


class Time(trioserver.DatagramRequestHandler):
    async def handle(self):
        await self.wfile.write(b"noon")


async def ask(client):
    """The client under test: it asks again after a second."""
    while True:
        await client.send(b"what time is it?")
        with trio.move_on_after(1):
            return await client.receive()


async def test_datagrams_that_get_lost(trio_server, autojump_clock):
    server = await trio_server(Time, faults=[Loss(0.5), Duplicate(0.5)])
    client = await server.client()
    for _ in range(100):
        assert await ask(client) == b"noon"
    assert trio.current_time() > 10


async def test_over_tcp(trio_server):
    server = await trio_server(Dictionary, transport="tcp", faults=Faults())
    async with await trio.open_tcp_stream(*server.address) as stream:
        with server.faults.during(Slice(1)):
            assert await look_up(stream, b"dog") == b"chien"
