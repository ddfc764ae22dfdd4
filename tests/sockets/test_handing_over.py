"""Listening sockets that a server gives to the next one: no client is turned away between them."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from support import descriptors, hold, plain_client, running, sweeping, until
from support.listening import LOOPBACK, Later, answered, asked, is_there, told
from support.process_handlers import Upper
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer

STREAMS = {
    "on TCP": (trioserver.TCPServer, LOOPBACK),
    "on a path": (trioserver.UnixStreamServer, "s"),
}
DATAGRAMS = {
    "of UDP": (trioserver.UDPServer, LOOPBACK),
    "of datagrams on a path": (trioserver.UnixDatagramServer, "s"),
}
THEIRS = {
    "in threads": (trioserver.ThreadingTCPServer, LOOPBACK),
    "in threads, on a path": (trioserver.ThreadingUnixStreamServer, "s"),
    "in processes": (trioserver.ProcessTCPServer, LOOPBACK),
}
kinds = ("kind", "address")


async def reply(request, client_address, server):
    """Answers with what came."""
    if isinstance(request, trioserver.Datagram):
        await request.reply(request.data)
    else:
        await request.sendall(await request.recv(100))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Of the socket files."""
    monkeypatch.chdir(tmp_path)


def same_queue(one, other):
    """Whether two sockets are one for the kernel."""
    return os.path.sameopenfile(one.fileno(), other.fileno())


@table(kinds, STREAMS)
async def test_handed_over(kind, address):
    """Who is there ends as in a drain; who is queued, or comes, is served by the next server."""
    first = kind(address, later := Later(), limits=trioserver.Limits(requests=1))
    async with running(first) as where:
        with plain_client(where) as busy, plain_client(where) as queued:
            await until(lambda: first.requests)
            with first.socket.dup() as was:
                (sock,) = sockets = first.hand_over(8)
                assert same_queue(sock, was)
            assert (sock.gettimeout(), sock.family) == (0, busy.family)
            assert (first.draining, first.sockets[0].fileno()) == (True, -1)
            queued.sendall(b"queued")
            later.go.set()
            assert await told(busy) == b"served"
            busy.close()
            report = await first.wait_closed()
            assert (report.statistics.accepted, report.grace) == (1, 8)
            async with running(second := kind(sockets, reply)):
                assert await told(queued) == b"queued"
                queued.close()
                assert await asked(where) == b"asked\n"
                assert second.server_address == where
    assert is_there("s") == (address == "s")  # a socket that was given leaves its file


@table(kinds, DATAGRAMS)
async def test_datagrams_handed_over(kind, address):
    """Replies that are due still go out; what comes later is the next server's."""
    first = kind(address, later := Later())
    async with running(first) as where:
        client = socket.socket(first.socket.family, socket.SOCK_DGRAM)
        with client:
            client.bind("c" if address == "s" else LOOPBACK)
            client.connect(where)
            client.settimeout(10)
            client.send(b"early")
            await until(lambda: first.requests)
            sockets = first.hand_over()
            client.send(b"late")
            await wait_all_tasks_blocked(0.01)
            assert len(first.requests) == 1
            later.go.set()
            assert await told(client) == b"early"
            await first.wait_closed()
            async with running(second := kind(sockets, reply)):
                assert await told(client) == b"late"
                assert await answered(second) == b"asked"


@table(kinds, THEIRS)
async def test_handed_over_elsewhere(kind, address):
    """The same where handlers run in threads, or in worker processes."""
    async with running(first := kind(address, Upper)) as where:
        assert await asked(where) == b"ASKED\n"
        async with running(kind(first.hand_over(), Upper)):
            assert (await first.wait_closed()).clean
            assert await asked(where) == b"ASKED\n"


async def test_all_sockets_of_a_server():
    """It gives all that it listens on, IPv4 first, and whoever takes them has the same port."""
    first = trioserver.TCPServer(("localhost", 0), reply)
    async with running(first):
        ports = [sock.getsockname() for sock in first.sockets]
        sockets = first.hand_over()
        assert [sock.getsockname() for sock in sockets] == ports
    async with running(trioserver.TCPServer(sockets, reply)):
        assert [await asked(address[:2]) for address in ports] == [b"asked\n"] * len(ports)


@pytest.mark.parametrize("way", ["serve_forever", "handle_request"])
async def test_handed_over_before_it_serves(way):
    """It then serves nobody, and its report says why."""
    first = trioserver.TCPServer(LOOPBACK, hold)
    async with first:
        sockets = first.hand_over(3)
        with pytest.raises(RuntimeError, match="TCPServer has stopped accepting"):
            first.hand_over()
        await getattr(first, way)()
        assert first.statistics().accepted == 0
    async with running(trioserver.TCPServer(sockets, reply)) as where:
        assert await asked(where) == b"asked\n"
    assert (await first.wait_closed()).clean


async def test_handed_over_while_its_resources_are_made():
    """Workers that are not there yet are not waited for beyond the grace."""
    first = trioserver.ProcessTCPServer(LOOPBACK, Upper)
    async with first, trio.open_nursery() as nursery:
        nursery.start_soon(first.serve_forever)
        await until(lambda: first.snapshot().state != "unbound")
        sockets = first.hand_over(0)
        async with running(trioserver.TCPServer(sockets, reply)) as where:
            assert await asked(where) == b"asked\n"
            assert (await first.wait_closed()).statistics.accepted == 0


async def slow_to_bind(server):
    """A hook that waits."""
    await trio.sleep_forever()


@table(
    ("fields", "kind", "message"),
    {
        "one in memory has no sockets": (
            {},
            MemoryServer,
            "127.0.0.1:0 has no socket to hand over",
        ),
        "one that is being bound has none yet": (
            {"server_bind": slow_to_bind},
            MemoryServer,
            "is being bound: it has no sockets yet",
        ),
        "one that drains has closed them": ({}, trioserver.TCPServer, "has stopped accepting"),
    },
)
async def test_servers_that_cannot_hand_over(fields, kind, message):
    """They say why, and nothing has changed."""
    server = type(kind.__name__, (kind,), fields)(LOOPBACK, hold)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await wait_all_tasks_blocked()
        if kind is trioserver.TCPServer:
            with plain_client(server.server_address):
                await until(lambda: server.requests)
                server.shutdown()
                with pytest.raises(RuntimeError, match=message):
                    server.hand_over()
        else:
            with pytest.raises(RuntimeError, match=message):
                server.hand_over()
            assert not server.draining
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("grace", [-1, "soon"])
async def test_wrong_grace(grace):
    """It is refused before anything happens."""
    async with running(server := trioserver.TCPServer(LOOPBACK, reply)) as where:
        with pytest.raises((ValueError, TypeError), match="grace"):
            server.hand_over(grace)
        assert await asked(where) == b"asked\n"


async def test_no_descriptors_left(monkeypatch):
    """Then it is an error, no duplicate is kept, and the server goes on."""
    server = trioserver.TCPServer(("localhost", 0), reply)
    async with running(server) as where:
        before, duplicate, made = descriptors(), socket.dup, []

        def dup(number):
            if len(made) == len(server.sockets) - 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            made.append(duplicate(number))
            return made[-1]

        with monkeypatch.context() as patched:
            patched.setattr(socket, "dup", dup)
            with pytest.raises(OSError, match="Too many open files"):
                server.hand_over()
        assert len(made) == len(server.sockets) - 1
        assert descriptors() == before
        assert await asked(where) == b"asked\n"


@attrs.define(eq=False)
class Succession(sweeping.Sweepable):
    """A server, and the next one, which has its sockets when the fault comes; and clients."""

    kind: Any
    client_kind: int = socket.SOCK_STREAM
    faults: Sequence[sweeping.Fault] = attrs.Factory(lambda self: [self.hand_over], takes_self=True)
    _servers: list[Any] = attrs.field(factory=list)
    _nursery: Any = None

    def hand_over(self, trial):
        """The fault; when the server has been shut down already, there is nothing to hand over."""
        (first,) = self._servers
        if not first.draining and first.snapshot().state != "unbound":
            second = self._new_server(trial, first.hand_over(5))
            self._nursery.start_soon(second.serve_forever)

    def _new_server(self, trial, address):
        books = sweeping.Books()
        trial.afterwards(books.faults)
        server = self.kind(address, sweeping.Careful, observers=[books.witness])
        server.books = books
        self._servers.append(server)
        return server

    async def __call__(self, trial):
        self._servers = []
        first = self._new_server(trial, self.kind.PLACE)
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(first.serve_forever)
            where = first.server_address
            trial.arm(server=first)
            with trio.move_on_after(30) as patience:
                async with trio.open_nursery() as clients:
                    for _ in range(3):
                        clients.start_soon(self._talk, trial, where)
            for server in self._servers:
                server.shutdown(5)
        if patience.cancelled_caught:
            trial.complain("clients waited in vain")
        if isinstance(where, str):
            was_given_away = len(self._servers) == 2
            if is_there(where) != was_given_away:
                trial.complain("the socket file is not as it should be")
            list(self.kind.left_behind())

    async def _talk(self, trial, where):
        """Ask twice, on a connection each, which is never refused, and always answered."""
        for _ in range(2):
            with trio.socket.socket(self.kind.FAMILY) as client:
                await client.connect(where)
                await client.send(b"hello\n")
                got = b""
                while not got.endswith(b"\n") and (data := await client.recv(100)):
                    got += data
                if got != b"HELLO\n":
                    trial.complain(f"a client got {got!r}")


@pytest.mark.parametrize("kind", [sweeping.OnTCP, sweeping.OnUnix])
def test_handed_over_after_every_step(kind):
    """Wherever it is handed over, every client is let in, and answered, by one of the two."""
    assert Succession(kind).sweep() > 50
