"""The flight recorder: what has happened last is written when something goes wrong."""

import json
import time

import pytest
import trio
from support import Upper
from support.scenes import table

from trioserver import Timeouts
from trioserver.monitoring import Recorder, Recording
from trioserver.monitoring._recording import keeping
from trioserver.testing import MemoryServer


async def fails(request, client_address, server):
    """A handler with an error of its own."""
    raise KeyError("x")


async def stays(request, client_address, server):
    """A handler that waits until it is cut."""
    await trio.sleep_forever()


def written(folder):
    """What each episode was that was written, and whether its files are whole."""
    pages = sorted(folder.glob("*.html"))
    for page in pages:
        told = json.loads(page.with_suffix(".json").read_text("utf-8"))
        assert Recording.from_json(told).events
        assert page.read_text("utf-8").endswith("</html>\n")
    assert len(list(folder.iterdir())) == 2 * len(pages)
    return [page.stem.rpartition("-")[2] for page in pages]


async def wait_written(folder, number):
    """Wait until so many episodes are written: threads do it, in real time."""
    end = time.monotonic() + 30
    while not folder.exists() or len(list(folder.glob("*.html"))) < number:
        assert time.monotonic() < end
        await trio.lowlevel.checkpoint()


class Program:
    """A server beside a recorder that keeps what happens."""

    def __init__(self, folder, handler, **options):
        self.recorder = Recorder()
        self.folder = folder
        self.options = options
        timeouts = Timeouts(linger=0)  # its clients never leave
        observers = (self.recorder,)
        self.server = MemoryServer(("memory", 1), handler, observers=observers, timeouts=timeouts)

    async def run(self, scene):
        async with trio.open_nursery() as nursery:
            with self.recorder:
                nursery.start_soon(lambda: self.recorder.keep(self.folder, **self.options))
                await trio.lowlevel.checkpoint()
                async with self.server.serving():
                    await scene(self)
                nursery.cancel_scope.cancel(reason="the scene is over")


async def test_error_of_a_handler(tmp_path, caplog):
    """A handler's error is an episode; those that come within the gap are of the same one."""

    async def scene(program):
        for _ in range(3):
            await program.server.connect()
        await wait_written(program.folder, 1)

    await Program(tmp_path / "new" / "folder", fails).run(scene)
    assert written(tmp_path / "new" / "folder") == ["failed"]
    [message] = [it.message for it in caplog.records if it.name == "trioserver.monitoring"]
    assert message.startswith(f"recorded: {tmp_path / 'new' / 'folder'}")


async def test_number_of_episodes(tmp_path, caplog):
    """No more are written than were asked for, and the last one says so."""

    async def scene(program):
        for number in (1, 2, 2, 2):
            await program.server.connect()
            await wait_written(program.folder, number)
            await trio.testing.wait_all_tasks_blocked()

    await Program(tmp_path, fails, at_most=2, gap=0).run(scene)
    assert written(tmp_path) == ["failed", "failed"]
    messages = [it.message for it in caplog.records if it.name == "trioserver.monitoring"]
    assert [message.endswith(", the last one") for message in messages] == [False, True]


async def test_cut_at_the_end(tmp_path):
    """Who is cut when all ends at once is written, though the recorder is cancelled before."""
    recorder = Recorder()
    server = MemoryServer(("memory", 1), stays, observers=(recorder,))
    async with trio.open_nursery() as nursery:
        with recorder:
            nursery.start_soon(recorder.keep, tmp_path)
            await nursery.start(server.serve_forever)
            await server.connect()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="all ends")
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await wait_written(tmp_path, 1)
    assert written(tmp_path) == ["cut"]


async def test_blocked_and_slow(tmp_path):
    """A blocked loop is an episode, and a slow request is one if that was asked for."""

    async def scene(program):
        program.recorder.note_blocked(1.5, "in handle")
        await wait_written(program.folder, 1)
        client = await program.server.connect()
        await client.send_eof()
        await wait_written(program.folder, 2)

    await Program(tmp_path, Upper, on=["blocked"], gap=0, slow=0).run(scene)
    assert written(tmp_path) == ["blocked", "slow"]


async def test_nothing_goes_wrong(tmp_path):
    """Nothing is written when nothing goes wrong, or only what nobody has asked for."""

    async def scene(program):
        await (await program.server.connect()).send_eof()
        await trio.testing.wait_all_tasks_blocked()

    await Program(tmp_path, Upper).run(scene)
    await Program(tmp_path, fails, on=["cut"]).run(scene)
    assert written(tmp_path) == []


async def test_folder_that_cannot_be_written(tmp_path, caplog):
    """What cannot be written is logged, and neither the server nor what keeps it ends."""
    (tmp_path / "file").write_text("in the way")

    async def scene(program):
        for _ in range(2):
            await program.server.connect()
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                while "trioserver.monitoring" not in {it.name for it in caplog.records}:
                    await trio.lowlevel.checkpoint()
            caplog.clear()

    await Program(tmp_path / "file", fails, gap=0).run(scene)


async def test_hanging_disk(tmp_path, caplog, monkeypatch):
    """A disk that hangs is waited for no longer than so, even when all is cancelled."""
    monkeypatch.setattr(keeping, "WRITING", 0.1)
    begun, over = trio.Event(), []
    token = trio.lowlevel.current_trio_token()

    def hangs(recording, path, title):
        token.run_sync_soon(begun.set)
        while not over:
            time.sleep(0.01)

    monkeypatch.setattr(keeping, "write", hangs)

    async def scene(program):
        await program.server.connect()
        await begun.wait()

    with trio.fail_after(20):
        await Program(tmp_path, fails).run(scene)
    over.append(True)
    [record] = [it for it in caplog.records if it.name == "trioserver.monitoring"]
    assert record.message == f"a recording (failed) could not be written to {tmp_path}"
    assert record.exc_info[0] is trio.TooSlowError


@table(
    "options, says",
    {
        "an unknown trigger": (
            {"on": ["fail"]},
            "on must be some of failed, cut, blocked",
        ),
        "a text": ({"on": "failed"}, "on must be some of failed, cut, blocked, not ['failed']"),
        "none at most": ({"at_most": 0}, "at_most must be at least 1, not 0"),
        "a gap before": ({"gap": -1.0}, "gap must be at least 0, not -1.0"),
        "no number": ({"slow": float("nan")}, "slow must be at least 0, not nan"),
    },
)
async def test_wrong_arguments(options, says, tmp_path):
    """Arguments that make no sense are refused, with words that name them."""
    with pytest.raises(ValueError, match="must be") as raised:
        await Recorder().keep(tmp_path, **options)
    assert says in str(raised.value)
