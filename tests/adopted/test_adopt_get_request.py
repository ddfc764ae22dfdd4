"""`adopt`: a ``get_request`` of theirs may wait for its client, and nobody stands still for it."""

import logging
import select
import socket
import socketserver
import ssl
import struct
import threading
from typing import Any

import pytest
import trio
from support import plain_client, until
from support.adopting import THERE, Upper, adopted, ask_secretly, fails, in_thread, served
from support.scenes import table

import trioserver
from trioserver import Timeouts

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

both = pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])


class Waits(socketserver.ThreadingTCPServer):
    """Its ``get_request`` waits for a word of the client's, and notes where."""

    request_queue_size = 10

    def __init__(self, handler=Upper):
        self.threads = []
        super().__init__(THERE, handler)

    def get_request(self):
        sock, address = super().get_request()
        self.threads.append(threading.get_ident())
        if not sock.recv(1):
            sock.close()
            raise OSError("the client has not said a word")
        return sock, ("somebody", address)


# It waits --------------------------------------------------------------------------------


async def test_silent_client_does_not_stop_trio(caplog):
    """It is in a thread, and waits for its turn no longer than ``timeouts.handshake``.

    That is told once, as others are not let in meanwhile.
    """
    server = Waits()
    with plain_client(server.server_address) as silent:
        async with adopted(server, timeouts=Timeouts(handshake=0.2)) as it:
            await until(lambda: server.threads)
            for _ in range(20):  # Trio goes on
                await trio.sleep(0.001)
            await it.ends_with(silent)
            await it.ended()
            await it.hangs_up()
            await it.ended(2)
            assert await it.ask(b"?hello\n") == b"HELLO\n"
            await it.ended(3)
    assert it.outcomes == ["timed_out", "timed_out", "completed"]
    assert threading.get_ident() not in server.threads
    assert len(set(server.threads)) == 1  # as ever: one after the other
    [told] = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
    assert told.startswith("Waits.get_request did not end in time")


@pytest.mark.parametrize("words", [b"", b"this is not TLS" * 10], ids=["silent", "liar"])
@both
async def test_handshake_in_get_request(kind, words, context, trusting):
    """The usual recipe: a client that is silent, or lies, costs nobody else anything."""

    class Server(kind):
        def get_request(self):
            sock, address = self.socket.accept()
            return context.wrap_socket(sock, server_side=True), address

    server = Server(THERE, Upper)
    with plain_client(server.server_address) as client:
        async with adopted(server, timeouts=Timeouts(handshake=0.5, linger=0.1)) as it:
            await until(lambda: "request_started" in it.witness.names)
            client.sendall(words)
            await it.ended()
            if not words:
                await it.ends_with(client)
            for _ in range(2):
                answer = await in_thread(ask_secretly, trusting, server.server_address)
                assert answer == b"SECRET\n"
            await it.ended(3)
    assert it.outcomes == ["disconnected" if words else "timed_out", "completed", "completed"]
    assert "get_request" in it.records[0].reason or not words
    assert it.report.statistics.accept_errors == bool(words)


# Who is where, whatever happens ------------------------------------------------------------


async def test_drain_serves_who_is_in_get_request_and_who_waits_for_it():
    """Both were accepted."""
    server = Waits()
    with plain_client(server.server_address) as one, plain_client(server.server_address) as other:
        async with adopted(server) as it:
            await until(lambda: server.threads)
            await in_thread(server.shutdown)
            for client in (one, other):
                client.sendall(b"?hello\n")
                client.shutdown(socket.SHUT_WR)
            for client in (one, other):
                assert await in_thread(client.recv, 100) == b"HELLO\n"
    assert it.outcomes == ["completed"] * 2


@pytest.mark.parametrize("how", ["the grace", "a cancellation"])
async def test_get_request_that_waits_is_ended(how):
    """As every other wait for a client: every client is closed, and so is the object."""
    server = Waits()
    clients = [plain_client(server.server_address) for _ in range(2)]
    with clients[0], clients[1], trio.CancelScope() as scope:
        async with adopted(server, timeouts=Timeouts(shutdown=0.1)) as it:
            await until(lambda: server.threads)
            if how == "a cancellation":
                scope.cancel()
            else:
                await in_thread(server.shutdown)
                await it.ends_with(clients[0])
        for client in clients:
            await it.ends_with(client)
    assert it.outcomes == ["cancelled"] * 2
    assert server.fileno() == -1


async def test_get_request_that_is_left_behind_closes_its_client(caplog):
    """It waits for something that nobody can end."""
    go = threading.Event()

    class Stubborn(socketserver.ThreadingTCPServer):
        def get_request(self):
            answer = super().get_request()
            go.wait(10)
            return answer

    timeouts = Timeouts(handshake=0.05, cleanup=0.05)
    async with adopted(Stubborn(THERE, Upper), timeouts=timeouts) as it:
        with it.client():
            await it.ended()
    go.set()
    await until(lambda: "Stubborn" not in {it.name for it in threading.enumerate()})
    assert it.outcomes == ["timed_out"]
    assert "go.wait(10)" in caplog.text


class FirstIs(socketserver.ThreadingTCPServer):
    """Its first ``get_request`` raises an error, before its accept or when it has closed it."""

    def __init__(self, error, accepts):
        self.first = True
        self.error, self.accepts = error, accepts
        super().__init__(THERE, Upper)

    def get_request(self):
        first, self.first = self.first, False
        answer = super().get_request() if self.accepts or not first else None
        if first and answer is not None:
            answer[0].close()
        if first and self.error is not None:
            raise self.error
        return answer


LEFT = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client left in the handshake")


@table(
    "error, accepts, outcome",
    {
        "it has closed it": (None, True, "disconnected"),
        "it has met the end in its handshake": (LEFT, True, "disconnected"),
        "it has declined": (OSError("no"), False, "disconnected"),
        "no `OSError`, which is logged": (ValueError("no"), True, "failed"),
        "there was nobody": (BlockingIOError(), False, ""),
        "it was interrupted": (InterruptedError(), False, ""),
    },
)
async def test_first_get_request_fails(error, accepts, outcome, caplog):
    """It costs that client its connection, if it means one, and the next one is served."""
    outcomes = list(filter(None, [outcome, "completed"]))
    async with adopted(FirstIs(error, accepts)) as it:
        if outcome:
            await it.hangs_up()
            await it.ended()
        assert await it.ask() == b"HELLO\n"
        await it.ended(len(outcomes))
    assert it.outcomes == outcomes
    assert it.report.statistics.accept_errors == (outcome == "disconnected")
    assert ("ValueError: no" in caplog.text) == (outcome == "failed")


@both
async def test_get_request_that_waits_for_its_listener_first(kind):
    """A common recipe, to look at a flag now and then: it finds its client."""

    class Polls(kind):
        def get_request(self):
            while True:
                if select.select([self.socket], [], [], 0.1)[0]:
                    return self.socket.accept()

    async with adopted(Polls(THERE, Upper)) as it:
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"


async def test_hooks_get_the_address_that_get_request_returned():
    """All of them; the record and the limits have that of the connection."""
    seen = []

    class Server(Waits):
        def verify_request(self, request, client_address):
            seen.append(client_address)
            return True

        def finish_request(self, request, client_address):
            seen.append(client_address)
            super().finish_request(request, client_address)

        def handle_error(self, request, client_address):
            seen.append(client_address)

    async with adopted(Server(fails)) as it:
        with it.client() as client:
            client.sendall(b"?")
            mine = client.getsockname()
            await it.ended()
    assert seen == [("somebody", mine)] * 3
    assert it.records[0].info.client_address == mine


# Time-outs of the kernel's ---------------------------------------------------------------------

FIFTIETH = struct.pack("ll", 0, 20_000)


@pytest.mark.parametrize("door", ["adopt", "get_request", "threads"])
async def test_time_outs_of_the_listener_are_those_of_its_connections(door):
    """The kernel hands them on, and there they would end a read that waits."""
    option = (socket.SOL_SOCKET, socket.SO_RCVTIMEO, FIFTIETH)

    def waits(request, client_address, server):
        request.recv(1)

    class SetsIt(socketserver.ThreadingTCPServer):
        def get_request(self):
            sock, address = super().get_request()
            sock.setsockopt(*option)
            return sock, address

    server: Any
    if door == "threads":
        server = trioserver.ThreadingTCPServer(THERE, waits, socket_options=[option])
    else:
        kind = SetsIt if door == "get_request" else socketserver.ThreadingTCPServer
        server = kind(THERE, waits)
        if door == "adopt":
            server.socket.setsockopt(*option)
    async with served(server) as it:
        await it.hangs_up()
        await it.ended()
    assert it.outcomes == ["timed_out"]
    assert "0.02 s" in it.records[0].reason
