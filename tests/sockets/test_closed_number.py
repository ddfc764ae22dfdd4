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


def by_a_socket(number):
    """Another socket, which does so, too."""
    socket.socket(fileno=number).sendall(b"bye\n")


ways = table(
    "close, said",
    {"file": (by_a_file, b"bye\n"), "socket": (by_a_socket, b"bye\n"), "close": (os.close, b"")},
)


class Strangers:
    """Connections of somebody else, each of which has got the number of a handler's."""

    def __init__(self):
        self.pairs = []

    def take(self, number):
        """Be given the number that was just closed."""
        for _ in range(20):  # others are free, too, and lower ones come first
            self.pairs.append(socket.socketpair())
            if number in {one.fileno() for one in self.pairs[-1]}:
                return
        raise AssertionError("somebody else has it")

    def are_well(self):
        """Whether nothing was done to them."""
        for one, other in self.pairs:
            one.sendall(b"x")
            other.sendall(b"y")
            if (other.recv(2), one.recv(2)) != (b"x", b"y"):
                return False
        return True


@pytest.fixture
def strangers():
    """Who is there, and is closed at the end."""
    strangers = Strangers()
    yield strangers
    for pair in strangers.pairs:
        for one in pair:
            one.close()


DOORS = {
    "tasks": trioserver.TCPServer,
    "threads": trioserver.ThreadingTCPServer,
    "adopt": socketserver.ThreadingTCPServer,
    "adopt a plain one": socketserver.TCPServer,
    "adopt a subclass": OfMySockets,
}


class Closer:
    """Handlers, of either colour, which do that to their number if the client says so."""

    def __init__(self, door, close):
        self.close = close
        self.is_done = threading.Event()
        self.errors = []
        hook = self.handle_error if door.startswith("adopt") else self.handle_error_of_task
        kind = type("Server", (DOORS[door],), {"handle_error": staticmethod(hook)})
        self.server = kind(THERE, self.task if door == "tasks" else self.handler)

    def handler(self, request, client_address, server):
        self.after(request, request.recv(1))

    async def task(self, request, client_address, server):
        self.after(request, await request.recv(1))

    def after(self, request, word):
        if word == b"x":
            self.close(request.fileno())
        self.is_done.set()

    def handle_error(self, *_):
        self.errors.append(sys.exception())

    async def handle_error_of_task(self, *_):
        self.handle_error()


@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
@ways
@pytest.mark.parametrize("door", DOORS)
async def test_handler_closes_its_number(door, close, said, is_taken, strangers):
    """The next one is served, the error is told, and who has got the number is left alone."""

    def close_it(number):
        close(number)
        if is_taken:
            strangers.take(number)

    closer = Closer(door, close_it)
    began = trio.current_time()
    async with served(closer.server) as it:
        for number, (word, answer) in enumerate(((b"x", said), (b"y", b""), (b"x", said)), 1):
            closer.is_done.clear()
            with it.client() as client:
                client.sendall(word)
                assert await in_thread(closer.is_done.wait, 5)  # so that nobody takes the number
                assert await in_thread(client.recv, 10) == answer
                assert await in_thread(client.recv, 10) == b""
            await it.ended(number)
    assert it.outcomes == ["failed", "completed", "failed"]
    assert "give them a duplicate" in it.records[0].reason
    assert [error.errno for error in closer.errors] == [errno.EBADF] * 2
    assert strangers.are_well()
    assert trio.current_time() - began < 2  # nobody lingers with it


@ways
async def test_cancelled_handler_has_closed_its_number(close, said, strangers):
    """What is done to end its waits is not done to a stranger."""

    def handler(request, client_address, server):
        number = request.fileno()
        close(number)
        strangers.take(number)
        while True:
            trio.from_thread.check_cancelled()

    timeouts = trioserver.Timeouts(request=0.1)
    async with served(trioserver.ThreadingTCPServer(THERE, handler, timeouts=timeouts)) as it:
        with it.client():
            await it.ended()
    assert it.outcomes == ["timed_out"]
    assert strangers.are_well()


async def test_number_of_a_listener_is_closed(strangers):
    """It ends in order, and nobody else's is closed in its place."""

    async def nothing(*_): ...

    with trio.fail_after(10):
        async with trioserver.TCPServer(THERE, nothing) as server:
            number = server.fileno()
            os.close(number)
            strangers.take(number)
    assert strangers.are_well()


@pytest.mark.parametrize("door", DOORS)
async def test_handler_fails_after_it_has_closed_its_number(door, strangers, caplog):
    """Its own error is told, and that alone."""

    def close(number):
        os.close(number)
        strangers.take(number)
        raise ValueError("no")

    closer = Closer(door, close)
    async with served(closer.server) as it:
        await it.hangs_up(b"x")
        await it.ended()
    assert [str(error) for error in closer.errors] == ["no"]
    assert "handle_error raised" not in caplog.text
    assert strangers.are_well()
