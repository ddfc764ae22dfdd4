import pytest
import trio
from support import read_to_end
from support.pages import MEMORY
from support.scenes import Scene, table
from trioserver.testing import MemoryServer

from keep_alive import News, Reverse, ReverseSoon, publish

TWO_IN_THREE = {0: b"\0\0\0\x03abc\0\0", 1: b"\0\x02de"}
FOLLOW = {"drain_at": 2, "gets": b"\0\0\0\x03cba\0\0\0\x02ed", "outcomes": ["drained"]}


@table(
    "scene",
    {
        "Requests follow each other on one connection, however they are cut.": Scene(
            Reverse, TWO_IN_THREE, **FOLLOW
        ),
        "So they do with a deadline.": Scene(ReverseSoon, TWO_IN_THREE, **FOLLOW),
        "A request gets ten seconds.": Scene(
            ReverseSoon, {50: b"\0\0\0\x03a"}, gets=b"", ends_at=60, outcomes=["timed_out"]
        ),
        "The wait for the next one gets sixty.": Scene(
            ReverseSoon, gets=b"", ends_at=60, outcomes=["timed_out"]
        ),
        "A request that says that it is too large is not waited for.": Scene(
            Reverse, {0: b"\xff\xff\xff\xff"}, gets=b"", ends_at=0
        ),
    },
)
async def test_requests(scene, autojump_clock):
    """What comes back, and when the end."""
    await scene.play()


@pytest.fixture
async def news():
    server = MemoryServer(MEMORY, News)
    server.readers = set()
    async with server.serving():
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        yield server, client
    assert server.readers == set()


async def test_news(autojump_clock, news):
    """News arrive while there are some; a drain ends the wait with a goodbye."""
    server, client = news
    publish(server, b"rain\n")
    assert await client.receive_some() == b"rain\n"
    server.shutdown()
    assert await client.receive_some() == b"that was the news\n"


async def test_news_that_nobody_takes(autojump_clock, news):
    """A reader whose channel is full is told so, and publishing does not wait for it."""
    server, client = news
    for _ in range(1 + 10 + 1):  # one goes straight to the wait, ten are kept
        publish(server, b"rain\n")
    assert server.readers == set()
    assert await read_to_end(client) == b"rain\n" * 11 + b"you read too slowly\n"
