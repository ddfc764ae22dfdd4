import os
import threading
from types import SimpleNamespace

import pytest
import trio
from support import read_to_end
from support.pages import MEMORY
from trioserver.testing import MemoryServer

import part


async def answer(handler, said):
    async with MemoryServer(MEMORY, handler).serving() as server:
        with trio.fail_after(10):
            client = await server.connect()
            await client.send_all(said)
            await client.send_eof()
            return await read_to_end(client)


async def test_names(monkeypatch):
    """What blocks in a task is sent to a thread."""
    look_up = SimpleNamespace(getfqdn=lambda host: f"{host} by {threading.current_thread().name}")
    monkeypatch.setattr(part, "socket", look_up)
    told = await answer(part.Names, b"127.0.0.1\n")
    assert told.startswith(b"127.0.0.1 by ")
    assert threading.current_thread().name.encode() not in told


@pytest.mark.skipif(os.name != "posix", reason="there, sort is something else")
async def test_sorted():
    """What another program can do is given to it."""
    assert await answer(part.Sorted, b"pear\napple\n") == b"apple\npear\n"
