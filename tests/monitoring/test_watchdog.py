"""The watchdog: loops that do not turn, in real time, and what holds them."""

import contextvars
import math
import signal
import subprocess
import sys
import threading
import time

import attrs
import pytest
import trio
from support.programs import printed_lines, program
from support.scenes import table

import trioserver
from trioserver import RequestInfo
from trioserver.monitoring import Blocked, Linter, Watchdog, task_tree, watch_loop

A_BLOCK = 1.6  # long beside what a busy machine keeps a thread waiting
WARNING = 0.2


def blocks():
    """Hold the loop, as a call does that should be awaited."""
    time.sleep(A_BLOCK)  # held here


class Seen(list):
    """What a watchdog has told, and a way to wait for it."""

    def __init__(self):
        super().__init__()
        self._told = trio.Event()

    def note(self, blocked):
        self.append(blocked)
        self._told.set()

    async def another(self):
        with trio.fail_after(20):
            await self._told.wait()
        self._told = trio.Event()


@pytest.fixture
def told(caplog):
    """What the watchdog has logged up to now."""
    return lambda: [it.getMessage() for it in caplog.records if it.name == "trioserver.monitoring"]


async def test_names_the_handler(told):
    """A handler that blocks is logged with its line, task and request, once, and how long it was.

    What it was is told in the loop afterwards, and the linter makes a finding of it.
    """

    async def handle(request, client_address, server):
        await request.recv()
        blocks()
        await request.sendall(b"x")

    linter, seen = Linter(), Seen()

    def note(blocked):
        seen.note((blocked, threading.get_ident()))
        linter.note_blocked(blocked)

    server = trioserver.TCPServer(("127.0.0.1", 0), handle)
    with trio.fail_after(20):
        async with server.serving():
            with Watchdog(WARNING, on_blocked=note):
                client = await trio.open_tcp_stream(*server.server_address)
                await client.send_all(b"x")
                assert await client.receive_some() == b"x"
                await seen.another()
                first, second = told()
            await client.aclose()
    assert "by task 'TCPServer request 1 from 127.0.0.1:" in first.splitlines()[0]
    assert "time.sleep(A_BLOCK)  # held here" in first
    assert f'File "{__file__}"' in first
    assert "trio/_core" not in first
    assert "in all by task 'TCPServer request 1 from" in second
    [(blocked, thread)] = seen
    assert thread == threading.get_ident()
    assert isinstance(blocked.request, RequestInfo)
    assert WARNING <= blocked.seconds < 10
    [finding] = linter.look(task_tree())
    assert (finding.lint, finding.request, finding.since) == ("blocked-loop", 1, blocked.seconds)
    assert f'at File "{__file__}", line ' in finding.message


async def test_each_episode_is_one(told):
    """Each block is two lines, and told once; two of them are four."""
    seen = Seen()
    with trio.fail_after(20), Watchdog(WARNING, on_blocked=seen.note):
        for _ in range(2):
            blocks()
            await seen.another()
    assert len(told()) == 4


async def test_an_idle_loop_is_fine(told):
    """A loop that waits for nothing but time is not blocked, nor is a busy one that turns."""
    with Watchdog(WARNING, on_blocked=pytest.fail):
        await trio.sleep(1)
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            await trio.lowlevel.checkpoint()
    assert told() == []


async def test_virtual_clock_is_another(told, autojump_clock):
    """It counts real seconds: a jump is none, and a block counts while the clock stands still."""
    with Watchdog(WARNING):
        await trio.sleep(10**6)
        assert trio.current_time() == 10**6
        blocks()
        assert trio.current_time() == 10**6
        await trio.lowlevel.checkpoint()
    assert len(told()) == 2


async def test_block_that_ends_with_the_watch(told):
    """A block up to the end of the watch is told, and it ends at once then, with its thread."""
    seen, before = Seen(), threading.active_count()
    with Watchdog(WARNING, on_blocked=seen.note):
        blocks()
        ended = time.perf_counter()
    assert time.perf_counter() - ended < 5
    assert len(told()) == 2
    assert [it.task for it in seen] == [trio.lowlevel.current_task().name]
    assert threading.active_count() == before


async def test_error_of_on_blocked(caplog, told):
    """What it raises is logged, and ends nothing."""
    called = trio.Event()

    def fail(blocked):
        called.set()
        raise ValueError("of the program's")

    with trio.fail_after(20), Watchdog(WARNING, on_blocked=fail):
        blocks()
        await called.wait()
    assert told()[2:] == ["on_blocked of a Watchdog has raised"]
    assert "ValueError: of the program's" in caplog.text


async def test_call_that_holds_the_lock(told):
    """A call of C that keeps all threads from running is noticed when it is over."""
    seen = Seen()
    with trio.fail_after(60), Watchdog(0.1, on_blocked=seen.note):
        while not seen:  # as long as it takes on this machine
            sum(range(20_000_000))
            await trio.lowlevel.checkpoint()
    assert seen[0].seconds >= 0.1


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
async def test_stopped_process(tmp_path):
    """A process that was stopped for a while has not blocked its loop."""
    path = tmp_path / "stopped.py"
    path.write_text(
        "import logging, trio, trioserver.monitoring\n"
        "logging.basicConfig()\n"
        "async def main():\n"
        "    with trioserver.monitoring.Watchdog(0.2):\n"
        "        print('here', flush=True)\n"
        "        while True:\n"
        "            await trio.sleep(0.0001)\n"
        "            if trio.current_time() - last[0] > 0.9: break\n"
        "            last[0] = trio.current_time()\n"
        "        await trio.sleep(0.7)\n"
        "    print('gone on', flush=True)\n"
        "last = [float('inf')]\n"
        "trio.run(main)\n"
    )
    async with program(path) as process:
        assert await printed_lines(process, 1) == ["here"]
        await trio.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        await trio.sleep(1.2)
        process.send_signal(signal.SIGCONT)
        assert await printed_lines(process, 1) == ["gone on"]
        assert await process.stderr.receive_some() == b""


async def test_breakpoint_is_no_block(told):
    """A program that a debugger has stopped is not blocked: somebody looks at it."""
    with Watchdog(WARNING, on_blocked=pytest.fail):
        exec("import time\ntime.sleep(0.8)", {"__name__": "pdb"})  # noqa: S102  (a debugger's frame)
        await trio.sleep(0.4)
    assert told() == []


async def test_each_thread_has_its_own_loop(told):
    """A loop in another thread is watched there, and what blocks it is found there."""

    async def other():
        seen = Seen()
        with Watchdog(WARNING, on_blocked=seen.note):
            blocks()
            await seen.another()
        return seen

    with trio.fail_after(20), Watchdog(WARNING, on_blocked=pytest.fail):
        [blocked] = await trio.to_thread.run_sync(trio.run, other)
    assert blocked.task == f"{__name__}.{other.__qualname__}"
    assert len(told()) == 2


async def test_no_task_holds_it(told):
    """What blocks outside of tasks is logged with its stack alone."""
    seen = Seen()
    with trio.fail_after(20), Watchdog(WARNING, on_blocked=seen.note):
        trio.lowlevel.current_trio_token().run_sync_soon(blocks)
        await seen.another()
    assert seen[0].request is None
    assert "held here" in seen[0].stack


async def test_watch_loop(told, nursery):
    """As a task beside servers it watches until it is cancelled."""
    seen = Seen()
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)
    before = threading.active_count()
    async with trio.open_nursery() as tasks:
        tasks.start_soon(lambda: watch_loop([], block_warning=WARNING, on_blocked=seen.note))
        await trio.testing.wait_all_tasks_blocked()
        blocks()
        with trio.fail_after(20):
            await seen.another()
        tasks.cancel_scope.cancel(reason="the test is over")
    assert threading.active_count() == before
    assert len(told()) == 2


async def test_used_once():
    """One watchdog watches one block; outside of Trio there is nothing to watch."""
    watchdog = Watchdog()
    with watchdog:
        pass
    with pytest.raises(RuntimeError, match="watches once"):
        watchdog.__enter__()
    with pytest.raises(RuntimeError):
        await trio.to_thread.run_sync(lambda: contextvars.Context().run(Watchdog().__enter__))


@table(
    "value, error",
    {
        "a text": ("1", TypeError),
        "a flag": (True, TypeError),
        "none": (0, ValueError),
        "for ever": (math.inf, ValueError),
        "no number": (math.nan, ValueError),
    },
)
def test_wrong_warnings(value, error):
    """What is no number of seconds above 0 is refused at once."""
    with pytest.raises(error, match=r"Watchdog.block_warning must be a number"):
        Watchdog(value)


def test_is_not_loaded_before():
    """The watchdog costs nothing where nobody asks for one: its file is not even loaded."""
    code = "import sys, trioserver, trioserver.monitoring as m; m.task_tree\n"
    code += "print([it for it in sys.modules if '_watchdog' in it or '_lints' in it])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout.split() == [b"[]"]


def test_blocked_is_a_value():
    """It can be compared, and does not change."""
    assert Blocked(seconds=1.0) == Blocked(seconds=1.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Blocked(seconds=1.0).seconds = 2.0
