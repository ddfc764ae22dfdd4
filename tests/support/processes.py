"""What tests of handlers in worker processes share."""

import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import attrs
import pytest
import trio

import trioserver
from support import connect, until
from support import process_handlers as handlers
from trioserver import WorkerStartError

from .threads import THERE, ask, witnessed

SOON = 1.0
"""Seconds, generously, for what happens at once: the wrong way takes more."""


def on_tcp(handler, kind=trioserver.ProcessTCPServer, **fields):
    """A server with one worker on the loopback interface."""
    return kind(THERE, handler, **{"min_children": 1, **fields})


def on_udp(handler, **fields):
    """A server of datagrams with one worker there."""
    return trioserver.ProcessUDPServer(THERE, handler, min_children=1, max_children=1, **fields)


@asynccontextmanager
async def met_by_datagram(folder, handler, **fields):
    """Such a server on a Unix socket, a client's socket, and what happens."""
    path = str(folder / "server")
    server = trioserver.ProcessUnixDatagramServer(
        path, handler, min_children=1, max_children=1, **fields
    )
    async with witnessed(server) as witness:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            await client.bind(str(folder / "client"))
            yield server, client, witness


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


@attrs.frozen
class Missing:
    """What no worker can start without, while there is a file."""

    path: Path

    @property
    def init(self):
        """The ``child_init`` that needs it."""
        return partial(handlers.init_fails_if, str(self.path))

    def calls(self):
        """When that was called."""
        return [float(line) for line in Path(f"{self.path}.calls").read_text().splitlines()]


def kill_workers(server):
    """All of them; who they were."""
    pids = server.active_children
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def state_of(pid):
    """The state of a process, and its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X", 0
    state, parent, *_ = stat.rpartition(")")[2].split()
    return state, int(parent)


def is_running(pid):
    """Whether a process runs; not, once it waits to be reaped."""
    return state_of(pid)[0] not in {"Z", "X"}


def all_processes():
    """The state of every process, and its parent."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return {pid: state_of(pid) for pid in pids}


def fork_servers():
    """The process id of the fork server, which is the parent of workers, if there is one."""
    pid = forkserver._forkserver._forkserver_pid
    return [] if pid is None else [pid]


async def are_idle(server, number):
    """Wait until so many workers are ready, and have nothing to do."""
    await until(lambda: len(server._run.resources._idle) == number)


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    ),
}
