"""One hot path, as often as asked, in one process and one thread: for counting, not for timing.

    python tests/bench/paths.py line trioserver 2000

Server and clients take turns in one Trio program: the clients act by plain system calls between
two turns of its loop, as those of another processor would. So nothing depends on how fast the
machine is, and the same call executes nearly the same instructions each time. See
`instructions.py`.
"""

from __future__ import annotations

import gc
import resource
import select
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import trio
from trio.lowlevel import cancel_shielded_checkpoint
from trio.testing import wait_all_tasks_blocked

import trioserver

LINE = b"x" * 31 + b"\n"
PACKET = b"x" * 64
CLIENTS = 50
"""Connections at a time, as in the benchmark's pingpong-c50."""
WINDOW = 16
"""Datagrams of each of four clients at a time, as in its udp-w64."""

Serving: TypeAlias = AbstractAsyncContextManager[tuple[str, int]]


class Upper(trioserver.StreamRequestHandler):
    """Answers each line."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def upper_packet(request: trioserver.Datagram, address: Any, server: object) -> None:
    """Answer a datagram."""
    await request.reply(request.data.upper())


def upper_at_once(data: bytes, address: Any, server: object) -> bytes:
    """Answer a datagram without waiting."""
    return data.upper()


# The servers: ours, and the same by Trio alone -------------------------------------


@asynccontextmanager
async def ours(server: trioserver.BaseServer) -> AsyncIterator[tuple[str, int]]:
    """Serve by trioserver."""
    async with server.serving(grace=0):
        yield server.server_address


@asynccontextmanager
async def bare_lines() -> AsyncIterator[tuple[str, int]]:
    """Answer lines by `trio.serve_listeners`."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        nursery.start_soon(trio.serve_listeners, _answer_lines, [listener])
        yield listener.socket.getsockname()
        nursery.cancel_scope.cancel()


async def _answer_lines(stream: trio.SocketStream) -> None:
    buffer = bytearray()
    while data := await stream.receive_some(65536):
        buffer += data
        while (end := buffer.find(b"\n") + 1) > 0:
            line = bytes(buffer[:end])
            del buffer[:end]
            await stream.send_all(line.upper())


@asynccontextmanager
async def bare_datagrams() -> AsyncIterator[tuple[str, int]]:
    """Answer datagrams by a loop of ``recvfrom`` and ``sendto``."""
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer_datagrams, sock)
            yield sock.getsockname()
            nursery.cancel_scope.cancel()


async def _answer_datagrams(sock: trio.socket.SocketType) -> None:
    while True:
        data, address = await sock.recvfrom(65536)
        await sock.sendto(data.upper(), address)


def our_lines() -> Serving:
    """Answer lines by a handler class."""
    limits = trioserver.Limits(requests=10_000)
    return ours(trioserver.TCPServer(("127.0.0.1", 0), Upper, limits=limits))


def our_datagrams() -> Serving:
    """Answer datagrams by an async function."""
    return ours(trioserver.UDPServer(("127.0.0.1", 0), upper_packet))


def our_plain_datagrams() -> Serving:
    """Answer datagrams by a plain function."""
    return ours(trioserver.UDPServer(("127.0.0.1", 0), upper_at_once))


# The clients ------------------------------------------------------------------


class Clients(trio.abc.Instrument):
    """Clients that act between two turns of Trio's loop, like those of another processor.

    Args:
      address: the server's.
      count: answers to get.
      pause: turns of the loop in which they do nothing, after each in which they act.

    Attributes:
      unasked: questions that nobody has asked yet.
      unanswered: answers that are still to come.
    """

    kind = socket.SOCK_STREAM

    def __init__(self, address: tuple[str, int], count: int, pause: int = 0) -> None:
        self.unasked = self.unanswered = count
        self._address, self._pause, self._turn = address, pause, 0
        self._open: dict[int, socket.socket] = {}
        # To try each socket in each turn would be most of what is counted.
        self._poll = select.epoll()

    def connect(self) -> socket.socket:
        """One more client, whose socket never waits."""
        client = socket.socket(type=self.kind)
        client.connect(self._address)
        client.setblocking(False)
        self._open[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)
        return client

    def close(self, client: socket.socket) -> None:
        """One client less."""
        del self._open[client.fileno()]
        client.close()

    def ask(self, client: socket.socket) -> None:
        """Ask one more question, if there is one."""
        if self.unasked:
            self.unasked -= 1
            client.send(LINE)

    def hear(self, client: socket.socket) -> None:
        """Take in an answer, and go on."""
        client.recv(65536)
        self.unanswered -= 1
        self.ask(client)

    def before_io_wait(self, timeout: float) -> None:
        """Act, if it is their turn."""
        self._turn += 1
        if self._turn % (self._pause + 1) == 0:
            for number, _ in self._poll.poll(0):
                self.hear(self._open[number])

    def begin(self) -> None:
        """Ask the first questions."""
        for _ in range(CLIENTS):
            self.ask(self.connect())

    async def all_served(self) -> None:
        """Let the server run until they are done."""
        self.begin()
        trio.lowlevel.add_instrument(self)
        while self.unanswered:
            await cancel_shielded_checkpoint()
        trio.lowlevel.remove_instrument(self)
        for client in list(self._open.values()):
            self.close(client)


class ShortClients(Clients):
    """Each of them has one question, and is followed by another one."""

    def ask(self, client: socket.socket) -> None:
        """Ask it, and end the input."""
        super().ask(client)
        client.shutdown(socket.SHUT_WR)

    def hear(self, client: socket.socket) -> None:
        """Take in the answer, or its end."""
        if not client.recv(65536):
            self.unanswered -= 1
            self.close(client)
            if self.unasked:
                self.ask(self.connect())


class DatagramClients(Clients):
    """Four of them, each with a window of datagrams on their way."""

    kind = socket.SOCK_DGRAM

    def begin(self) -> None:
        """Fill the windows."""
        for client in [self.connect() for _ in range(4)]:
            for _ in range(WINDOW):
                self.ask(client)


async def lines(address: tuple[str, int], count: int) -> None:
    """Lines, one after the other on each connection, the next one there when one is answered."""
    await Clients(address, count).all_served()


async def awaited_lines(address: tuple[str, int], count: int) -> None:
    """The same from clients that take their time, so that the server has to wait for each."""
    await Clients(address, count, pause=3).all_served()


async def connections(address: tuple[str, int], count: int) -> None:
    """Connections with one line each."""
    await ShortClients(address, count).all_served()


async def datagrams(address: tuple[str, int], count: int) -> None:
    """Datagrams."""
    await DatagramClients(address, count).all_served()


async def idle(address: tuple[str, int], count: int) -> None:
    """Print what an idle connection that has had an answer holds, in bytes of Python's memory."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * count, 3 * count))
    before = await _greet(address, 200)
    tracemalloc.start()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    clients = await _greet(address, count)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - held - sys.getsizeof(clients)
    print(f"{held / count - sys.getsizeof(clients[0]):.0f}")
    for client in [*before, *clients]:
        client.close()


async def _greet(address: tuple[str, int], count: int) -> list[socket.socket]:
    clients = []
    for _ in range(count):
        client = socket.create_connection(address)
        client.send(LINE)
        await wait_all_tasks_blocked()
        assert client.recv(65536) == LINE.upper()
        clients.append(client)
    return clients


Load: TypeAlias = Callable[[tuple[str, int], int], Any]
PATHS: dict[str, tuple[Load, dict[str, Callable[[], Serving]]]] = {
    "line": (lines, {"trioserver": our_lines, "trio": bare_lines}),
    "awaited line": (awaited_lines, {"trioserver": our_lines, "trio": bare_lines}),
    "connection": (connections, {"trioserver": our_lines, "trio": bare_lines}),
    "datagram": (datagrams, {"trioserver": our_datagrams, "trio": bare_datagrams}),
    "plain datagram": (datagrams, {"trioserver": our_plain_datagrams, "trio": bare_datagrams}),
    "idle": (idle, {"trioserver": our_lines, "trio": bare_lines}),
}


async def main(path: str, by: str, count: int) -> None:
    """Have one path taken ``count`` times."""
    load, servers = PATHS[path]
    async with servers[by]() as address:
        await load(address, count)


if __name__ == "__main__":
    gc.disable()  # else a collection more or less is most of the difference
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
