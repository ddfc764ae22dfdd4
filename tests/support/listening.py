"""Listening sockets, servers that may not have one, and what is told of them."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import trioserver

from .threads import ask_by_datagram

LOOPBACK = ("127.0.0.1", 0)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


def has_ipv6():
    """Whether this machine has IPv6, switched on."""
    with suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def bound(kind=socket.SOCK_STREAM, address=LOOPBACK):
    """A socket that has an address, and does no more."""
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.bind(address)
    return sock


def tcp(_folder=None):
    """A listening socket of TCP."""
    return socket.create_server(LOOPBACK)


def unix(folder):
    """A listening socket of Unix."""
    sock = bound(address=str(folder / "socket"))
    sock.listen()
    return sock


def is_there(address):
    """Whether the address is a path, and anything is at it."""
    return isinstance(address, (str, Path)) and os.path.lexists(address)


async def told(client):
    """What a client is told, to the end; what it sees of a reset."""
    try:
        return await trio.to_thread.run_sync(client.recv, 100)
    except ConnectionError as error:
        return type(error).__name__.encode()


async def asked(address):
    """What a server at ``address`` answers."""
    family = socket.AF_UNIX
    if isinstance(address, tuple):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with trio.fail_after(10), trio.socket.socket(family) as client:
        await client.connect(address)
        await client.send(b"asked\n")
        return await client.recv(100)


async def answered(server):
    """What a new client of a server is, however it asks."""
    if server.socket_type == socket.SOCK_STREAM:
        return await asked(server.server_address)
    return await ask_by_datagram(server, b"asked")


async def fails_to_listen(server, number=None, match="cannot listen on", kind=OSError):
    """It is refused, with that error alone."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with pytest.raises(kind, match=match) as caught:
                await nursery.start(server.serve_forever)
    assert number is None or getattr(caught.value, "errno", None) == number
    assert server.snapshot().state == "unbound"


@attrs.frozen(eq=False)
class Looks:
    """A handler that notes what a function makes of each request, and answers with a byte."""

    look: Any
    seen: list[Any] = attrs.field(factory=list)

    async def __call__(self, request, client_address, server):
        self.seen.append(self.look(request))
        await (request.reply if isinstance(request, trioserver.Datagram) else request.sendall)(b"!")


@attrs.frozen(eq=False)
class Later:
    """A handler that waits until it may go, and sends back what came, or a word."""

    go: trio.Event = attrs.field(factory=trio.Event)
    seen: list[bytes] = attrs.field(factory=list)

    async def __call__(self, request, client_address, server):
        await self.go.wait()
        self.seen.append(word := getattr(request, "data", b"served"))
        await (request.reply if isinstance(request, trioserver.Datagram) else request.sendall)(word)
