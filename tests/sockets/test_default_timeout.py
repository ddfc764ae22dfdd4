"""`socket.setdefaulttimeout`: what a program sets for its own sockets, no socket of ours has."""

import ast
import socket
import socketserver
import time
from functools import partial
from pathlib import Path

import pytest
from support import Upper as AsyncUpper
from support.adopting import THERE, OfMySockets, in_thread, over_tls, served, tls_client
from support.scenes import table

import trioserver
from trioserver import Timeouts
from trioserver._requests.drain import WakeupPipe
from trioserver._sockets.making import new_socket, socket_of, socket_pair, twin_of

PACKAGE = Path(trioserver.__file__).parent

SECONDS = 3.0

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


@pytest.fixture(autouse=True)
def _restored():
    """It is the whole program's."""
    yield
    socket.setdefaulttimeout(None)


class Once(socketserver.StreamRequestHandler):
    """Answers one line, and leaves."""

    def handle(self):
        self.wfile.write(self.rfile.readline().upper())


class Dup(socketserver.BaseRequestHandler):
    """Goes on with a duplicate, and so does the server."""

    def handle(self):
        with socket.socket(fileno=self.request.detach()) as mine:
            mine.sendall(mine.recv(100).upper())


@pytest.mark.parametrize("when", ["before", "after"])
@table(
    "kind, handler",
    {
        "adopt": (socketserver.ThreadingTCPServer, Once),
        "adopt a subclass": (OfMySockets, Once),
        "tasks": (trioserver.TCPServer, AsyncUpper),
        "threads": (trioserver.ThreadingTCPServer, Once),
        "detached": (trioserver.ThreadingTCPServer, Dup),
        "TLS, where our socket is a duplicate, in the mode of theirs": (None, Once),
    },
)
async def test_client_who_dawdles_does_not_stop_trio(kind, handler, when, context, trusting):
    """One has its reply and does not leave: nobody waits for that in Trio's own thread.

    However it is served, and whenever the time-out was set.
    """
    server = kind(THERE, handler) if kind else over_tls(context, handler)

    def talk():
        client = connect()
        client.sendall(b"x\n")
        return client.recv(10), client

    if when == "before":
        socket.setdefaulttimeout(SECONDS)
    async with served(server, timeouts=Timeouts(linger=0.05)) as it:
        if when == "after":
            socket.setdefaulttimeout(SECONDS)
        connect = it.client if kind else partial(tls_client, trusting, server.server_address)
        reply, client = await in_thread(talk)
        with client:
            assert reply == b"X\n"
            began = time.monotonic()
            it.server.shutdown()
            await it.ended()
            assert kind is None or await in_thread(client.recv, 10) == b""
            assert time.monotonic() - began < SECONDS / 2


def test_sockets_have_no_time_out_of_the_programs():
    """Whatever they are made from; and the mode of a descriptor is as it was."""
    bell = WakeupPipe()
    for blocks in (True, False):
        socket.setdefaulttimeout(None)
        with socket.create_server(THERE) as theirs:
            theirs.setblocking(blocks)
            socket.setdefaulttimeout(SECONDS)
            kind = (theirs.family, theirs.type, theirs.proto)
            bell.open()
            made = [twin_of(theirs), socket_of(kind, socket.dup(theirs.fileno())), *socket_pair()]
            assert [sock.gettimeout() for sock in (*made, bell._read_end)] == [None] * 5
            assert theirs.getblocking() is blocks
            for it in (*made, bell):
                it.close()
    with new_socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
        assert fresh.gettimeout() == 0


MAKES_SOCKETS = {"socket", "socketpair", "dup", "fromfd", "create_connection", "create_server"}

MAY = {
    ("_demo.py", "socket"): "a client, with a time-out of its own",
    ("testing/_running/clients.py", "socket"): "clients, with a time-out of their own, and Trio's",
}
"""Who makes sockets elsewhere, and why that is right."""


def test_sockets_are_made_in_one_place():
    """So that none is forgotten; the descriptors of `os` know no time-out."""
    found = set()
    for file in set(PACKAGE.rglob("*.py")) - {PACKAGE / "_sockets/making.py"}:
        for node in ast.walk(ast.parse(file.read_bytes())):
            match node:
                case ast.Call(ast.Attribute(owner, name)) if name in MAKES_SOCKETS:
                    if ast.unparse(owner) != "os":
                        found.add((file.relative_to(PACKAGE).as_posix(), name))
    assert found == set(MAY)
