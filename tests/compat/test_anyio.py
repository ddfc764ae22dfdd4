"""Test servers under the plugin of anyio, on its Trio backend: what goes, and what is refused."""

import pytest

TESTS = """
import pytest
import trio
import trioserver
from trioserver.testing import open_test_server

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "trio"

async def upper(request, client_address, server):
    await request.sendall((await request.recv(100)).upper())

async def fails(request, client_address, server):
    raise KeyError("a handler's own")

async def ask(server):
    client = await server.connect()
    await client.send_all(b"hello")
    return await client.receive_some()

async def test_right():
    async with open_test_server(upper) as server:
        assert await ask(server) == b"HELLO"

async def test_strict():
    async with open_test_server(fails) as server:
        assert await ask(server) == b""

async def test_crash():
    class Breaks(trioserver.TCPServer):
        def get_request(self, listener):
            raise RuntimeError("the server's own")

    async with open_test_server(Breaks(("127.0.0.1", 0), upper)) as server:
        await ask(server)
        await trio.sleep(60)

async def test_fixture(trio_server):
    pass
"""


@pytest.mark.parametrize("options", [["-p", "no:trio"], []], ids=["alone", "beside pytest-trio"])
def test_anyio(options, pytester):
    """`open_test_server` serves, is strict, and ends a test whose server fails, at once.

    Fixtures are refused: they are pytest-trio's; the words say what to do instead.
    """
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider", timeout=60)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "the fixture trio_server cannot be had here: it needs pytest-trio*",
            '*KeyError: "a handler\'s own"',
            "*RuntimeError: the server's own",
        ]
    )
