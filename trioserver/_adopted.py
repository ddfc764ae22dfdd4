"""A server over an object of `socketserver`: its hooks, called where they may block.

The object was built, and commonly bound, by somebody else. Its socket is our
listener, what its ``get_request`` returns is lent to a thread for as long as the
request lasts, and each of its other methods is called in a thread, one at a time
for each request, as ever.
"""

from __future__ import annotations

import errno
import select
import socket
import socketserver
import ssl
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from ._accept import Tier, tier_of
from ._address import Address
from ._blocking_socket import BlockingSocket
from ._datagram import Datagram
from ._errors import PeerGone
from ._events import RequestInfo
from ._fields import make_fields
from ._lent import LentConnection
from ._receiving import Drain
from ._request import Exchange
from ._threads import ThreadingMixIn
from ._transport import Data, Listener, PeerCredentials, SocketTransport
from ._worker_thread import ThreadCall

T = TypeVar("T")


def overrides(theirs: socketserver.BaseServer, *names: str) -> bool:
    """Whether a method is not the one that `socketserver` gives its classes."""
    return any(
        getattr(getattr(theirs, name, None), "__module__", None) != socketserver.__name__
        for name in names
        if hasattr(theirs, name)
    )


# Their requests -----------------------------------------------------------------------


@attrs.define(eq=False)
class AdoptedTransport(SocketTransport):
    """Our own descriptor for a connection, beside the object that theirs is.

    Attributes:
      theirs: what ``get_request`` returned; if that is a plain socket, a twin of
        it that keeps account of its use.
      needs_handshake: whether TLS has still to be agreed on.
      in_use: whether a thread works with theirs, so that it alone may close it.
    """

    theirs: Any = None
    needs_handshake: bool = False
    in_use: bool = False

    @classmethod
    def of(cls, request: Any) -> AdoptedTransport:
        """The transport beneath a request.

        Raises:
          TypeError: it is no socket.
        """
        if not isinstance(request, socket.socket):
            raise TypeError(f"get_request must return a socket of socket.socket, not {request!r}")
        if type(request) is socket.socket:
            return cls(request, BlockingSocket.twin_of(request))
        if request.gettimeout() == 0:
            request.setblocking(True)  # on some systems accept hands the listener's mode on
        ours = socket.socket(
            request.family, request.type, request.proto, fileno=socket.dup(request.fileno())
        )
        tls = isinstance(request, ssl.SSLSocket)
        return cls(ours, request, tls and not getattr(request, "do_handshake_on_connect", True))

    def close(self) -> None:
        super().close()
        if self.in_use:
            return
        if isinstance(self.theirs, BlockingSocket):
            self.theirs.end()  # its close() would tell the peer of an orderly end
        else:
            self.theirs.close()

    def lend(self, connection: LentConnection, *, ends_idle: bool) -> None:
        """Begin to keep account of what happens in it, as far as that can be seen."""
        use = connection._open_loan(ends_idle=ends_idle)
        if isinstance(self.theirs, BlockingSocket):
            self.theirs.keep_account(use)


@attrs.define(eq=False)
class AdoptedDatagramTransport:
    """One datagram, as the pair that ``get_request`` returned."""

    theirs: Any
    local_address: Address
    peer_credentials: PeerCredentials | None = None
    in_use: bool = False

    @property
    def data(self) -> bytes:
        return bytes(self.theirs[0])

    def send_now(self, data: Data, address: Address) -> bool:
        self.theirs[1].sendto(data, address)
        return True

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Their socket is closed with their server."""


# Their listener -----------------------------------------------------------------------


class AdoptedListener:
    """Where their clients come from."""

    shared = False

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._socket: Any = theirs.socket
        self.address: Address = self._socket.getsockname()
        self._datagrams = self._socket.type == socket.SOCK_DGRAM
        self._closed = False
        self._gets_its_own = overrides(theirs, "get_request")
        if self._datagrams:
            # Blocking, for its handlers send with it; but not for a receive, when
            # the kernel has woken us for a datagram that it then finds broken.
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _NO_TIME)
        else:
            self._socket.settimeout(0)
        if isinstance(self._socket, ssl.SSLSocket):
            theirs.socket.do_handshake_on_connect = False  # not in Trio's thread

    def listen(self, backlog: int) -> None:
        """Nothing: it does already."""

    def accept_now(self) -> tuple[Any, Address] | None:
        """What their ``get_request`` returns."""
        if self._closed:
            raise OSError(errno.EBADF, "the listener is closed")
        if not _has_somebody(self._socket):
            return None  # as ever, get_request is not called for nobody: it may wait, or tell
        try:
            request, client_address = self._theirs.get_request()
        except BlockingIOError:
            return None
        except OSError as error:
            theirs = self._gets_its_own and self._socket.fileno() != -1
            if not theirs or tier_of(error) is not Tier.FATAL:
                raise
            # For socketserver every error in it is one client's, as of a TLS handshake.
            raise ConnectionAbortedError(errno.ECONNABORTED, f"get_request: {error}") from error
        if self._datagrams:
            return AdoptedDatagramTransport(request, self.address), client_address
        try:
            return AdoptedTransport.of(request), client_address
        except BaseException:
            self._theirs.close_request(request)
            raise

    async def wait_acceptable(self) -> None:
        """Wait until `accept_now` has an answer."""
        if self._closed:
            raise trio.ClosedResourceError("the listener is closed")
        await trio.lowlevel.wait_readable(self._socket)

    def close(self) -> None:
        """Accept no more. A datagram socket stays open for replies, until their server closes."""
        if self._closed:
            return
        self._closed = True
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            if not self._datagrams:
                self._socket.close()


def _has_somebody(sock: socket.socket) -> bool:
    if sock.fileno() == -1:
        return True  # get_request says what that means
    if sys.platform == "win32":
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


# The least that is not 0, which would mean "for ever": one microsecond.
_NO_TIME = (0).to_bytes(8, "little") + (1).to_bytes(8, "little")


# The server ---------------------------------------------------------------------------


@make_fields
class AdoptedServer(ThreadingMixIn):
    """Serves with the methods of a `socketserver` object."""

    def __init__(self, theirs: Any, **fields: Any) -> None:
        self.theirs = theirs
        self.socket_type: int = theirs.socket.type
        self._verifies = overrides(theirs, "verify_request")
        self._parts = overrides(theirs, "shutdown_request", "close_request")
        if overrides(theirs, "service_actions"):
            self.service_actions = self._service_actions  # type: ignore[method-assign]
        super().__init__(theirs.server_address, _never_called, **fields)

    @classmethod
    def _check_handler(cls, handler: object) -> None:
        """Their own affair."""

    async def server_bind(self) -> Sequence[Listener]:
        """Take their socket."""
        return self._keep([AdoptedListener(self.theirs)])

    def _exchange_over(self, transport: Any, info: RequestInfo, drain: Drain) -> Exchange:
        if isinstance(transport, AdoptedDatagramTransport):
            return Datagram(transport, info, timeouts=self.timeouts, limits=self.limits)
        connection = LentConnection(
            transport, info, timeouts=self.timeouts, limits=self.limits, drain=drain
        )
        transport.lend(connection, ends_idle=self.ends_idle_reads)
        return connection

    # Their hooks, each in a thread ---------------------------------------------------

    async def verify_request(self, request: Any, client_address: Address) -> bool:
        """Agree on TLS, if that is due, and call theirs."""
        if getattr(request._transport, "needs_handshake", False):
            await self._in_thread(request, partial(_shake_hands, request))
        if not self._verifies:
            return True
        verify = partial(self.theirs.verify_request, request._transport.theirs, client_address)
        return bool(await self._in_thread(request, verify))

    async def finish_request(self, request: Any, client_address: Address) -> None:
        """Call theirs."""
        theirs = request._transport.theirs
        await self._in_thread(request, partial(self.theirs.finish_request, theirs, client_address))

    async def handle_error(self, request: Any, client_address: Address) -> None:
        """Call theirs, with the error as `sys.exception`."""
        theirs = request._transport.theirs
        handle = partial(self.theirs.handle_error, theirs, client_address)
        await self._in_thread(request, partial(_in_the_light_of, sys.exception(), handle))

    async def shutdown_request(self, request: Any) -> None:
        """Call theirs, unless a thread that was left behind will; then linger and close."""
        if request._left_behind is None:
            theirs = request._transport.theirs
            if self._parts:
                await self._in_thread(request, partial(self.theirs.shutdown_request, theirs))
            else:
                self.theirs.shutdown_request(theirs)
        if isinstance(request, LentConnection):
            request._take_back()
        await super().shutdown_request(request)

    async def _service_actions(self) -> None:
        await trio.to_thread.run_sync(self.theirs.service_actions)

    async def _in_thread(self, request: Any, function: Callable[[], T]) -> T:
        is_connection = isinstance(request, LentConnection)
        call = self._call_for(request, request._interrupt if is_connection else lambda: None)
        request._transport.in_use = True
        try:
            return await call.run(partial(self._call, call, request, function))
        finally:
            request._transport.in_use = not call.is_over()

    def _call(self, call: ThreadCall, request: Any, function: Callable[[], T]) -> T:
        """What a thread does."""
        theirs = request._transport.theirs
        try:
            return function()
        except OSError as error:
            ended = theirs.as_ended(error) if isinstance(theirs, BlockingSocket) else None
            if ended is None:
                raise
            try:
                raise ended from error
            finally:
                del ended  # no cycles
        finally:
            if call.interrupted and request._left_behind is call:
                self.theirs.shutdown_request(theirs)


def _never_called(request: Any, client_address: Address, server: Any) -> None:
    """Their object has a handler of its own."""


def _shake_hands(request: Any) -> None:
    transport = request._transport
    transport.needs_handshake = False
    try:
        transport.theirs.do_handshake()
    except OSError as error:  # ssl.SSLError is one
        message = f"the client did not agree on TLS: {error.strerror or error}"
        raise PeerGone(message, info=request.info) from error


def _in_the_light_of(error: BaseException | None, function: Callable[[], T]) -> T:
    """Call ``function`` with ``error`` as `sys.exception`, as it is in the calling thread."""
    error = error or RuntimeError("handle_error was called without an error")
    before = error.__traceback__
    try:
        raise error
    except BaseException:  # noqa: BLE001  (the function asks for it)
        return function()
    finally:
        # The frames of this thread hold what was called, and that the error: no cycles.
        error.__traceback__ = before
        del error
