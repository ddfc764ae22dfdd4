"""Worker processes that crash, hang, are killed, talk nonsense, or never start: nobody else pays.

What a crash does to the client that it hits: what was sent arrives, and then the end,
unless the worker was in the middle of sending, which must not look like a whole reply.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Witness, connect, plain_client, read_to_end, running, until
from support import process_handlers as handlers
from support.processes import (
    SOON,
    _calls,
    are_idle,
    both,
    fails_to_start,
    is_running,
    is_served,
    is_there,
    on_tcp,
)
from support.threads import THERE, ask

import trioserver
from trioserver import HandlerFailed, Timeouts, WorkerCrashed, WorkerStartError
from trioserver._modes.processes.protocol.status import STATE, WORKING, WRITING, SharedStatus
from trioserver._modes.processes.server import mixin, pool, setbacks
from trioserver._modes.processes.server.spawn import Spawned
from trioserver._modes.processes.server.worker import Worker
from trioserver._modes.processes.worker.synchronous import SeenSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain
from trioserver.testing import open_descriptors

# The matrix ---------------------------------------------------------------------------


@asynccontextmanager
async def bystander(server: Any) -> AsyncIterator[None]:
    """The server's first client, who is served by another worker meanwhile, to the end."""
    async with await connect(server) as client:
        await client.send_all(b"wait")
        assert await client.receive_some() == b"begun."
        yield
        await client.send_all(b"!")
        assert int(await read_to_end(client)) in server.active_children


CRASHES = [
    ("exit3", 3),
    ("exit0", 0),
    ("sysexit", 4),
    ("interrupt", 1),
    ("segfault", -signal.SIGSEGV),
    ("kill", -signal.SIGKILL),
    ("fork-exit", 3),
]


@both("does")
@pytest.mark.parametrize(("deed", "status"), CRASHES, ids=[deed for deed, _ in CRASHES])
async def test_crash(handler: Any, deed: str, status: int) -> None:
    """PR-01: it ends one request, as ``failed``, with the status; the rest goes on."""
    witness = Witness()
    server = handlers.Erring(THERE, handler, min_children=2, observers=[witness])
    async with running(server):
        before = server.active_children
        async with bystander(server):
            began = time.perf_counter()
            assert await ask(server, deed.encode()) == b"begun."
            assert time.perf_counter() - began < SOON
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


def test_crashes_in_words() -> None:
    """What stands in the record."""
    assert str(WorkerCrashed(7, 3)) == "worker process 7 has ended with exit status 3"
    assert str(WorkerCrashed(7, -9)) == "worker process 7 has ended by signal 9"


@both("does")
async def test_error_is_no_crash(handler: Any) -> None:
    """PR-11: an exception ends its request, and not its worker."""
    witness = Witness()
    server = handlers.Erring(THERE, handler, min_children=2, observers=[witness])
    async with running(server):
        before = server.active_children
        async with bystander(server):
            for deed in (b"error", b"unpicklable", b"unshowable", b"deep"):
                assert await ask(server, deed) == b"begun."
            assert await is_served(server) in before
        assert server.active_children == before
    assert all(isinstance(error, HandlerFailed) for error in server.errors)
    assert witness.outcomes == ["failed"] * 4 + ["completed"] * 2
    assert [str(error) for error in server.errors] == [
        *("ValueError: on purpose", "Unpicklable: cannot travel", "Unshowable"),
        "ValueError: on purpose",
    ]
    for error in server.errors:
        assert "in does" in str(error.__cause__) or handler is not handlers.does


@both("does")
@pytest.mark.parametrize("deed", ["sleep", "loop", "c", "fork-sleep"])
async def test_takes_too_long(handler: Any, deed: str) -> None:
    """PR-03: whatever it does, also in C with the interpreter's lock, it is killed in time."""
    witness = Witness()
    server = handlers.Lenient(
        *(THERE, handler), min_children=2, observers=[witness], timeouts=Timeouts(request=1)
    )
    async with running(server):
        before = server.active_children
        async with bystander(server):
            began = time.perf_counter()
            assert await ask(server, deed.encode()) == b"begun."
            assert 1 <= time.perf_counter() - began < 1 + SOON
            await is_served(server)
        assert len(set(before) & set(server.active_children)) == 1
    assert server.errors == []
    assert witness.outcomes == ["killed", "completed", "completed"]
    assert witness.records[0].reason == "the request took too long (request)"


@both("Floods")
@pytest.mark.parametrize("how", ["crash", "cancel"])
async def test_half_a_reply_does_not_look_like_a_whole_one(handler: Any, how: str) -> None:
    """Killed in the middle of a write, its connection is reset."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        async with await connect(server) as client:
            await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
            assert server.snapshot().requests[0].state == "writing"
            if how == "crash":
                os.kill(server.active_children[0], signal.SIGKILL)
            else:
                server.cancel_request(1, "enough")
            await until(lambda: witness.records)
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
    [record] = witness.records
    assert str(record.outcome) == ("failed" if how == "crash" else "killed")
    assert record.bytes_sent > 0


async def test_half_a_reply_of_a_thread() -> None:
    """The same while another thread of the handler reads."""
    witness = Witness()
    handler = handlers.floods_while_it_reads
    async with running(server := on_tcp(handler, observers=[witness])):
        async with await connect(server) as client:

            def now() -> Any:
                return server.snapshot().requests[0]

            await until(lambda: server.requests and now().bytes_sent)
            await client.send_all(b"x")
            await until(lambda: now().bytes_received == 1)
            await trio.testing.wait_all_tasks_blocked(0.02)  # until it reads again
            assert now().state == "writing"
            server.cancel_request(1, "enough")
            await until(lambda: witness.records)
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)


@pytest.mark.parametrize("way", ["sendall", "sendfile"])
def test_all_pieces_of_a_write_are_one(way: str, tmp_path: Path) -> None:
    """Between two pieces nobody is seen to do anything else: killed there, it is half a reply."""
    seen: list[int] = []

    class Notes(dict[int, int]):
        def __setitem__(self, cell: int, value: int) -> None:
            if cell == STATE:
                seen.append(value)

    info = trioserver.RequestInfo(
        id=1, client_address=None, server_address=None, started=0.0, started_at=0.0
    )
    size = 1_000_000
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sock = SeenSocket.over(ours, Loan(LoanTerms(info, Drain())))
        sock.show_on(types.SimpleNamespace(cells=Notes()))  # type: ignore[arg-type]
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
async def test_kill_outside_of_a_write_ends_the_connection_in_order(handler: Any) -> None:
    """What it has sent arrives, and then the end: no reset."""
    async with running(server := on_tcp(handler)):
        with plain_client(server.server_address) as client:
            client.sendall(b"sleep")
            assert await trio.to_thread.run_sync(client.recv, 100) == b"begun."
            os.kill(server.active_children[0], signal.SIGKILL)
            assert await trio.to_thread.run_sync(client.recv, 100) == b""


# Idle workers ------------------------------------------------------------------------------


@both("does")
async def test_idle_worker_is_killed(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The next request is served, however soon it comes; the worker is replaced, and named."""
    witness = Witness()
    async with running(server := on_tcp(handler, min_children=2, observers=[witness])):
        for _ in range(10):
            await is_served(server)  # or there is a pause before the next start
            await until(lambda: len(server._run.resources._idle) == 2)
            pid = random.choice(server.active_children)
            os.kill(pid, signal.SIGKILL)
            assert await is_served(server) != pid
            await until(lambda pid=pid: pid not in server.active_children)  # type: ignore[misc]
            assert not is_there(pid)
        await until(lambda: len(server.active_children) == 2)
    assert set(witness.outcomes) == {"completed"}
    assert {it.levelname for it in caplog.records} <= {"WARNING"}
    assert "has ended by itself with exit status -9, and is replaced" in caplog.text


@asynccontextmanager
async def stopped(server: Any) -> AsyncIterator[None]:
    """The workers do nothing, not even begin with what they are given."""
    pids = server.active_children
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _is_given(server: Any) -> bool:
    """Whether some worker has a request."""
    return any(worker.job for worker in server._run.resources._workers.values())


@both("does")
async def test_worker_ends_before_it_has_begun(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is given to another one: nothing has happened yet that could happen twice.

    It is told all the same.
    """
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        [pid] = server.active_children
        async with stopped(server), await connect(server) as client:
            await client.send_all(b"nothing")
            await until(lambda: _is_given(server))
            os.kill(pid, signal.SIGKILL)
            answer = await read_to_end(client)
        assert answer.startswith(b"begun.")
        assert int(answer.removeprefix(b"begun.")) != pid
    assert witness.outcomes == ["completed"]
    assert (witness.records[0].bytes_received, witness.records[0].bytes_sent) == (7, len(answer))
    [told] = [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]
    first = witness.records[0].info
    assert (
        told
        == f"worker process {pid} has ended with exit status -9 before it had begun with {first}"
    )


@both("does")
async def test_worker_has_no_descriptor_left(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The next client does not pay for what a handler has left open: another worker has it."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        [pid] = server.active_children
        assert await ask(server, b"hoard") == b"begun.%d" % pid
        assert await is_served(server) != pid
        await until(lambda: pid not in server.active_children)
    assert witness.outcomes == ["completed"] * 2
    [told] = [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]
    assert told.startswith(f"worker process {pid} has ended with exit status 1 before it had begun")
    assert told.endswith("too many descriptors open to take one more connection")


@both("does")
async def test_worker_that_somebody_has_stopped(
    handler: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks at no time-out any more: it is told, and killed when it does not go on."""
    monkeypatch.setattr("trioserver._modes.processes.server.stopped.BETWEEN_LOOKS", 0.02)
    server = handlers.Erring(THERE, handler, min_children=2, timeouts=Timeouts(idle=1.5))
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"wait")
            assert await client.receive_some() == b"begun."
            [pid] = [it.pid for it in server._run.resources._workers.values() if it.job]
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: "was stopped by a signal" in caplog.text)
            os.kill(pid, signal.SIGCONT)
            await client.send_all(b"!")
            assert int(await read_to_end(client)) == pid
        caplog.clear()
        began = time.perf_counter()
        async with stopped(server), await connect(server) as client:
            await client.send_all(b"nothing")
            answer = await read_to_end(client)  # of the third one that is given it
            assert answer.startswith(b"begun.")
        assert time.perf_counter() - began >= 1.5
        assert "does not go on after 1.5 s (idle), and is killed" in caplog.text
        async with await connect(server) as client:
            await client.send_all(b"sleep")
            assert await client.receive_some() == b"begun."
            async with stopped(server):
                assert await read_to_end(client) == b""
    [error] = server.errors
    assert isinstance(error, WorkerCrashed)


@both("Back")
async def test_worker_of_a_datagram_ends_before_it_has_begun(handler: Any) -> None:
    """The same for datagrams."""
    server = trioserver.ProcessUDPServer(THERE, handler, min_children=1)
    async with running(server) as address:
        [pid] = server.active_children
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            async with stopped(server):
                await client.sendto(b"abc", address)
                await until(lambda: _is_given(server))
                os.kill(pid, signal.SIGKILL)
                assert await client.recv(10) == b"cba"


async def test_no_worker_ever_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some attempts the request fails, and the server goes on."""
    monkeypatch.setattr(mixin, "ATTEMPTS", 1)
    server = handlers.Erring(THERE, handlers.does, min_children=1)
    async with running(server):
        [pid] = server.active_children
        async with stopped(server), await connect(server) as client:
            await client.send_all(b"nothing")
            await until(lambda: _is_given(server))
            os.kill(pid, signal.SIGKILL)
            with suppress(trio.BrokenResourceError):  # a reset: its line is unread
                assert await read_to_end(client) == b""
        await until(lambda: server.errors)
        await is_served(server)
    [error] = server.errors
    assert isinstance(error, WorkerCrashed)
    assert (error.pid, error.status) == (pid, -signal.SIGKILL)


async def test_cancelled_before_it_has_begun() -> None:
    """A worker that was given a request is killed with it, whether it has begun or not."""
    witness = Witness()
    async with running(server := on_tcp(handlers.does, observers=[witness])):
        [pid] = server.active_children
        async with stopped(server), await connect(server) as client:
            await client.send_all(b"nothing")
            await until(lambda: _is_given(server))
            server.cancel_request(1, "enough")
            await until(lambda: witness.records)
        assert await is_served(server) != pid
    assert witness.outcomes == ["killed", "completed"]
    assert witness.records[0].bytes_sent == 0


# Nonsense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", handlers.NONSENSE)
async def test_worker_talks_nonsense(nonsense: str, caplog: pytest.LogCaptureFixture) -> None:
    """PR-14: it is killed, as its client may have it in hand; the server takes nothing from it."""
    witness = Witness()
    server = handlers.Erring(THERE, handlers.does, min_children=2, observers=[witness])
    async with running(server):
        async with bystander(server), await connect(server) as client:
            await client.send_all(b"say " + nonsense.encode())
            assert await client.receive_some() == b"begun."
            assert await read_to_end(client) == b""
            await is_served(server)
        [error] = server.errors
        assert isinstance(error, WorkerCrashed)
        assert error.status == -signal.SIGKILL
    assert witness.outcomes == ["failed", "completed", "completed"]
    [record] = [it for it in caplog.records if it.levelname == "ERROR"]
    assert f"worker process {error.pid} does not keep to the protocol" in record.getMessage()


# Starts that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_worker_cannot_import_the_handler(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PR-10: the server does not start, and says why with the worker's own traceback."""
    (tmp_path / "handlers_for_one.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process() is not None:\n"
        "    raise ImportError('nothing for workers in here')\n"
        "def handler(request, client_address, server): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from handlers_for_one import handler  # type: ignore[import-not-found]  # noqa: PLC0415

    message = await fails_to_start(on_tcp(handler, start_method=method))
    assert "could not get ready: Traceback (most recent call last):" in message
    assert "ImportError: nothing for workers in here" in message


async def test_handler_that_only_the_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a module that nobody can import."""
    made = types.ModuleType("made_up")
    exec("def handler(request, client_address, server): ...", vars(made))  # noqa: S102
    monkeypatch.setitem(sys.modules, "made_up", made)
    message = await fails_to_start(on_tcp(made.handler))
    assert "No module named 'made_up'" in message


@pytest.mark.parametrize("what", ["local class", "lambda", "field", "init", "server"])
async def test_what_does_not_pickle_is_named(what: str) -> None:
    """PR-10: before any worker is started."""

    class Local(handlers.Upper):
        pass

    class LocalServer(trioserver.ProcessTCPServer):
        pass

    server = {
        "server": lambda: LocalServer(THERE, handlers.Upper),
        "local class": lambda: on_tcp(Local),
        "lambda": lambda: on_tcp(lambda request, client_address, server: None),
        "field": lambda: handlers.Greeting(THERE, handlers.Upper, greeting=threading.Lock()),
        "init": lambda: on_tcp(handlers.Upper, child_init=lambda: None),
    }[what]()
    field = {"field": ".greeting", "init": ".child_init", "server": ""}
    message = await fails_to_start(server, TypeError)
    which = type(server).__name__ + field.get(what, ".RequestHandlerClass")
    assert message.startswith(f"{which} does not pickle, so no worker")


async def _init_async() -> None: ...


def _init_yields() -> Any:
    yield


def _init_of_one(server: Any) -> None: ...


@pytest.mark.parametrize("init", [5, _init_async, _init_yields, _init_of_one])
def test_child_init_that_would_do_nothing(init: Any) -> None:
    """It is refused when the server is built, as is what could not be called."""
    with pytest.raises(TypeError, match="child_init must be a plain function without arguments"):
        on_tcp(handlers.Upper, child_init=init)


async def test_child_init_fails() -> None:
    """What it raises is what is told."""
    message = await fails_to_start(on_tcp(handlers.Upper, child_init=handlers.init_fails))
    assert "LookupError: no database there" in message
    assert "in init_fails" in message


async def test_worker_ends_in_its_start() -> None:
    """PR-02: without a word."""
    init = partial(os._exit, 3)
    message = await fails_to_start(on_tcp(handlers.Upper, child_init=init))
    assert "it ended with exit status 3, and did not say why" in message


async def test_worker_never_gets_ready() -> None:
    """It is killed after ``start_timeout`` seconds."""
    began = time.perf_counter()
    server = on_tcp(handlers.Upper, child_init=partial(time.sleep, 60), start_timeout=0.2)
    message = await fails_to_start(server)
    assert "it was not ready after 0.2 s (start_timeout)" in message
    assert 0.2 <= time.perf_counter() - began < 0.2 + SOON


async def test_handle_request_whose_worker_cannot_start() -> None:
    """It raises the same; the server stays bound, and works once the reason is gone."""
    with trio.fail_after(10):
        async with on_tcp(handlers.Upper, child_init=handlers.init_fails) as server:
            with pytest.raises(WorkerStartError, match="no database there"):
                await server.handle_request()
            assert server.socket is not None
            assert server.active_children == []


@pytest.mark.parametrize("how", ["idle", "crash"])
async def test_crash_loop_ends_the_server(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """PR-02: starts that fail are tried again, ever more slowly, and then the server fails."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    path = tmp_path / "gone"
    server = on_tcp(handlers.does, child_init=partial(handlers.init_fails_if, str(path)))

    async def serves() -> None:
        async with server.serving():
            path.touch()
            if how == "idle":
                os.kill(server.active_children[0], signal.SIGKILL)
            else:
                assert await ask(server, b"exit3") == b"begun."
            await trio.sleep_forever()

    with trio.fail_after(20), pytest.raises(WorkerStartError, match="LookupError: no database"):
        await serves()
    _, *failed = _calls(path)
    assert setbacks.FAILURES - 1 <= len(failed) <= setbacks.FAILURES
    pauses = [after - before for before, after in pairwise(failed)]
    least = 0.02 * 2 ** (setbacks.FAILURES - 1 - len(pauses))
    assert all(pause > least * 2**n for n, pause in enumerate(pauses))
    assert caplog.text.count("cannot start workers, pausing: ") == 1
    assert server.active_children == []


async def test_crash_loop_that_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was missing comes back: who has waited meanwhile is served, and all is forgotten."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.02)
    path = tmp_path / "gone"
    server = on_tcp(handlers.does, child_init=partial(handlers.init_fails_if, str(path)))
    async with running(server):
        for _ in range(3):
            path.touch()
            before = len(_calls(path))
            os.kill(server.active_children[0], signal.SIGKILL)
            async with await connect(server) as client:
                await client.send_all(b"nothing")
                await until(lambda before=before: len(_calls(path)) == before + 2)  # type: ignore[misc]
                path.unlink()
                assert (await read_to_end(client)).startswith(b"begun.")


async def test_workers_that_end_idle_are_replaced_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PR-02: workers that get ready, and then end, make no storm of starts either."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    seen = set()
    async with running(server := on_tcp(handlers.does, min_children=1)):
        began = trio.current_time()
        while len(seen) < 4:
            for worker in server._run.resources._idle:
                if worker.pid not in seen:
                    seen.add(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
            await trio.sleep(0.001)
    # The first one, and the others after 0.05, 0.1 and 0.2 seconds more.
    assert trio.current_time() - began >= 0.35


def test_fork_is_refused() -> None:
    """Nothing forks a running loop."""
    with pytest.raises(ValueError, match=r"start_method must be 'forkserver' or 'spawn'.*'fork'"):
        on_tcp(handlers.Upper, start_method="fork")


# Workers come and go --------------------------------------------------------------------------


async def served_by(server: Any, times: int) -> list[int]:
    """Who serves so many requests, one after the other."""
    return [await is_served(server) for _ in range(times)]


async def test_max_requests() -> None:
    """A worker serves so many, and is replaced before its last one is over."""
    witness = Witness()
    async with running(server := on_tcp(handlers.does, max_requests=3, observers=[witness])):
        counts = Counter(await served_by(server, 13))
        assert list(counts.values()) == [3, 3, 3, 3, 1]
        *gone, last = counts
        await until(lambda: server.active_children == [last])
        assert not any(is_there(pid) for pid in gone)
    assert witness.outcomes == ["completed"] * 13


async def test_max_requests_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has its own number, so that not all are replaced at once."""
    numbers = iter([0, 2, 1, 0])
    asked = []

    def randint(least: int, most: int) -> int:
        asked.append((least, most))
        return next(numbers)

    monkeypatch.setattr("random.randint", randint)
    server = on_tcp(handlers.does, max_requests=1, max_requests_jitter=2)
    async with running(server):
        assert list(Counter(await served_by(server, 6)).values()) == [1, 3, 2]
    assert set(asked) == {(0, 2)}


async def test_replacement_is_there_before_the_last_request_is_over() -> None:
    """A worker on its last request is not counted: the next client does not wait for it."""
    async with running(server := on_tcp(handlers.does, max_requests=1, max_children=2)):
        first = server.active_children
        async with bystander(server):
            await until(lambda: len(server.active_children) == 2)
            assert await is_served(server) not in first


async def test_growth_and_shrinking() -> None:
    """As many workers as requests, up to ``max_children``; later as few as there have to be."""
    server = on_tcp(handlers.does, max_children=4, child_idle=0.2)
    async with running(server):
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
        began = time.perf_counter()
        await clients[4].send_all(b"!")
        pids = server.active_children
        for client in clients:
            async with client:
                assert int((await read_to_end(client)).removeprefix(b"begun.")) in pids
        assert len(server.active_children) == 4
        await until(lambda: len(server.active_children) == 1)
        assert time.perf_counter() - began > 0.15
        await trio.sleep(0.3)
        assert len(server.active_children) == 1
        await is_served(server)


async def test_last_worker_that_was_busy_is_the_next_one() -> None:
    """So that those can go for whom there is nothing to do."""
    async with running(server := on_tcp(handlers.does, min_children=3)):
        assert len(set(await served_by(server, 6))) == 1


async def test_no_worker_before_the_first_client() -> None:
    """``min_children=0``: the first client waits for a start, and the last one leaves none."""
    async with running(server := on_tcp(handlers.does, min_children=0, child_idle=0.05)):
        for _ in range(2):
            assert server.active_children == []
            await is_served(server)
            await until(lambda: server.active_children == [])


# What handlers leave behind --------------------------------------------------------------


@both("does")
async def test_a_megabyte_printed(handler: Any) -> None:
    """PR-18: what a handler prints is in nobody's way."""
    async with running(server := on_tcp(handler)):
        for _ in range(3):
            assert (await ask(server, b"print")).startswith(b"begun.")


@both("does")
async def test_stdio_is_closed(handler: Any) -> None:
    """PR-18: a handler closes all of it; its worker serves on, and what prints then fails alone."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        [pid] = server.active_children
        assert await ask(server, b"stdio") == b"begun.%d" % pid
        assert await is_served(server) == pid
        assert await ask(server, b"print") == b"begun."
        assert await is_served(server) == pid
    assert witness.outcomes == ["completed", "completed", "failed", "completed"]


def held_by(pid: int) -> list[str]:
    """What descriptors a process has."""
    names = []
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it has closed that one meanwhile: a file of its own
            names.append(str(number.readlink()))
    assert names
    return names


async def test_program_that_a_handler_starts_holds_nothing() -> None:
    """It has no descriptor of the client's; it may outlive its request, as ever."""
    async with running(server := on_tcp(handlers.starts_a_program)):
        async with await connect(server) as client:
            await client.send_eof()
            pid = int(await read_to_end(client))
        try:
            assert not any(name.startswith("socket:") for name in held_by(pid))
        finally:
            os.kill(pid, signal.SIGKILL)


async def test_program_that_a_handler_starts_ends_with_a_kill() -> None:
    """A worker is killed with all that it has started."""
    async with running(server := on_tcp(handlers.starts_a_program)):
        async with await connect(server) as client:
            pid = int(await client.receive_some())
            await client.send_all(b"!")
            await until(lambda: server.snapshot().requests[0].bytes_received)
            assert is_running(pid)
            server.cancel_request(1, "enough")
            assert await read_to_end(client) == b""
            await until(lambda: not is_running(pid))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_handler_forks(method: str) -> None:
    """PR-12: the classic fork in a handler: its client sees the end, and so does the server."""
    server = handlers.Erring(THERE, handlers.does, min_children=1, start_method=method)
    async with running(server):
        [pid] = server.active_children
        assert await ask(server, b"fork") == b"begun.%d" % pid
        assert await is_served(server) == pid
        assert await ask(server, b"fork-exit") == b"begun."
        assert await is_served(server) != pid
        [error] = server.errors
        assert isinstance(error, WorkerCrashed)
        assert error.status == 3
    assert server.active_children == []


async def test_handler_forks_and_both_return(caplog: pytest.LogCaptureFixture) -> None:
    """PR-12: the child has the client's connection, and nothing else: it ends, and says nothing."""
    witness = Witness()
    async with running(server := on_tcp(handlers.does, observers=[witness])):
        [pid] = server.active_children
        for _ in range(5):
            assert (await ask(server, b"fork-return")).startswith(b"begun.")
            assert [await is_served(server) for _ in range(5)] == [pid] * 5
        assert server.active_children == [pid]
    assert witness.outcomes == ["completed"] * 30
    assert caplog.records == []


@both("replies_without_end")
async def test_worker_ends_while_its_reply_is_sent(handler: Any) -> None:
    """It is gone by the time that its request is cancelled: nobody is killed for it."""
    witness = Witness()
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        path = f"{folder}/server"
        server = trioserver.ProcessUnixDatagramServer(
            path, handler, min_children=1, observers=[witness]
        )
        async with running(server):
            [pid] = server.active_children
            with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as client:
                await client.bind(f"{folder}/client")
                await client.sendto(b"hello", path)
                await until(lambda: _waits_to_send(server))
                os.kill(pid, signal.SIGKILL)
                await until(lambda: pid not in server.active_children)
                server.cancel_request(1, "enough")
                await until(lambda: witness.records)
    assert [(str(it.outcome), it.reason) for it in witness.records] == [("cancelled", "enough")]


def _waits_to_send(server: Any) -> bool:
    return bool(server.requests) and server.snapshot().requests[0].state == "writing"


# The rest of the program -----------------------------------------------------------------------


async def test_threads_of_the_program_are_all_busy() -> None:
    """Workers do not need them to be started, or reaped."""
    server = handlers.Erring(THERE, handlers.does, min_children=1)
    async with running(server):
        limiter = trio.to_thread.current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        began = time.perf_counter()
        assert await ask(server, b"exit3") == b"begun."
        await is_served(server)
        assert time.perf_counter() - began < SOON
    [error] = server.errors
    assert isinstance(error, WorkerCrashed)
    assert error.status == 3


async def test_no_thread_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is reaped all the same, and its successor started when there are some again."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.01)
    fails, run_sync = [1, 2], trio.to_thread.run_sync

    async def run(*arguments: Any, **options: Any) -> Any:
        if fails:
            fails.pop()
            raise RuntimeError("can't start new thread")
        return await run_sync(*arguments, **options)

    server = handlers.Erring(THERE, handlers.does, min_children=1)
    async with running(server):
        monkeypatch.setattr(trio.to_thread, "run_sync", run)
        assert await ask(server, b"exit3") == b"begun."
        await is_served(server)
    assert [isinstance(it, WorkerCrashed) and it.status for it in server.errors] == [3]
    assert "a worker process could not be started: can't start new thread" in caplog.text


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_somebody_else_reaps(method: str) -> None:
    """Or the system, where SIGCHLD is ignored: how a worker has ended nobody may know then."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        server = handlers.Erring(THERE, handlers.does, min_children=1, start_method=method)
        async with running(server):
            await ask(server, b"nothing")
            in_between = open_descriptors()
            for _ in range(2):
                assert await ask(server, b"exit3") == b"begun."
                await is_served(server)
            await until(lambda: len(open_descriptors()) == len(in_between))
    finally:
        signal.signal(signal.SIGCHLD, before)
    status = {"forkserver": 3, "spawn": 255}[method]
    assert [isinstance(it, WorkerCrashed) and it.status for it in server.errors] == [status] * 2


async def test_hook_has_closed_the_connection() -> None:
    """A worker is not even asked: the request fails at once, and says why."""
    witness = Witness()
    server = handlers.Closes(THERE, handlers.does, min_children=1, observers=[witness])
    async with running(server):
        [pid] = server.active_children
        async with await connect(server) as client:
            assert await read_to_end(client) == b""
        await until(lambda: witness.records)
        assert server.active_children == [pid]
    assert witness.outcomes == ["failed"]
    assert witness.records[0].reason.startswith("ClosedResourceError: ")


async def test_system_does_not_pass_the_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have too many on the way: this ends one request, and says why."""
    witness = Witness()

    def refuses(*arguments: Any) -> int:
        monkeypatch.undo()
        raise OSError(errno.ETOOMANYREFS, "too many references")

    async with running(server := on_tcp(handlers.does, observers=[witness])):
        monkeypatch.setattr(socket.socket, "sendmsg", refuses)
        assert await ask(server, b"nothing") == b""
        await is_served(server)
    assert witness.outcomes == ["failed", "completed"]
    assert "too many references" in witness.records[0].reason


# Kills that take their time ----------------------------------------------------------------------


@both("Floods")
async def test_nobody_waits_for_a_kill(handler: Any) -> None:
    """With no time for it, what the worker has sent counts all the same."""
    witness = Witness()
    server = on_tcp(handler, observers=[witness], timeouts=Timeouts(cleanup=0))
    async with running(server), await connect(server) as client:
        await until(lambda: server.requests and server.snapshot().requests[0].state == "writing")
        await until(lambda: server.snapshot().requests[0].bytes_sent)
        server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    assert witness.outcomes == ["killed"]
    assert witness.records[0].bytes_sent > 0


async def test_worker_that_a_kill_does_not_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a while the server goes on without it, and so does its request."""
    monkeypatch.setattr(pool, "SOON", 0.1)
    monkeypatch.setattr("trioserver._modes.processes.server.worker.LONGEST_KILL", 0.1)
    kill = Spawned.kill
    server = handlers.Erring(THERE, handlers.does, min_children=1)
    async with running(server):
        [pid] = server.active_children
        monkeypatch.setattr(Spawned, "kill", lambda it: None if it.pid == pid else kill(it))
        began = time.perf_counter()
        assert await ask(server, b"say no frame") == b"begun."
        assert time.perf_counter() - began < SOON
        [error] = server.errors
        assert isinstance(error, WorkerCrashed)
        assert error.status == -signal.SIGKILL
        assert await is_served(server) != pid
        await until(lambda: not is_running(pid))  # its line to the server was cut
    assert f"worker process {pid} does not end, though it was killed" in caplog.text


def test_worker_is_looked_at_while_it_is_reaped() -> None:
    """Another thread may be about to close its page."""
    page = SharedStatus(-1)
    page.begin(1, 2, 3)
    worker = Worker(types.SimpleNamespace(control=None, shared_status=page))  # type: ignore[arg-type]
    assert worker.facts(1) == (2, 3, "working")
    page.cells.release()
    assert worker.facts(1) is None
    page.close()
    assert worker.facts(1) is None


# How failures are counted ------------------------------------------------------------------------


async def test_workers_that_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their successors wait once, and not each of them longer than the one before."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    async with running(server := on_tcp(handlers.does, min_children=8)):
        began = time.perf_counter()
        before = server.active_children
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not set(before) & set(server.active_children))
        await are_idle(server, 8)
        assert 0.05 <= time.perf_counter() - began < SOON


async def test_starts_that_fail_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have failed once: what is missing for a moment does not end the server."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.05)
    path = tmp_path / "gone"
    server = on_tcp(
        handlers.does, min_children=8, child_init=partial(handlers.init_fails_if, str(path))
    )
    async with running(server):
        path.touch()
        for pid in server.active_children:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(_calls(path)) >= 8 + 8)
        path.unlink()
        await are_idle(server, 8)
        await is_served(server)


async def test_start_that_fails_after_workers_that_ended_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those could be started, so this one is the first that could not."""
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.001)
    path = tmp_path / "gone"
    server = on_tcp(handlers.does, child_init=partial(handlers.init_fails_if, str(path)))
    async with running(server):
        for _ in range(setbacks.FAILURES):
            await are_idle(server, 1)
            os.kill(server.active_children[0], signal.SIGKILL)
            await are_idle(server, 0)
        await are_idle(server, 1)
        path.touch()
        before = len(_calls(path))
        os.kill(server.active_children[0], signal.SIGKILL)
        await until(lambda: len(_calls(path)) > before)
        path.unlink()
        await is_served(server)


async def test_start_that_fails_while_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It makes no difference any more."""
    monkeypatch.setattr(setbacks, "FAILURES", 1)
    path = tmp_path / "gone"
    server = on_tcp(handlers.does, child_init=partial(handlers.init_fails_slowly_if, str(path)))
    async with running(server):
        path.touch()
        [pid] = server.active_children
        os.kill(pid, signal.SIGKILL)
        await until(lambda: _successor_says_no(server, pid))
    assert "no database" not in caplog.text


def _successor_says_no(server: Any, pid: int) -> bool:
    workers = server._run.resources._workers
    return any(worker.why_not for number, worker in workers.items() if number != pid)


async def test_drain_begins_while_a_request_is_given_away() -> None:
    """What was read before is much, and the worker slow: the drain is told after it."""
    witness = Witness()
    limits = trioserver.Limits(line=500_000)
    server = handlers.ReadsAhead(
        THERE, handlers.Upper, min_children=1, limits=limits, observers=[witness]
    )
    with trio.fail_after(20):
        async with server.serving(grace=10):
            async with await connect(server) as client:
                async with stopped(server):
                    await client.send_all(b"x" * 500_001)
                    await until(lambda: _is_given(server))
                    server.shutdown(10)
                began = time.perf_counter()
                await client.send_all(b"\n")
                answer = await read_to_end(client)
                assert answer == b"X" * 500_001 + b"\n"
                assert time.perf_counter() - began < 2 * SOON
    assert witness.outcomes == ["drained"]
