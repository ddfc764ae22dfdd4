"""Worker processes that crash, hang, are killed, talk nonsense, or never start: nobody else pays.

What a crash does to the client that it hits: what was sent arrives, and then the end,
unless the worker was in the middle of sending, which must not look like a whole reply.
"""

import errno
import importlib
import os
import random
import signal
import socket
import sys
import threading
import time
import types
from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from support import connect, read_to_end, running, until
from support import process_handlers as handlers
from support.processes import (
    SOON,
    are_idle,
    both,
    busy,
    fails_to_start,
    is_running,
    is_served,
    is_there,
    kill_workers,
    on_tcp,
    on_udp,
    stopped,
)
from support.scenes import table
from support.threads import THERE, ask, met, shows, takes, witnessed

import trioserver
from trioserver import Timeouts, WorkerCrashed, WorkerStartError
from trioserver._modes.processes.protocol.status import STATE, WORKING, WRITING, SharedStatus
from trioserver._modes.processes.server import mixin, pool, setbacks
from trioserver._modes.processes.server.spawn import Spawned
from trioserver._modes.processes.server.worker import Worker
from trioserver._modes.processes.worker.synchronous import SeenSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain
from trioserver.testing import open_descriptors


def erring(handler=handlers.does, **fields):
    """A server that keeps its errors."""
    return handlers.Erring(THERE, handler, **{"min_children": 1, **fields})


def statuses(server):
    """With which its workers have crashed: its only errors."""
    assert all(isinstance(error, WorkerCrashed) for error in server.errors)
    return [error.status for error in server.errors]


@asynccontextmanager
async def bystander(server):
    """The server's first client, who is served by another worker meanwhile, to the end."""
    async with busy(server, b"wait") as client:
        yield
        await client.send_all(b"!")
        assert int(await read_to_end(client)) in server.active_children


# The matrix ---------------------------------------------------------------------------


@both("does")
@pytest.mark.parametrize(
    ("deed", "status"),
    [
        ("exit3", 3),
        ("exit0", 0),
        ("sysexit", 4),
        ("interrupt", 1),
        ("segfault", -signal.SIGSEGV),
        ("kill", -signal.SIGKILL),
        ("fork-exit", 3),
    ],
)
async def test_crash(handler, deed, status):
    """PR-01: it ends one request, as ``failed``, with the status; the rest goes on."""
    async with witnessed(server := erring(handler, min_children=2)) as witness:
        before = server.active_children
        async with bystander(server):
            with takes(SOON):
                assert await ask(server, deed.encode()) == b"begun."
            await is_served(server)
        [error] = server.errors
        assert isinstance(error, WorkerCrashed)
        assert error.status == status
        assert error.pid in before
        assert not is_there(error.pid)  # it was reaped
        assert error.pid not in server.active_children
    assert witness.outcomes == ["failed", "completed", "completed"]
    crashed = witness.records[0]
    assert crashed.reason == f"WorkerCrashed: {error}"
    # What an asynchronous one did after its last wait nobody knows.
    assert crashed.bytes_received == len(deed)
    assert crashed.bytes_sent in ({6} if handler is handlers.does else {0, 6})


def test_crashes_in_words():
    """What stands in the record."""
    assert str(WorkerCrashed(7, 3)) == "worker process 7 has ended with exit status 3"
    assert str(WorkerCrashed(7, -9)) == "worker process 7 has ended by signal 9"


@pytest.mark.slow
@both("does")
@pytest.mark.parametrize("deed", ["sleep", "loop", "c", "fork-sleep"])
async def test_takes_too_long(handler, deed):
    """PR-03: whatever it does, also in C with the interpreter's lock, it is killed in time."""
    server = handlers.Lenient(THERE, handler, min_children=2, timeouts=Timeouts(request=1))
    async with witnessed(server) as witness:
        before = server.active_children
        async with bystander(server):
            with takes(1 + SOON, least=1):
                assert await ask(server, deed.encode()) == b"begun."
            await is_served(server)
        assert len(set(before) & set(server.active_children)) == 1
    assert server.errors == []
    assert witness.outcomes == ["killed", "completed", "completed"]
    assert witness.records[0].reason == "the request took too long (request)"


@both("Floods")
@table(
    ("outcome", "cleanup"),
    {"crashed": ("failed", 5), "cancelled": ("killed", 5), "nobody waits for it": ("killed", 0)},
)
async def test_half_a_reply_does_not_look_like_a_whole_one(handler, outcome, cleanup):
    """Killed in the middle of a write, its connection is reset; what it has sent is counted."""
    server = on_tcp(handler, timeouts=Timeouts(cleanup=cleanup))
    async with met(server) as (client, witness):
        await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
        assert server.snapshot().requests[0].state == "writing"
        if outcome == "failed":
            kill_workers(server)
        else:
            server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    assert witness.outcomes == [outcome]
    assert witness.records[0].bytes_sent > 0


async def test_half_a_reply_of_a_thread():
    """The same while another thread of the handler reads."""
    async with met(server := on_tcp(handlers.floods_while_it_reads)) as (client, witness):
        await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
        await client.send_all(b"x")
        await shows(server, bytes_received=1)
        await trio.testing.wait_all_tasks_blocked(0.02)  # until it reads again
        assert server.snapshot().requests[0].state == "writing"
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


@pytest.mark.parametrize("way", ["sendall", "sendfile"])
def test_all_pieces_of_a_write_are_one(way, tmp_path):
    """Between two pieces nobody is seen to do anything else: killed there, it is half a reply."""
    seen = []

    class Notes(dict[int, int]):
        def __setitem__(self, cell, value):
            if cell == STATE:
                seen.append(value)

    info = trioserver.RequestInfo(
        id=1, client_address=None, server_address=None, started=0.0, started_at=0.0
    )
    size = 1_000_000
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sock = SeenSocket.over(ours, Loan(LoanTerms(info, Drain())))
        sock.show_on(types.SimpleNamespace(cells=Notes()))
        reader = threading.Thread(target=theirs.recv, args=(size, socket.MSG_WAITALL))
        reader.start()
        if way == "sendall":
            sock.sendall(bytes(size))
        else:
            (tmp_path / "zeros").write_bytes(bytes(size))
            with (tmp_path / "zeros").open("rb") as zeros:
                sock.sendfile(zeros)
        reader.join()
        sock.end()
    *during, last = seen
    assert len(during) > 2  # or it was one piece
    assert set(during) == {WRITING}
    assert last == WORKING


@both("does")
async def test_kill_outside_of_a_write_ends_the_connection_in_order(handler):
    """What it has sent arrives, and then the end: no reset."""
    async with running(server := on_tcp(handler)), busy(server) as client:
        kill_workers(server)
        assert await read_to_end(client) == b""


# Idle workers ------------------------------------------------------------------------------


@pytest.mark.slow
@both("does")
async def test_idle_worker_is_killed(handler, caplog):
    """The next request is served, however soon it comes; the worker is replaced, and named."""
    async with witnessed(server := on_tcp(handler, min_children=2)) as witness:
        for _ in range(10):
            await is_served(server)  # or there is a pause before the next start
            await are_idle(server, 2)
            pid = random.choice(server.active_children)
            os.kill(pid, signal.SIGKILL)
            assert await is_served(server) != pid
            await until(lambda pid=pid: pid not in server.active_children)
            assert not is_there(pid)
        await until(lambda: len(server.active_children) == 2)
    assert set(witness.outcomes) == {"completed"}
    assert {it.levelname for it in caplog.records} <= {"WARNING"}
    assert "has ended by itself with exit status -9, and is replaced" in caplog.text


def is_given(server):
    """Whether some worker has a request."""
    return any(worker.job for worker in server._run.resources._workers.values())


@asynccontextmanager
async def given(server):
    """A worker that has a request, and does not begin with it, and its client."""
    [pid] = server.active_children
    async with stopped(server), await connect(server) as client:
        await client.send_all(b"nothing")
        await until(lambda: is_given(server))
        yield pid, client


def warnings(caplog):
    """What was told at that level."""
    return [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]


@both("does")
async def test_worker_ends_before_it_has_begun(handler, caplog):
    """The request is given to another one: nothing has happened yet that could happen twice.

    It is told all the same.
    """
    async with witnessed(server := on_tcp(handler)) as witness:
        async with given(server) as (pid, client):
            os.kill(pid, signal.SIGKILL)
            answer = await read_to_end(client)
        assert int(answer.removeprefix(b"begun.")) != pid
    assert witness.outcomes == ["completed"]
    [record] = witness.records
    assert (record.bytes_received, record.bytes_sent) == (7, len(answer))
    ended = f"worker process {pid} has ended with exit status -9"
    assert warnings(caplog) == [f"{ended} before it had begun with {record.info}"]


@both("Back")
async def test_worker_of_a_datagram_ends_before_it_has_begun(handler):
    """The same for datagrams."""
    async with running(server := on_udp(handler)) as address:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            async with stopped(server):
                await client.sendto(b"abc", address)
                await until(lambda: is_given(server))
                kill_workers(server)
                assert await client.recv(10) == b"cba"


async def test_no_worker_ever_begins(monkeypatch):
    """After some attempts the request fails, and the server goes on."""
    monkeypatch.setattr(mixin, "ATTEMPTS", 1)
    async with running(server := erring()):
        async with given(server) as (pid, client):
            os.kill(pid, signal.SIGKILL)
            with suppress(trio.BrokenResourceError):  # a reset: its line is unread
                assert await read_to_end(client) == b""
        await until(lambda: server.errors)
        await is_served(server)
    assert statuses(server) == [-signal.SIGKILL]
    assert server.errors[0].pid == pid


async def test_cancelled_before_it_has_begun():
    """A worker that was given a request is killed with it, whether it has begun or not."""
    async with witnessed(server := on_tcp(handlers.does)) as witness:
        async with given(server) as (pid, _):
            server.cancel_request(1, "enough")
            await until(lambda: witness.records)
        assert await is_served(server) != pid
    assert witness.outcomes == ["killed", "completed"]
    assert witness.records[0].bytes_sent == 0


@both("does")
async def test_worker_has_no_descriptor_left(handler, caplog):
    """The next client does not pay for what a handler has left open: another worker has it."""
    async with witnessed(server := on_tcp(handler)) as witness:
        [pid] = server.active_children
        assert await ask(server, b"hoard") == b"begun.%d" % pid
        assert await is_served(server) != pid
        await until(lambda: pid not in server.active_children)
    assert witness.outcomes == ["completed"] * 2
    [told] = warnings(caplog)
    assert told.startswith(f"worker process {pid} has ended with exit status 1 before it had begun")
    assert told.endswith("too many descriptors open to take one more connection")


@pytest.mark.slow
@both("does")
async def test_worker_that_somebody_has_stopped(handler, monkeypatch, caplog):
    """It looks at no time-out any more: it is told, and killed when it does not go on."""
    monkeypatch.setattr("trioserver._modes.processes.server.stopped.BETWEEN_LOOKS", 0.02)
    async with running(server := erring(handler, min_children=2, timeouts=Timeouts(idle=1.5))):
        async with busy(server, b"wait") as client:
            [pid] = [it.pid for it in server._run.resources._workers.values() if it.job]
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: "was stopped by a signal" in caplog.text)
            os.kill(pid, signal.SIGCONT)
            await client.send_all(b"!")
            assert int(await read_to_end(client)) == pid
        caplog.clear()
        with takes(10, least=1.5):
            async with stopped(server):
                await is_served(server)  # by the third one that is given it
        assert "does not go on after 1.5 s (idle), and is killed" in caplog.text
        async with busy(server) as client, stopped(server):
            assert await read_to_end(client) == b""
    assert len(statuses(server)) == 1


# Nonsense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", handlers.NONSENSE)
async def test_worker_talks_nonsense(nonsense, caplog):
    """PR-14: it is killed, as its client may have it in hand; the server takes nothing from it."""
    async with witnessed(server := erring(min_children=2)) as witness:
        async with bystander(server), busy(server, b"say " + nonsense.encode()) as client:
            assert await read_to_end(client) == b""
            await is_served(server)
        assert statuses(server) == [-signal.SIGKILL]
    assert witness.outcomes == ["failed", "completed", "completed"]
    [record] = [it for it in caplog.records if it.levelname == "ERROR"]
    pid = server.errors[0].pid
    assert f"worker process {pid} does not keep to the protocol" in record.getMessage()


# Starts that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_worker_cannot_import_the_handler(method, tmp_path, monkeypatch):
    """PR-10: the server does not start, and says why with the worker's own traceback."""
    (tmp_path / "handlers_for_one.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process() is not None:\n"
        "    raise ImportError('nothing for workers in here')\n"
        "def handler(request, client_address, server): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    handler = importlib.import_module("handlers_for_one").handler
    message = await fails_to_start(on_tcp(handler, start_method=method))
    assert "could not get ready: Traceback (most recent call last):" in message
    assert "ImportError: nothing for workers in here" in message


async def test_handler_that_only_the_server_has(monkeypatch):
    """The same for a module that nobody can import."""
    made = types.ModuleType("made_up")
    exec("def handler(request, client_address, server): ...", vars(made))  # noqa: S102
    monkeypatch.setitem(sys.modules, "made_up", made)
    message = await fails_to_start(on_tcp(made.handler))
    assert "No module named 'made_up'" in message


@table(
    ("make", "where"),
    {
        "a local class": (
            lambda: on_tcp(type("Local", (handlers.Upper,), {})),
            ".RequestHandlerClass",
        ),
        "a lambda": (lambda: on_tcp(lambda *_: None), ".RequestHandlerClass"),
        "a field": (
            lambda: on_tcp(handlers.Upper, handlers.Greeting, greeting=threading.Lock()),
            ".greeting",
        ),
        "child_init": (lambda: on_tcp(handlers.Upper, child_init=lambda: None), ".child_init"),
        "the server's class": (
            lambda: on_tcp(handlers.Upper, type("Local", (trioserver.ProcessTCPServer,), {})),
            "",
        ),
    },
)
async def test_what_does_not_pickle_is_named(make, where):
    """PR-10: before any worker is started."""
    server = make()
    message = await fails_to_start(server, TypeError)
    assert message.startswith(f"{type(server).__name__}{where} does not pickle, so no worker")


@table(
    ("init", "told", "least"),
    {
        "what child_init raises is what is told": (
            *(handlers.init_fails, ["LookupError: no database there", "in init_fails"], 0),
        ),
        "PR-02: it ends without a word": (
            *(partial(os._exit, 3), ["it ended with exit status 3, and did not say why"], 0),
        ),
        "it never gets ready, and is killed": (
            *(partial(time.sleep, 60), ["it was not ready after 0.5 s (start_timeout)"], 0.5),
        ),
    },
)
async def test_worker_cannot_start(init, told, least):
    """The server does not start, and says why."""
    with takes(least + SOON, least):
        server = on_tcp(handlers.Upper, child_init=init, start_timeout=0.5 if least else 60)
        message = await fails_to_start(server)
    for text in told:
        assert text in message


async def test_handle_request_whose_worker_cannot_start():
    """It raises the same; the server stays bound, and works once the reason is gone."""
    with trio.fail_after(10):
        async with on_tcp(handlers.Upper, child_init=handlers.init_fails) as server:
            with pytest.raises(WorkerStartError, match="no database there"):
                await server.handle_request()
            assert server.socket is not None
            assert server.active_children == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["idle", "crash"])
async def test_crash_loop_ends_the_server(how, missing, monkeypatch, caplog):
    """PR-02: starts that fail are tried again, ever more slowly, and then the server fails."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    server = on_tcp(handlers.does, child_init=missing.init)

    async def serves():
        async with running(server):
            missing.path.touch()
            if how == "idle":
                kill_workers(server)
            else:
                assert await ask(server, b"exit3") == b"begun."
            await trio.sleep_forever()

    with pytest.raises(WorkerStartError, match="LookupError: no database"):
        await serves()
    _, *failed = missing.calls()
    assert setbacks.FAILURES - 1 <= len(failed) <= setbacks.FAILURES
    pauses = [after - before for before, after in pairwise(failed)]
    least = 0.02 * 2 ** (setbacks.FAILURES - 1 - len(pauses))
    assert all(pause > least * 2**n for n, pause in enumerate(pauses))
    assert caplog.text.count("cannot start workers, pausing: ") == 1
    assert server.active_children == []


@pytest.mark.slow
async def test_crash_loop_that_ends_by_itself(missing, monkeypatch):
    """What was missing comes back: who has waited meanwhile is served, and all is forgotten."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    async with running(server := on_tcp(handlers.does, child_init=missing.init)):
        for _ in range(3):
            missing.path.touch()
            before = len(missing.calls())
            kill_workers(server)
            async with await connect(server) as client:
                await client.send_all(b"nothing")
                await until(lambda before=before: len(missing.calls()) == before + 2)
                missing.path.unlink()
                assert (await read_to_end(client)).startswith(b"begun.")


@pytest.mark.slow
async def test_workers_that_end_idle_are_replaced_ever_more_slowly(
    monkeypatch,
):
    """PR-02: workers that get ready, and then end, make no storm of starts either."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    seen = set()
    async with running(server := on_tcp(handlers.does)):
        # The first one, and the others after 0.05, 0.1 and 0.2 seconds more.
        with takes(10, least=0.35):
            while len(seen) < 4:
                for worker in server._run.resources._idle:
                    if worker.pid not in seen:
                        seen.add(worker.pid)
                        os.kill(worker.pid, signal.SIGKILL)
                await trio.sleep(0.001)


# How failures are counted ------------------------------------------------------------------------


@pytest.mark.slow
async def test_workers_that_end_together(monkeypatch):
    """Their successors wait once, and not each of them longer than the one before."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    async with running(server := on_tcp(handlers.does, min_children=8)):
        with takes(4 * SOON, least=0.05):
            before = kill_workers(server)
            await until(lambda: not set(before) & set(server.active_children))
            await are_idle(server, 8)


@pytest.mark.slow
async def test_starts_that_fail_together(missing, monkeypatch):
    """They have failed once: what is missing for a moment does not end the server."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    async with running(server := on_tcp(handlers.does, min_children=8, child_init=missing.init)):
        missing.path.touch()
        kill_workers(server)
        await until(lambda: len(missing.calls()) >= 8 + 8)
        missing.path.unlink()
        await are_idle(server, 8)
        await is_served(server)


@pytest.mark.slow
async def test_start_that_fails_after_workers_that_ended_idle(missing, monkeypatch):
    """Those could be started, so this one is the first that could not."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.001)
    async with running(server := on_tcp(handlers.does, child_init=missing.init)):
        for _ in range(setbacks.FAILURES):
            await are_idle(server, 1)
            kill_workers(server)
            await are_idle(server, 0)
        await are_idle(server, 1)
        missing.path.touch()
        before = len(missing.calls())
        kill_workers(server)
        await until(lambda: len(missing.calls()) > before)
        missing.path.unlink()
        await is_served(server)


@pytest.mark.slow
async def test_start_that_fails_while_the_server_ends(tmp_path, monkeypatch, caplog):
    """It makes no difference any more."""
    monkeypatch.setattr(setbacks, "FAILURES", 1)
    path = tmp_path / "gone"
    server = on_tcp(handlers.does, child_init=partial(handlers.init_fails_slowly_if, str(path)))
    async with running(server):
        path.touch()
        [pid] = kill_workers(server)
        workers = server._run.resources._workers
        await until(lambda: any(it.why_not for number, it in workers.items() if number != pid))
    assert "no database" not in caplog.text


# Workers come and go --------------------------------------------------------------------------


async def served_by(server, times):
    """Who serves so many requests, one after the other."""
    return [await is_served(server) for _ in range(times)]


async def test_max_requests():
    """A worker serves so many, and is replaced before its last one is over."""
    async with witnessed(server := on_tcp(handlers.does, max_requests=3)) as witness:
        counts = Counter(await served_by(server, 13))
        assert list(counts.values()) == [3, 3, 3, 3, 1]
        *gone, last = counts
        await until(lambda: server.active_children == [last])
        assert not any(is_there(pid) for pid in gone)
    assert witness.outcomes == ["completed"] * 13


async def test_max_requests_with_jitter(monkeypatch):
    """Each worker has its own number, so that not all are replaced at once."""
    numbers = iter([0, 2, 1, 0])
    asked = []

    def randint(least, most):
        asked.append((least, most))
        return next(numbers)

    monkeypatch.setattr("random.randint", randint)
    async with running(server := on_tcp(handlers.does, max_requests=1, max_requests_jitter=2)):
        assert list(Counter(await served_by(server, 6)).values()) == [1, 3, 2]
    assert set(asked) == {(0, 2)}


async def test_replacement_is_there_before_the_last_request_is_over():
    """A worker on its last request is not counted: the next client does not wait for it."""
    async with running(server := on_tcp(handlers.does, max_requests=1, max_children=2)):
        first = server.active_children
        async with bystander(server):
            await until(lambda: len(server.active_children) == 2)
            assert await is_served(server) not in first


@pytest.mark.slow
async def test_growth_and_shrinking():
    """As many workers as requests, up to ``max_children``; later as few as there have to be."""
    async with running(server := on_tcp(handlers.does, max_children=4, child_idle=0.2)):
        assert len(server.active_children) == 1
        clients = [await connect(server) for _ in range(5)]
        for client in clients:
            await client.send_all(b"wait")
        for client in clients[:4]:
            assert await client.receive_some() == b"begun."
        assert len(server.active_children) == 4
        for client in clients[:4]:
            await client.send_all(b"!")
        assert await clients[4].receive_some() == b"begun."
        with takes(10, least=0.15):
            await clients[4].send_all(b"!")
            pids = server.active_children
            for client in clients:
                async with client:
                    assert int((await read_to_end(client)).removeprefix(b"begun.")) in pids
            assert len(server.active_children) == 4
            await until(lambda: len(server.active_children) == 1)
        await trio.sleep(0.3)
        assert len(server.active_children) == 1
        await is_served(server)


async def test_last_worker_that_was_busy_is_the_next_one():
    """So that those can go for whom there is nothing to do."""
    async with running(server := on_tcp(handlers.does, min_children=3)):
        assert len(set(await served_by(server, 6))) == 1


async def test_no_worker_before_the_first_client():
    """``min_children=0``: the first client waits for a start, and the last one leaves none."""
    async with running(server := on_tcp(handlers.does, min_children=0, child_idle=0.05)):
        for _ in range(2):
            assert server.active_children == []
            await is_served(server)
            await until(lambda: server.active_children == [])


# What handlers leave behind --------------------------------------------------------------


@both("does")
async def test_what_is_printed_is_in_nobodys_way(handler):
    """PR-18: not a megabyte; with all of stdio closed, the worker serves on, and a print fails."""
    async with witnessed(server := on_tcp(handler)) as witness:
        [pid] = server.active_children
        for deed in (b"print", b"print", b"print", b"stdio", b"nothing"):
            assert await ask(server, deed) == b"begun.%d" % pid
        assert await ask(server, b"print") == b"begun."
        assert await is_served(server) == pid
    assert witness.outcomes == [*["completed"] * 5, "failed", "completed"]


def held_by(pid):
    """What descriptors a process has."""
    names = []
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it has closed that one meanwhile: a file of its own
            names.append(str(number.readlink()))
    assert names
    return names


async def test_program_that_a_handler_starts_holds_nothing():
    """It has no descriptor of the client's; it may outlive its request, but not a kill."""
    async with running(server := on_tcp(handlers.starts_a_program)):
        outlives = int(await ask(server, b""))
        try:
            assert not any(name.startswith("socket:") for name in held_by(outlives))
        finally:
            os.kill(outlives, signal.SIGKILL)
        async with await connect(server) as client:
            pid = int(await client.receive_some())
            await client.send_all(b"!")
            await shows(server, bytes_received=1)
            assert is_running(pid)
            server.cancel_request(2, "enough")
            assert await read_to_end(client) == b""
            await until(lambda: not is_running(pid))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_handler_forks(method):
    """PR-12: the classic fork in a handler: its client sees the end, and so does the server."""
    async with running(server := erring(start_method=method)):
        [pid] = server.active_children
        assert await ask(server, b"fork") == b"begun.%d" % pid
        assert await is_served(server) == pid
        assert await ask(server, b"fork-exit") == b"begun."
        assert await is_served(server) != pid
        assert statuses(server) == [3]
    assert server.active_children == []


async def test_handler_forks_and_both_return(caplog):
    """PR-12: the child has the client's connection, and nothing else: it ends, and says nothing."""
    async with witnessed(server := on_tcp(handlers.does)) as witness:
        [pid] = server.active_children
        for _ in range(5):
            assert (await ask(server, b"fork-return")).startswith(b"begun.")
            assert await served_by(server, 5) == [pid] * 5
        assert server.active_children == [pid]
    assert witness.outcomes == ["completed"] * 30
    assert caplog.records == []


# The rest of the program -----------------------------------------------------------------------


async def test_threads_of_the_program_are_all_busy():
    """Workers do not need them to be started, or reaped."""
    async with running(server := erring()):
        limiter = trio.to_thread.current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        with takes(SOON):
            assert await ask(server, b"exit3") == b"begun."
            await is_served(server)
    assert statuses(server) == [3]


async def test_no_thread_is_to_be_had(monkeypatch, caplog):
    """A worker is reaped all the same, and its successor started when there are some again."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.01)
    fails, run_sync = [1, 2], trio.to_thread.run_sync

    async def run(*arguments, **options):
        if fails:
            fails.pop()
            raise RuntimeError("can't start new thread")
        return await run_sync(*arguments, **options)

    async with running(server := erring()):
        monkeypatch.setattr(trio.to_thread, "run_sync", run)
        assert await ask(server, b"exit3") == b"begun."
        await is_served(server)
    assert statuses(server) == [3]
    assert "a worker process could not be started: can't start new thread" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("method", "status"), [("forkserver", 3), ("spawn", 255)])
async def test_somebody_else_reaps(method, status):
    """Or the system, where SIGCHLD is ignored: how a worker has ended nobody may know then."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with running(server := erring(start_method=method)):
            await is_served(server)
            await until(lambda: not server.snapshot().requests)
            await are_idle(server, 1)
            in_between = len(open_descriptors())
            for _ in range(2):
                assert await ask(server, b"exit3") == b"begun."
                await is_served(server)
            await until(lambda: len(open_descriptors()) <= in_between)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert statuses(server) == [status] * 2


async def test_hook_has_closed_the_connection():
    """A worker is not even asked: the request fails at once, and says why."""
    async with met(server := on_tcp(handlers.does, handlers.Closes)) as (client, witness):
        before = server.active_children
        assert await read_to_end(client) == b""
        await until(lambda: witness.records)
        assert server.active_children == before
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason.startswith("ClosedResourceError: ")


async def test_system_does_not_pass_the_descriptor(monkeypatch):
    """It may have too many on the way: this ends one request, and says why."""

    def refuses(*arguments):
        monkeypatch.undo()
        raise OSError(errno.ETOOMANYREFS, "too many references")

    async with witnessed(server := on_tcp(handlers.does)) as witness:
        monkeypatch.setattr(socket.socket, "sendmsg", refuses)
        assert await ask(server, b"nothing") == b""
        await is_served(server)
    assert witness.outcomes == ["failed", "completed"]
    assert "too many references" in witness.records[0].reason


# Workers that are slow -------------------------------------------------------------------------


async def test_worker_that_a_kill_does_not_end(monkeypatch, caplog):
    """After a while the server goes on without it, and so does its request."""
    monkeypatch.setattr(pool, "SOON", 0.1)
    monkeypatch.setattr("trioserver._modes.processes.server.worker.LONGEST_KILL", 0.1)
    kill = Spawned.kill
    async with running(server := erring()):
        [pid] = server.active_children
        monkeypatch.setattr(Spawned, "kill", lambda it: None if it.pid == pid else kill(it))
        with takes(SOON):
            assert await ask(server, b"say no frame") == b"begun."
        assert statuses(server) == [-signal.SIGKILL]
        assert await is_served(server) != pid
        await until(lambda: not is_running(pid))  # its line to the server was cut
    assert f"worker process {pid} does not end, though it was killed" in caplog.text


def test_worker_is_looked_at_while_it_is_reaped():
    """Another thread may be about to close its page."""
    page = SharedStatus(-1)
    page.begin(1, 2, 3)
    worker = Worker(types.SimpleNamespace(control=None, shared_status=page))
    assert worker.facts(1) == (2, 3, "working")
    page.cells.release()
    assert worker.facts(1) is None
    page.close()
    assert worker.facts(1) is None


async def test_drain_begins_while_a_request_is_given_away():
    """What was read before is much, and the worker slow: the drain is told after it."""
    limits = trioserver.Limits(line=500_000)
    server = on_tcp(handlers.Upper, handlers.ReadsAhead, limits=limits)
    async with met(server) as (client, witness):
        async with stopped(server):
            await client.send_all(b"x" * 500_001)
            await until(lambda: is_given(server))
            server.shutdown(10)
        with takes(2 * SOON):
            await client.send_all(b"\n")
            assert await read_to_end(client) == b"X" * 500_001 + b"\n"
    assert witness.outcomes == ["drained"]
