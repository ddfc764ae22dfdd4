"""What the tests of `adopt` share: somebody else's handler, and a server around it that is run."""

import socket
import socketserver
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

import trioserver
from support import Witness, plain_client, running, until
from support.threads import THERE, Upper, hooked


def fails(request, client_address, server):
    """A handler that has an error."""
    raise ValueError("no")


def theirs(handler=Upper, kind=socketserver.ThreadingTCPServer, **hooks):
    """A server on the loopback interface, with these methods."""
    return (hooked(kind, **hooks) if hooks else kind)(THERE, handler)


@attrs.define(eq=False)
class Adoption:
    """A server that is being served, mostly adopted, and what is told of it."""

    server: Any
    report: trioserver.ShutdownReport = attrs.field(init=False)  # when it is over
    witness: Witness = attrs.field(factory=Witness)

    @property
    def records(self):
        return self.witness.records

    @property
    def outcomes(self):
        return self.witness.outcomes

    def client(self):
        return plain_client(self.server.server_address)

    async def ask(self, question=b"hello\n"):
        """What a new client is answered, who then leaves."""
        return await in_thread(ask, self.server.server_address, question)

    async def ends_with(self, client, *words):
        """The client says that, and has the end."""
        for word in words:
            client.sendall(word)
        assert await in_thread(client.recv, 1) == b""

    async def hangs_up(self, *words):
        """A new client says that, and is hung up on; its request has ended."""
        ended = len(self.records)
        with self.client() as client:
            await self.ends_with(client, *words)
        await self.ended(ended + 1)

    async def started(self):
        """Wait until a request has."""
        await until(lambda: "request_started" in self.witness.names)

    async def ended(self, number=1):
        """Wait until so many requests have."""
        await until(lambda: len(self.records) == number)


@asynccontextmanager
async def adopted(server, **options):
    """Serve with ``server`` for the length of the block, then shut it down as its owner would."""
    adoption = Adoption(server)
    options["observers"] = [*options.get("observers", ()), adoption.witness]

    async def run(*, task_status):
        adoption.report = await trioserver.adopt(server, task_status=task_status, **options)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            assert await nursery.start(run) is server
            yield adoption
            await in_thread(server.shutdown)


@asynccontextmanager
async def served(server, **options):
    """The same for one of theirs, and one of ours."""
    if isinstance(server, socketserver.BaseServer):
        async with adopted(server, **options) as adoption:
            yield adoption
    else:
        adoption = Adoption(server.evolve(**options))
        adoption.server.observers = [adoption.witness]
        async with running(adoption.server):
            yield adoption


MySocket = type("MySocket", (socket.socket,), {})


class OfMySockets(socketserver.ThreadingTCPServer):
    """Its requests are not plain sockets."""

    def get_request(self):
        sock, address = super().get_request()
        return MySocket(sock.family, sock.type, sock.proto, fileno=sock.detach()), address


async def in_thread(function, *arguments):
    """Call what may wait."""
    return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


def ask(address, question=b"hello\n"):
    """One question and its answer, of a client that then leaves."""
    with plain_client(address) as client:
        client.sendall(question)
        return client.recv(1000)


def over_tls(context, handler=Upper, kind=socketserver.ThreadingTCPServer, **options):
    """A server whose listening socket was wrapped, as werkzeug does it."""
    server = kind(THERE, handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, **options)
    return server


def tls_client(trusting, address):
    """A client that has agreed on TLS."""
    return trusting.wrap_socket(plain_client(address), server_hostname="localhost")


def ask_secretly(trusting, address):
    """One question and its answer."""
    with tls_client(trusting, address) as client:
        client.sendall(b"secret\n")
        return client.recv(100)
