"""Listening sockets that somebody else has bound: the last to hold one serves its queue."""

import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support import plain_client, until
from support.listening import bound, tcp, told, unix

from trioserver import Datagram, Limits, TCPServer, UDPServer, UnixStreamServer
from trioserver._sockets.sharing import others_hold
from trioserver.testing import open_descriptors

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shows which processes have a socket"
)

GRACE = 8
"""Seconds; nobody needs them."""


def udp(_folder):
    """A bound socket of UDP."""
    return bound(socket.SOCK_DGRAM)


both = pytest.mark.parametrize("make", [tcp, unix])


@attrs.define(eq=False)
class Held:
    """A handler that keeps its client waiting until it may go."""

    may_go: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, request, client_address, server):
        await self.may_go.wait()
        await (request.reply if isinstance(request, Datagram) else request.sendall)(b"served")


def server_on(sock, handler):
    """A server for one client at a time."""
    kinds = {socket.AF_UNIX: UnixStreamServer, socket.AF_INET: TCPServer}
    kind = UDPServer if sock.type == socket.SOCK_DGRAM else kinds[sock.family]
    return kind(sock, handler, limits=Limits(requests=1))


@asynccontextmanager
async def busy_and_queued(server):
    """Served are two clients: one that has a slot, and one that is in the queue."""
    with trio.fail_after(20), ExitStack() as clients:
        async with server.serving():
            busy = clients.enter_context(plain_client(server.server_address))
            await until(lambda: server.requests)
            yield busy, clients.enter_context(plain_client(server.server_address))


@both
async def test_last_holder_serves_the_queue(make, tmp_path):
    """Nobody else accepts from a socket that was given: who is queued is served, not reset."""
    handler = Held()
    server = server_on(make(tmp_path), handler)
    async with busy_and_queued(server) as clients:
        server.shutdown(GRACE)
        handler.may_go.set()
        for client in clients:
            assert await told(client) == b"served"
            client.close()
        report = await server.wait_closed()
    assert report.clean
    assert len(report.completed) == 2


@both
@pytest.mark.parametrize("grace", [GRACE, 0])
async def test_queue_is_left_to_another_descriptor(make, grace, tmp_path):
    """LC-11: somebody in the same program has the socket, too, and accepts who is queued."""
    handler = Held()
    with make(tmp_path) as other:
        server = server_on(other.dup(), handler)
        async with busy_and_queued(server) as (busy, queued):
            server.shutdown(grace)
            handler.may_go.set()
            if grace:
                assert await told(busy) == b"served"
            busy.close()
            report = await server.wait_closed()
            assert report.statistics.accepted == 1
            other.settimeout(10)
            accepted, address = other.accept()
            with accepted:
                assert address == queued.getsockname()
                accepted.sendall(b"taken over")
                assert await told(queued) == b"taken over"


@pytest.mark.parametrize("is_shared", [False, True])
async def test_datagrams_that_are_queued(is_shared):
    """UD-11: the last holder serves them; who is not the last leaves them to the others."""
    sock, handler = udp(Path()), Held()
    with sock.dup() as other, plain_client(sock.getsockname(), socket.SOCK_DGRAM) as client:
        other.settimeout(10)
        if not is_shared:
            other.close()
        server = server_on(sock, handler)
        with trio.fail_after(20):
            async with server.serving():
                client.send(b"one")
                await until(lambda: server.requests)
                client.send(b"two")
                server.shutdown(GRACE)
                handler.may_go.set()
                await server.wait_closed()
        assert server.statistics().unaccepted == 0
        assert client.recv(100) == b"served"
        assert (other if is_shared else client).recv(100) == (b"two" if is_shared else b"served")


@contextmanager
def another_process(sock, program="import sys; print(flush=True); sys.stdin.read()"):
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
def test_who_holds_it(make, tmp_path):
    """Another process counts, and another descriptor; not one that is closed, nor its own look."""
    with make(tmp_path) as sock:
        before = open_descriptors()
        assert not others_hold(sock)
        assert open_descriptors() == before
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


def test_it_waits_for_who_is_about_to_leave(monkeypatch):
    """Somebody who has asked before, and closes the socket next, does not count."""
    monkeypatch.setattr("trioserver._sockets.sharing.PATIENCE", 20)
    with tcp(Path()) as sock, another_process(sock, LEAVES):
        assert not others_hold(sock)


def test_it_does_not_wait_for_ever():
    """Somebody who keeps the lock for long holds up nobody."""
    with tcp(Path()) as sock, another_process(sock, LEAVES.replace("0.05", "60")) as process:
        assert others_hold(sock)
        process.kill()


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


@pytest.mark.slow
@pytest.mark.parametrize("_attempt", range(3))
async def test_processes_that_leave_at_once_lose_nobody(_attempt):
    """One of them is the last, and serves who is queued; the others leave them to it."""
    with trio.fail_after(30), ExitStack() as things:
        sock = tcp(Path())
        address = sock.getsockname()
        processes = [things.enter_context(another_process(sock, PROGRAM)) for _ in range(3)]
        sock.close()
        clients = [things.enter_context(plain_client(address)) for _ in range(40)]
        for client in clients:
            client.sendall(b"hello")
        for process in processes:
            process.terminate()
        assert [await told(client) for client in clients] == [b"served"] * len(clients)
