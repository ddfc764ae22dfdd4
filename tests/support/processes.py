"""What tests of handlers in worker processes share."""

import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest
import trio

import trioserver
from support import connect, until
from support import process_handlers as handlers
from trioserver import WorkerStartError

from .process_state import state_of
from .threads import THERE, ask, witnessed

SOON = 2.0
"""Seconds, generously, for what happens at once: the wrong way takes more."""


def on_tcp(handler, kind=trioserver.ProcessTCPServer, **fields):
    """A server with one worker on the loopback interface."""
    return kind(THERE, handler, **{"min_children": 1, **fields})


def on_udp(handler, **fields):
    """A server of datagrams with one worker there."""
    return trioserver.ProcessUDPServer(THERE, handler, min_children=1, max_children=1, **fields)


def before_a_worker(server, do):
    """The same, whose hook does that with each request before a worker gets it."""

    async def process_request(request, client_address):
        await do(request)
        await type(server).process_request(server, request, client_address)

    server.process_request = process_request
    return server


by_method = pytest.mark.parametrize("method", ["forkserver", "spawn"])


def on_unix_dgram(folder, handler, **fields):
    """The same on a Unix socket."""
    path, sizes = str(folder / "server"), {"min_children": 1, "max_children": 1}
    return trioserver.ProcessUnixDatagramServer(path, handler, **sizes, **fields)


@asynccontextmanager
async def bound(path):
    """A client's datagram socket there."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        await client.bind(str(path))
        yield client


@asynccontextmanager
async def lasting(server, *outcomes):
    """Serve; no worker of the beginning ends before that, and requests have these outcomes."""
    async with witnessed(server) as witness:
        pids = set(server.active_children)
        yield witness
        await until(lambda: len(witness.records) == len(outcomes))
        assert pids <= set(server.active_children)
    assert witness.outcomes == [*outcomes]


@asynccontextmanager
async def busy(server, deed=b"sleep"):
    """A client whose handler has begun to do that."""
    async with await connect(server) as client:
        await client.send_all(deed)
        assert await client.receive_some() == b"begun."
        yield client


@asynccontextmanager
async def stopped(server):
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


def both(name):
    """The handler of that name, and its asynchronous twin, in turn."""
    twin = f"Async{name}" if name[0].isupper() else f"a{name}"
    found = [getattr(handlers, name), getattr(handlers, twin)]
    return pytest.mark.parametrize("handler", found, ids=["sync", "async"])


def is_there(pid):
    """Whether a process runs, or waits to be reaped."""
    return Path(f"/proc/{pid}").exists()


async def is_served(server):
    """The next client is; who by."""
    return int((await ask(server, b"nothing")).removeprefix(b"begun."))


async def fails_to_start(server, kind=WorkerStartError):
    """The message of the error with which it does, and of nothing around it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with pytest.raises(kind) as caught:
                await nursery.start(server.serve_forever)
    assert server.active_children == []
    assert server.socket is None
    return str(caught.value)


def needs(missing):
    """A ``child_init`` that fails while there is that file."""
    return partial(handlers.init_fails_if, str(missing))


def calls_of_init(missing):
    """When that was called."""
    return [float(line) for line in Path(f"{missing}.calls").read_text().splitlines()]


def kill_workers(server):
    """All of them; who they were."""
    pids = server.active_children
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def all_processes():
    """The state of every process, and its parent."""
    return {int(it.name): state_of(it.name) for it in Path("/proc").glob("[0-9]*")}


def fork_servers():
    """The process id of the fork server, which is the parent of workers, if there is one."""
    pid = forkserver._forkserver._forkserver_pid
    return [] if pid is None else [pid]


async def are_idle(server, number):
    """Wait until so many workers are ready, and have nothing to do."""
    await until(lambda: len(server._run.resources._idle) == number)


_PATHS = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}
