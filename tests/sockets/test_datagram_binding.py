"""Where datagram servers are bound: Unix paths, adopted sockets, ports that are taken."""

from __future__ import annotations

import errno
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import trioserver
from trioserver.testing import open_descriptors


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as socket addresses are short."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name)


async def echo(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
    """Sends back what came."""
    await request.reply(request.data)


async def ask(server: Any) -> bytes:
    """What a new client is answered."""
    family, address = server.socket.family, server.server_address
    with trio.fail_after(10), trio.socket.socket(family, socket.SOCK_DGRAM) as client:
        await client.bind(f"{address}-client" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        await client.sendto(b"still there?", address)
        return bytes(await client.recv(100))


def rights_of(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


def names_in(folder: Path) -> list[str]:
    """The names of everything below a folder."""
    return sorted(path.name for path in folder.rglob("*"))


def touch(name: str) -> None:
    """Make a file."""
    Path(name).touch()


async def test_two_servers_on_one_port() -> None:
    """A port that is taken is an error, not shared in silence."""
    server = trioserver.UDPServer(("127.0.0.1", 0), echo)
    async with server.serving():
        before = open_descriptors()
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1") as caught:
            await trioserver.UDPServer(server.server_address, echo).serve_forever()
        assert caught.value.errno == errno.EADDRINUSE
        assert open_descriptors() == before
        assert await ask(server) == b"still there?"


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o777, None])
async def test_unix_path(mode: int | None, folder: Path) -> None:
    """A stale file is replaced, by one with the rights asked for; a live one is refused."""
    path = folder / "server"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(path))
    server = trioserver.UnixDatagramServer(path, echo, mode=mode)
    async with server.serving():
        if mode is not None:
            assert rights_of(path) == mode
        for kind in (trioserver.UnixDatagramServer, trioserver.UnixStreamServer):
            with pytest.raises(OSError, match="cannot listen on unix:") as caught:
                await kind(path, echo).serve_forever()
            assert caught.value.errno == errno.EADDRINUSE
        assert await ask(server) == b"still there?"
    assert not path.exists()


async def test_relative_unix_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is where it was when it was bound."""
    monkeypatch.chdir(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    server = trioserver.UnixDatagramServer("here", echo)
    async with server.serving():
        assert server.server_address == "here"
        monkeypatch.chdir(elsewhere)
        touch("here")
    assert names_in(folder) == ["elsewhere", "here"]  # the one that was touched


def of_streams() -> socket.socket:
    """A stream socket."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def not_bound() -> socket.socket:
    """A socket without an address."""
    return socket.socket(type=socket.SOCK_DGRAM)


def connected() -> socket.socket:
    """A socket that has its client."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    return sock


def closed() -> socket.socket:
    """A socket that is none any more."""
    sock = not_bound()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (of_streams, "SOCK_DGRAM one was expected"),
        (not_bound, "is not bound"),
        (connected, "is connected"),
        (closed, "is closed"),
    ],
)
async def test_sockets_that_cannot_be_adopted(make: Any, fault: str) -> None:
    """A socket that cannot serve datagrams is a ValueError, and stays its owner's."""
    with make() as sock:
        number = sock.fileno()
        with pytest.raises(ValueError, match=fault):
            await trioserver.UDPServer(sock, echo).serve_forever()
        assert sock.fileno() == number
        if number != -1:
            with pytest.raises(
                ValueError, match=r"AF_UNIX was|a SOCK_DGRAM one|not bound|connected"
            ):
                await trioserver.UnixDatagramServer(sock, echo).serve_forever()


async def test_adopted_sockets(folder: Path) -> None:
    """Adopted sockets are served, closed at the end, and their file is left."""
    ports = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
    for sock in ports:
        sock.bind(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    unix.bind(str(folder / "server"))
    async with trioserver.UDPServer(ports, echo).serving() as server:
        assert server.sockets == tuple(ports)
        assert await ask(server) == b"still there?"
    async with trioserver.UnixDatagramServer(unix, echo).serving() as server:
        assert await ask(server) == b"still there?"
    assert [sock.fileno() for sock in (*ports, unix)] == [-1] * 3
    assert (folder / "server").exists()


async def test_adopted_queue_is_left_to_the_others() -> None:
    """UD-11: what queues on an adopted socket when the server drains is left to whoever has it."""
    go = trio.Event()

    async def later(request: trioserver.Datagram, client_address: Any, server: Any) -> None:
        await go.wait()

    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    with sock.dup() as other, not_bound() as client:
        other.settimeout(5)
        server = trioserver.UDPServer(sock, later, limits=trioserver.Limits(requests=1))
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve_forever)
                client.sendto(b"ours", other.getsockname())
                while not server.requests:
                    await trio.lowlevel.checkpoint()
                client.sendto(b"theirs", other.getsockname())
                server.shutdown()
                go.set()
        other.setblocking(False)
        assert other.recv(9) == b"theirs"
        assert server.statistics().unaccepted == 0


async def test_shared_port() -> None:
    """With allow_reuse_port two servers share a port, and every client is answered by one."""
    first = trioserver.UDPServer(("127.0.0.1", 0), echo, allow_reuse_port=True)
    async with first.serving():
        second = first.evolve(server_address=first.server_address)
        async with second.serving():
            for _ in range(20):
                assert await ask(first) == b"still there?"
            answered = [server.statistics().accepted for server in (first, second)]
        assert sum(answered) == 20
