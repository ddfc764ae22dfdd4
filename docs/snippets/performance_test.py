import gc
import logging

import pytest
import trio
import trioserver
from support.pages import MEMORY, in_memory
from trioserver.testing import MemoryServer

import performance


class Steps(trio.abc.Instrument):
    """Counts the steps of the tasks of requests."""

    def __init__(self):
        self.count = 0

    def before_task_step(self, task):
        self.count += task.name.startswith("MemoryServer request")


async def steps_for(handler, sent, times=1):
    """How many steps a request takes until it has answered, and waits again."""
    steps = Steps()
    async with MemoryServer(MEMORY, handler).serving() as server:
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        for _ in range(times):
            await client.send_all(sent)
            await trio.testing.wait_all_tasks_blocked()
            assert await client.receive_some() == sent.upper()
        trio.lowlevel.remove_instrument(steps)
    return steps.count


async def test_line_takes_one_schedule_point(autojump_clock):
    """A line that is waited for takes two steps: it is answered, and the next one is looked for."""
    assert await steps_for(performance.Upper, b"hello\n", times=10) == 20


@pytest.mark.parametrize(("name", "least", "most"), [("Upper", 16, 20), ("Buffered", 3, 8)])
async def test_lines_that_come_together(name, least, most, autojump_clock):
    """Of their answers every second one lets others run; with a buffer every 16th operation."""
    count = await steps_for(getattr(performance, name), b"hello\n" * 32)
    assert least <= count <= most


async def test_room_for_many():
    """The server has as many slots as the page says."""
    assert performance.for_many(("localhost", 0), performance.Upper).limits.requests == 20_000


async def test_nothing_is_logged(monkeypatch, caplog, autojump_clock):
    """Although the program logs at INFO, there is no line for a request."""
    monkeypatch.setattr(logging.getLogger("trioserver.access"), "level", logging.NOTSET)
    caplog.set_level(logging.INFO)
    performance.log_only_what_is_wrong()
    async with MemoryServer(MEMORY, performance.Upper).serving() as server:
        client = await server.connect()
        await client.send_eof()
        assert await client.receive_some() == b""
    assert caplog.messages == []


async def test_frozen(nursery, autojump_clock):
    """The server serves, and what was there before is not looked at any more."""
    threshold = gc.get_threshold()
    server = in_memory(trioserver.TCPServer(("localhost", 0), performance.Upper))
    try:
        nursery.start_soon(performance.serve, server)
        await trio.testing.wait_all_tasks_blocked()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] > threshold[0]
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        server.shutdown()
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
