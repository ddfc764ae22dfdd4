import logging

import pytest
import trio
import trioserver
from support.pages import MEMORY, in_memory
from trioserver.testing import MemoryServer

import logs


async def test_records_name_the_request(monkeypatch, caplog, capsys, autojump_clock):
    """Records of a handler's own logger carry the id of its request."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    caplog.set_level(logging.WARNING)  # and what it is afterwards is undone
    logs.set_up_logging()
    async with MemoryServer(MEMORY, logs.Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
    assert capsys.readouterr().err.splitlines()[:2] == [
        "INFO trioserver.access [None] listening on memory:1",
        "INFO upper [1] a line of 6 bytes",
    ]


async def test_counter(autojump_clock):
    """An observer counts how requests ended."""
    counter = logs.Counter()
    limits = trioserver.Limits(requests=1, when_full="refuse")
    server = MemoryServer(MEMORY, logs.Upper, observers=[counter], limits=limits)
    async with server.serving():
        client, unlucky = await server.connect(), await server.connect()
        with pytest.raises(trio.BrokenResourceError):
            await unlucky.receive_some()
        await client.send_eof()
        await client.receive_some()
    assert counter.outcomes == {trioserver.Outcome.COMPLETED: 1}
    assert counter.refused == 1


async def test_handle_error(autojump_clock):
    """An overridden handle_error has the exception, and can still answer."""

    async def fail(request, client_address, server):
        raise LookupError("no such page")

    server = in_memory(logs.Reporting(("localhost", 0), fail))
    async with server.serving():
        client = await server.connect()
        assert await client.receive_some() == b"500 that was our fault\r\n"
    assert isinstance(server.last_error, LookupError)
