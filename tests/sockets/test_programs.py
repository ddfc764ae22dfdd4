"""What a program does to sockets: closes a number, sets a default time-out, and has SIGPIPE."""

import ast
import errno
import io
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from support import Upper, process_handlers
from support.adopting import THERE, OfMySockets, in_thread, over_tls, served, tls_client
from support.reading import Detaches, File
from support.scenes import table

import trioserver
from trioserver import Timeouts
from trioserver._modes.processes.protocol.channel import Channel
from trioserver._modes.processes.protocol.frames import Message
from trioserver._modes.processes.protocol.status import SharedStatus
from trioserver._modes.processes.protocol.task import DatagramTask
from trioserver._modes.processes.server.job import Job
from trioserver._modes.processes.server.worker_process import Worker
from trioserver._requests.drain import WakeupPipe
from trioserver._sockets import making
from trioserver._sockets.making import new_socket, socket_of, socket_pair, twin_of

PACKAGE = Path(trioserver.__file__).parent

on_purpose = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
all_is_closed = pytest.mark.usefixtures("nothing_stays_open")

# A handler closes its descriptor by the number: that is its error, and harms nobody else ---------


def and_fails(number):
    """A handler that has an error of its own, besides."""
    os.close(number)
    raise ValueError("no")


WAYS = {
    "file": (lambda number: os.fdopen(number, "wb", 0).write(b"bye\n"), b"bye\n"),
    "socket": (lambda number: socket.socket(fileno=number).sendall(b"bye\n"), b"bye\n"),
    "close": (os.close, b""),
}
DOORS = {
    "tasks": trioserver.TCPServer,
    "threads": trioserver.ThreadingTCPServer,
    "adopt": socketserver.ThreadingTCPServer,
    "adopt a plain one": socketserver.TCPServer,
    "adopt a subclass": OfMySockets,
}


@pytest.fixture
def taken():
    """Give somebody else's connection the number that was just closed; all of them stay well."""
    pairs = []

    def take(number):
        for _ in range(20):  # others are free, too, and lower ones come first
            pairs.append(socket.socketpair())
            if number in {one.fileno() for one in pairs[-1]}:
                return
        raise AssertionError("somebody else has it")

    yield take
    for one, other in pairs:
        with one, other:
            one.sendall(b"x")
            other.sendall(b"y")
            assert (other.recv(2), one.recv(2)) == (b"x", b"y")


def server_at(door, close):
    """One whose handlers do that to their number if asked; when it is done, and what was told."""
    is_done, errors = threading.Event(), []

    def after(request, word):
        try:
            if word == b"x":
                close(request.fileno())
        finally:
            is_done.set()

    def handler(request, client_address, server):
        after(request, request.recv(1))

    async def task(request, client_address, server):
        after(request, await request.recv(1))

    def tell(*_):
        errors.append(sys.exception())

    async def tell_of_task(*_):
        tell()

    hook = staticmethod(tell if door.startswith("adopt") else tell_of_task)
    kind = type("Server", (DOORS[door],), {"handle_error": hook})
    return kind(THERE, task if door == "tasks" else handler), is_done, errors


@all_is_closed
@on_purpose
@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
@table("close, said", {**WAYS, "fails": (and_fails, b"")})
@pytest.mark.parametrize("door", DOORS)
async def test_handler_closes_its_number(door, close, said, is_taken, taken, caplog):
    """The next one is served, the error is told, and who has got the number is left alone.

    An error of its own is told, and that alone.
    """

    def close_it(number):
        try:
            close(number)
        finally:
            if is_taken:
                taken(number)

    server, is_done, errors = server_at(door, close_it)
    began = trio.current_time()
    async with served(server) as it:
        for number, (word, answer) in enumerate(((b"x", said), (b"y", b""), (b"x", said)), 1):
            is_done.clear()
            with it.client() as client:
                client.sendall(word)
                assert await in_thread(is_done.wait, 5)  # so that nobody takes the number
                assert await in_thread(client.recv, 10) == answer
                assert await in_thread(client.recv, 10) == b""
            await it.ended(number)
    assert it.outcomes == ["failed", "completed", "failed"]
    told = ("no", "no") if close is and_fails else ("give them a duplicate", errno.EBADF)
    assert told[0] in it.records[0].reason
    assert [getattr(error, "errno", str(error)) for error in errors] == [told[1]] * 2
    assert "handle_error raised" not in caplog.text
    assert trio.current_time() - began < 2  # nobody lingers with it


@all_is_closed
@on_purpose
@table("close, said", WAYS)
async def test_cancelled_handler_has_closed_its_number(close, said, taken):
    """What is done to end its waits is not done to a stranger."""

    def handler(request, client_address, server):
        number = request.fileno()
        close(number)
        taken(number)
        while True:
            trio.from_thread.check_cancelled()

    timeouts = trioserver.Timeouts(request=0.1)
    async with served(trioserver.ThreadingTCPServer(THERE, handler, timeouts=timeouts)) as it:
        with it.client():
            await it.ended()
    assert it.outcomes == ["timed_out"]


@all_is_closed
@on_purpose
async def test_number_of_a_listener_is_closed(taken):
    """It ends in order, and nobody else's is closed in its place."""
    async with trioserver.TCPServer(THERE, trioserver.BaseRequestHandler) as server:
        number = server.fileno()
        os.close(number)
        taken(number)


# `socket.setdefaulttimeout`: what a program sets for its own sockets, no socket of ours has -------


SECONDS = 3.0


@pytest.fixture(autouse=True)
def _restored():
    """It is the whole program's."""
    yield
    socket.setdefaulttimeout(None)


@all_is_closed
@pytest.mark.parametrize("when", ["before", "after"])
@table(
    "kind, handler",
    {
        "adopt": (socketserver.ThreadingTCPServer, File),
        "adopt a subclass": (OfMySockets, File),
        "tasks": (trioserver.TCPServer, Upper),
        "threads": (trioserver.ThreadingTCPServer, File),
        "detached": (trioserver.ThreadingTCPServer, Detaches),
        "TLS, where our socket is a duplicate, in the mode of theirs": (None, File),
    },
)
async def test_client_who_dawdles_does_not_stop_trio(kind, handler, when, context, trusting):
    """One has its reply and does not leave: nobody waits for that in Trio's own thread.

    However it is served, and whenever the time-out was set.
    """
    server = kind(THERE, handler) if kind else over_tls(context, handler)

    def talk():
        client = connect()
        client.sendall(b"X\n")
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


@all_is_closed
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
    ("_cli/demo.py", "socket"): "a client, with a time-out of its own",
    ("_cli/super_server.py", "socketpair"): "a program's terminal; nobody's code is imported there",
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


# A client that leaves, and SIGPIPE: no send of the library raises it -----------------------------


@pytest.fixture(autouse=True)
def signals():
    """The signals that came; none has come at the end.

    A handler for the signal stands for the default, which would end the tests, too.
    """
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
SENDS = {
    "send": lambda sock: sock.send(b"x"),
    "flags": lambda sock: sock.send(b"x", socket.MSG_DONTWAIT),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 1)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "sendfile": lambda sock: sock.sendfile(io.BytesIO(b"x")),
    "makefile": lambda sock: sock.makefile("wb", buffering=0).write(b"x"),
}


@pytest.mark.parametrize("way", SENDS)
@pytest.mark.parametrize("kind", [*THREADS, socketserver.ThreadingTCPServer], ids=str)
async def test_thread(kind, way, path):
    """Every way to send that the socket of a handler in a thread has, under `adopt`, too."""

    def sends(sock, client_address, server):
        assert sock.recv(1) == b""
        with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
            while True:
                SENDS[way](sock)

    if way != "sendto" or "Unix" not in kind.__name__:  # which a connected Unix socket refuses
        await serve_who_leaves(kind, sends, path)


@pytest.mark.parametrize(
    "handler", [process_handlers.sends_to_nobody, process_handlers.asends_to_nobody]
)
async def test_worker(handler):
    """A worker in which the default holds is not killed by it."""
    fields = {"min_children": 1, "child_init": process_handlers.init_default_of_sigpipe}
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
    monkeypatch.setattr(making, "_SO_NOSIGPIPE", option)
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
