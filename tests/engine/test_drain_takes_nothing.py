"""A drain looks whether a request has begun, and takes nothing of it.

The client's first bytes are there when the drain begins, and its connection was accepted. Whoever
reads it then, in whatever way, finds them all: `socket.socket.recv` is one way of many.
"""

import contextlib
import socketserver
import ssl
from types import SimpleNamespace

import pytest
import trio
from support import plain_client, reading, running, until
from support.adopting import THERE, OfMySockets, adopted, in_thread, over_tls

import trioserver

GRACE = 5
"""Seconds; nobody needs them."""


@pytest.fixture(scope="module")
def certified(authority, trusting, tmp_path_factory):
    """A certificate for ``localhost`` in a file, which workers can read, and who believes it."""
    certificate = authority.issue_cert("localhost")
    path = str(tmp_path_factory.mktemp("tls") / "server.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return SimpleNamespace(path=path, server=server, client=trusting)


class Verifying(trioserver.BaseServer):
    """Its first request is the last one, and has been here for long when it is verified."""

    async def verify_request(self, request, client_address):
        await until(request._transport.has_input)
        # No connection is new any more, whose first byte a drain would wait for.
        await trio.sleep_until(request.info.started + 0.6)
        self.shutdown(GRACE)
        return True


class GetsTLS(socketserver.ThreadingTCPServer):
    """Somebody else's, whose connections agree on TLS."""

    def get_request(self):
        request, client_address = super().get_request()
        options = {"server_side": True, "do_handshake_on_connect": False}
        return self.context.wrap_socket(request, **options), client_address


def ask(address, certified, secretly):
    """What a client is answered whose request is there when it is accepted.

    Over TLS, its first flight is what the drain finds.
    """
    with contextlib.ExitStack() as connections:
        client = connections.enter_context(plain_client(address))
        if secretly:
            client = certified.client.wrap_socket(client, server_hostname="localhost")
            connections.enter_context(client)
        client.sendall(b"hello\n")
        return client.recv(100)


VerifyingThreads = type("VerifyingThreads", (Verifying, trioserver.ThreadingTCPServer), {})
VerifyingProcesses = type("VerifyingProcesses", (Verifying, trioserver.ProcessTCPServer), {})
KINDS = [trioserver.ThreadingTCPServer, trioserver.ProcessTCPServer]
KINDS += [VerifyingThreads, VerifyingProcesses]
PLAIN = [socketserver.ThreadingTCPServer, socketserver.TCPServer]
WAYS = [reading.Recv, reading.File, reading.Selects, reading.ByNumber, reading.Detaches]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [*WAYS, reading.Wraps])
async def test_first_bytes_are_left_to_the_handler(kind, way, certified):
    """In threads and processes: however it reads, it finds all that the client has sent."""
    # Else its task runs, and its handler does not yet.
    starts = SimpleNamespace(request_started=lambda _: server.shutdown(GRACE))
    server = kind(THERE, way, observers=[] if issubclass(kind, Verifying) else [starts])
    server.certificate = certified.path
    async with running(server) as address:
        assert await in_thread(ask, address, certified, way is reading.Wraps) == b"hello\n"
        assert (await server.wait_closed()).duration < GRACE


@pytest.mark.usefixtures("nothing_stays_open")
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, way) for kind in PLAIN for way in [*WAYS, reading.Wraps]),
        *((kind, way) for kind in [over_tls, GetsTLS, OfMySockets] for way in WAYS[:3]),
    ],
)
async def test_first_bytes_are_left_to_an_adopted_server(kind, way, certified):
    """The same for an object of `socketserver`.

    Also where its requests are TLS from the listener, from `get_request`, or its own.
    """
    if kind is over_tls:
        server = over_tls(certified.server, way, do_handshake_on_connect=False)
    else:
        server = kind(THERE, way)
    server.certificate, server.context = certified.path, certified.server
    secretly = way is reading.Wraps or kind in {over_tls, GetsTLS}
    starts = SimpleNamespace(request_started=lambda _: server.shutdown())
    timeouts = trioserver.Timeouts(shutdown=GRACE)
    async with adopted(server, observers=[starts], timeouts=timeouts) as adoption:
        assert await in_thread(ask, server.server_address, certified, secretly) == b"hello\n"
    assert adoption.report.clean
    assert adoption.report.duration < GRACE
