"""Listening sockets that somebody else has bound: the last to hold one serves its queue."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support import plain_client, until
from support.listening import tcp, told, unix

import trioserver
from trioserver._sockets.sharing import others_hold
from trioserver.testing import open_descriptors

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shows which processes have a socket"
)

GRACE = 8
"""Seconds; nobody needs them."""


def udp(_folder: Path) -> socket.socket:
    """A bound socket of UDP."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


both = pytest.mark.parametrize("make", [tcp, unix])


class Held:
    """A handler that keeps its client waiting until it may go."""

    def __init__(self) -> None:
        self.may_go = trio.Event()

    async def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        await self.may_go.wait()
        await request.sendall(b"served")


def server_on(sock: socket.socket, handler: Any) -> Any:
    """A server for one client at a time."""
    kind = trioserver.UnixStreamServer if sock.family == socket.AF_UNIX else trioserver.TCPServer
    return kind(sock, handler, limits=trioserver.Limits(requests=1))


@pytest.fixture
def busy_and_queued() -> Iterator[Any]:
    """Makes two clients: one that is served, and one that is in the queue."""
    with ExitStack() as clients:

        async def make(server: Any) -> tuple[socket.socket, socket.socket]:
            busy = clients.enter_context(plain_client(server.server_address))
            await until(lambda: server.requests)
            return busy, clients.enter_context(plain_client(server.server_address))

        yield make


@both
async def test_last_holder_serves_the_queue(
    make: Any, tmp_path: Path, busy_and_queued: Any
) -> None:
    """Nobody else accepts from a socket that was given: who is queued is served, not reset."""
    handler = Held()
    server = server_on(make(tmp_path), handler)
    with trio.fail_after(20):
        async with server.serving():
            busy, queued = await busy_and_queued(server)
            server.shutdown(GRACE)
            handler.may_go.set()
            assert [await told(busy), await told(queued)] == [b"served", b"served"]
            busy.close()
            queued.close()
            report = await server.wait_closed()
    assert report.clean
    assert len(report.completed) == 2


async def test_last_holder_serves_the_datagrams() -> None:
    """The same of datagrams that nobody else will receive."""
    sock = udp(Path())
    may_go = trio.Event()

    async def back(request: Any, client_address: Any, server: Any) -> None:
        await may_go.wait()
        await request.reply(request.data)

    server = trioserver.UDPServer(sock, back, limits=trioserver.Limits(requests=1))
    with trio.fail_after(20), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        async with server.serving():
            client.connect(server.server_address)
            client.send(b"one")
            await until(lambda: server.requests)
            client.send(b"two")
            server.shutdown(GRACE)
            may_go.set()
            await server.wait_closed()
        assert [client.recv(100), client.recv(100)] == [b"one", b"two"]


@both
async def test_queue_is_left_to_another_descriptor(
    make: Any, tmp_path: Path, busy_and_queued: Any
) -> None:
    """Somebody in the same program has the socket, too, and accepts who is queued."""
    handler = Held()
    with make(tmp_path) as other:
        server = server_on(other.dup(), handler)
        with trio.fail_after(20):
            async with server.serving():
                busy, queued = await busy_and_queued(server)
                server.shutdown(GRACE)
                handler.may_go.set()
                assert await told(busy) == b"served"
                busy.close()
                await server.wait_closed()
                other.settimeout(10)
                accepted, _ = other.accept()
                with accepted:
                    accepted.sendall(b"taken over")
                    assert await told(queued) == b"taken over"


@contextmanager
def another_process(
    sock: socket.socket, program: str = "import sys; print(flush=True); sys.stdin.read()"
) -> Iterator[subprocess.Popen[str]]:
    """One that has the socket, and ends when its input does."""
    number = sock.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[number],
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


@pytest.mark.parametrize("make", [tcp, unix, udp])
def test_who_holds_it(make: Any, tmp_path: Path) -> None:
    """Another process counts, and another descriptor; not one that is closed."""
    with make(tmp_path) as sock:
        assert not others_hold(sock)
        with sock.dup():
            assert others_hold(sock)
        assert not others_hold(sock)
        with another_process(sock):
            assert others_hold(sock)
        assert not others_hold(sock)


LEAVES = """
import fcntl, socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
fcntl.lockf(sock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(0.05)
sock.close()
sys.stdin.read()
"""


def test_it_waits_for_who_is_about_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has asked before, and closes the socket next, does not count."""
    monkeypatch.setattr("trioserver._sockets.sharing.PATIENCE", 20)
    with tcp(Path()) as sock, another_process(sock, LEAVES):
        assert not others_hold(sock)


def test_it_does_not_wait_for_ever() -> None:
    """Somebody who keeps the lock for long holds up nobody."""
    with tcp(Path()) as sock, another_process(sock, LEAVES.replace("0.05", "60")) as process:
        assert others_hold(sock)
        process.kill()


def test_it_leaves_nothing_open() -> None:
    """Whatever it looks at, it closes."""
    with tcp(Path()) as sock:
        before = open_descriptors()
        others_hold(sock)
        assert open_descriptors() == before


# Several that leave at once -------------------------------------------------------------------


PROGRAM = """
import socket, sys, time
import trioserver

def serve(request, client_address, server):
    request.recv(100)
    time.sleep(0.02)
    request.sendall(b"served")

class Told(trioserver.Observer):
    def server_listening(self, addresses):
        print(flush=True)

sock = socket.socket(fileno=int(sys.argv[1]))
limits = trioserver.Limits(requests=40)  # as many may wait in its waiting room
fields = dict(limits=limits, max_threads=1, observers=[Told()])
trioserver.run(trioserver.ThreadingTCPServer(sock, serve, **fields))
"""


def serving(sock: socket.socket) -> subprocess.Popen[bytes]:
    """A process that serves on the socket."""
    command = [sys.executable, "-c", PROGRAM, str(sock.fileno())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[sock.fileno()])
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("_attempt", range(3))
async def test_processes_that_leave_at_once_lose_nobody(_attempt: int) -> None:
    """One of them is the last, and serves who is queued; the others leave them to it."""
    with trio.fail_after(30), ExitStack() as things:
        sock = tcp(Path())
        address = sock.getsockname()
        processes = [things.enter_context(serving(sock)) for _ in range(3)]
        sock.close()
        clients = [things.enter_context(plain_client(address)) for _ in range(40)]
        for client in clients:
            client.sendall(b"hello")
        for process in processes:
            process.terminate()
        assert [await told(client) for client in clients] == [b"served"] * len(clients)
