"""The queue of a listening socket, closed to new clients before the socket is."""

import errno
import socket
import socketserver
import sys

import pytest
import trio
from support import plain_client, until
from support.adopting import adopted
from support.listening import tcp, told, unix

import trioserver
from trioserver._sockets.sealing import seal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do that")

both = pytest.mark.parametrize("make", [tcp, unix])


@both
def test_who_is_in_it_stays_and_nobody_else_comes(make, tmp_path):
    """Its clients are accepted and can talk, and the next one is refused, or not answered."""
    with make(tmp_path) as sock, plain_client(sock.getsockname()) as first:
        sock.setblocking(False)
        first.sendall(b"hello")
        seal(sock)
        with socket.socket(sock.family) as late:
            late.setblocking(False)
            refusal = errno.ECONNREFUSED if make is unix else errno.EINPROGRESS
            assert late.connect_ex(sock.getsockname()) == refusal
            accepted, _ = sock.accept()
            with pytest.raises(BlockingIOError):
                sock.accept()
        with accepted:
            accepted.settimeout(10)
            assert accepted.recv(100) == b"hello"
            accepted.sendall(b"answer")
            assert first.recv(100) == b"answer"
            first.sendall(b"more")
            assert accepted.recv(100) == b"more"


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
    kind = trioserver.TCPServer if make is tcp else trioserver.UnixStreamServer
    late = socket.socket(socket.AF_INET if make is tcp else socket.AF_UNIX)
    late.setblocking(False)
    tried = []

    class Server(kind):
        def get_request(self, listener):
            client = super().get_request(listener)
            if self.draining and client is None:
                tried.append(late.connect_ex(self.server_address))
            return client

    async def serve(request, client_address, server):
        await request.sendall(b"served")

    server = Server(make(tmp_path), serve)
    with late, trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                assert await told(client) == b"served"
            await until(lambda: not server.statistics().lingering)
            server.shutdown()
            report = await server.wait_closed()
    assert tried == [errno.EINPROGRESS if make is tcp else errno.ECONNREFUSED]
    assert report.statistics.accepted == 1
