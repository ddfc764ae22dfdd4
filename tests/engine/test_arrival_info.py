"""Who a request is from, when its arrival has learnt that: everybody says the same."""

from typing import Any

import attrs
import pytest
import trio
from support import Witness

import trioserver
from trioserver import Outcome, RequestInfo, Timeouts
from trioserver._facts.events import same_request
from trioserver.testing import MemoryServer

CLIENT = ("client", 7)
INFO = RequestInfo(id=1, client_address="a", server_address="b", started=1.0, started_at=2.0)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"client_address": CLIENT}, True),
        ({"id": 2}, False),
        ({"started": 1.5}, False),
        ({"started_at": 2.5}, False),
        ({"server_address": "c"}, False),
    ],
    ids=str,
)
def test_same_request(change, is_same):
    """Only the client's address may be learnt later."""
    assert same_request(INFO, attrs.evolve(INFO, **change)) is is_same


class Behind(MemoryServer):
    """Learns the address of its clients while they arrive."""

    verdict: Any = True

    async def verify_request(self, request, client_address):
        request.info = attrs.evolve(request.info, client_address=CLIENT)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return bool(self.verdict)


async def play(server, witness):
    """One client, which says nothing; gives its record."""
    with trio.fail_after(60):
        async with server.serving():
            client = await server.connect()
            await trio.sleep(9)
            await client.aclose()
    [record] = witness.records
    return record


async def test_time_out_after_the_arrival_is_one(autojump_clock, caplog):
    """A read's error names the client that was learnt, and is the client's doing, not a failure."""
    seen = []

    async def handler(request, client_address, server):
        seen.append(trioserver.current_request())
        try:
            await request.recv()
        except trioserver.IdleTimeout as error:
            seen.append(error.info)
            raise

    witness = Witness()
    server = Behind(("memory", 1), handler, timeouts=Timeouts(idle=1), observers=[witness])
    record = await play(server, witness)
    assert record.outcome is Outcome.TIMED_OUT
    assert [info.client_address for info in [*seen, record.info]] == [CLIENT] * 3
    assert not caplog.records


async def test_time_out_from_before_is_one(autojump_clock):
    """An error that names the client as of the accept is of the same request."""

    class Late(Behind):
        async def verify_request(self, request, client_address):
            early = trioserver.PeerGone("it left", info=request.info)
            await super().verify_request(request, client_address)
            raise early

    witness = Witness()
    record = await play(Late(("memory", 1), _never, observers=[witness]), witness)
    assert (record.outcome, record.reason) == (Outcome.DISCONNECTED, "it left")


@pytest.mark.parametrize(
    ("verdict", "outcome"), [(False, Outcome.REFUSED), (ValueError("no"), Outcome.FAILED)], ids=str
)
async def test_arrival_that_fails_says_who_it_was(verdict, outcome, autojump_clock):
    """The record has the address that was learnt before the arrival failed."""
    witness = Witness()
    server = Behind(("memory", 1), _never, observers=[witness])
    server.verdict = verdict
    record = await play(server, witness)
    assert (record.outcome, record.info.client_address) == (outcome, CLIENT)


@pytest.mark.parametrize("wrong", [None, INFO], ids=["nothing", "another request's"])
async def test_info_of_another_request_is_refused(wrong, autojump_clock):
    """A hook that puts something else there fails its request, and no more."""

    class Wrong(MemoryServer):
        async def verify_request(self, request, client_address):
            request.info = wrong
            return True

    witness = Witness()
    record = await play(Wrong(("memory", 1), _never, observers=[witness]), witness)
    assert record.outcome is Outcome.FAILED
    assert "request.info is now of another request" in record.reason


async def _never(request, client_address, server):
    raise AssertionError("it has not arrived")
