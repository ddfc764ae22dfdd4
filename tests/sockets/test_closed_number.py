"""A handler closes its descriptor by the number: that is its error, and harms nobody else."""

import errno
import os
import socket
import socketserver
import sys
import threading

import pytest
import trio
from support.adopting import THERE, OfMySockets, in_thread, served
from support.scenes import table

import trioserver

pytestmark = [
    pytest.mark.usefixtures("nothing_stays_open"),
    # They are let go on purpose.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


def by_a_file(number):
    """A file, which closes it when it is let go."""
    os.fdopen(number, "wb", 0).write(b"bye\n")


def and_fails(number):
    """A handler that has an error of its own, besides."""
    os.close(number)
    raise ValueError("no")


WAYS = {
    "file": (by_a_file, b"bye\n"),
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


async def test_number_of_a_listener_is_closed(taken):
    """It ends in order, and nobody else's is closed in its place."""
    async with trioserver.TCPServer(THERE, trioserver.BaseRequestHandler) as server:
        number = server.fileno()
        os.close(number)
        taken(number)
