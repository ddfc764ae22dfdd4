"""Worker processes that crash, hang, are killed, talk nonsense, or never start: nobody else pays.

What a crash does to the client that it hits: what was sent arrives, and then the end,
unless the worker was in the middle of sending, which must not look like a whole reply.
"""

import errno
import math
import os
import random
import signal
import socket
import threading
import types
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from support import connect, read_to_end, running, until
from support import process_handlers as handlers
from support.process_state import is_running
from support.processes import (
    SOON,
    are_idle,
    before_a_worker,
    both,
    busy,
    by_method,
    is_served,
    is_there,
    kill_workers,
    lasting,
    on_tcp,
    on_udp,
    stopped,
)
from support.scenes import table
from support.threads import ask, met, shows, takes, witnessed

import trioserver
from trioserver import Timeouts, WorkerCrashed
from trioserver._modes.processes.protocol.status import SENT, STATE, WORKING, WRITING
from trioserver._modes.processes.server import mixin, pool, setbacks
from trioserver._modes.processes.server.phase import Phase
from trioserver._modes.processes.server.spawn import Spawned
from trioserver._modes.processes.worker.synchronous import SeenSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain
from trioserver.testing import open_descriptors

erring = partial(on_tcp, kind=handlers.Noting)


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
        *(("exit 3", 3), ("exit 0", 0), ("sysexit", 4), ("interrupt", 1), ("fork exit 3", 3)),
        *(("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL)),
        *((f"say {nonsense}", -signal.SIGKILL) for nonsense in handlers.NONSENSE),
    ],
)
async def test_crash(handler, deed, status, caplog):
    """PR-01: it ends one request, as ``failed``, with the status; the rest goes on.

    PR-14: a worker that talks nonsense is killed, as its client may have it in hand; the server
    takes nothing from it.
    """
    async with witnessed(server := erring(handler, min_children=2)) as witness:
        before = server.active_children
        async with bystander(server):
            with takes(SOON):
                assert await ask(server, deed.encode()) == b"begun."
            await is_served(server)
        assert statuses(server) == [status]
        [error] = server.errors
        assert error.pid in before
        assert not is_there(error.pid)  # it was reaped
        assert error.pid not in server.active_children
    assert witness.outcomes == ["failed", "completed", "completed"]
    crashed = witness.records[0]
    how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
    assert crashed.reason == f"WorkerCrashed: worker process {error.pid} has ended {how}"
    # What an asynchronous one did after its last wait nobody knows.
    assert crashed.bytes_received == len(deed)
    assert crashed.bytes_sent in ({6} if handler is handlers.does else {0, 6})
    nonsense = f"worker process {error.pid} does not keep to the protocol"
    assert caplog.text.count(nonsense) == deed.startswith("say")


@pytest.mark.slow
@both("does")
@pytest.mark.parametrize("deed", ["sleep", "loop", "c", "fork sleep"])
async def test_takes_too_long(handler, deed):
    """PR-03: whatever it does, also in C with the interpreter's lock, it is killed in time."""
    server = erring(handler, min_children=2, timeouts=Timeouts(request=1))

    async def verify_request(request, _):
        if request.info.id == 1:  # the bystander
            request.cancel_scope.deadline = math.inf
        return True

    server.verify_request = verify_request
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


@pytest.mark.parametrize(
    "handler", [handlers.floods, handlers.afloods, handlers.floods_while_it_reads]
)
@table(
    ("outcome", "cleanup"),
    {"crashed": ("failed", 5), "cancelled": ("killed", 5), "nobody waits for it": ("killed", 0)},
)
async def test_half_a_reply_does_not_look_like_a_whole_one(handler, outcome, cleanup):
    """Killed in the middle of a write, also while another thread reads, its connection is reset.

    What it has sent is counted.
    """
    server = on_tcp(handler, timeouts=Timeouts(cleanup=cleanup))
    async with met(server) as (client, witness):
        await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
        await client.send_all(b"x")  # so that the write waits when it is read
        if handler is handlers.floods_while_it_reads:
            await shows(server, bytes_received=1)
            await trio.testing.wait_all_tasks_blocked(0.02)  # until it reads again
        assert server.snapshot().requests[0].state == "writing"
        if outcome == "failed":
            kill_workers(server)
        else:
            server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
    assert witness.outcomes == [outcome]
    assert witness.records[0].reason == "enough" or outcome == "failed"
    assert witness.records[0].bytes_sent > 0


@pytest.mark.parametrize(
    "handler", [handlers.floods, handlers.afloods, handlers.floods_beside_a_reader]
)
async def test_write_timeout(handler):
    """A client that takes nothing is reset, too, whoever else waits; the worker lives."""
    server = on_tcp(handler, timeouts=Timeouts(write=0.1))
    async with lasting(server, "timed_out") as witness, await connect(server) as client:
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await read_to_end(client)
    assert "0.1 s (write)" in witness.records[0].reason
    assert witness.records[0].bytes_sent > 0


@pytest.mark.parametrize("way", ["sendall", "sendfile", "makefile"])
def test_all_pieces_of_a_write_are_one(way, tmp_path):
    """Between two pieces nobody is seen to do anything else: killed there, it is half a reply."""
    seen, size = [], 1_000_000

    class Notes(dict[int, int]):
        def __setitem__(self, cell, value):
            if cell == STATE:
                seen.append(value)
            elif cell == SENT and reader.ident is None:  # a first piece has gone, and no more
                reader.start()

    addresses = {"client_address": None, "server_address": None}
    info = trioserver.RequestInfo(id=1, **addresses, started=0.0, started_at=0.0)
    ours, theirs = socket.socketpair()
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(size))
    with ours, theirs, zeros.open("rb") as file:
        sock = SeenSocket.over(ours, Loan(LoanTerms(info, Drain())))
        sock.show_on(types.SimpleNamespace(cells=Notes()))
        reader = threading.Thread(target=theirs.recv, args=(size, socket.MSG_WAITALL))
        if way == "makefile":
            with sock.makefile("wb") as output:
                output.write(bytes(size))
        else:
            getattr(sock, way)(file if way == "sendfile" else bytes(size))
        reader.join()
        sock.end()
    during = seen[: seen.index(WORKING)]
    assert len(during) > 2  # or it was one piece
    assert set(during) == {WRITING}
    assert seen[-1] == WORKING


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
    await are_idle(server, 1)
    [pid] = server.active_children
    async with stopped(server), await connect(server) as client:
        await client.send_all(b"nothing")
        await until(lambda: is_given(server))
        yield pid, client


def warnings(caplog):
    """What was told at that level."""
    return [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]


@both("does")
async def test_worker_ends_before_it_has_begun(handler, caplog, monkeypatch):
    """The request is given to another one: nothing has happened yet that could happen twice.

    It is told all the same. After some attempts the request fails, and the server goes on.
    Cancelled then, a worker is killed with its request, whether that has begun or not.
    """
    async with witnessed(server := erring(handler)) as witness:
        async with given(server) as (pid, client):
            os.kill(pid, signal.SIGKILL)
            answer = await read_to_end(client)
        assert int(answer.removeprefix(b"begun.")) != pid
        async with given(server):
            server.cancel_request(2, "enough")
            await until(lambda: len(witness.records) == 2)
        await is_served(server)
        assert server.errors == []
        ended = "has ended with exit status -9 before it had begun with"
        assert warnings(caplog) == [f"worker process {pid} {ended} {witness.records[0].info}"]
        monkeypatch.setattr(mixin, "ATTEMPTS", 1)
        async with given(server) as (pid, client):
            os.kill(pid, signal.SIGKILL)
            with suppress(trio.BrokenResourceError):  # a reset: its line is unread
                assert await read_to_end(client) == b""
        await is_served(server)
    assert statuses(server) == [-signal.SIGKILL]
    assert server.errors[0].pid == pid
    assert witness.outcomes == ["completed", "killed", "completed", "failed", "completed"]
    sizes = [(it.bytes_received, it.bytes_sent) for it in witness.records]
    assert sizes[:2] == [(7, len(answer)), (0, 0)]


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
    monkeypatch.setattr("trioserver._modes.processes.server.stopped_workers.BETWEEN_LOOKS", 0.02)
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


# Workers come and go --------------------------------------------------------------------------
async def served_by(server, times):
    """How many of so many requests, one after the other, each worker has served."""
    return Counter([await is_served(server) for _ in range(times)])


async def test_max_requests(monkeypatch):
    """A worker serves so many, and is replaced before its last one is over; then it is gone.

    Each has its own number, by chance, so that not all are replaced at once.
    """
    numbers, asked = iter([0, 2, 1, 0]), []

    def randint(*bounds):
        asked.append(bounds)
        return next(numbers)

    monkeypatch.setattr("random.randint", randint)
    server = on_tcp(handlers.does, max_requests=2, max_requests_jitter=2)
    async with running(server):
        [first] = server._run.resources._workers.values()
        assert first.phase is Phase.IDLE
        counts = await served_by(server, 10)
        assert list(counts.values()) == [2, 4, 3, 1]
        *gone, last = counts
        await until(lambda: server.active_children == [last])
        assert first.phase is Phase.GONE
        assert not any(is_there(pid) for pid in gone)
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
    fields = {"min_children": 0, "max_children": 4, "child_idle": 0.2}
    async with running(server := on_tcp(handlers.does, **fields)):
        assert server.active_children == []
        async with AsyncExitStack() as stack:
            busy_ones = [await stack.enter_async_context(busy(server, b"wait")) for _ in range(4)]
            fifth = await stack.enter_async_context(await connect(server))
            await fifth.send_all(b"wait")
            pids = server.active_children
            assert len(pids) == 4
            for client in busy_ones:
                await client.send_all(b"!")
                assert int(await read_to_end(client)) in pids
            await fifth.send_all(b"!")
            answer = await read_to_end(fifth)
            assert int(answer.removeprefix(b"begun.")) in pids
            with takes(10, least=0.15):
                assert len(server.active_children) == 4
                await until(lambda: server.active_children == [])
        await is_served(server)


async def test_last_worker_that_was_busy_is_the_next_one():
    """So that those can go for whom there is nothing to do."""
    async with running(server := on_tcp(handlers.does, min_children=3)):
        assert len(await served_by(server, 6)) == 1


# What handlers leave behind --------------------------------------------------------------
@both("does")
async def test_what_is_printed_is_in_nobodys_way(handler):
    """PR-18: not a megabyte; with all of stdio closed, the worker serves on, and a print fails."""
    outcomes = [*["completed"] * 5, "failed", "completed"]
    async with lasting(server := on_tcp(handler), *outcomes):
        for deed in (b"print", b"print", b"print", b"close_stdio", b"nothing"):
            assert await ask(server, deed) == b"begun.%d" % server.active_children[0]
        assert await ask(server, b"print") == b"begun."
        await is_served(server)


def holds_a_socket(pid):
    """Whether a process has a descriptor of one."""
    names = []
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it has closed that one meanwhile: a file of its own
            names.append(str(number.readlink()))
    assert names
    return any(name.startswith("socket:") for name in names)


async def test_program_that_a_handler_starts_holds_nothing():
    """It has no descriptor of the client's; it may outlive its request, but not a kill."""
    async with running(server := on_tcp(handlers.starts_a_program)):
        outlives = int(await ask(server, b""))
        try:
            assert not holds_a_socket(outlives)
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


@by_method
async def test_handler_forks(method, caplog):
    """PR-12: the classic fork in a handler: its client sees the end, and so does the server.

    A child that returns has the client's connection, and nothing else: it ends, and says nothing.
    """
    server = erring(handlers.does, start_method=method)
    async with witnessed(server) as witness:
        [pid] = server.active_children
        for deed in (b"fork", *[b"fork_return"] * 5):
            assert (await ask(server, deed)).startswith(b"begun.")
            assert await served_by(server, 5) == {pid: 5}
        assert server.active_children == [pid]
        assert await ask(server, b"fork exit 3") == b"begun."
        assert await is_served(server) != pid
    assert statuses(server) == [3]
    assert witness.outcomes == [*["completed"] * 36, "failed", "completed"]
    assert caplog.records == []
    assert server.active_children == []


# The rest of the program -----------------------------------------------------------------------
async def test_threads_of_the_program_are_all_busy(monkeypatch, caplog):
    """Workers do not need them to be started, or reaped.

    When the system has no more threads, a worker is reaped all the same, and its successor
    started when there are some again.
    """
    monkeypatch.setattr(setbacks, "FIRST_PAUSE", 0.01)
    fails, run_sync = [1, 2], trio.to_thread.run_sync

    async def run(*arguments, **options):
        if fails:
            fails.pop()
            raise RuntimeError("can't start new thread")
        return await run_sync(*arguments, **options)

    async with running(server := erring(handlers.does)):
        limiter = trio.to_thread.current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(object())
        for _ in range(2):
            with takes(SOON):
                assert await ask(server, b"exit 3") == b"begun."
                await is_served(server)
            monkeypatch.setattr(trio.to_thread, "run_sync", run)
    assert statuses(server) == [3, 3]
    assert "a worker process could not be started: can't start new thread" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("method", "status"), [("forkserver", 3), ("spawn", 255)])
async def test_somebody_else_reaps(method, status):
    """Or the system, where SIGCHLD is ignored: how a worker has ended nobody may know then."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with running(server := erring(handlers.does, start_method=method)):
            await is_served(server)
            await until(lambda: not server.snapshot().requests)
            await are_idle(server, 1)
            in_between = len(open_descriptors())
            for _ in range(2):
                assert await ask(server, b"exit 3") == b"begun."
                await is_served(server)
            await until(lambda: len(open_descriptors()) <= in_between)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert statuses(server) == [status] * 2


@table(
    ("lets_go", "reason"),
    {
        "a hook has closed it, and a worker is not even asked": (True, "ClosedResourceError: "),
        "the system does not pass it: it has too many on the way": (False, "OSError: "),
    },
)
async def test_connection_that_cannot_be_given_to_a_worker(lets_go, reason, monkeypatch):
    """This ends one request, and says why."""

    def refuses(*arguments):
        monkeypatch.undo()
        raise OSError(errno.ETOOMANYREFS, "too many references")

    async def hook(request):
        if request.info.id == 1 and lets_go:
            await request.aclose()
        elif request.info.id == 1:
            monkeypatch.setattr(socket.socket, "sendmsg", refuses)

    server = before_a_worker(on_tcp(handlers.does), hook)
    async with witnessed(server) as witness:
        before = server.active_children
        async with await connect(server) as client:
            assert await read_to_end(client) == b""
        assert (await is_served(server) in before) == lets_go
    assert witness.outcomes == ["failed", "completed"]
    assert reason in witness.records[0].reason


# Workers that are slow -------------------------------------------------------------------------
async def test_worker_that_a_kill_does_not_end(monkeypatch, caplog):
    """After a while the server goes on without it, and so does its request."""
    monkeypatch.setattr(pool, "SOON", 0.1)
    monkeypatch.setattr("trioserver._modes.processes.server.ending.LONGEST_KILL", 0.1)
    kill = Spawned.kill
    async with running(server := erring(handlers.does)):
        [pid] = server.active_children
        monkeypatch.setattr(Spawned, "kill", lambda it: None if it.pid == pid else kill(it))
        with takes(SOON):
            assert await ask(server, b"say no_frame") == b"begun."
        assert statuses(server) == [-signal.SIGKILL]
        assert await is_served(server) != pid
        await until(lambda: not is_running(pid))  # its line to the server was cut
    assert f"worker process {pid} does not end, though it was killed" in caplog.text


@both("Upper")
async def test_input_read_ahead_is_not_lost(handler):
    """What a hook has received and not used goes on to the worker; all is counted.

    When it is much, and the worker slow, a drain that begins then is told after it.
    """

    async def greets(request):
        reader = trioserver.RequestReader(request)
        assert await reader.readline() == b"hello\n"
        await request.sendall(b"welcome\n")
        with suppress(trioserver.LimitExceeded):
            await reader.readuntil(b"what never comes")

    much = (b"x" * 999 + b"\n") * 500 + b"tw"
    server = on_tcp(handler, limits=trioserver.Limits(line=500_000))
    async with met(before_a_worker(server, greets)) as (client, witness):
        async with stopped(server):
            await client.send_all(b"hello\n" + much)
            await until(lambda: is_given(server))
            server.shutdown(10)
        with takes(2 * SOON):
            await client.send_all(b"o\n")
            assert await read_to_end(client) == b"welcome\n" + much.upper() + b"O\n"
    [record] = witness.records
    assert (str(record.outcome), record.bytes_received) == ("drained", 500_010)
    assert record.bytes_sent == 500_012
