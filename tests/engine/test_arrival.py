"""The step between the accept and the first hook of a request: bounds, outcomes, and its drain."""

import attrs
import trio
from support import Upper, hold
from support.scenes import Scene, table

import trioserver
from trioserver import Timeouts
from trioserver.testing import MemoryServer


def arriving(answer, seconds=0):
    """A server whose clients take so long to arrive, and then are let in, or not."""

    class Slowly(MemoryServer):
        async def verify_request(self, request, client_address):
            await trio.sleep(seconds)
            if isinstance(answer, BaseException):
                raise answer
            return bool(answer)

    return Slowly


@table(
    "scene",
    {
        "one that takes too long is ended, and nothing was served": Scene(
            Upper,
            {0: b"a\n"},
            kind=arriving(True, 60),
            gets=b"",
            outcomes=["timed_out"],
            ends_at=10,
        ),
        "one that is refused has that outcome": Scene(
            Upper, kind=arriving(False, 3), gets=b"", outcomes=["refused"], ends_at=3
        ),
        "one that fails is an error of the hook": Scene(
            Upper, kind=arriving(ValueError("no"), 3), gets=b"", outcomes=["failed"], ends_at=3
        ),
        "one that is in time is served": Scene(
            Upper, {0: b"a\n"}, drain_at=9, kind=arriving(True, 8), gets=b"A\n", ends_at=9
        ),
        "a drain leaves half a second from its end for the first request": Scene(
            Upper, {3.4: b"a\n"}, drain_at=2, kind=arriving(True, 3), gets=b"A\n", ends_at=3.4
        ),
        "and no more": Scene(
            Upper, {3.6: b"a\n"}, drain_at=2, kind=arriving(True, 3), gets=b"", ends_at=3.5
        ),
    },
)
async def test_arrival(scene, autojump_clock):
    """Its outcome is its own business, within its bounds."""
    await attrs.evolve(scene, timeouts=Timeouts(handshake=10)).play()


async def test_arriving_in_a_snapshot(autojump_clock):
    """A request that has not arrived says so, and holds its slot."""
    server = arriving(True, 5)(("memory", 1), hold)
    async with server.serving(grace=0):
        await server.connect()
        for seconds, state in [(1, "arriving"), (6, "working")]:
            await trio.sleep_until(seconds)
            [request] = server.snapshot().requests
            assert request.state == state
            assert len(server.requests) == 1


async def test_arrival_may_learn_who_the_client_is(autojump_clock):
    """What it puts in the place of the request's facts is what records and snapshots say."""

    class Behind(MemoryServer):
        async def verify_request(self, request, client_address):
            request.info = attrs.evolve(request.info, client_address=("client", 7))
            return True

    server = Behind(("memory", 1), Upper)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"a\n")
        await trio.testing.wait_all_tasks_blocked()
        [request] = server.snapshot().requests
        assert request.info.client_address == ("client", 7)
        server.shutdown()
    [record] = (await server.wait_closed()).requests
    assert record.info.client_address == ("client", 7)
    assert isinstance(record.info, trioserver.RequestInfo)


async def test_client_that_leaves_while_it_arrives(autojump_clock, caplog):
    """That is its own doing: no error of the program's, and one record."""

    class Asks(MemoryServer):
        async def verify_request(self, request, client_address):
            await trio.sleep(1)
            raise trioserver.PeerGone("it left", info=request.info)

    await Scene(Upper, kind=Asks, outcomes=["disconnected"], reason="it left", ends_at=1).play()
    assert not [it for it in caplog.records if it.levelname == "ERROR"]
