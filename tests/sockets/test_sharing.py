"""Listening sockets that others hold, too: who serves their queue, and that it is closed first."""

import errno
import socket
import socketserver
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest
import trio
from support import descriptors, plain_client, until
from support.adopting import adopted
from support.listening import Later, bound, tcp, told, unix

from trioserver import Limits, TCPServer, UDPServer, UnixStreamServer
from trioserver._sockets.sharing import others_hold
from trioserver.testing import open_descriptors

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shows who has a socket, and can close its queue"
)

both = pytest.mark.parametrize("make", [tcp, unix])


def udp(_folder=None):
    """A bound socket of UDP."""
    return bound(socket.SOCK_DGRAM)


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
    server = server_on(make(tmp_path), later := Later())
    async with busy_and_queued(server) as clients:
        server.shutdown(8)
        later.go.set()
        for client in clients:
            assert await told(client) == b"served"
            client.close()
        report = await server.wait_closed()
    assert (report.clean, len(report.completed)) == (True, 2)


@both
@pytest.mark.parametrize("grace", [8, 0])
async def test_queue_is_left_to_another_descriptor(make, grace, tmp_path):
    """LC-11: somebody in the same program has the socket, too, and accepts who is queued."""
    with make(tmp_path) as other:
        server = server_on(other.dup(), later := Later())
        async with busy_and_queued(server) as (busy, queued):
            server.shutdown(grace)
            later.go.set()
            assert not grace or await told(busy) == b"served"
            busy.close()
            assert (await server.wait_closed()).statistics.accepted == 1
            other.settimeout(10)
            accepted, address = other.accept()
            with accepted:
                assert address == queued.getsockname()
                accepted.sendall(b"taken over")
                assert await told(queued) == b"taken over"


@pytest.mark.parametrize("is_shared", [False, True])
async def test_datagrams_that_are_queued(is_shared):
    """UD-11: the last holder serves them; who is not the last leaves them to the others."""
    sock, later = udp(), Later()
    with sock.dup() as other, plain_client(sock.getsockname(), socket.SOCK_DGRAM) as client:
        other.settimeout(10)
        if not is_shared:
            other.close()
        server = server_on(sock, later)
        with trio.fail_after(20):
            async with server.serving():
                client.send(b"one")
                await until(lambda: server.requests)
                client.send(b"two")
                server.shutdown(8)
                later.go.set()
                await server.wait_closed()
        assert server.statistics().unaccepted == 0
        assert client.recv(100) == b"one"
        assert (other if is_shared else client).recv(100) == b"two"
        assert later.seen == ([b"one"] if is_shared else [b"one", b"two"])


@contextmanager
def another_process(sock, program="import sys; print(flush=True); sys.stdin.read()"):
    """One that has the socket, and ends when its input does."""
    number = str(sock.fileno())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", program, number]
    with subprocess.Popen(command, pass_fds=[int(number)], **pipes) as process:
        process.stdout.readline()
        yield process


LEAVES = """
import fcntl, socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
fcntl.lockf(sock, fcntl.LOCK_EX)
print(flush=True)
time.sleep(0.05)
sock.close()
sys.stdin.read()
"""


@pytest.mark.parametrize("make", [tcp, unix, udp])
def test_who_holds_it(make, tmp_path):
    """Another process counts, and another descriptor; not one that is closed, nor its own look."""
    with make(tmp_path) as sock:
        before = descriptors()
        assert not others_hold(sock)
        assert open_descriptors() == before
        with sock.dup():
            assert others_hold(sock)
        with another_process(sock):
            assert others_hold(sock)
        assert not others_hold(sock)


def test_it_waits_for_who_is_about_to_leave(monkeypatch):
    """Who has asked before, and closes it next, does not count; who never does holds up nobody."""
    with tcp() as sock, another_process(sock, LEAVES.replace("0.05", "60")) as process:
        assert others_hold(sock)
        process.kill()
    monkeypatch.setattr("trioserver._sockets.sharing.PATIENCE", 20)
    with tcp() as sock, another_process(sock, LEAVES):
        assert not others_hold(sock)


PROGRAM = """
import socket, sys, time, types
import trioserver

def serve(request, client_address, server):
    request.recv(100)
    time.sleep(0.02)
    request.sendall(b"served")

told = types.SimpleNamespace(server_listening=lambda addresses: print(flush=True))
sock = socket.socket(fileno=int(sys.argv[1]))
limits = trioserver.Limits(requests=40)  # as many may wait in its waiting room
fields = dict(limits=limits, max_threads=1, observers=[told])
trioserver.run(trioserver.ThreadingTCPServer(sock, serve, **fields))
"""


@pytest.mark.slow
@pytest.mark.parametrize("_attempt", range(3))
async def test_processes_that_leave_at_once_lose_nobody(_attempt):
    """One of them is the last, and serves who is queued; the others leave them to it."""
    with trio.fail_after(30), ExitStack() as things:
        sock = tcp()
        address = sock.getsockname()
        processes = [things.enter_context(another_process(sock, PROGRAM)) for _ in range(3)]
        sock.close()
        clients = [things.enter_context(plain_client(address)) for _ in range(40)]
        for client in clients:
            client.sendall(b"hello")
        for process in processes:
            process.terminate()
        assert [await told(client) for client in clients] == [b"served"] * len(clients)


@pytest.mark.parametrize("is_held", [True, False])
async def test_adopted_socket_is_not_closed_to_the_clients_of_others(*, is_held):
    """Who has forked before, and goes on accepting from the same socket, still gets clients."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
    address, other = server.server_address, server.socket.dup()
    with other:
        if not is_held:
            other.close()
        async with adopted(server):
            pass
        with socket.socket() as client:
            client.settimeout(0.5 if is_held else 10)
            refused = client.connect_ex(address)
    assert refused == (0 if is_held else errno.ECONNREFUSED)


@both
async def test_client_that_comes_during_the_last_accept(make, tmp_path):
    """Who connects when the queue has been taken in, and the socket is not closed, is no client."""
    sock, tried, later = make(tmp_path), [], Later()
    later.go.set()
    kind = type(server_on(sock, later))
    late = socket.socket(sock.family)
    late.setblocking(False)

    def get_request(self, listener):
        client = kind.get_request(self, listener)
        if self.draining and client is None:
            tried.append(late.connect_ex(self.server_address))
        return client

    server = type("Server", (kind,), {"get_request": get_request})(sock, later)
    with late, trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                assert await told(client) == b"served"
            await until(lambda: not server.statistics().lingering)
            server.shutdown()
            report = await server.wait_closed()
    assert tried == [errno.EINPROGRESS if make is tcp else errno.ECONNREFUSED]
    assert report.statistics.accepted == 1
