"""What a server under test is served over, which it does not notice: memory, or its own sockets."""

from __future__ import annotations

import itertools
import socket
import socketserver
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import trio

import trioserver

from .._faults.faults import Faults, Kind
from .._faults.kinds import Fault, Refuse
from .._faults.lossy import LossyListener
from .._faults.relay import FaultyListener
from .._memory.datagrams import MemoryDatagramClient, MemoryDatagramListener
from .._memory.listener import MemoryListener
from .clients import KernelDatagramClient, connected
from .clock import jumping_clock
from .exchanges import A_SECOND, Recorder
from .options import check_choice, faults_from

Where: TypeAlias = Literal["memory", "tcp", "udp", "unix"]

_FREE_PORTS = 49_152
"""The first port of those that nobody is assigned (RFC 6335, section 6)."""


def server_for(server: Any, transport: str, stack: ExitStack) -> trioserver.BaseServer:
    """The server itself; or one for a handler."""
    check_choice("transport", transport, get_args(Where))
    if isinstance(server, trioserver.BaseServer):
        if server.snapshot().state != "unbound":
            raise RuntimeError(
                f"{server!r} is bound already: a test server binds it, and closes it"
            )
        return server
    if isinstance(server, type) and issubclass(server, trioserver.BaseServer):
        raise TypeError(f"{server.__name__} is a class of servers: make one, or give a handler")
    if isinstance(server, type) and issubclass(server, socketserver.BaseRequestHandler):
        is_datagrams = issubclass(server, socketserver.DatagramRequestHandler)
        kind = "ThreadingUDPServer" if is_datagrams else "ThreadingTCPServer"
        raise TypeError(
            f"{server.__name__} is a synchronous handler, which needs a server that runs it in"
            f' threads: give trioserver.{kind}(("127.0.0.1", 0), {server.__name__}), and'
            f" transport={'udp' if is_datagrams else 'tcp'!r}"
        )
    datagrams = trioserver.DatagramRequestHandler
    is_datagrams = isinstance(server, type) and issubclass(server, datagrams)
    if transport == "unix":
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        unix = trioserver.UnixDatagramServer if is_datagrams else trioserver.UnixStreamServer
        return unix(str(Path(folder) / "socket"), server)
    is_datagrams = is_datagrams or transport == "udp"
    internet = trioserver.UDPServer if is_datagrams else trioserver.TCPServer
    return internet(("127.0.0.1", 0), server)


def check_fit(
    server: trioserver.BaseServer, transport: str, *, with_faults: bool, waits: bool
) -> None:
    """Refuse what cannot be served so.

    Raises:
      TypeError: because of the server.
      RuntimeError: because of the clock.
    """
    name, own = type(server).__name__, _own_transport(server)
    if transport not in {"memory", own}:
        raise TypeError(f"a {name} cannot be served over {transport!r}; its own is {own!r}")
    outside = isinstance(server, (trioserver.ThreadingMixIn, trioserver.ProcessMixIn))
    if outside and (transport == "memory" or with_faults):
        raise TypeError(
            f"the handlers of a {name} do not run in Trio, and need the kernel's sockets:"
            f" transport={own!r}, and no faults"
        )
    if transport != "memory" and not waits and jumping_clock() is not None:
        raise RuntimeError(
            f"this test runs on a clock with autojump, and the {name} over {transport!r}: the"
            " clock jumps while bytes are in the kernel, or a thread is at work, and time-outs"
            " strike that have not come. Serve it in memory, use the real clock, or have the"
            " clock stand still while a request is open: autojump='wait'"
        )


def _own_transport(server: trioserver.BaseServer) -> str:
    if getattr(server, "address_family", None) == getattr(socket, "AF_UNIX", None):
        return "unix"
    return "udp" if has_datagrams(server) else "tcp"


def has_datagrams(server: trioserver.BaseServer) -> bool:
    """Whether its requests are datagrams."""
    return getattr(server, "socket_type", None) == socket.SOCK_DGRAM


class Network:
    """What one server under test is served over."""

    def __init__(
        self,
        transport: str,
        faults: Faults | Sequence[Fault] | None,
        recorder: Recorder,
        tasks: trio.Nursery,
        *,
        strict: bool,
    ) -> None:
        self._in_memory: MemoryListener | MemoryDatagramListener | None = None
        self._transport = transport
        self._may_fail = transport == "memory" or faults is not None
        self._faults = faults_from(faults)
        self._recorder = recorder
        self._tasks = tasks
        self._strict = strict
        self._numbers = itertools.count(_FREE_PORTS)
        self._clients: list[trio.abc.AsyncResource] = []
        self._datagram_clients: list[MemoryDatagramClient | KernelDatagramClient] = []

    @property
    def faults(self) -> Faults:
        """The faults that it has."""
        if not self._may_fail:
            raise RuntimeError(
                "nothing is between this server and its sockets; for faults on a real network,"
                " give some when it is opened: faults=Faults()"
            )
        return self._faults

    def mend(self) -> None:
        """Have nothing be wrong with it any more."""
        self._faults.clear()

    async def connect(self, address: Any) -> trio.abc.HalfCloseableStream:
        """A client's end of a new connection to a server that is bound to ``address``."""
        stream = await self._connected(address)
        self._clients.append(stream)
        return stream

    async def _connected(self, address: Any) -> trio.abc.HalfCloseableStream:
        if isinstance(self._in_memory, MemoryDatagramListener):
            raise TypeError("a server of datagrams has no connections: client()")
        if self._in_memory is None:
            return await connected(address)
        if self._faults.of(Refuse, "server"):
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("there is a Refuse among the faults")
        return await self._in_memory.connect(self._own_address(address, unnamed=""))

    async def client(self, address: Any) -> MemoryDatagramClient | KernelDatagramClient:
        """Somebody who sends datagrams to a server that is bound to ``address``."""
        client = await self._datagram_client(address)
        self._datagram_clients.append(client)
        return client

    async def close_clients(self) -> None:
        """Close the clients that are open, also in a scope that is cancelled; takes no time."""
        with trio.move_on_after(A_SECOND, shield=True):
            for client in self._clients:
                await trio.aclose_forcefully(client)
        for one in self._datagram_clients:
            one.close()

    async def _datagram_client(self, address: Any) -> MemoryDatagramClient | KernelDatagramClient:
        if isinstance(self._in_memory, MemoryListener):
            raise TypeError("a server of streams has connections: connect()")
        if self._in_memory is None:
            return await KernelDatagramClient.of(address)
        await trio.lowlevel.checkpoint()
        # Of none, a server could not reply: the listener gives it one.
        return self._in_memory.client(self._own_address(address, unnamed=None))

    def _own_address(self, address: Any, *, unnamed: str | None) -> Any:
        """A new client's, of the kind of the server's."""
        return (address[0], next(self._numbers)) if isinstance(address, tuple) else unnamed

    @contextmanager
    def under(self, server: trioserver.BaseServer) -> Iterator[None]:
        """Have ``server`` served over it in the block."""
        if not self._may_fail:
            yield
            return
        kind: Kind = "datagrams" if has_datagrams(server) else "streams"
        with self._faults.carrying(kind) if self._strict else nullcontext():
            with self._bound_by(server):
                yield

    @contextmanager
    def _bound_by(self, server: trioserver.BaseServer) -> Iterator[None]:
        given = list(self._faults)
        bind: Callable[[], Any] = server.server_bind
        in_memory = self._transport == "memory"

        async def server_bind() -> Sequence[trioserver.Listener]:
            beneath = [self._memory_for(server)] if in_memory else await bind()
            if has_datagrams(server):
                return [LossyListener(one, self._faults, self._tasks) for one in beneath]
            faulty = [FaultyListener(one, self._faults, self._tasks) for one in beneath]
            return [self._recorder.noting(one) for one in faulty] if len(faulty) == 1 else faulty

        vars(server)["server_bind"] = server_bind
        try:
            yield
        finally:
            del vars(server)["server_bind"]
            if list(self._faults) != given:  # others may share them
                self._faults.clear()
                self._faults.add(*given)

    def _memory_for(self, server: trioserver.BaseServer) -> trioserver.Listener:
        address = server.server_address
        match address:
            case (str(host), 0, *rest):
                address = (host or "127.0.0.1", _FREE_PORTS - 1, *rest)
        if has_datagrams(server):
            largest = getattr(server, "max_packet_size", 65_535)
            self._in_memory = MemoryDatagramListener(address, largest)
        else:
            self._in_memory = MemoryListener(address)
        return self._in_memory
