"""`adopt`: how their clients come in, by way of their own ``get_request`` and socket."""

import errno
import socket
import socketserver
import threading

import pytest
import trio
from support import plain_client
from support.adopting import THERE, Upper, adopted, in_thread

from trioserver import Limits
from trioserver._modes.adopted import listener as adopted_listener

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


# What goes wrong ------------------------------------------------------------------------


async def test_server_that_is_closed_under_it_is_an_error():
    """Found when somebody comes, and said what it is; nobody else's descriptor is meant."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    address, number = server.server_address, server.fileno()
    fault = r"TCPServer was closed while adopt\(\) served"
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=fault)) as caught:
        async with adopted(server):
            await in_thread(server.server_close)
            with socket.create_server(THERE) as other:
                assert other.fileno() == number
                with plain_client(other.getsockname()):
                    await trio.lowlevel.wait_readable(other)
            plain_client(address).close()
            await trio.sleep_forever()
    [error] = caught.value.exceptions
    assert getattr(error, "errno", None) == errno.EBADF


async def test_listener_that_listens_no_more_is_an_error():
    """The one error of get_request that is not a client's."""
    server = socketserver.ThreadingTCPServer(THERE, Upper)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Invalid argument")):
        async with adopted(server) as it:
            server.socket.shutdown(socket.SHUT_RDWR)
            await trio.sleep_forever()
    assert it.witness.names.count("accept_failed") == 1


# Datagrams --------------------------------------------------------------------------------


@pytest.fixture
def client():
    """A client that sends and receives datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(THERE)
        yield client


@pytest.mark.parametrize("what", ["text", "object", "nothing"])
async def test_datagram_that_is_not_the_usual_pair(client, what):
    """What get_request makes of it is its handlers' affair."""
    letter, handled = object(), []

    class Opens(socketserver.ThreadingUDPServer):
        def get_request(self):
            (data, sock), client_address = super().get_request()
            request = {"text": (data.decode(), sock), "object": letter, "nothing": ()}[what]
            return request, client_address

        def finish_request(self, request, client_address):
            handled.append((request, client_address))

    async with adopted(Opens(THERE, Upper)) as it:
        client.sendto(b"hello", it.server.server_address)
        await it.ended()
        expected = {"text": ("hello", it.server.socket), "object": letter, "nothing": ()}[what]
    assert handled == [(expected, client.getsockname())]
    assert it.outcomes == ["completed"]


async def test_handler_that_receives_the_next_datagram_itself(client):
    """One that is alone may, and waits for it as ever."""
    waits = threading.Event()

    class Asks(socketserver.BaseRequestHandler):
        def handle(self):
            _, sock = self.request
            waits.set()
            more, sender = sock.recvfrom(100)
            sock.sendto(more.upper(), sender)

    async with adopted(server := socketserver.UDPServer(THERE, Asks)):
        client.sendto(b"hello", server.server_address)
        assert await in_thread(waits.wait, 5)
        await trio.testing.wait_all_tasks_blocked(0.05)  # as long as it takes to be wrong
        client.sendto(b"and more", server.server_address)
        assert await in_thread(client.recv, 100) == b"AND MORE"


async def test_datagram_that_somebody_else_takes_is_not_waited_for(monkeypatch):
    """Between the look and the receive: Trio's own thread must not block."""
    with socketserver.UDPServer(THERE, Upper) as server:
        listener = adopted_listener.AdoptedListener(server)
        monkeypatch.setattr(adopted_listener, "has_input", lambda _number: True)
        cut = threading.Timer(5, server.socket.shutdown, [socket.SHUT_RDWR])
        cut.start()
        assert listener.accept_now() is None
        assert cut.is_alive()
        cut.cancel()
        listener.close()


async def test_client_that_is_turned_away_does_not_block_trio(tmp_path):
    """When its queue is full, and nobody knows when it will look: another thread might wait."""
    go, is_full = threading.Event(), trio.Event()
    received = []

    class Busy(socketserver.BaseRequestHandler):
        def handle(self):
            go.wait(10)

    async def sorry(request):
        for _ in range(1000):
            with trio.move_on_after(0.1) as patience:
                await request.reply(b"sorry")
            if patience.cancelled_caught:
                is_full.set()
                break
        await request.reply(b"at last")

    def receive_all():
        while not received or received[-1] != b"at last":
            received.append(client.recv(100))

    server = socketserver.ThreadingUnixDatagramServer(str(tmp_path / "socket"), Busy)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind(str(tmp_path / "client"))
        client.settimeout(5)
        rescue = threading.Timer(5, receive_all)
        rescue.start()
        async with adopted(server, limits=Limits(requests=1, when_full=sorry)):
            client.sendto(b"1", server.server_address)
            client.sendto(b"2", server.server_address)
            await is_full.wait()
            assert rescue.is_alive()
            rescue.cancel()
            assert not received
            await in_thread(receive_all)
            go.set()
    assert len(received) > 2
