"""A task that sends part of its request away with trio-parallel, as the how-to shows it."""

import importlib
from pathlib import Path

import trio
import trio_parallel
from support import until

import trioserver

SNIPPETS = Path(__file__).resolve().parents[2] / "docs" / "snippets"


async def test_part_of_a_request_in_another_process(monkeypatch):
    """Small and large requests are answered, in order; one without end ends with its request."""
    monkeypatch.syspath_prepend(SNIPPETS)  # worker processes import it, too
    answers = importlib.import_module("part_parallel").Answers
    server = trioserver.TCPServer(("127.0.0.1", 0), answers)
    with trio.fail_after(60):
        async with trio_parallel.open_worker_context(), server.serving():
            async with await trio.open_tcp_stream(*server.server_address) as client:
                for below, count in ((10, 4), (1000, 168), (20, 8)):
                    await client.send_all(b"%d\n" % below)
                    assert await client.receive_some() == b"%d\n" % count
                asked = server.snapshot().requests[0].bytes_received
                await client.send_all(b"100000000\n")
                await until(lambda: server.snapshot().requests[0].bytes_received > asked)
                server.shutdown(grace=0)
                report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == ["cancelled"]
    assert report.duration < 5
