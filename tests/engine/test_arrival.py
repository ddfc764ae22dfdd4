"""The step between the accept and the first hook of a request: bounds, outcomes, and its drain.

Who the request is from, it may learn; then everybody says the same.
"""

from functools import partial

import attrs
import pytest
import trio
from support import Upper, hold
from support.memory import raising
from support.scenes import Scene, end, table

import trioserver
from trioserver import RequestInfo, Timeouts
from trioserver._facts.events import same_request
from trioserver.testing import MemoryServer

INFO = RequestInfo(id=1, client_address="a", server_address="b", started=1.0, started_at=2.0)
CLIENT = ("learnt", 7)
LEARNS = partial(attrs.evolve, client_address=CLIENT)
REFUSED = {"gets": b"", "outcomes": ["refused"]}
FAILED = {"gets": b"", "outcomes": ["failed"]}
GONE = {"outcomes": ["disconnected"], "reason": "it left"}


def arriving(answer, seconds=0, learns=None):
    """A server whose clients take so long to arrive, learn something, and are let in, or not."""

    class Slowly(MemoryServer):
        async def verify_request(self, request, client_address):
            await trio.sleep(seconds)
            gone = trioserver.PeerGone("it left", info=request.info)
            if learns is not None:
                request.info = learns(request.info)
            if isinstance(error := gone if answer == "gone" else answer, Exception):
                raise error
            return answer

    return Slowly


@table(
    {
        "one that takes too long is ended, and nothing was served": Scene(
            Upper, {0: b"a\n"}, kind=arriving(True, 60)
        ).gives(b"", 10, "timed_out"),
        "one that is refused has that outcome": Scene(
            Upper, kind=arriving(False, 3), ends_at=3, **REFUSED
        ),
        **{
            f"EX-08: {answer!r} counts as what it is worth": Scene(
                Upper, {0: [b"a\n", end]}, kind=arriving(answer)
            ).gives(b"A\n" if answer else b"", 0, "completed" if answer else "refused")
            for answer in ("yes", 0, None)
        },
        "one that fails is an error of the hook": Scene(
            Upper, kind=arriving(ValueError("no"), 3), ends_at=3, **FAILED
        ),
        "one that finds the client gone is no error": Scene(
            Upper, kind=arriving("gone", 1), ends_at=1, **GONE
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
    }
)
async def test_arrival(scene, autojump_clock):
    """Its outcome is its own business, within its bounds."""
    await attrs.evolve(scene, timeouts=Timeouts(handshake=10)).play()


async def times_out(request, client_address, server):
    """Reads in vain; what it sees names the client that was learnt."""
    assert trioserver.current_request().client_address == CLIENT
    with pytest.raises(trioserver.IdleTimeout) as caught:
        await request.recv()
    assert caught.value.info.client_address == CLIENT
    raise caught.value


@table(
    {
        "it is let in, and times out": Scene(
            times_out, kind=arriving(True, learns=LEARNS), timeouts=Timeouts(idle=1)
        ).gives(b"", 1, "timed_out"),
        "it is refused": Scene(hold, kind=arriving(False, learns=LEARNS), **REFUSED),
        "its arrival fails": Scene(hold, kind=arriving(ValueError(), learns=LEARNS), **FAILED),
        "an error that names it as of the accept is its doing": Scene(
            hold, kind=arriving("gone", learns=LEARNS), **GONE
        ),
    }
)
async def test_arrival_learns_who_the_client_is(scene, autojump_clock):
    """What it puts in the place of the request's facts is what the record says."""
    played = await scene.play()
    assert [record.info.client_address for record in played.witness.records] == [CLIENT]
    told = [it for _, it, *_ in played.witness.events if isinstance(it, RequestInfo)]
    assert {info.client_address for info in told} == {CLIENT}


async def test_arriving_in_a_snapshot(autojump_clock):
    """A request that has not arrived says so, and holds its slot; then it says who it is from."""
    server = arriving(True, 5, LEARNS)(("memory", 1), hold)
    async with server.serving(grace=0):
        await server.connect(INFO.client_address)
        for seconds, *facts in [(1, "arriving", "a"), (6, "working", CLIENT)]:
            await trio.sleep_until(seconds)
            [request] = server.snapshot().requests
            assert [request.state, request.info.client_address] == facts
            assert len(server.requests) == 1


@pytest.mark.parametrize("wrong", [None, INFO], ids=["nothing", "another request's"])
async def test_info_of_another_request_is_refused(wrong, autojump_clock):
    """A hook that puts something else there fails its request, and no more."""
    kind, reason = arriving(True, learns=lambda info: wrong), "request.info is now of another"
    await Scene(raising(AssertionError()), kind=kind, reason=reason, **FAILED).play()


def test_same_request():
    """Only the client's address may be learnt later."""
    changes = {"client_address": CLIENT, "id": 2, "started": 1.5, "started_at": 2.5}
    for name, value in {**changes, "server_address": "c"}.items():
        other = attrs.evolve(INFO, **{name: value})
        assert same_request(INFO, other) is (name == "client_address")
