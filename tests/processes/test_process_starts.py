"""Worker processes that cannot be started, for a while or ever: who is there goes on."""

import errno
import itertools
import os
import signal
import sys
import threading
import time
import types
from functools import partial
from itertools import pairwise

import attrs
import pytest
import trio
from support import process_handlers as handlers
from support import read_to_end, running, until
from support.process_state import is_running
from support.processes import (
    SOON,
    are_idle,
    by_method,
    calls_of_init,
    fails_to_start,
    fork_servers,
    is_served,
    is_there,
    kill_workers,
    needs,
    on_tcp,
)
from support.scenes import table
from support.threads import ask, takes, witnessed

import trioserver
from trioserver import Timeouts, WorkerCrashed, WorkerStartError
from trioserver._modes.processes.server import (
    fork_server,
    pool,
    pool_config,
    pool_process,
    setbacks,
    spawn,
    starter,
)
from trioserver._modes.processes.server.phase import Phase
from trioserver._modes.processes.server.setbacks import Setbacks, is_shortage
from trioserver._modes.processes.server.worker_process import Worker


# When it is hopeless -------------------------------------------------------------------------
def failed(why=None):
    """A start that has failed, and why."""
    error = WorkerStartError("no")
    error.__cause__ = why
    return error


async def test_pauses(autojump_clock):
    """The next start waits for twice as long; those that were started together are one.

    They begin anew when a worker has served that was started since the last failure.
    """
    setback, pauses = Setbacks(60), []
    for number in range(11):
        since = setback.number
        for _ in range(3):
            setback.start_failed(failed(), since, anybody=True)
        began = trio.current_time()
        await setback.pause()
        pauses.append(round(trio.current_time() - began, 3))
        setback.over(setback.number - (number != 8))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("why", "ends_after"),
    [(LookupError("no"), 0.1 + 0.2 + 0.4 + 0.8), (OSError(errno.EMFILE, "too many"), 61.3)],
)
async def test_hopeless(why, ends_after, autojump_clock):
    """A server without a worker fails: after five failures, or when a shortage lasts too long.

    What has failed while there was a worker does not count, nor what was before a start that
    has not, nor workers that could be started, and have ended idle.
    """
    setback, error = Setbacks(60), failed(why)
    for number in range(55):
        assert not setback.start_failed(error, setback.number, anybody=number % 5 == 0)
        await setback.pause()
    setback.start_succeeded()
    for _ in range(setbacks.FAILURES):
        setback.one_more(setback.number)
        await setback.pause()
    setback.over(setback.number)
    began = trio.current_time()
    while not setback.start_failed(error, setback.number, anybody=False):
        await setback.pause()
    assert trio.current_time() - began == pytest.approx(ends_after)


def test_shortages():
    """What passes, in the words of the system and of Python."""
    numbers = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
    passing = [OSError(number, "") for number in numbers]
    passing += [MemoryError(), RuntimeError("can't start new thread")]
    passing += [WorkerCrashed(1, -signal.SIGKILL)]  # as Linux ends processes when memory is short
    others = [FileNotFoundError(errno.ENOENT, ""), RuntimeError("another one"), None]
    others += [WorkerCrashed(1, -signal.SIGSEGV)]
    assert [is_shortage(error) for error in (*passing, *others)] == [True] * 7 + [False] * 4


# Servers that do not start ---------------------------------------------------------------------
HANGS = "import time; time.sleep(60)"
MODULES = {
    "broken": "raise ValueError('broken')",
    "imports": "import nowhere",
    "exits": "raise SystemExit(4)",
    "hangs": HANGS,
    "ends_fork_servers": "import os, sys; '--multiprocessing-fork' in sys.orig_argv or os._exit(3)",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where a new fork server and its workers find modules; at the end there is none again."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    fork_server.end_fork_server()
    yield tmp_path
    fork_server.end_fork_server()


NOBODYS = types.ModuleType("nobodys")
exec("def handler(request, client_address, server): ...", vars(NOBODYS))  # noqa: S102


@by_method
@table(
    ("fields", "told"),
    {
        "child_init raises": ({"child_init": handlers.init_fails}, "LookupError: no database"),
        "PR-02: it ends without a word": (
            *({"child_init": partial(os._exit, 3)}, "it ended with exit status 3, and did not say"),
        ),
        "it never gets ready, and is killed": (
            *({"child_init": partial(time.sleep, 60), "start_timeout": 0.5}, "after 0.5 s (start"),
        ),
        "PR-10: nobody finds its handler": ({"handler": NOBODYS.handler}, "No module named 'nobo"),
        "PR-10: a module to preload is broken": ({"preload": ["broken"]}, "ValueError: broken"),
        "PR-10: it imports nothing": ({"preload": ["imports"]}, "No module named 'nowhere'"),
        "PR-10: it ends the program": ({"preload": ["exits"]}, "SystemExit: 4"),
        "PR-10: it is misspelt": ({"preload": ["mispelt"]}, "No module named 'mispelt'"),
    },
)
async def test_worker_cannot_start(method, fields, told, modules, monkeypatch):
    """The server does not start, and says why, with the traceback of the worker or module."""
    monkeypatch.setitem(sys.modules, "nobodys", NOBODYS)
    least = fields.get("start_timeout", 0)
    with takes(10, least):
        server = on_tcp(**{"handler": handlers.Upper, "start_method": method, **fields})
        message = await fails_to_start(server)
    assert told in message
    says_why = not any(text in told for text in ("exit status", "start"))
    assert ("Traceback (most recent call last):" in message) == says_why
    for name in fields.get("preload", ()):
        assert f"This was the import of '{name}', which the server has in `preload`" in message


Local = type("Local", (trioserver.ProcessTCPServer,), {"__qualname__": "somewhere.Local"})


@table(
    ("fields", "where"),
    {
        "a local class": ({"handler": type("X", (handlers.Upper,), {})}, ".RequestHandlerClass"),
        "a lambda": ({"handler": lambda *_: None}, ".RequestHandlerClass"),
        "a field": ({"kind": handlers.Noting, "greeting": threading.Lock()}, ".greeting"),
        "child_init": ({"child_init": lambda: None}, ".child_init"),
        "the server's class": ({"kind": Local}, ""),
    },
)
async def test_what_does_not_pickle_is_named(fields, where):
    """PR-10: before any worker is started."""
    server = on_tcp(**{"handler": handlers.Upper, **fields})
    message = await fails_to_start(server, TypeError)
    assert message.startswith(f"{type(server).__name__}{where} does not pickle, so no worker")


# Who is there goes on -------------------------------------------------------------------------
TOLD = ["cannot start workers, pausing: ", "starting workers again, after "]


def told(caplog):
    """What was told of starts: the beginning of each message that is no worker's end."""
    messages = [it.getMessage() for it in caplog.records if it.name == "trioserver.error"]
    return [begin for message in messages for begin in TOLD if message.startswith(begin)]


def fails_in_the_system(fails, monkeypatch):
    """While it does, there are no descriptors to be had for a worker."""
    begin = pool_process.spawn

    def spawns(*arguments):
        if fails():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return begin(*arguments)

    monkeypatch.setattr(pool_process, "spawn", spawns)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["worker", "system"])
async def test_workers_stay_when_others_do_not_come(where, missing, monkeypatch, caplog):
    """PR-02: also beyond ``max_requests``; it is told at the beginning, and at the end."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(setbacks, "LONGEST_PAUSE", 0.02)
    if where == "system":
        fails_in_the_system(missing.exists, monkeypatch)
    init = needs(missing) if where == "worker" else None
    server = on_tcp(handlers.does, min_children=2, max_requests=2, child_init=init)
    async with witnessed(server) as witness:
        before = set(server.active_children)
        missing.touch()
        for _ in range(20):
            assert await is_served(server) in before
            await trio.sleep(0.01)
        assert before <= set(server.active_children)
        missing.unlink()
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
    async with running(server := on_tcp(handlers.does, min_children=8, child_init=needs(missing))):
        missing.touch()
        for pid in server.active_children:
            os.kill(pid, signal.SIGKILL)
            await trio.sleep(0.02)
        await until(lambda: not server.active_children)
        await trio.sleep(0.2)
        missing.unlink()
        assert await is_served(server) in server.active_children
        await are_idle(server, 8)
    assert told(caplog) == TOLD


@pytest.mark.slow
async def test_workers_that_end_idle_are_replaced_ever_more_slowly(monkeypatch):
    """PR-02: that get ready, and then end, make no storm of starts either.

    The pauses: for the second, third and fourth. Those that end together wait once.
    """
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    async with running(server := on_tcp(handlers.does, min_children=3)):
        with takes(10, least=0.05 + 0.1 + 0.2):
            for _ in range(3):
                before = kill_workers(server)
                await until(lambda pids=before: not {*pids} & {*server.active_children})
                await are_idle(server, 3)
        assert server._run.resources._setbacks.number == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["idle", "crash"])
async def test_crash_loop_ends_the_server(how, missing, monkeypatch, caplog):
    """PR-02: starts that fail are tried again, ever more slowly, and then the server fails."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    server = on_tcp(handlers.does, child_init=needs(missing))
    with pytest.raises(WorkerStartError, match="LookupError: no database"):
        async with running(server):
            missing.touch()
            if how == "idle":
                kill_workers(server)
            else:
                assert await ask(server, b"exit 3") == b"begun."
            await trio.sleep_forever()
    _, *failed = calls_of_init(missing)
    assert setbacks.FAILURES - 1 <= len(failed) <= setbacks.FAILURES
    pauses = [after - before for before, after in pairwise(failed)]
    least = 0.02 * 2 ** (setbacks.FAILURES - 1 - len(pauses))
    assert all(pause > least * 2**n for n, pause in enumerate(pauses))
    assert caplog.text.count("cannot start workers, pausing: ") == 1
    assert server.active_children == []


async def test_some_of_the_first_cannot_start(missing, monkeypatch, caplog):
    """The server starts if one can; the others come when they can."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    missing.touch()
    tries = itertools.count()
    fails_in_the_system(lambda: missing.exists() and next(tries) != 1, monkeypatch)
    async with running(server := on_tcp(handlers.does, min_children=3)):
        [pid] = server.active_children
        assert await is_served(server) == pid
        missing.unlink()
        await are_idle(server, 3)
    assert told(caplog) == TOLD


FEW_DESCRIPTORS = """
import resource, trioserver; from support import process_handlers as handlers

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    trioserver.run(handlers.Announces(("127.0.0.1", 0), handlers.does, min_children=1))
"""


@pytest.mark.slow
async def test_more_clients_than_descriptors(start):
    """PR-02: sixty at once, with descriptors for ten: all are served, by those that there are."""
    program, answers = start(FEW_DESCRIPTORS), []

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
    assert [len(answer) > len(b"begun.") for answer in answers] == [True] * 60
    assert errors.count("cannot start workers, pausing: ") == 1
    assert "Too many open files" in errors
    assert program.returncode == 0


# The fork server ---------------------------------------------------------------------------------
IN_VAIN = "the fork server has not started a worker in time, and is ended"


@pytest.mark.slow
async def test_fork_server_that_always_ends(modules, caplog):
    """Workers do without it."""
    async with running(server := on_tcp(handlers.does, preload=["ends_fork_servers"])):
        await is_served(server)
    assert "the fork server has ended; a worker process is spawned instead" in caplog.text
    assert "ends_fork_servers" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [("hangs", "forkserver"), ("hangs", "spawn"), ("sitecustomize", "spawn")]
)
async def test_preload_that_hangs(name, method, modules, caplog):
    """PR-10: ``start_timeout`` bounds it; a fork server that hangs is ended, and another starts.

    The same of a spawned interpreter, which takes nothing of all that it is to be told.
    """
    (modules / f"{name}.py").write_text(HANGS)
    fields = {"preload": ["hangs"], "start_timeout": 1, "start_method": method}
    server = on_tcp(handlers.does, min_children=3, **fields)
    server.my_table = bytes(1_000_000)
    with takes(1 + SOON, least=1):
        message = await fails_to_start(server)
    assert "after 1 s (start_timeout)" in message
    if method == "forkserver":
        assert "hangs" in message
        assert IN_VAIN in caplog.text
    for hanging in ("hangs", "sitecustomize"):
        (modules / f"{hanging}.py").write_text("")
    server.start_timeout = 60
    async with running(server):
        await is_served(server)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shut down", "cancelled"])
async def test_end_of_a_server_whose_preload_hangs(how, modules):
    """It can always end, within the grace and the cleanup."""
    server = on_tcp(handlers.does, preload=["hangs"], timeouts=Timeouts(cleanup=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await until(lambda: server.socket)
        await trio.sleep(0.2)
        began = time.perf_counter()
        if how == "shut down":
            server.shutdown(0)
        else:
            nursery.cancel_scope.cancel()
    assert time.perf_counter() - began < SOON


@pytest.mark.slow
async def test_fork_server_that_somebody_has_stopped(modules, caplog):
    """It starts nobody, and does not tell how a worker has ended: the next one does."""
    server = on_tcp(handlers.does, handlers.Noting, start_timeout=4)
    async with running(server):
        [stopped] = fork_servers()
        os.kill(stopped, signal.SIGSTOP)
        assert await ask(server, b"exit 3") == b"begun."
        await is_served(server)
        assert fork_servers() != [stopped]
        assert not is_running(stopped)
    assert [error.status for error in server.errors] == [spawn.UNKNOWN]
    assert IN_VAIN in caplog.text


@pytest.mark.slow
async def test_end_of_a_server_whose_fork_server_is_stopped(modules):
    """Its workers end, and nobody waits for news of it for long."""
    server = on_tcp(handlers.does, min_children=8, timeouts=Timeouts(cleanup=1))
    async with running(server):
        pids = server.active_children
        os.kill(*fork_servers(), signal.SIGSTOP)
        began = time.perf_counter()
    assert time.perf_counter() - began < spawn.LONGEST_NEWS + SOON
    assert not any(map(is_running, pids))


@pytest.mark.slow
async def test_start_that_never_ends(monkeypatch, caplog):
    """Whatever it is that it waits for: the other workers, and the server, end without it.

    A worker that comes so late is ended.
    """
    monkeypatch.setattr(starter, "SOON", 0.1)
    monkeypatch.setattr("trioserver._modes.processes.server.ending.LONGEST_KILL", 0.5)
    goes_on, start, late = threading.Event(), spawn._start, []

    def hangs(process):
        with spawn._multiprocessing_lock:
            goes_on.wait(20)
        start(process)
        late.append(process.pid)

    server = on_tcp(handlers.does, min_children=2, timeouts=Timeouts(cleanup=0.2))
    try:
        async with running(server):
            pids = server.active_children
            monkeypatch.setattr(spawn, "_start", hangs)
            assert await ask(server, b"exit 3") == b"begun."
            await until(spawn._multiprocessing_lock.locked)
            began = time.perf_counter()
        assert time.perf_counter() - began < SOON
        assert not any(map(is_running, pids))
        assert "the start of a worker process does not end; left behind" in caplog.text
    finally:
        goes_on.set()
        await until(lambda: late and not is_there(late[0]))
