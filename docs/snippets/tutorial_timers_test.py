import trio
from support.pages import MEMORY, assert_shown
from support.scenes import Scene
from trioserver.testing import MemoryServer

from tutorial_timers import Timers


async def test_timers_end_with_their_client(autojump_clock):
    """A client that vanishes takes its timers with it: the first that rings ends the others."""
    async with MemoryServer(MEMORY, Timers).serving() as server:
        client = await server.connect()
        await client.send_all(b"180 tea\n360 egg\n")
        await trio.testing.wait_all_tasks_blocked()
        client.reset()
        await trio.sleep(180)
        await trio.testing.wait_all_tasks_blocked()
        assert not server.requests
        assert server.statistics().outcomes["disconnected"] == 1


async def test_timers_ring_in_a_drain(autojump_clock):
    """A drain lets running timers ring, as long as the grace lasts, and cuts the rest."""
    async with MemoryServer(MEMORY, Timers).serving() as server:
        hopeful, hopeless = await server.connect(), await server.connect()
        await hopeful.send_all(b"10 tea\n")
        await hopeless.send_all(b"360 egg\n")
        await trio.testing.wait_all_tasks_blocked()
        server.shutdown()
        for client, instant, heard in ((hopeful, 10, b"tea is ready\n"), (hopeless, 15, b"")):
            assert await client.receive_some() == heard
            assert trio.current_time() == instant
        report = await server.wait_closed()
    assert (len(report.drained), len(report.cancelled)) == (1, 1)


async def test_timer_kept_waiting(autojump_clock):
    """With the default time-outs, a timer of more than five minutes ends with its silent client."""
    impatient = type("Impatient", (Timers,), {"timeout": None})
    await Scene(impatient, {0: b"360 egg\n"}, gets=b"", ends_at=300).play()


async def test_report(autojump_clock):
    """The report at the end of the tutorial is a real one."""
    async with MemoryServer(MEMORY, Timers).serving() as server:
        first = await server.connect(("127.0.0.1", 51022))
        await trio.sleep(1)
        second = await server.connect(("127.0.0.1", 51024))
        await second.send_all(b"100 egg\n")
        await trio.sleep(2)
        await first.send_all(b"10 tea\n")
        await trio.sleep(1)
        server.shutdown()
        report = await server.wait_closed()
    assert_shown(str(report), "tutorial")
