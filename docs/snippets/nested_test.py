import trio
from trioserver.testing import MemoryServer

from nested import Outer
from tutorial_timer import Timer


async def test_drain_together(autojump_clock):
    """A server in a request of another drains along with it."""
    inner, outer = MemoryServer(("inner", 1), Timer), MemoryServer(("outer", 1), Outer)
    outer.inner = inner
    async with outer.serving():
        await outer.connect()
        await trio.testing.wait_all_tasks_blocked()
        client = await inner.connect()
        await client.send_all(b"3 tea\n")
        await trio.testing.wait_all_tasks_blocked()
        outer.shutdown()
        await trio.sleep(0.5)  # since it never sent a byte, the outer client may just be new
        await trio.testing.wait_all_tasks_blocked()
        assert inner.draining
        assert await client.receive_some() == b"tea is ready\n"
    assert (await inner.wait_closed()).clean
