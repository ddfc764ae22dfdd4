"""`adopt`: servers whose listening socket was wrapped in TLS, and clients who do not keep to it."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
from typing import Any

import pytest
from support import Witness, plain_client, until
from support.adopting import THERE, Upper, adopted, in_thread

import trioserver

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


def over_tls(context: ssl.SSLContext, handler: Any = Upper) -> socketserver.ThreadingTCPServer:
    """A server whose listening socket was wrapped, as werkzeug does it."""
    server = socketserver.ThreadingTCPServer(THERE, handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def tls_client(trusting: ssl.SSLContext, address: Any) -> ssl.SSLSocket:
    """A client that has agreed on TLS."""
    return trusting.wrap_socket(plain_client(address), server_hostname="localhost")


def ask_secretly(trusting: ssl.SSLContext, address: Any) -> bytes:
    """One question and its answer."""
    with tls_client(trusting, address) as client:
        client.sendall(b"secret\n")
        return client.recv(100)


def vanish(client: socket.socket) -> None:
    """Close so that the peer is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# The handshake --------------------------------------------------------------------------


async def test_tls_listener(context: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """A client that says nothing keeps nobody else from being served."""
    server, witness = over_tls(context), Witness()
    with plain_client(server.server_address), plain_client(server.server_address) as liar:
        timeouts = trioserver.Timeouts(handshake=5, shutdown=0)
        async with adopted(server, timeouts=timeouts, observers=[witness]):
            assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
            liar.sendall(b"this is not TLS" * 10)
            await until(lambda: "disconnected" in witness.outcomes)
    assert "completed" in witness.outcomes


async def test_object_that_shakes_hands_itself(
    context: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """It hears of a client that does not agree, as ever: it may have something to clean up."""
    told: list[str] = []

    class Shakes(socketserver.ThreadingTCPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            told.append("finish_request")
            try:
                request.do_handshake()
            except OSError:
                told.append("failed")
                raise
            super().finish_request(request, client_address)

    server, witness = Shakes(THERE, Upper), Witness()
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    async with adopted(server, observers=[witness]):
        assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
        with plain_client(server.server_address) as liar:
            liar.sendall(b"this is not TLS" * 10)
            await until(lambda: len(witness.records) == 2)
    assert told == ["finish_request", "finish_request", "failed"]
    assert witness.outcomes[0] == "completed"
    assert witness.outcomes[1] in {"failed", "disconnected"}  # whichever it is for OpenSSL then


async def test_tls_handshake_is_bounded(context: ssl.SSLContext) -> None:
    """By ``timeouts.handshake``."""
    server, witness = over_tls(context), Witness()
    with plain_client(server.server_address) as silent:
        timeouts = trioserver.Timeouts(handshake=0.1)
        async with adopted(server, timeouts=timeouts, observers=[witness]):
            await in_thread(silent.recv, 1)
            await until(lambda: witness.records)
    assert witness.outcomes == ["timed_out"]


# Of a socket that ssl could not wrap, and left to itself.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n"])
async def test_client_that_is_gone_before_it_is_accepted(
    context: ssl.SSLContext, trusting: ssl.SSLContext, words: bytes
) -> None:
    """With a word or without: it costs nobody else anything, as with serve_forever."""
    server, witness = over_tls(context), Witness()

    def told() -> int:
        return witness.names.count("accept_failed") + witness.outcomes.count("disconnected")

    async with adopted(server, observers=[witness]):
        for number in range(1, 4):
            # All in one turn of Trio's, so that the accept finds it gone.
            client = plain_client(server.server_address)
            client.sendall(words)
            vanish(client)
            await until(lambda number=number: told() == number)  # type: ignore[misc]
        assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
    assert all(isinstance(it[2], ConnectionError) for it in witness.events if "failed" in it[0])


# Afterwards ---------------------------------------------------------------------------------


async def test_client_that_vanishes_over_tls_is_disconnected(
    context: ssl.SSLContext, trusting: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its doing, as without TLS: handle_error, which prints, is not called."""

    class Talks(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            while True:
                self.wfile.write(b"x" * 100_000)

    server, witness = over_tls(context, Talks), Witness()

    def listen_for_a_moment() -> None:
        client = tls_client(trusting, server.server_address)
        client.sendall(b"go\n")
        client.recv(10)
        vanish(client)

    async with adopted(server, observers=[witness]):
        await in_thread(listen_for_a_moment)
        await until(lambda: witness.records)
    assert witness.outcomes == ["disconnected"]
    assert "the peer is gone" in witness.records[0].reason
    assert capsys.readouterr().err == ""


async def test_error_of_another_connection_is_the_handlers(
    context: ssl.SSLContext, trusting: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says nothing of the client."""

    class Forwards(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            ours, elsewhere = socket.socketpair()
            elsewhere.close()
            with ours:
                ours.sendall(b"x")

    server, witness = over_tls(context, Forwards), Witness()

    def look() -> bytes:
        with tls_client(trusting, server.server_address) as client:
            return client.recv(10)

    async with adopted(server, observers=[witness]):
        assert await in_thread(look) == b""
        await until(lambda: witness.records)
    assert witness.outcomes == ["failed"]
    assert "BrokenPipeError" in capsys.readouterr().err
