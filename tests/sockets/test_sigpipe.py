"""A client that leaves, and SIGPIPE: no send of the library raises it, whoever has its default set.

A handler for the signal stands for the default, which would end the tests, too.
"""

import io
import signal
import socket
import socketserver
import sys
from types import SimpleNamespace

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


@pytest.fixture(autouse=True)
def signals():
    """The signals that came; none has come at the end."""
    came = []
    before = signal.signal(signal.SIGPIPE, lambda number, _frame: came.append(number))
    yield came
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


async def serve_who_leaves(kind, handler, path="", **fields):
    """Serve a client that closes its connection before it is answered."""
    server = kind(path if "Unix" in kind.__name__ else THERE, handler, **fields)
    async with served(server) as it:
        it.client().close()
        await it.ended()
    assert set(it.outcomes) <= {"completed", "disconnected"}, it.records


@pytest.mark.parametrize("kind", [trioserver.TCPServer, trioserver.UnixStreamServer])
async def test_task(kind, path):
    """A task that sends, and the library's own flush and linger."""

    async def until_broken(request, client_address, server):
        assert await request.recv() == b""
        with pytest.raises(trioserver.PeerGone):
            while True:
                await request.sendall(b"x")
                await trio.sleep(0.001)

    await serve_who_leaves(kind, until_broken, path)


THREADS = [trioserver.ThreadingTCPServer, trioserver.ThreadingUnixStreamServer]
WAYS = {
    "send": lambda sock: sock.send(b"x"),
    "flags": lambda sock: sock.send(b"x", socket.MSG_DONTWAIT),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 1)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "sendfile": lambda sock: sock.sendfile(io.BytesIO(b"x")),
    "makefile": lambda sock: sock.makefile("wb", buffering=0).write(b"x"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*THREADS, socketserver.ThreadingTCPServer], ids=str)
async def test_thread(kind, way, path):
    """Every way to send that the socket of a handler in a thread has, under `adopt`, too."""

    def sends(sock, client_address, server):
        assert sock.recv(1) == b""
        with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
            while True:
                WAYS[way](sock)

    if way != "sendto" or "Unix" not in kind.__name__:  # which a connected Unix socket refuses
        await serve_who_leaves(kind, sends, path)


@pytest.mark.parametrize("handler", [handlers.sends_to_nobody, handlers.asends_to_nobody])
async def test_worker(handler):
    """A worker in which the default holds is not killed by it."""
    fields = {"min_children": 1, "child_init": handlers.init_default_of_sigpipe}
    await serve_who_leaves(trioserver.ProcessTCPServer, handler, **fields)


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
        nobody = dict.fromkeys(["client_address", "server_address"])
        info = trioserver.RequestInfo(id=1, started=0, started_at=0, **nobody)
        await worker.begin(Job(DatagramTask(info, 0, None, b""), 1), None)
        with pytest.raises(BrokenPipeError):
            await worker._line._send_rest(b"more")
        with pytest.raises(BrokenPipeError):
            Channel(ours).say(Message.READY)


async def test_option_where_there_is_no_flag(monkeypatch, path):
    """There each connection's socket is told, by whichever way it is served."""
    option = socket.SO_KEEPALIVE  # stands for the option that this system lacks
    monkeypatch.setattr(trioserver._sockets.making, "_SO_NOSIGPIPE", option)
    found = []

    def looks(request, client_address, server):
        found.append(getattr(request, "socket", request).getsockopt(socket.SOL_SOCKET, option))

    async def alooks(request, client_address, server):
        looks(request, client_address, server)

    for kind in (trioserver.TCPServer, trioserver.UnixStreamServer):
        await serve_who_leaves(kind, alooks, path)
    for kind in THREADS:
        await serve_who_leaves(kind, looks, path)
    assert found == [1] * 4
