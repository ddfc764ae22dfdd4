"""A drain looks whether a request has begun, and takes nothing of it.

The client's first bytes are there when the drain begins, and its connection was accepted. Whoever
reads it then, in whatever way, finds them all: `socket.socket.recv` is one way of many.
"""

import contextlib
import socket
import socketserver
import ssl
from collections.abc import Callable

import attrs
import pytest
import trio
from support import plain_client, reading, until
from support.adopting import THERE, in_thread

import trioserver

GRACE = 5
"""Seconds; nobody needs them."""


@attrs.define
class Certified:
    """What both sides need for TLS, and the path of the server's certificate and key."""

    path: str
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certified(authority, trusting, tmp_path_factory):
    """A certificate for ``localhost`` in a file, which workers can read, and who believes it."""
    certificate = authority.issue_cert("localhost")
    path = str(tmp_path_factory.mktemp("tls") / "server.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return Certified(path, server, trusting)


# Moments at which the drain begins --------------------------------------------------------


class WhenItStarts(trioserver.Observer):
    """The first request is the last one: its task runs, and its handler does not yet."""

    shut_down: Callable[[], object]

    def request_started(self, info):
        self.shut_down()


class WhenItIsVerified(trioserver.BaseServer):
    """Its first request is the last one, too; but that it has been here for long."""

    async def verify_request(self, request, client_address):
        await until(request._transport.has_input)
        # No connection is new any more, whose first byte a drain would wait for.
        await trio.sleep_until(request.info.started + 0.6)
        self.shutdown(GRACE)
        return True


# Doors ----------------------------------------------------------------------------------------


class VerifyingThreads(WhenItIsVerified, trioserver.ThreadingTCPServer):
    """Runs handlers in threads; is shut down in `verify_request`."""


class VerifyingProcesses(WhenItIsVerified, trioserver.ProcessTCPServer):
    """Runs handlers in processes; is shut down in `verify_request`."""


KINDS = [
    trioserver.ThreadingTCPServer,
    trioserver.ProcessTCPServer,
    VerifyingThreads,
    VerifyingProcesses,
]


class Mine(socket.socket):
    """More than a plain socket."""


class Theirs(socketserver.ThreadingTCPServer):
    """Somebody else's, which may agree on TLS at two places."""

    wraps: ssl.SSLContext | None = None
    is_mine = False

    def get_request(self):
        request, client_address = super().get_request()
        if self.is_mine:
            request = Mine(request.family, request.type, fileno=request.detach())
        if self.wraps is not None:
            request = self.wraps.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        return request, client_address


def listens_over_tls(server, certified):
    """As werkzeug does it."""
    server.socket = certified.server.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )


def gets_tls(server, certified):
    """As many do it."""
    server.wraps = certified.server


def gets_its_own(server, certified):
    """As whoever counts bytes does it."""
    server.is_mine = True


WAYS = [reading.Recv, reading.File, reading.Selects, reading.ByNumber, reading.Detaches]


async def is_answered(server, serve, certified, *, secretly):
    """A client is whose request is there when it is accepted, and at once.

    Over TLS, its first flight is what the drain finds.
    """

    def ask():
        with contextlib.ExitStack() as connections:
            client = connections.enter_context(plain_client(server.server_address))
            if secretly:
                client = certified.client.wrap_socket(client, server_hostname="localhost")
                connections.enter_context(client)
            client.sendall(b"hello\n")
            return client.recv(100)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            assert await in_thread(ask) == b"hello\n"
            began = trio.current_time()
        assert trio.current_time() - began < GRACE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [*WAYS, reading.Wraps])
async def test_first_bytes_are_left_to_the_handler(kind, way, certified):
    """In threads and processes: however it reads, it finds all that the client has sent."""
    observer = WhenItStarts()
    observers = () if issubclass(kind, WhenItIsVerified) else (observer,)
    server = kind(THERE, way, observers=observers)
    server.certificate = certified.path
    observer.shut_down = lambda: server.shutdown(GRACE)
    await is_answered(server, server.serve_forever, certified, secretly=way is reading.Wraps)


@pytest.mark.usefixtures("nothing_stays_open")
@pytest.mark.parametrize("kind", [Theirs, socketserver.TCPServer])
@pytest.mark.parametrize("way", [*WAYS, reading.Wraps])
async def test_first_bytes_are_left_to_an_adopted_server(kind, way, certified):
    """The same for an object of `socketserver`."""
    server = kind(THERE, way)
    server.certificate = certified.path
    await adopted_answers(server, certified, secretly=way is reading.Wraps)


@pytest.mark.usefixtures("nothing_stays_open")
@pytest.mark.parametrize("over", [listens_over_tls, gets_tls, gets_its_own])
@pytest.mark.parametrize("way", [reading.Recv, reading.File, reading.Selects])
async def test_first_bytes_are_left_to_the_socket_of_an_adopted_server(over, way, certified):
    """The same where its requests are TLS from the listener, from `get_request`, or its own."""
    server = Theirs(THERE, way)
    over(server, certified)
    await adopted_answers(server, certified, secretly=over is not gets_its_own)


async def adopted_answers(server, certified, *, secretly):
    """Adopt it, shut it down when its first request starts, and see that it is answered."""
    observer = WhenItStarts()
    observer.shut_down = server.shutdown
    report = []

    async def serve(*, task_status):
        report.append(
            await trioserver.adopt(
                server,
                observers=[observer],
                timeouts=trioserver.Timeouts(shutdown=GRACE),
                task_status=task_status,
            )
        )

    await is_answered(server, serve, certified, secretly=secretly)
    assert report[0].clean
