"""A client that leaves, and SIGPIPE: no send of the library raises it, whoever has its default set.

A handler for the signal stands for the default, which would end the tests, too.
"""

import io
import signal
import socket
import socketserver
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from support import process_handlers as handlers
from support.adopting import THERE, served

import trioserver
import trioserver._sockets.transport
from trioserver._modes.processes.protocol.channel import Channel
from trioserver._modes.processes.protocol.frames import Message
from trioserver._modes.processes.protocol.status import SharedStatus
from trioserver._modes.processes.protocol.task import DatagramTask
from trioserver._modes.processes.server.job import Job
from trioserver._modes.processes.server.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")

Send = Callable[[Any], object]


@pytest.fixture(autouse=True)
def signals():
    """The signals that came; none has come at the end."""
    came = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert came == []


def test_plain_send_raises_the_signal(signals):
    """What these tests look for does come, of a send that nobody has taken care of."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")
    assert signals == [signal.SIGPIPE]
    signals.clear()


# The ways to send -----------------------------------------------------------------


async def until_broken(request, client_address, server):
    """As a task: sends until it is told that the client has left."""
    assert await request.recv() == b""
    with pytest.raises(trioserver.PeerGone):
        while True:
            await request.sendall(b"x")
            await trio.sleep(0.001)


def by_makefile(sock):
    """By a file made of it."""
    with sock.makefile("wb", buffering=0) as file:
        file.write(b"x")


def by_sendfile(sock):
    """From a file."""
    sock.sendfile(io.BytesIO(b"x"))


WAYS = {
    "send": lambda sock: sock.send(b"x"),
    "flags": lambda sock: sock.send(b"x", socket.MSG_DONTWAIT),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 1)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "sendfile": by_sendfile,
    "makefile": by_makefile,
}


def sending(send):
    """A synchronous handler that sends until it is told that the client has left."""

    def sends(sock, client_address, server):
        assert sock.recv(1) == b""
        with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
            while True:
                send(sock)

    return sends


@pytest.fixture(params=["tcp", "unix"])
def place(request, path):
    """Where a server of each kind is."""
    return THERE if request.param == "tcp" else path


def server_at(place, handler, *, threads=False):
    """A server there, with tasks or with threads."""
    name = ("Threading" if threads else "") + ("TCP" if place is THERE else "UnixStream")
    return getattr(trioserver, f"{name}Server")(place, handler)


async def serve_who_leaves(server):
    """Serve a client that closes its connection before it is answered; the outcome."""
    async with served(server) as it:
        it.client().close()
        await it.ended()
    assert set(it.outcomes) <= {"completed", "disconnected"}, it.records
    return it.outcomes


async def test_task(place):
    """A task that sends, and the library's own flush and linger."""
    await serve_who_leaves(server_at(place, until_broken))


@pytest.mark.parametrize("way", WAYS)
async def test_thread(place, way):
    """Every way to send that the socket of a handler in a thread has."""
    if place is not THERE and way == "sendto":
        return  # which a connected Unix socket refuses
    await serve_who_leaves(server_at(place, sending(WAYS[way]), threads=True))


@pytest.mark.parametrize("way", WAYS)
async def test_adopted(way):
    """The same under `adopt`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            sending(WAYS[way])(self.request, self.client_address, self.server)

    theirs = socketserver.ThreadingTCPServer(THERE, Handler)
    assert await serve_who_leaves(theirs) == ["completed"]


@pytest.mark.parametrize("handler", [handlers.sends_to_nobody, handlers.asends_to_nobody])
async def test_worker(handler):
    """A worker in which the default holds is not killed by it."""
    await serve_who_leaves(
        trioserver.ProcessTCPServer(
            THERE, handler, min_children=1, child_init=handlers.init_default_of_sigpipe
        )
    )


async def test_line_between_server_and_worker():
    """Nor is either of the two when the other one has ended."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    with ours:
        launched = SimpleNamespace(control=ours, pid=1, shared_status=SharedStatus(-1))
        worker = Worker(launched)
        worker.answer(None)
        worker.drain()
        order = DatagramTask(info_of_nobody(), 0, None, b"")
        await worker.begin(Job(order, 1), None)
        with pytest.raises(BrokenPipeError):
            await worker._line._send_rest(b"more")
        with pytest.raises(BrokenPipeError):
            Channel(ours).say(Message.READY)


def info_of_nobody():
    """Of a request that nobody serves."""
    return trioserver.RequestInfo(
        id=1, client_address=None, server_address=None, started=0, started_at=0
    )


# Where there is no flag -----------------------------------------------------------


async def test_option_where_there_is_no_flag(monkeypatch, place):
    """There each connection's socket is told, by whichever way it is served."""
    option = socket.SO_KEEPALIVE  # stands for the option that this system lacks
    monkeypatch.setattr(trioserver._sockets.making, "_SO_NOSIGPIPE", option)
    found = []

    async def looks(request, client_address, server):
        found.append(request.socket.getsockopt(socket.SOL_SOCKET, option))

    def looks_too(sock, client_address, server):
        found.append(sock.getsockopt(socket.SOL_SOCKET, option))

    await serve_who_leaves(server_at(place, looks))
    await serve_who_leaves(server_at(place, looks_too, threads=True))
    assert found == [1, 1]
