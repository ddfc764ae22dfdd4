"""`adopt`: a ``get_request`` of theirs may wait for its client, and nobody stands still for it."""

from __future__ import annotations

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
from support import Witness, plain_client, running, until
from support.adopting import THERE, Upper, adopted, ask, in_thread

import trioserver

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


def ask_secretly(trusting: ssl.SSLContext, address: Any) -> bytes:
    """One question and its answer, over TLS."""
    with trusting.wrap_socket(plain_client(address), server_hostname="localhost") as client:
        client.sendall(b"secret\n")
        return client.recv(100)


@pytest.fixture(params=[socketserver.TCPServer, socketserver.ThreadingTCPServer])
def over_tls(request: pytest.FixtureRequest, context: ssl.SSLContext) -> Any:
    """The recipe that everybody has: the handshake is made where it is accepted."""

    class Server(request.param):  # type: ignore[misc,name-defined]
        def get_request(self) -> Any:
            sock, address = self.socket.accept()
            return context.wrap_socket(sock, server_side=True), address

    return Server(THERE, Upper)


class Waits(socketserver.ThreadingTCPServer):
    """Its ``get_request`` waits for a word of the client's, and notes where."""

    request_queue_size = 10

    def __init__(self, handler: Any = Upper) -> None:
        self.threads: list[int] = []
        self.go = threading.Event()
        super().__init__(THERE, handler)

    def get_request(self) -> Any:
        sock, address = super().get_request()
        self.threads.append(threading.get_ident())
        if not sock.recv(1):
            sock.close()
            raise OSError("the client has not said a word")
        return sock, ("somebody", address)


# It waits --------------------------------------------------------------------------------


async def test_silent_client_does_not_stop_trio() -> None:
    """It is in a thread, and waits for its turn no longer than ``timeouts.handshake``."""
    server, witness = Waits(), Witness()
    timeouts = trioserver.Timeouts(handshake=0.2)
    with plain_client(server.server_address) as silent:
        async with adopted(server, timeouts=timeouts, observers=[witness]):
            await until(lambda: server.threads)
            for _ in range(20):  # Trio goes on
                await trio.sleep(0.001)
            assert await in_thread(silent.recv, 1) == b""
            await until(lambda: witness.records)
            assert await in_thread(ask, server.server_address, b"?hello\n") == b"HELLO\n"
            await until(lambda: len(witness.records) == 2)
    assert witness.outcomes == ["timed_out", "completed"]
    assert threading.get_ident() not in server.threads
    assert len(set(server.threads)) == 1  # as ever: one after the other


async def test_handshake_in_get_request(over_tls: Any, trusting: ssl.SSLContext) -> None:
    """A client that is silent costs itself, and no more than the others' patience."""
    witness = Witness()
    timeouts = trioserver.Timeouts(handshake=0.5)
    with plain_client(over_tls.server_address) as silent:
        async with adopted(over_tls, timeouts=timeouts, observers=[witness]):
            await until(lambda: witness.names.count("request_started") == 1)
            assert await in_thread(silent.recv, 1) == b""
            for _ in range(2):
                answer = await in_thread(ask_secretly, trusting, over_tls.server_address)
                assert answer == b"SECRET\n"
            await until(lambda: len(witness.records) == 3)
    assert witness.outcomes == ["timed_out", "completed", "completed"]


async def test_handshake_that_fails_in_get_request(over_tls: Any, trusting: ssl.SSLContext) -> None:
    """It costs that client its connection."""
    witness = Witness()
    async with adopted(over_tls, observers=[witness]) as reports:
        with plain_client(over_tls.server_address) as liar:
            liar.sendall(b"this is not TLS" * 10)
            await until(lambda: witness.records)
        assert await in_thread(ask_secretly, trusting, over_tls.server_address) == b"SECRET\n"
        await until(lambda: len(witness.records) == 2)
    assert witness.outcomes == ["disconnected", "completed"]
    assert "get_request: " in witness.records[0].reason
    assert reports.report.statistics.accept_errors == 1


async def test_wait_in_get_request_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """With what to do: others are not let in meanwhile."""
    server, witness = Waits(), Witness()
    timeouts = trioserver.Timeouts(handshake=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        for number in (1, 2):
            with plain_client(server.server_address) as silent:
                assert await in_thread(silent.recv, 1) == b""
            await until(lambda: len(witness.records) == number)  # noqa: B023
    (told,) = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
    assert told.startswith("Waits.get_request did not end in time")


# Who is where, whatever happens ------------------------------------------------------------


async def test_drain_serves_who_is_in_get_request_and_who_waits_for_it() -> None:
    """Both were accepted."""
    server, witness = Waits(), Witness()
    with plain_client(server.server_address) as one, plain_client(server.server_address) as other:
        async with adopted(server, observers=[witness]):
            await until(lambda: server.threads)
            await in_thread(server.shutdown)
            for client in (one, other):
                client.sendall(b"?hello\n")
                client.shutdown(socket.SHUT_WR)
            for client in (one, other):
                assert await in_thread(client.recv, 100) == b"HELLO\n"
    assert witness.outcomes == ["completed"] * 2


async def test_grace_ends_a_get_request_that_waits() -> None:
    """As every other wait for a client."""
    server, witness = Waits(), Witness()
    timeouts = trioserver.Timeouts(shutdown=0.1)
    with plain_client(server.server_address) as silent:
        async with adopted(server, timeouts=timeouts, observers=[witness]):
            await until(lambda: server.threads)
            await in_thread(server.shutdown)
            assert await in_thread(silent.recv, 1) == b""
    assert witness.outcomes == ["cancelled"]


async def test_cancelled_while_get_request_waits() -> None:
    """Every client is closed, and so is the object."""
    server, witness = Waits(), Witness()
    with plain_client(server.server_address) as one, plain_client(server.server_address) as other:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda **it: trioserver.adopt(server, observers=[witness], **it)
                )
                await until(lambda: server.threads)
                nursery.cancel_scope.cancel()
        for client in (one, other):
            assert await in_thread(client.recv, 1) == b""
    assert witness.outcomes == ["cancelled"] * 2
    assert server.fileno() == -1


async def test_get_request_that_is_left_behind_closes_its_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It waits for something that nobody can end."""
    go = threading.Event()

    class Stubborn(socketserver.ThreadingTCPServer):
        def get_request(self) -> Any:
            answer = super().get_request()
            go.wait(10)
            return answer

    server, witness = Stubborn(THERE, Upper), Witness()
    timeouts = trioserver.Timeouts(handshake=0.05, cleanup=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address):
            await until(lambda: witness.records)
    go.set()
    await until(lambda: "Stubborn" not in {it.name for it in threading.enumerate()})
    assert witness.outcomes == ["timed_out"]
    assert "go.wait(10)" in caplog.text


async def test_client_that_get_request_does_not_accept_is_closed() -> None:
    """It has made up its mind without."""

    class Declines(socketserver.ThreadingTCPServer):
        is_first = True

        def get_request(self) -> Any:
            if self.is_first:
                self.is_first = False
                raise OSError("not this one")
            return super().get_request()

    server, witness = Declines(THERE, Upper), Witness()
    async with adopted(server, observers=[witness]) as reports:
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: witness.records)
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: len(witness.records) == 2)
    assert witness.outcomes == ["disconnected", "completed"]
    assert reports.report.statistics.accept_errors == 1


async def test_error_of_get_request_is_one_clients(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that is no `OSError`: it is logged, and the next one is served."""

    class Fails(socketserver.ThreadingTCPServer):
        is_first = True

        def get_request(self) -> Any:
            answer = super().get_request()
            if self.is_first:
                self.is_first = False
                answer[0].close()
                raise ValueError("no")
            return answer

    server, witness = Fails(THERE, Upper), Witness()
    async with adopted(server, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
        await until(lambda: witness.records)
        assert await in_thread(ask, server.server_address) == b"HELLO\n"
        await until(lambda: len(witness.records) == 2)
    assert witness.outcomes == ["failed", "completed"]
    assert "ValueError: no" in caplog.text


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_get_request_that_waits_for_its_listener_first(kind: Any) -> None:
    """A common recipe, to look at a flag now and then: it finds its client."""

    class Polls(kind):  # type: ignore[misc]
        def get_request(self) -> Any:
            while True:
                if select.select([self.socket], [], [], 0.1)[0]:
                    return self.socket.accept()

    server = Polls(THERE, Upper)
    async with adopted(server):
        for _ in range(3):
            assert await in_thread(ask, server.server_address) == b"HELLO\n"


async def test_hooks_get_the_address_that_get_request_returned() -> None:
    """All of them; the record and the limits have that of the connection."""
    seen: list[Any] = []

    class Server(Waits):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            seen.append(client_address)
            return True

        def handle_error(self, request: Any, client_address: Any) -> None:
            seen.append(client_address)

    def fails(request: Any, client_address: Any, server: Any) -> None:
        seen.append(client_address)
        raise ValueError("no")

    server, witness = Server(fails), Witness()
    async with adopted(server, observers=[witness]):
        with plain_client(server.server_address) as client:
            client.sendall(b"?")
            mine = client.getsockname()
            await until(lambda: witness.records)
    assert seen == [("somebody", mine)] * 3
    assert witness.records[0].info.client_address == mine


# Time-outs of the kernel's ---------------------------------------------------------------------

FIFTIETH = struct.pack("ll", 0, 20_000)


@pytest.mark.parametrize("door", ["adopt", "get_request", "threads"])
async def test_time_outs_of_the_listener_are_those_of_its_connections(door: str) -> None:
    """The kernel hands them on, and there they would end a read that waits."""

    def waits(request: Any, client_address: Any, server: Any) -> None:
        request.recv(1)

    class SetsIt(socketserver.ThreadingTCPServer):
        def get_request(self) -> Any:
            sock, address = super().get_request()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, FIFTIETH)
            return sock, address

    option = (socket.SOL_SOCKET, socket.SO_RCVTIMEO, FIFTIETH)
    witness = Witness()
    serving: Any
    server: Any
    if door == "threads":
        server = trioserver.ThreadingTCPServer(
            THERE, waits, socket_options=[option], observers=[witness]
        )
        serving = running(server)
    else:
        kind = SetsIt if door == "get_request" else socketserver.ThreadingTCPServer
        server = kind(THERE, waits)  # type: ignore[arg-type]
        if door == "adopt":
            server.socket.setsockopt(*option)
        serving = adopted(server, observers=[witness])
    async with serving:
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
            await until(lambda: witness.records)
    assert witness.outcomes == ["timed_out"]
    assert "0.02 s" in witness.records[0].reason
