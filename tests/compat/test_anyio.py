"""Test servers under the plugin of anyio, on its Trio backend: what goes, and what is refused."""

import pytest

BEGINNING = """
import pytest
import trio
import trioserver
from trioserver.testing import open_test_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "trio"
"""

TESTS = """
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
"""


@pytest.fixture
def run(pytester):
    """Runs tests under anyio's plugin, in a project that mostly does without pytest-trio."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(tests, *options):
        pytester.makepyfile(BEGINNING + tests)
        return pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider", timeout=60)

    return run


def test_block_in_the_test(run):
    """`open_test_server` serves, is strict, and ends a test whose server fails, at once."""
    result = run(TESTS, "-p", "no:trio")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ['*KeyError: "a handler\'s own"', "*RuntimeError: the server's own"]
    )


def test_fixtures_are_refused(run):
    """They are pytest-trio's; the words say what to do instead."""
    for options in (["-p", "no:trio"], []):
        result = run("async def test_it(trio_server):\n    pass\n", *options)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            ["the fixture trio_server cannot be had here: it needs pytest-trio*"]
        )
