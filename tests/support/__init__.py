"""What many tests need: tiny handlers named for what they do, and ways to look."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import attrs
import trio

import trioserver


class Upper(trioserver.StreamRequestHandler):
    """Answers every line with its upper-case form, as long as lines come."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def hold(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Keeps its slot until it is cancelled."""
    await trio.sleep_forever()


@attrs.define(eq=False)
class Witness(trioserver.Observer):
    """Writes down every event, in order, as ``(name, *facts)``."""

    events: list[tuple[Any, ...]] = attrs.field(factory=list)

    def server_listening(self, addresses: Any) -> None:
        self.events.append(("server_listening", addresses))

    def request_started(self, info: Any) -> None:
        self.events.append(("request_started", info))

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        self.events.append(("request_finished", info, outcome, record))

    def request_refused(self, client_address: Any, reason: str) -> None:
        self.events.append(("request_refused", client_address, reason))

    def accept_failed(self, server_address: Any, error: OSError) -> None:
        self.events.append(("accept_failed", server_address, error))

    def draining(self, grace: float) -> None:
        self.events.append(("draining", grace))

    def server_closed(self, report: Any) -> None:
        self.events.append(("server_closed", report))

    @property
    def names(self) -> list[str]:
        """The names of the events, in order."""
        return [event[0] for event in self.events]

    @property
    def records(self) -> list[trioserver.RequestRecord]:
        """The record of every request that ended, in order."""
        return [event[3] for event in self.events if event[0] == "request_finished"]

    @property
    def outcomes(self) -> list[str]:
        """The outcome of every request that ended, in order."""
        return [str(record.outcome) for record in self.records]


@contextmanager
def no_sockets() -> Iterator[None]:
    """In the block nobody can open a socket, by whichever way."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a socket is opened")

    with mock.patch.object(socket.socket, "__init__", refuse):
        yield


def connection_over(
    transport: Any,
    *,
    timeouts: trioserver.Timeouts | None = None,
    limits: trioserver.Limits | None = None,
) -> trioserver.Connection:
    """The server's end of a transport, without a server: request 7, from client:1."""
    info = trioserver.RequestInfo(
        id=7,
        client_address=("client", 1),
        server_address=("memory", 1),
        started=trio.current_time(),
        started_at=0.0,
    )
    return trioserver.Connection(
        transport,
        info,
        timeouts=timeouts or trioserver.Timeouts(),
        limits=limits or trioserver.Limits(),
    )


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end of a stream."""
    return b"".join([chunk async for chunk in stream])


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells of."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


def plain_client(address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
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
async def running(server: trioserver.BaseServer) -> AsyncIterator[Any]:
    """Serve on real sockets, for twenty real seconds at most; gives the address."""
    with trio.fail_after(20):
        async with server.serving():
            yield server.server_address


async def connect(server: trioserver.BaseServer) -> trio.SocketStream:
    """A client's connection to a server on a real socket."""
    assert server.socket is not None
    sock = trio.socket.socket(server.socket.family, socket.SOCK_STREAM)
    await sock.connect(server.server_address)
    return trio.SocketStream(sock)


def reset(client: socket.socket) -> None:
    """Close a socket so that its peer gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
