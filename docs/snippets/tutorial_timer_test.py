import logging

import trio
import trioserver
from support.pages import MEMORY, assert_shown
from trioserver.testing import MemoryServer

from tutorial_timer import Timer


async def test_rings(autojump_clock):
    """Two clients' timers run side by side; one client's run one after the other."""
    async with MemoryServer(MEMORY, Timer).serving() as server:
        first, second = await server.connect(), await server.connect()
        await first.send_all(b"20 egg\n20 toast\n")
        await second.send_all(b"10 tea\n")
        for client, instant, what in (
            (second, 10, b"tea"),
            (first, 20, b"egg"),
            (first, 40, b"toast"),
        ):
            assert await client.receive_some() == what + b" is ready\n"
            assert trio.current_time() == instant


async def test_nonsense(caplog, autojump_clock):
    """A line that is not a timer ends its own client, with one ERROR record."""
    async with MemoryServer(MEMORY, Timer).serving() as server:
        bystander, client = await server.connect(), await server.connect(("you", 1))
        await client.send_all(b"soon\n")
        assert await client.receive_some() == b""
        await bystander.send_all(b"0 tea\n")
        assert await bystander.receive_some() == b"tea is ready\n"
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "error while serving you:1")
    assert "ValueError: not enough values to unpack" in caplog.text


async def test_report(autojump_clock):
    """The report in the explanation of the shutdown is a real one."""
    limits = trioserver.Limits(requests=1)
    async with MemoryServer(MEMORY, Timer, limits=limits).serving() as server:
        for port, line in ((51022, b"3 tea\n"), (51024, b"9 egg\n"), (51026, b""), (51028, b"")):
            client = await server.connect(("192.0.2.1", port))
            await client.send_all(line)
            if line.startswith(b"3"):
                await trio.sleep(1)
        server.shutdown(5)
        report = await server.wait_closed()
    assert_shown(str(report), "explanation/shutdown")
