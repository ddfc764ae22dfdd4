import pytest
import trio
import trioserver
from trioserver.testing import open_test_server

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
        portion = await stream.receive_some()
        if not portion:
            raise EOFError(answer)
        answer += portion
    return answer.strip()


async def test_look_up(trio_server):
    server = await trio_server(Dictionary)
    assert await look_up(await server.connect(), b"cat") == b"chat"


async def test_what_went_over_the_wire(trio_server):
    server = await trio_server(Dictionary)
    stream = await server.connect()
    await look_up(stream, b"cat")
    await stream.aclose()
    [exchange] = await server.wait_requests(1)
    assert (exchange.received, exchange.sent) == (b"cat\n", b"chat\n")
    assert exchange.outcome == trioserver.Outcome.COMPLETED


async def test_unknown_word(trio_server):
    server = await trio_server(Dictionary)
    stream = await server.connect()
    async with server.expect_error(KeyError):
        with pytest.raises(EOFError):
            await look_up(stream, b"cow")


async def test_server_that_stops(trio_server, autojump_clock):
    server = await trio_server(Dictionary)
    stream = await server.connect()
    await look_up(stream, b"cat")
    report = await server.stop(grace=5)
    assert len(report.drained) == 1
    assert await stream.receive_some() == b""
    with pytest.raises(ConnectionRefusedError):
        await server.connect()


async def test_server_of_your_own(trio_server, autojump_clock):
    patience = trioserver.Timeouts(idle=20)
    own = trioserver.TCPServer(("127.0.0.1", 2628), Dictionary, timeouts=patience)
    server = await trio_server(own)
    stream = await server.connect()
    assert await stream.receive_some() == b""
    assert trio.current_time() == 20


async def test_over_tcp(trio_server):
    server = await trio_server(Dictionary, transport="tcp")
    async with await trio.open_tcp_stream(*server.address) as stream:
        assert await look_up(stream, b"cat") == b"chat"


@pytest.fixture
async def dictionary(trio_server):
    return await trio_server(Dictionary)


async def test_with_a_fixture_of_your_own(dictionary):
    assert await look_up(await dictionary.connect(), b"dog") == b"chien"


async def test_block(autojump_clock):
    async with open_test_server(Dictionary) as server:
        assert await look_up(await server.connect(), b"cat") == b"chat"
