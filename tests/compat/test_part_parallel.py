"""A task that sends part of its request away with trio-parallel, as the how-to shows it."""

import importlib
from pathlib import Path

import pytest
import trio
import trio_parallel
from support import until

import trioserver

SNIPPETS = Path(__file__).resolve().parents[2] / "docs" / "snippets"


@pytest.fixture
async def server(monkeypatch):
    """One with the handler of the page; its module can be imported, also by worker processes."""
    monkeypatch.syspath_prepend(SNIPPETS)
    handler = importlib.import_module("part_parallel").Answers
    with trio.fail_after(60):
        async with trio_parallel.open_worker_context():
            async with trioserver.TCPServer(("127.0.0.1", 0), handler).serving() as server:
                yield server


async def test_part_of_a_request_in_another_process(server):
    """Small and large requests of one connection are answered, in order."""
    async with await trio.open_tcp_stream(*server.server_address) as client:
        for below, count in ((10, 4), (1000, 168), (20, 8)):
            await client.send_all(b"%d\n" % below)
            assert await client.receive_some() == b"%d\n" % count


async def test_part_of_a_request_is_cancelled_with_it(server):
    """A computation without end ends with its request, at once."""
    async with await trio.open_tcp_stream(*server.server_address) as client:
        await client.send_all(b"100000000\n")
        await until(lambda: any(it.bytes_received for it in server.snapshot().requests))
        server.shutdown(grace=0)
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == ["cancelled"]
    assert report.duration < 5
