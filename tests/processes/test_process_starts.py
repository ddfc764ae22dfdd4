"""Worker processes that cannot be started, for a while or ever: who is there goes on."""

import errno
import itertools
import os
import signal
import threading
import time
import types
from functools import partial

import attrs
import pytest
import trio
from support import process_handlers as handlers
from support import read_to_end, running, until
from support.processes import (
    SOON,
    are_idle,
    fails_to_start,
    fork_servers,
    is_running,
    is_served,
    on_tcp,
)
from support.scenes import table
from support.threads import THERE, ask, takes, witnessed

from trioserver import Timeouts, WorkerStartError
from trioserver._modes.processes.protocol.errors import WorkerCrashed
from trioserver._modes.processes.server import pool, pool_config, setbacks, spawn, starter
from trioserver._modes.processes.server.phase import Phase
from trioserver._modes.processes.server.setbacks import Setbacks, is_shortage
from trioserver._modes.processes.server.worker import Worker

TOLD = ["cannot start workers, pausing: ", "starting workers again, after "]


def told(caplog):
    """What was told of starts: the beginning of each message that is no worker's end."""
    messages = [it.getMessage() for it in caplog.records if it.name == "trioserver.error"]
    return [begin for message in messages for begin in TOLD if message.startswith(begin)]


# When it is hopeless -------------------------------------------------------------------------


def failed(why=None):
    """A start that has failed, and why."""
    error = WorkerStartError("no")
    error.__cause__ = why
    return error


async def test_pauses_double(autojump_clock):
    """The next start waits for twice as long; those that were started together are one."""
    setback, pauses = Setbacks(60), []
    for _ in range(8):
        since = setback.number
        for _ in range(3):
            setback.start_failed(failed(), since, anybody=True)
        began = trio.current_time()
        await setback.pause()
        pauses.append(round(trio.current_time() - began, 3))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_pauses_begin_anew(autojump_clock):
    """When a worker has served that was started since the last failure, and none before."""
    setback = Setbacks(60)
    for _ in range(3):
        setback.start_failed(failed(), setback.number, anybody=True)
    setback.over(setback.number - 1)
    assert setback.one_more(setback.number)
    await setback.pause()
    assert trio.current_time() == pytest.approx(0.8)
    setback.over(setback.number)
    assert setback.one_more(setback.number)
    await setback.pause()
    assert trio.current_time() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("anybody", "why", "ends_after"),
    [
        (False, LookupError("no"), 0.1 + 0.2 + 0.4 + 0.8),
        (False, OSError(errno.EMFILE, "too many"), 63.1),
        (True, LookupError("no"), None),
        (True, OSError(errno.EMFILE, "too many"), None),
    ],
)
async def test_hopeless(anybody, why, ends_after, autojump_clock):
    """A server without a worker fails: after five failures, or when a shortage lasts too long."""
    setback = Setbacks(60)
    while trio.current_time() < 600:
        if setback.start_failed(failed(why), setback.number, anybody=anybody):
            break
        await setback.pause()
    if ends_after is None:
        assert trio.current_time() >= 600
    else:
        assert trio.current_time() == pytest.approx(ends_after, abs=3)


async def test_hope_counts_from_the_last_worker(autojump_clock):
    """What has failed while there were workers does not count when the last one has gone."""
    setback = Setbacks(60)
    hopeless = [
        setback.start_failed(failed(), setback.number, anybody=number < 50) for number in range(55)
    ]
    assert hopeless == [False] * 54 + [True]


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (OSError(errno.EMFILE, ""), True),
        (OSError(errno.ENFILE, ""), True),
        (BlockingIOError(errno.EAGAIN, ""), True),
        (OSError(errno.ENOMEM, ""), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (FileNotFoundError(errno.ENOENT, ""), False),
        (RuntimeError("another one"), False),
        (None, False),
    ],
)
def test_shortages(error, short):
    """What passes, in the words of the system and of Python."""
    assert is_shortage(error) == short


# Who is there goes on -------------------------------------------------------------------------


def fails_in_the_system(fails, monkeypatch):
    """While it does, there are no descriptors to be had for a worker."""
    begin = spawn.spawn

    def spawns(*arguments):
        if fails():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return begin(*arguments)

    monkeypatch.setattr(spawn, "spawn", spawns)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["worker", "system"])
async def test_workers_stay_when_others_do_not_come(where, missing, monkeypatch, caplog):
    """PR-02: also beyond ``max_requests``; it is told at the beginning, and at the end."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(setbacks, "LONGEST_PAUSE", 0.02)
    if where == "system":
        fails_in_the_system(missing.path.exists, monkeypatch)
    init = missing.init if where == "worker" else None
    server = on_tcp(handlers.does, min_children=2, max_requests=2, child_init=init)
    async with witnessed(server) as witness:
        before = set(server.active_children)
        missing.path.touch()
        for _ in range(20):
            assert await is_served(server) in before
            await trio.sleep(0.01)
        assert before <= set(server.active_children)
        missing.path.unlink()
        while before & set(server.active_children):
            await is_served(server)
        await until(lambda: len(told(caplog)) == 2)
    assert told(caplog) == TOLD
    assert set(witness.outcomes) == {"completed"}


def test_worker_that_has_ended_does_not_come_back():
    """Whose request was cancelled in the moment in which it ended, while others do not start."""
    config = {field.name: 0 for field in attrs.fields(pool_config.PoolConfig)}
    workers = pool.Pool(pool_config.PoolConfig(**config), b"", lambda error: None)
    workers._setbacks.last = True
    workers._take_up(Worker(types.SimpleNamespace(control=None), phase=Phase.ENDING))
    assert workers._idle == []


@pytest.mark.slow
async def test_workers_that_end_one_after_the_other(missing, caplog):
    """PR-02: eight of them, 20 ms apart, while others cannot start, are no eight failures."""
    async with running(server := on_tcp(handlers.does, min_children=8, child_init=missing.init)):
        missing.path.touch()
        for pid in server.active_children:
            os.kill(pid, signal.SIGKILL)
            await trio.sleep(0.02)
        await until(lambda: not server.active_children)
        await trio.sleep(0.2)
        missing.path.unlink()
        assert await is_served(server) in server.active_children
        await are_idle(server, 8)
    assert told(caplog) == TOLD


@pytest.mark.parametrize("where", ["worker", "system"])
async def test_some_of_the_first_cannot_start(where, missing, monkeypatch, caplog):
    """The server starts if one can; the others come when they can."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    missing.path.touch()
    init, tries = None, itertools.count()
    if where == "worker":
        init = partial(handlers.init_fails_for_others, str(missing.path))
    else:
        fails_in_the_system(lambda: missing.path.exists() and next(tries) != 1, monkeypatch)
    async with running(server := on_tcp(handlers.does, min_children=3, child_init=init)):
        [pid] = server.active_children
        assert await is_served(server) == pid
        missing.path.unlink()
        await are_idle(server, 3)
    assert told(caplog) == TOLD


async def test_none_of_the_first_can_start(missing):
    """Then the server does not, and says why; once all have tried."""
    missing.path.touch()
    server = on_tcp(handlers.does, min_children=3, child_init=missing.init)
    assert "LookupError: no database there" in await fails_to_start(server)
    assert len(missing.calls()) == 3


FEW_DESCRIPTORS = """
import resource, trioserver; from support import process_handlers as handlers

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    trioserver.run(handlers.Announces(("127.0.0.1", 0), handlers.does, min_children=1))
"""


@pytest.mark.slow
async def test_more_clients_than_descriptors(start):
    """PR-02: sixty at once, with descriptors for ten: all are served, by those that there are."""
    program = start(FEW_DESCRIPTORS)
    answers = []

    async def asks():
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"nap")
            answers.append(await read_to_end(client))

    with trio.fail_after(20):
        port = int(await trio.to_thread.run_sync(program.stdout.readline))
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(asks)
        program.send_signal(signal.SIGTERM)
        _, errors = await trio.to_thread.run_sync(program.communicate)
    assert len(answers) == 60
    assert all(len(answer) > len(b"begun.") for answer in answers)
    assert errors.count("cannot start workers, pausing: ") == 1
    assert "Too many open files" in errors
    assert program.returncode == 0


# The fork server ---------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module that a new fork server and its workers find; then there is none again."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "to_preload.py").write_text(text)
        return "to_preload"

    spawn.end_fork_server()
    yield write
    spawn.end_fork_server()


@table(
    ("text", "told", "name"),
    {
        "PR-10: it is broken": (
            *("raise ValueError('broken')", "ValueError: broken", "to_preload"),
        ),
        "PR-10: it imports what is not there": (
            *("import nowhere", "No module named 'nowhere'", "to_preload"),
        ),
        "PR-10: it ends the program": ("raise SystemExit(4)", "SystemExit: 4", "to_preload"),
        "PR-10: it is misspelt": ("", "No module named 'mispelt'", "mispelt"),
    },
)
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_preload_that_cannot_be_imported(method, text, told, name, module):
    """The server does not start, and says which module it was, with its traceback."""
    module(text)
    message = await fails_to_start(on_tcp(handlers.does, preload=[name], start_method=method))
    assert told in message
    assert f"This was the import of '{name}', which the server has in `preload`." in message


@pytest.mark.slow
async def test_fork_server_that_always_ends(module, caplog):
    """Workers do without it."""
    text = "import os, sys\nif '--multiprocessing-fork' not in sys.orig_argv: os._exit(3)\n"
    async with running(server := on_tcp(handlers.does, preload=[module(text)])):
        await is_served(server)
    assert "the fork server has ended; a worker process is spawned instead" in caplog.text
    assert "to_preload" in caplog.text


HANGS = "import time\ntime.sleep(60)\n"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_preload_that_hangs(method, module, caplog):
    """PR-10: ``start_timeout`` bounds it; a fork server that hangs is ended, and another starts."""
    server = on_tcp(
        handlers.does, preload=[module(HANGS)], start_timeout=1, start_method=method, min_children=3
    )
    with takes(1 + SOON, least=1):
        message = await fails_to_start(server)
    assert "after 1 s (start_timeout)" in message
    if method == "forkserver":
        assert "to_preload" in message
        assert "the fork server has not started a worker in time, and is ended" in caplog.text
    module("")
    server.start_timeout = 60
    async with running(server):
        await is_served(server)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shut down", "cancelled"])
async def test_end_of_a_server_whose_preload_hangs(how, module):
    """It can always end, within the grace and the cleanup."""
    server = on_tcp(handlers.does, preload=[module(HANGS)], timeouts=Timeouts(cleanup=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await until(lambda: server.socket)
        await trio.sleep(0.2)
        began = time.perf_counter()
        if how == "shut down":
            server.shutdown(0)
        else:
            nursery.cancel_scope.cancel()
    assert time.perf_counter() - began < 1 + SOON


@pytest.mark.slow
async def test_fork_server_that_somebody_has_stopped(module, caplog):
    """It starts nobody, and does not tell how a worker has ended: the next one does."""
    server = handlers.Erring(THERE, handlers.does, min_children=1, start_timeout=4)
    async with running(server):
        [stopped] = fork_servers()
        os.kill(stopped, signal.SIGSTOP)
        assert await ask(server, b"exit3") == b"begun."
        await is_served(server)
        assert fork_servers() != [stopped]
        assert not is_running(stopped)
    [error] = server.errors
    assert isinstance(error, WorkerCrashed)
    assert error.status == spawn.UNKNOWN
    assert "the fork server has not started a worker in time, and is ended" in caplog.text


@pytest.mark.slow
async def test_end_of_a_server_whose_fork_server_is_stopped(module):
    """Its workers end, and nobody waits for news of it for long."""
    server = on_tcp(handlers.does, min_children=8, timeouts=Timeouts(cleanup=1))
    with trio.fail_after(20):
        async with server.serving():
            pids = server.active_children
            os.kill(*fork_servers(), signal.SIGSTOP)
            began = time.perf_counter()
        assert time.perf_counter() - began < spawn.LONGEST_NEWS + SOON
    assert not any(map(is_running, pids))


@pytest.mark.slow
async def test_interpreter_that_hangs(tmp_path, module, monkeypatch):
    """PR-10: the same of a spawned one, which takes nothing of all that it is to be told."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    server = on_tcp(handlers.does, start_method="spawn", start_timeout=1)
    server.my_table = bytes(1_000_000)
    with takes(1 + SOON, least=1):
        message = await fails_to_start(server)
    assert "it was not ready after 1 s (start_timeout)" in message


@pytest.mark.slow
async def test_start_that_never_ends(monkeypatch, caplog):
    """Whatever it is that it waits for: the other workers, and the server, end without it."""
    monkeypatch.setattr(starter, "SOON", 0.1)
    monkeypatch.setattr("trioserver._modes.processes.server.worker.LONGEST_KILL", 0.5)
    goes_on = threading.Event()

    def hangs(process):
        with spawn._multiprocessing_lock:
            goes_on.wait(20)
        raise OSError(errno.EIO, "hopeless")

    server = on_tcp(handlers.does, min_children=2, timeouts=Timeouts(cleanup=0.2))
    try:
        with trio.fail_after(20):
            async with server.serving():
                pids = server.active_children
                monkeypatch.setattr(spawn, "_start", hangs)
                assert await ask(server, b"exit3") == b"begun."
                await until(spawn._multiprocessing_lock.locked)
                began = time.perf_counter()
            assert time.perf_counter() - began < 2 * SOON
        assert not any(map(is_running, pids))
        assert "the start of a worker process does not end; left behind" in caplog.text
    finally:
        goes_on.set()
        await until(lambda: not spawn._multiprocessing_lock.locked())
