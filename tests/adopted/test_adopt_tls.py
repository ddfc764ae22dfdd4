"""`adopt`: servers whose listening socket was wrapped in TLS, and clients who do not keep to it."""

import socket
import socketserver
import struct

import pytest
from support import plain_client, until
from support.adopting import adopted, ask_secretly, in_thread, over_tls, tls_client

from trioserver import Timeouts

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


def vanish(client):
    """Close so that the peer is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# The handshake --------------------------------------------------------------------------


async def test_tls_listener(context, trusting):
    """A client that says nothing keeps nobody else from being served; ``handshake`` bounds it."""
    server = over_tls(context)
    with plain_client(server.server_address) as silent, plain_client(server.server_address) as liar:
        async with adopted(server, timeouts=Timeouts(handshake=0.3, linger=0.1)) as it:
            assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
            liar.sendall(b"this is not TLS" * 10)
            await until(lambda: "disconnected" in it.outcomes)
            await in_thread(silent.recv, 1)
            await it.ended(3)
    assert sorted(it.outcomes) == ["completed", "disconnected", "timed_out"]


async def test_object_that_shakes_hands_itself(context, trusting):
    """It hears of a client that does not agree, as ever: it may have something to clean up."""
    told = []

    class Shakes(socketserver.ThreadingTCPServer):
        def finish_request(self, request, client_address):
            told.append("finish_request")
            try:
                request.do_handshake()
            except OSError:
                told.append("failed")
                raise
            super().finish_request(request, client_address)

    server = over_tls(context, kind=Shakes, do_handshake_on_connect=False)
    async with adopted(server) as it:
        assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
        await it.ended()
        with it.client() as liar:
            liar.sendall(b"this is not TLS" * 10)
            await it.ended(2)
    assert told == ["finish_request", "finish_request", "failed"]
    assert it.outcomes[0] == "completed"
    assert it.outcomes[1] in {"failed", "disconnected"}  # whichever it is for OpenSSL then


# Of a socket that ssl could not wrap, and left to itself.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n"])
async def test_client_that_is_gone_before_it_is_accepted(context, trusting, words):
    """With a word or without: it costs nobody else anything, as with serve_forever."""
    async with adopted(over_tls(context)) as it:

        def told():
            return it.witness.names.count("accept_failed") + it.outcomes.count("disconnected")

        for number in range(1, 4):
            # All in one turn of Trio's, so that the accept finds it gone.
            client = it.client()
            client.sendall(words)
            vanish(client)
            await until(lambda number=number: told() == number)
        assert await in_thread(ask_secretly, trusting, it.server.server_address) == b"SECRET\n"
    failed = [event for event in it.witness.events if event[0] == "accept_failed"]
    assert all(isinstance(error, ConnectionError) for _, _, error in failed)


# Afterwards ---------------------------------------------------------------------------------


async def test_client_that_vanishes_over_tls_is_disconnected(context, trusting, capsys):
    """Its doing, as without TLS: handle_error, which prints, is not called."""

    class Talks(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            while True:
                self.wfile.write(b"x" * 100_000)

    async with adopted(over_tls(context, Talks)) as it:

        def listen_for_a_moment():
            client = tls_client(trusting, it.server.server_address)
            client.sendall(b"go\n")
            client.recv(10)
            vanish(client)

        await in_thread(listen_for_a_moment)
        await it.ended()
    assert it.outcomes == ["disconnected"]
    assert "the peer is gone" in it.records[0].reason
    assert capsys.readouterr().err == ""


async def test_error_of_another_connection_is_the_handlers(context, trusting, capsys):
    """It says nothing of the client."""

    class Forwards(socketserver.BaseRequestHandler):
        def handle(self):
            ours, elsewhere = socket.socketpair()
            elsewhere.close()
            with ours:
                ours.sendall(b"x")

    async with adopted(over_tls(context, Forwards)) as it:

        def look():
            with tls_client(trusting, it.server.server_address) as client:
                return client.recv(10)

        assert await in_thread(look) == b""
        await it.ended()
    assert it.outcomes == ["failed"]
    assert "BrokenPipeError" in capsys.readouterr().err
