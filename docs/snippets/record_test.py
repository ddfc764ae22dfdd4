import json

import pytest
import trio
from support.pages import MEMORY
from trioserver.monitoring import Recorder, Recording
from trioserver.testing import MemoryServer

import record


async def test_record(tmp_path, autojump_clock, capsys):
    """Ten seconds of a server are a page, JSON that can be replayed, and a trace."""
    recorder = Recorder(scopes=True)
    server = MemoryServer(MEMORY, record.Upper, observers=(recorder,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record.record, server, recorder)
        await trio.testing.wait_all_tasks_blocked()
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
    record.write(recorder.recording(), tmp_path)
    assert "<title>Ten seconds</title>" in (tmp_path / "timeline.html").read_text("utf-8")
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text("utf-8"))
    recording = Recording.from_json(json.loads((tmp_path / "recording.json").read_text("utf-8")))
    assert recording == recorder.recording()
    record.show(recording, 5)
    assert "MemoryServer request 1 from" in capsys.readouterr().out


async def fails(request, client_address, server):
    """A handler with an error of its own."""
    raise KeyError("x")


async def test_keep(tmp_path):
    """An error of a handler leaves a page, and its JSON."""
    recorder = Recorder()
    server = MemoryServer(MEMORY, fails, observers=(recorder,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record.keep, server, recorder, tmp_path)
        await trio.testing.wait_all_tasks_blocked()
        (await server.connect()).reset()
        with trio.fail_after(10):
            while len(list(tmp_path.glob("*-failed.*"))) < 2:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


@pytest.mark.xfail(reason="the page shows one that fails", strict=True)
async def test_a_minute(trio_recorder, autojump_clock):
    """The fixture records a test that fails."""
    with trio.move_on_after(30):
        trio_recorder.mark("it waits for a minute")
        await trio.sleep(60)
        return
    pytest.fail("it took longer than half a minute")
