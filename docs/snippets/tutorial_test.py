import trio
from trioserver.testing import MemoryServer

from tutorial_timers import Timers


async def test_tea_is_ready_before_the_egg(autojump_clock):
    server = MemoryServer(("memory", 1), Timers)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"360 egg\n180 tea\n")
        assert await client.receive_some() == b"tea is ready\n"
        assert trio.current_time() == 180
        assert await client.receive_some() == b"egg is ready\n"
        assert trio.current_time() == 360
