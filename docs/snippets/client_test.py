import trio
import trioserver
from trioserver.testing import Latency, Slice, open_test_server

WORDS = {b"cat": b"chat", b"dog": b"chien"}


class Dictionary(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(WORDS[line.strip()] + b"\n")


async def look_up(stream, word):
    """The client under test."""
    await stream.send_all(word + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += await stream.receive_some()
    return answer.strip()


async def test_look_up(autojump_clock):
    async with open_test_server(Dictionary) as server:
        assert await look_up(await server.connect(), b"cat") == b"chat"
    [exchange] = server.exchanges
    assert exchange.received == b"cat\n"


async def test_unknown_word(autojump_clock):
    async with open_test_server(Dictionary) as server:
        stream = await server.connect()
        async with server.expect_error(KeyError):
            await stream.send_all(b"cow\n")
        assert await stream.receive_some() == b""


async def test_slow_network(autojump_clock):
    async with open_test_server(Dictionary, faults=[Latency(30), Slice(1)]) as server:
        assert await look_up(await server.connect(), b"dog") == b"chien"
        assert trio.current_time() == 60


async def test_network_that_becomes_slow(autojump_clock):
    async with open_test_server(Dictionary) as server:
        stream = await server.connect()
        assert await look_up(stream, b"dog") == b"chien"
        with server.faults.during(Latency(30)), trio.move_on_after(10) as patience:
            await look_up(stream, b"cat")
        assert patience.cancelled_caught


async def test_over_tcp():
    async with open_test_server(Dictionary, transport="tcp") as server:
        async with await trio.open_tcp_stream(*server.address) as stream:
            assert await look_up(stream, b"cat") == b"chat"
