"""What many tests need: tiny handlers named for what they do, and ways to look."""

import gc
import socket
import struct
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import attrs
import trio

import trioserver
from trioserver.testing import open_descriptors


class Upper(trioserver.StreamRequestHandler):
    """Answers every line with its upper-case form, as long as lines come."""

    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class IdlesMixIn(trioserver.StreamRequestHandler):
    """Waits for each line in an idle block, and leaves it to `answer`."""

    async def handle(self):
        while True:
            with self.idle():
                line = await self.rfile.readline()
            if not line:
                return
            await self.answer(line)


async def hold(request, client_address, server):
    """Keeps its slot until it is cancelled."""
    await trio.sleep_forever()


async def stubborn(request, client_address, server):
    """Shields itself from every cancellation for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


@attrs.define(eq=False)
class Witness(trioserver.Observer):
    """Writes down every event, in order, as ``(name, *facts)``."""

    events: list[tuple[Any, ...]] = attrs.field(factory=list)

    def server_listening(self, addresses):
        self.events.append(("server_listening", addresses))

    def request_started(self, info):
        self.events.append(("request_started", info))

    def request_finished(self, info, outcome, record):
        self.events.append(("request_finished", info, outcome, record))

    def arrival_failed(self, info, record):
        self.events.append(("arrival_failed", info, record))

    def request_refused(self, client_address, reason):
        self.events.append(("request_refused", client_address, reason))

    def accept_failed(self, server_address, error):
        self.events.append(("accept_failed", server_address, error))

    def draining(self, grace):
        self.events.append(("draining", grace))

    def server_closed(self, report):
        self.events.append(("server_closed", report))

    @property
    def names(self):
        return [event[0] for event in self.events]

    @property
    def records(self):
        ends = {"request_finished", "arrival_failed"}
        return [event[-1] for event in self.events if event[0] in ends]

    @property
    def outcomes(self):
        return [str(record.outcome) for record in self.records]


def descriptors():
    """The numbers of open descriptors, without those that garbage of earlier tests holds."""
    gc.collect()
    return open_descriptors()


@contextmanager
def no_sockets():
    """In the block nobody can open a socket, by whichever way."""

    def refuse(*arguments, **options):
        raise AssertionError("a socket is opened")

    with mock.patch.object(socket.socket, "__init__", refuse):
        yield


def connection_over(transport, *, timeouts=None, limits=None):
    """The server's end of a transport, without a server: request 7, from client:1."""
    addresses = {"client_address": ("client", 1), "server_address": ("memory", 1)}
    info = trioserver.RequestInfo(id=7, **addresses, started=trio.current_time(), started_at=0.0)
    timeouts, limits = timeouts or trioserver.Timeouts(), limits or trioserver.Limits()
    return trioserver.Connection(transport, info, timeouts=timeouts, limits=limits)


async def read_to_end(stream):
    """Everything up to the end of a stream."""
    return b"".join([chunk async for chunk in stream])


async def until(condition):
    """Wait for something that nobody tells of."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


def plain_client(address, kind=socket.SOCK_STREAM):
    """A connected, blocking client socket of the standard library, for what Trio would not do."""
    family = socket.AF_UNIX if isinstance(address, (str, bytes)) else socket.AF_INET
    client = socket.socket(family, kind)
    client.settimeout(10)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


@asynccontextmanager
async def running(server):
    """Serve on real sockets, for twenty real seconds at most; gives the address."""
    with trio.fail_after(20):
        async with server.serving():
            yield server.server_address


async def connect(server):
    """A client's connection to a server on a real socket."""
    assert server.socket is not None
    sock = trio.socket.socket(server.socket.family, socket.SOCK_STREAM)
    await sock.connect(server.server_address)
    return trio.SocketStream(sock)


def reset(client):
    """Close a socket so that its peer gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
