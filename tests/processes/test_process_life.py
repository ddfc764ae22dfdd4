"""Worker processes end with their server, however it ends; and they leave nothing behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial

import pytest
import trio
from support import descriptors, plain_client, read_to_end, running, until
from support import process_handlers as handlers
from support.process_state import is_running
from support.processes import (
    ENVIRONMENT,
    all_processes,
    both,
    busy,
    by_method,
    fork_servers,
    is_served,
    is_there,
    lasting,
    on_tcp,
)
from support.threads import ask, crowd, witnessed

from trioserver._modes.processes.server.worker_process import Worker

SERVES = """
import ctypes, os, signal, sys, time
import trio, trioserver; from support import process_handlers as handlers

if __name__ == "__main__":
    method, handler, stray = sys.argv[1:]
    for name in handlers.ORDERS:
        signal.signal(getattr(signal, name), lambda *_: None)
    print("up", flush=True)

async def main():
    there, handler_class = ("127.0.0.1", 0), getattr(handlers, handler)
    server = trioserver.ProcessTCPServer(there, handler_class, min_children=4, start_method=method)
    async with server.serving():
        fork = {"os.fork": os.fork, "fork in C": ctypes.CDLL(None).fork, "": os.getpid}[stray]
        if fork() == 0:
            time.sleep(60)
        print(server.server_address[1], *server.active_children, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)

if __name__ == "__main__":
    trio.run(main)
"""


# The server is killed ----------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes the interpreter's lock")
@pytest.mark.parametrize(
    ("method", "handler", "stray"),
    [
        ("forkserver", "does", ""),
        ("forkserver", "adoes", ""),
        ("forkserver", "does", "os.fork"),
        ("forkserver", "does", "fork in C"),
        ("forkserver", "adoes", "fork in C"),
        ("spawn", "does", "os.fork"),
    ],
)
def test_server_is_killed(start, method, handler, stray):
    """Within a second no worker is left: idle, asleep, computing, in C with the lock.

    Nor if the application has a child of its own, which has inherited all that it had.
    """
    program = start(SERVES, method, handler, stray)
    assert program.stdout.readline() == "up\n"
    port, *pids = map(int, program.stdout.readline().split())
    assert len(pids) == 4
    # No pipe's end tells of a fork that nobody was told of, and no thread in time.
    deeds = [b"sleep", b"loop"] if stray == "fork in C" else [b"sleep", b"loop", b"c"]
    with ExitStack() as stack:
        for deed in deeds:
            client = stack.enter_context(plain_client(("127.0.0.1", port)))
            client.sendall(deed)
            assert client.recv(100) == b"begun."
        assert all(map(is_running, pids))
        program.kill()
        began = time.perf_counter()
        while any(map(is_running, pids)) and time.perf_counter() - began < 5:
            time.sleep(0.005)
        took, left = time.perf_counter() - began, list(filter(is_running, pids))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert (left, took < 1) == ([], True)


# Signals of a whole group ----------------------------------------------------------------------
def tell_family(program, number):
    """Send a signal to a program and all that it has started, as a service manager does."""
    family = [program]
    for member in family:  # which grows
        family += [pid for pid, (_, parent) in all_processes().items() if parent == member]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def ends_well(program):
    """A program has ended as it should; what it has said on stderr."""
    _, errors = program.communicate(timeout=10)
    assert program.returncode == 0
    return str(errors)


@pytest.mark.slow
@by_method
async def test_signals_while_workers_start(start, method):
    """PR-16: they come to the whole group; whoever decides is the server, and it alone."""
    program = start(SERVES, method, "does", "")
    fired = itertools.count()

    async def fires():
        for name in itertools.cycle(handlers.ORDERS):
            tell_family(program.pid, getattr(signal, name))
            next(fired)
            await trio.sleep(0.003)

    with trio.fail_after(20):
        assert program.stdout.readline() == "up\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fires)
            line = await trio.to_thread.run_sync(program.stdout.readline)
            nursery.cancel_scope.cancel()
        assert next(fired) > 10
        port, *pids = map(int, line.split())
        assert len(pids) == 4
        assert all(map(is_running, pids))
        for _ in range(4):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(b"nothing")
                answer = await read_to_end(client)
                assert int(answer.removeprefix(b"begun.")) in pids
        program.stdin.write("\n")
        assert ends_well(program) == ""


RUNS = """
import sys, trioserver; from support import process_handlers as handlers

if __name__ == "__main__":
    handler, method = getattr(handlers, sys.argv[1]), sys.argv[2]
    there = ("127.0.0.1", 0)
    trioserver.run(handlers.Announces(there, handler, min_children=2, start_method=method))
"""


def client_of(program):
    """A client of a program that prints its port."""
    return plain_client(("127.0.0.1", int(program.stdout.readline())))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("handler", "method"), [("does", "forkserver"), ("adoes", "forkserver"), ("does", "spawn")]
)
def test_signal_while_a_worker_is_busy(start, handler, method, number):
    """PR-16: its request is finished: the first one to the whole group is a drain."""
    program = start(RUNS, handler, method)
    with client_of(program) as client:
        client.sendall(b"wait")
        assert client.recv(100) == b"begun."
        tell_family(program.pid, number)
        # It has been heard of by the time that nobody is let in any more.
        with pytest.raises(ConnectionError):
            for _ in range(250):
                plain_client(client.getpeername()).close()
                time.sleep(0.02)  # each look is a client, who wants a worker
        client.sendall(b"!")
        assert int(client.recv(100)) > 0
        assert client.recv(100) == b""
    assert "Traceback" not in ends_well(program)


@pytest.mark.slow
@by_method
def test_signal_while_the_workers_of_a_program_start(start, method):
    """PR-16: it is a drain, too, and who has queued by then is served."""
    program = start(RUNS, "does", method)
    with client_of(program) as client:  # before there are any
        client.sendall(b"nothing")
        tell_family(program.pid, signal.SIGTERM)
        assert client.recv(100).startswith(b"begun.")
    assert "Traceback" not in ends_well(program)


@pytest.mark.slow
@by_method
@both("does")
async def test_workers_obey_no_signal(handler, method):
    """Busy or idle, they go on; and so does what they come out of. What they start hears signals.

    A handler can ``terminate()`` a program that it has started, and a child.
    """
    server = on_tcp(handler, min_children=2, start_method=method)
    async with lasting(server, *["completed"] * 7):
        pids = server.active_children
        async with busy(server, b"wait") as client:
            for name in handlers.ORDERS:
                for pid in [*pids, *fork_servers()]:
                    os.kill(pid, getattr(signal, name))
                assert await is_served(server) in pids
            assert int((await ask(server, b"hears")).removeprefix(b"begun.")) in pids
            await client.send_all(b"!")
            assert int(await read_to_end(client)) in pids
        assert all(map(is_running, fork_servers()))


async def test_fork_server_forks_for_others():
    """Their processes hear signals as ever."""
    async with running(server := on_tcp(handlers.does)):
        await is_served(server)
    fork_server = multiprocessing.get_context("forkserver")
    child = fork_server.Process(target=time.sleep, args=[60], daemon=True)
    child.start()
    child.terminate()
    child.join(5)
    assert child.exitcode == -signal.SIGTERM
    child.close()


# Where handlers live ----------------------------------------------------------------------------
IN_MAIN = """
import sys, trio, trioserver

def upper(request, client_address, server):
    request.sendall(request.recv(100).upper())

class Mine(trioserver.ProcessTCPServer): ...

async def main():
    server = Mine(("127.0.0.1", 0), upper, min_children=1, start_method=sys.argv[1])
    async with server.serving():
        async with await trio.open_tcp_stream(*server.server_address) as client:
            await client.send_all(b"hello\\n")
            print(await client.receive_some())

"""
GUARDED = IN_MAIN + 'if __name__ == "__main__": trio.run(main)'


@by_method
def test_handler_in_main(start, method):
    """PR-10: workers find the handler and the server's class in the program that was started."""
    output, errors = start(GUARDED, method).communicate(timeout=20)
    assert (output, errors) == ("b'HELLO\\n'\n", "")


@pytest.mark.slow
@by_method
def test_program_without_a_guard(start, method):
    """PR-10: workers do not start workers; the server says what is missing."""
    program = start(IN_MAIN + "trio.run(main)", method)
    output, errors = program.communicate(timeout=20)
    assert (output, program.returncode) == ("", 1)
    assert 'belongs under `if __name__ == "__main__":`' in errors
    assert errors.rstrip().splitlines()[-1].startswith("trioserver")


def test_program_from_stdin():
    """There is nothing that a worker could import: the server does not start, and says so."""
    options = {"input": GUARDED, "text": True, "capture_output": True, "env": ENVIRONMENT}
    command = [sys.executable, "-", "forkserver"]
    program = subprocess.run(command, **options, timeout=20, check=False)
    assert (program.stdout, program.returncode) == ("", 1)
    last = program.stderr.rstrip().splitlines()[-1]
    assert "WorkerStartError: worker processes import the program" in last
    assert "this one comes from stdin" in last


# What is printed ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_is_printed(start):
    """PR-18: what a handler prints comes out where the program's own does, all of it.

    With the reader gone, who prints fails; the server and its workers go on.
    """
    program = start(RUNS, "does", "forkserver")
    with client_of(program) as client:
        client.sendall(b"print")
        assert client.recv(100) == b"begun."
        assert program.stdout.read(1_000_001) == "y" * 1_000_000 + "\n"
        assert program.stderr.read(1_000_001) == "z" * 1_000_000 + "\n"
        assert int(client.recv(100)) > 0
        there = client.getpeername()
    program.stdout.close()
    for deed in [b"print", b"nothing"] * 2:
        with plain_client(there) as client:
            client.sendall(deed)
            answer = b"".join(iter(lambda client=client: client.recv(100), b""))
            assert answer.startswith(b"begun.")
            assert (answer == b"begun.") == (deed == b"print")
    program.stdout = None
    program.send_signal(signal.SIGTERM)
    assert ends_well(program).count("BrokenPipeError") >= 2


# Nothing is left -----------------------------------------------------------------------
async def left_by(server):
    """What is open when it has served somebody: the fork server, too, which stays."""
    async with running(server):
        await is_served(server)
    return descriptors()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "many"),
    [("does", "forkserver", 300), ("adoes", "forkserver", 300), ("does", "spawn", 40)],
)
async def test_nothing_is_left(name, method, many):
    """PR-06, PR-09: 300 requests with 30 kills leave nothing, and no innocent one fails."""
    deeds = [b"kill" if number % 10 == 5 else b"nothing" for number in range(many)]

    async def asks():
        while deeds:
            deed = deeds.pop()
            answer = await ask(server, deed)
            assert answer.startswith(b"begun.")
            assert (answer == b"begun.") == (deed == b"kill")

    fields = {"min_children": 2, "max_children": 3, "start_method": method}
    before = await left_by(server := on_tcp(getattr(handlers, name), **fields))
    async with witnessed(server) as witness:
        in_between = len(descriptors())
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(asks)
        await until(lambda: len(server._run.resources._idle) in {2, 3})
        # One more worker than at first may still be on its way; each has at most six.
        await until(
            lambda: len(descriptors()) <= in_between + 6 * (len(server.active_children) - 2)
        )
        children = server.active_children
    assert descriptors() == before
    assert server.active_children == []
    assert not any(map(is_running, children))
    parents = {os.getpid(), *fork_servers()}
    assert not [it for it in all_processes().values() if it[0] == "Z" and it[1] in parents]
    assert Counter(witness.outcomes) == {"completed": many * 9 // 10, "failed": many // 10}


@pytest.mark.slow
async def test_cancelled_while_they_wait_for_a_worker(tmp_path):
    """200 requests that no worker has had yet: nobody is killed for them, and nothing is left."""
    gate = tmp_path / "open"
    init = partial(handlers.init_waits_for, str(gate))
    server = on_tcp(handlers.does, min_children=0, max_children=20, child_init=init)
    gate.touch()
    before = await left_by(server)
    gate.unlink()
    async with witnessed(server) as witness:
        for _ in range(10):
            async with crowd(server, 20) as clients:
                await until(lambda: len(server.requests) == 20)
                for info in server.requests:
                    assert server.cancel_request(info.id, "enough")
                assert [await read_to_end(client) for client in clients] == [b""] * 20
        assert len(server._run.resources._waiting) == 0
        gate.touch()
        await is_served(server)
        assert len(server.active_children) <= 20
    assert descriptors() == before
    ends = Counter((str(it.outcome), it.reason) for it in witness.records)
    assert ends == {("cancelled", "enough"): 200, ("completed", ""): 1}


def test_ctrl_c_while_a_worker_is_reaped(monkeypatch):
    """What ends workers is not interrupted itself."""
    end, pids = Worker.end, []

    async def is_interrupted(worker, seconds):
        pids.append(worker.pid)
        signal.raise_signal(signal.SIGINT)
        return await end(worker, seconds)

    trio.run(left_by, on_tcp(handlers.does))
    before = descriptors()
    monkeypatch.setattr(Worker, "end", is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        trio.run(left_by, on_tcp(handlers.does))
    assert pids
    assert not any(map(is_there, pids))
    assert descriptors() == before


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only it tells such an end from theirs")
async def test_fork_server_is_killed():
    """Its workers go on, whether they have a request or not; the next ones come out of another."""
    async with witnessed(server := on_tcp(handlers.does, min_children=2)) as witness:
        before = server.active_children
        async with busy(server, b"wait") as client:
            [fork_server] = fork_servers()
            os.kill(fork_server, signal.SIGKILL)
            await until(lambda: not is_running(fork_server))
            assert await is_served(server) in before
            await client.send_all(b"!")
            assert int(await read_to_end(client)) in before
        assert await ask(server, b"exit 3") == b"begun."
        await until(lambda: len(set(server.active_children) - set(before)) == 1)
        await is_served(server)
    assert not any(map(is_running, before))
    assert witness.outcomes == ["completed", "completed", "failed", "completed"]
