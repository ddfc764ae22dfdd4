"""The handler classes: a protocol, written as setup, handle and finish.

Where constructing a classic handler handled the request, *awaiting* the
constructed handler does. So a handler can be built and looked at without
running, and an ``async def`` of the same three arguments is a handler, too.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from types import CoroutineType
from typing import Any, ClassVar, TypeAlias, cast

import trio
from trio.lowlevel import disable_ki_protection

from .._facts.address import Address
from .._facts.callables import name_of
from .._facts.chains import chain_after
from .._facts.events import RequestInfo, current_request
from .._facts.made_when_needed import made_when_needed
from .._facts.verdict import peers_doing
from .._requests.any_request import Fate
from .._requests.connection import Connection
from .._requests.datagram import Datagram, ReplyFunction
from .._requests.datagram_socket import DatagramSocket
from .._requests.reader import RequestReader
from .._requests.writer import RequestWriter

Handler: TypeAlias = Callable[[Any, Address, Any], Awaitable[object]] | ReplyFunction
"""What a server calls for each request and awaits: a handler class, an async
function, or anything else that returns an awaitable. For datagrams, also a plain function that
returns the answer."""


class BaseRequestHandler:
    """One request, handled by its methods. A new object for each request.

    Override `handle`, and `setup` and `finish` where there is something to
    prepare and to give back. `finish` runs if and only if `setup` returned:
    on the ordinary path as ordinary code; after an error or a cancellation
    shielded, for at most ``Timeouts.cleanup`` seconds, and an error in it is
    then chained to the one that was there first. After a `RequestEnded`, which
    is no error, it is the request's.

    Attributes:
      request: the `Connection`, or the `Datagram` of a datagram server (or
        what an overridden ``get_request`` made of it).
      client_address: the peer's address, as kept from the accept.
      server: the server.
    """

    request: Any
    _awaited: bool | None = None

    def __init__(self, request: Any, client_address: Address, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        self._awaited = False
        if isinstance(request, Fate):  # and not what get_request made of it
            request._handlers_not_awaited += 1

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The request's own scope; move its deadline, or cancel it with a reason."""
        return cast("trio.CancelScope", self.request.cancel_scope)

    @property
    def info(self) -> RequestInfo:
        """The facts of the request."""
        return cast("RequestInfo", self.request.info)

    def idle(self) -> AbstractContextManager[None]:
        """A block that waits between two requests; see `Connection.idle`."""
        return cast("AbstractContextManager[None]", self.request.idle())

    async def setup(self) -> None:
        """Prepare. When it raises, neither `handle` nor `finish` is called."""

    async def handle(self) -> None:
        """Do all that the request needs. The connection is closed afterwards."""

    async def finish(self) -> None:
        """Give back what `setup` took."""

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve().__await__()

    @disable_ki_protection
    async def _serve(self) -> None:
        if self._awaited is None:
            raise TypeError(
                f"{type(self).__name__}.__init__ must call"
                " super().__init__(request, client_address, server)"
            )
        if self._awaited:
            raise RuntimeError(f"{type(self).__name__} was awaited twice for {self.info}")
        self._awaited = True
        if isinstance(self.request, Fate):
            self.request._handlers_not_awaited -= 1
        await self.setup()
        try:
            await self.handle()
        except BaseException as error:
            await self._finish_after(error)
            raise
        await self.finish()

    async def _finish_after(self, error: BaseException) -> None:
        """Run `finish` although a cancellation is pending, or comes; within bounds.

        What it raises is shown with ``error`` where both end the request, and
        beside it where they go different ways. Where ``error`` is only how the
        client has ended, it is the one error that there is.
        """
        try:
            ours = isinstance(self.request, (Connection, Datagram))
            owner = self.request if ours else self.server
            with trio.move_on_after(owner.timeouts.cleanup, shield=True):
                await self.finish()
        except BaseException as second:  # whoever handles the error is told of both
            if second is error:
                return
            if not (isinstance(error, Exception) and isinstance(second, Exception)):
                name = type(self).__name__
                message = f"{name}.finish failed after {type(error).__name__}"
                raise BaseExceptionGroup(message, [error, second]) from None
            if _is_clients_doing(error) and not _is_clients_doing(second):
                raise
            chain_after(error, second)
        finally:
            del error  # the traceback of the second one holds this frame: no cycles


class StreamRequestHandler(BaseRequestHandler):
    """A handler that reads and writes its connection like files.

    It serves datagrams, too, as `DatagramRequestHandler` does, so that one
    class can do both.

    Attributes:
      rfile: what to read from.
      wfile: what to write to.
      connection: the same as ``request``.
      rbufsize: bytes taken from the transport at once; 0 and less: 64 KiB.
      wbufsize: bytes to collect before they are sent; 0 sends at once, less
        than 0 is 64 KiB.
      timeout: seconds; overrides ``Timeouts.idle`` and ``Timeouts.write`` for
        this handler.
      disable_nagle_algorithm: send small writes at once (``TCP_NODELAY``). True
        unless overridden, unlike the classic class.
    """

    rbufsize: ClassVar[int] = -1
    wbufsize: ClassVar[int] = 0
    timeout: ClassVar[float | None] = None
    disable_nagle_algorithm: ClassVar[bool] = True

    request: Connection

    def __init__(self, request: Connection, client_address: Address, server: Any) -> None:
        super().__init__(request, client_address, server)
        self.connection = request
        self.rfile: RequestReader = RequestReader(request)
        self.wfile: RequestWriter = RequestWriter(request, self.wbufsize)
        if self.rbufsize > 0:
            request._receiver.portion = self.rbufsize
        if self.timeout is not None:
            request.idle_timeout = request.write_timeout = self.timeout
        if not self.disable_nagle_algorithm:
            _enable_nagle(request.socket)

    async def finish(self) -> None:
        """Send what `wfile` has buffered, unless the handler has closed the connection."""
        if self.request._sender.buffer and not self.wfile.closed:
            await self.request._sender.flush()


class DatagramRequestHandler(BaseRequestHandler):
    """A handler that reads a datagram like a file, and writes one.

    What it has written when it returns is sent to the client, as one datagram.
    Nothing is sent if nothing was written, or after an error.

    Attributes:
      packet: the datagram.
      socket: what to send others with; see `DatagramSocket.sendto`.
    """

    request: Datagram

    def __init__(self, request: Datagram, client_address: Address, server: Any) -> None:
        if not isinstance(request, tuple):
            raise TypeError(
                f"{type(self).__name__} serves datagrams, not {type(request).__name__}s:"
                " derive it from trioserver.StreamRequestHandler"
            )
        super().__init__(request, client_address, server)
        self.packet: bytes = request.data
        self.socket: DatagramSocket = request.socket

    # Few handlers want both of them, and many neither.

    @made_when_needed
    def rfile(self) -> RequestReader:
        """The datagram, to read from."""
        return RequestReader(self.request)

    @made_when_needed
    def wfile(self) -> RequestWriter:
        """The reply, to write to."""
        return RequestWriter(self.request, -1)  # it is sent at the end of the request


def awaitable(handling: object, handler: object) -> Awaitable[object]:
    """``handling``, if it is what a handler returns when called. Ctrl-C may strike in it.

    Raises:
      TypeError: it cannot be awaited.
    """
    if getattr(type(handling), "__await__", None) is BaseRequestHandler.__await__:
        # A chain of coroutines, which the stack of a stuck task can follow.
        return cast("BaseRequestHandler", handling)._serve()
    if isinstance(handling, (CoroutineType, Awaitable)):  # the first is told at once
        return _interruptible(handling)
    name = name_of(handler)
    raise TypeError(
        f"RequestHandlerClass {name} returned {handling!r}, which cannot be awaited: in task mode"
        " a handler is an `async def` function or derives from trioserver.BaseRequestHandler"
    )


@disable_ki_protection
async def _interruptible(handling: Awaitable[object]) -> None:
    await handling


def _enable_nagle(sock: object) -> None:
    if isinstance(sock, socket.socket) and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def _is_clients_doing(error: BaseException) -> bool:
    """Whether nobody would hear of ``error``, as it only says how the client has ended."""
    info = current_request()
    return info is not None and peers_doing(error, info) is not None
