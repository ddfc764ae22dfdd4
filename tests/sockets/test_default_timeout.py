"""`socket.setdefaulttimeout`: what a program sets for its own sockets, no socket of ours has."""

from __future__ import annotations

import ast
import socket
import socketserver
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from support import Upper as AsyncUpper
from support import Witness, plain_client, running, until
from support.adopting import THERE, adopted, in_thread

import trioserver
from trioserver._requests.drain import WakeupPipe
from trioserver._sockets.making import new_socket, socket_of, socket_pair, twin_of

PACKAGE = Path(trioserver.__file__).parent

SECONDS = 3.0

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """It is the whole program's."""
    yield
    socket.setdefaulttimeout(None)


# The loop goes on -----------------------------------------------------------------------------


class Once(socketserver.StreamRequestHandler):
    """Answers one line, and leaves."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


class Dup(socketserver.BaseRequestHandler):
    """Goes on with a duplicate, and so does the server."""

    def handle(self) -> None:
        with socket.socket(fileno=self.request.detach()) as mine:
            mine.sendall(mine.recv(100).upper())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("door", ["adopt", "adopt a subclass", "tasks", "threads", "detached"])
async def test_client_who_dawdles_does_not_stop_trio(door: str, when: str) -> None:
    """It has its reply and does not leave: nobody waits for that in Trio's own thread."""

    class MySocket(socket.socket): ...

    class Subclass(socketserver.ThreadingTCPServer):
        def get_request(self) -> Any:
            sock, address = super().get_request()
            return MySocket(sock.family, sock.type, sock.proto, fileno=sock.detach()), address

    if when == "before":
        socket.setdefaulttimeout(SECONDS)
    witness, timeouts = Witness(), trioserver.Timeouts(linger=0.05)
    fields: dict[str, Any] = {"timeouts": timeouts, "observers": [witness]}
    if door.startswith("adopt"):
        kind = socketserver.ThreadingTCPServer if door == "adopt" else Subclass
        server: Any = kind(THERE, Once)
        serving: Any = adopted(server, **fields)
    else:
        kinds: dict[str, Any] = {
            "tasks": (trioserver.TCPServer, AsyncUpper),
            "threads": (trioserver.ThreadingTCPServer, Once),
            "detached": (trioserver.ThreadingTCPServer, Dup),
        }
        kind, handler = kinds[door]
        server = kind(THERE, handler, **fields)
        serving = running(server)
    async with serving:
        if when == "after":
            socket.setdefaulttimeout(SECONDS)
        with plain_client(server.server_address) as client:
            client.sendall(b"x\n")
            assert await in_thread(client.recv, 10) == b"X\n"
            began = time.monotonic()
            server.shutdown()
            await until(lambda: witness.records)
            assert await in_thread(client.recv, 10) == b""
            assert time.monotonic() - began < SECONDS / 2


async def test_tls_is_agreed_on_and_ended_without_stopping_trio() -> None:
    """There our socket is a duplicate, whose mode is that of theirs."""
    context, authority = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    socket.setdefaulttimeout(SECONDS)
    server = socketserver.ThreadingTCPServer(THERE, Once)
    server.socket = context.wrap_socket(server.socket, server_side=True)

    def talk() -> tuple[bytes, ssl.SSLSocket]:
        client = trusting.wrap_socket(
            plain_client(server.server_address), server_hostname="localhost"
        )
        client.sendall(b"x\n")
        return client.recv(10), client

    witness = Witness()
    timeouts = trioserver.Timeouts(linger=0.05)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        reply, client = await in_thread(talk)
        assert reply == b"X\n"
        with client:
            began = time.monotonic()
            server.shutdown()
            await until(lambda: witness.records)
            assert time.monotonic() - began < SECONDS / 2


# What is made ------------------------------------------------------------------------------------


def test_sockets_have_no_time_out_of_the_programs() -> None:
    """Whatever they are made from; and the mode of a descriptor is as it was."""
    with socket.create_server(THERE) as theirs:
        for blocks in (True, False):
            socket.setdefaulttimeout(None)
            theirs.setblocking(blocks)
            socket.setdefaulttimeout(SECONDS)
            kind = (theirs.family, theirs.type, theirs.proto)
            with twin_of(theirs) as twin, socket_of(kind, socket.dup(theirs.fileno())) as other:
                assert (twin.gettimeout(), other.gettimeout()) == (None, None)
            assert theirs.getblocking() is blocks
    with new_socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
        assert fresh.gettimeout() == 0
    one, another = socket_pair()
    with one, another:
        assert (one.gettimeout(), another.gettimeout()) == (None, None)
    bell = WakeupPipe()
    bell.open()
    assert bell._read_end is not None
    assert bell._read_end.gettimeout() is None
    bell.close()


MAKES_SOCKETS = {"socket", "socketpair", "dup", "fromfd", "create_connection", "create_server"}

MAY = {
    ("_demo.py", "socket"): "a client, with a time-out of its own",
    ("testing/_clients.py", "socket"): "clients, with a time-out of their own, and Trio's",
}
"""Who makes sockets elsewhere, and why that is right."""


def made_in(file: Path) -> Iterator[tuple[str, str]]:
    """Where a file makes a socket otherwise than by the functions for it."""
    name = file.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(file.read_bytes())):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in MAKES_SOCKETS:  # noqa: SIM102
            if ast.unparse(called.value) != "os":  # whose descriptors know no time-out
                yield name, called.attr


def test_sockets_are_made_in_one_place() -> None:
    """So that none is forgotten."""
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "_sockets/making.py"]
    found = {made for file in files for made in made_in(file)}
    assert found == set(MAY)
