"""One datagram, and the way back to who sent it: what a datagram server's handler gets.

The rules this file keeps:

* Nothing is ever sent that the handler did not write: no forced reply.
* A datagram that cannot be delivered to the client is the client's doing, and
  ends this request at most. One to somebody else is the handler's own affair.
* A send is a checkpoint first, then tried at once, and waits only where it
  would block, for ``Timeouts.write`` seconds at most.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Any, Literal, NamedTuple, Self

import attrs
import trio
from trio.lowlevel import checkpoint

from .._facts.config import LARGEST_PORTION, Limits, Timeouts
from .._facts.errors import PeerGone, WriteTimeout
from .._facts.events import RequestInfo
from .._sockets.transport import Data, DatagramTransport, PeerCredentials
from .any_request import KeepsSlot
from .receiving import cut

# What a send to a client that is not there, or no longer, can meet.
_PEER_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN"),
        # A firewall forbids it; or a Unix client talks to somebody else alone
        # (it has connected its socket to him).
        "EPERM",
        # The file of a Unix client: removed, not ours to write, of another
        # kind by now, shut; or in a folder that is gone, or a circle of links.
        *("ENOENT", "EACCES", "EPROTOTYPE", "EPIPE", "ENOTDIR", "ELOOP"),
    )
)


class DatagramSocket:
    """The way back from one datagram: what is left of a socket when many requests share it.

    It sends, as long as its request lasts. Receiving and closing are the server's.
    """

    def __init__(self, transport: DatagramTransport, info: RequestInfo, timeout: float) -> None:
        self._transport = transport
        self._info = info
        self._timeout = timeout
        self._waits: list[trio.CancelScope] = []
        self._closed = False
        self._total = 0

    def __repr__(self) -> str:
        return f"<trioserver.DatagramSocket: {self._info}>"

    def getsockname(self) -> Any:
        """The address that the datagram was sent to; of a wildcard bind the very one of those."""
        return self._info.server_address

    def fileno(self) -> int:
        """The file descriptor of the server's socket; -1 where there is none."""
        return -1 if self._closed else self._transport.fileno()

    async def sendto(self, data: Data, address: Any) -> int:
        """Send one datagram.

        Args:
          data: at most what the protocol takes (65 507 bytes over IPv4).
          address: commonly ``client_address``; to there it goes from the
            address that was asked, also where the server is bound to a wildcard.
            A host in numbers: to look a name up would keep everybody waiting.

        Returns:
          The bytes of ``data``.

        Raises:
          PeerGone: the client cannot be reached, or has no address.
          WriteTimeout: the client's queue was full for ``Timeouts.write`` seconds.
          OSError: the system refused it (EMSGSIZE: too large), or it is for
            somebody else who cannot be reached; the latter's queue being full
            is a `TimeoutError`.
          trio.ClosedResourceError: the request is over.

        Cancelled, nothing was sent: a datagram leaves whole or not at all.
        """
        view = memoryview(data).cast("B")
        await checkpoint()
        self._check_open()
        if address == self._info.client_address and (fault := _no_way_back(address)):
            raise PeerGone(fault, info=self._info)
        try:
            if not self._transport.send_now(view, address):
                await self._send_when_possible(view, address)
        except OSError as error:
            if self._is_clients_doing(error, address):
                fault = f"the client cannot be reached: {error.strerror or error}"
                raise PeerGone(fault, info=self._info) from error
            raise
        self._total += view.nbytes
        return view.nbytes

    async def _send_when_possible(self, data: Data, address: Any) -> None:
        with trio.move_on_after(self._timeout) as patience:
            self._waits.append(patience)
            try:
                while True:
                    await self._transport.wait_writable()
                    self._check_open()
                    if self._transport.send_now(data, address):
                        return
            finally:
                self._waits.remove(patience)
        self._check_open()
        # Asked once more when the time is up: room made in time counts.
        if not self._transport.send_now(data, address):
            message = f"no room for a datagram for {self._timeout:g} s (write)"
            if address == self._info.client_address:
                raise WriteTimeout(message, info=self._info)
            raise TimeoutError(message)

    def _is_clients_doing(self, error: OSError, address: Any) -> bool:
        return address == self._info.client_address and error.errno in _PEER_ERRORS

    def _close(self) -> None:
        """Send no more; who waits to is told (`trio.ClosedResourceError`)."""
        self._closed = True
        for wait in self._waits:
            wait.cancel(reason="the way back was closed")

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the request is over, and its way back is closed")


def _no_way_back(address: Any) -> str | None:
    """Why nobody can be reached at a client's address; None if somebody can."""
    if isinstance(address, tuple):
        nobody = address[1:2] == (0,)
        return "the client sent from port 0, where nobody receives" if nobody else None
    return None if address else "the client's socket has no address to reply to"


class _Pair(NamedTuple):
    data: bytes
    socket: DatagramSocket


class Datagram(_Pair):
    """One datagram, as a pair: ``data, socket = request``, like the classic one.

    The server makes it, and closes its way back when the request is over.

    Attributes:
      data: what was received, whole: never cut, possibly empty.
      socket: what to reply with.
      info: the facts of the request.
      timeouts: the server's.
      limits: the server's.
      cancel_scope: the request's own scope; move its deadline, or cancel it
        with a reason.
      idle_timeout: assignable, as on a connection; nothing waits for it.
    """

    info: RequestInfo
    timeouts: Timeouts
    limits: Limits
    cancel_scope: trio.CancelScope
    idle_timeout: float
    _transport: DatagramTransport
    _receiver: _Packet
    _sender: _Reply
    _handlers_not_awaited: int
    _buffered_operations: int
    _must_not_linger: bool
    _left_behind: KeepsSlot | None
    _was_killed: bool

    def __new__(
        cls,
        transport: DatagramTransport,
        info: RequestInfo,
        *,
        timeouts: Timeouts,
        limits: Limits,
    ) -> Self:
        way_back = DatagramSocket(transport, info, timeouts.write)
        self = super().__new__(cls, transport.data, way_back)
        self.info = info
        self.timeouts = timeouts
        self.limits = limits
        self.cancel_scope = trio.CancelScope(deadline=info.started + timeouts.request)
        self.idle_timeout = timeouts.idle
        self._transport = transport
        self._receiver = _Packet(self.socket, bytearray(transport.data))
        self._sender = _Reply(self.socket)
        self._handlers_not_awaited = 0
        self._buffered_operations = 0
        self._must_not_linger = False
        self._left_behind = None
        self._was_killed = False
        return self

    def __repr__(self) -> str:
        return f"<trioserver.Datagram: {self.info}, {len(self.data)} bytes>"

    @property
    def client_address(self) -> Any:
        """Who sent it; ``""`` for a Unix client whose socket is not bound."""
        return self.info.client_address

    @property
    def server_address(self) -> Any:
        """The address it was sent to; of a wildcard bind the very one, where the system tells."""
        return self.info.server_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Who sent it over a Unix socket; None where the system does not tell."""
        return self._transport.peer_credentials

    def user_id(self) -> int | None:
        """The user id of who sent it over a Unix socket; None where it cannot be told."""
        credentials = self.peer_credentials
        return None if credentials is None else credentials.uid

    @property
    def bytes_received(self) -> int:
        """The size of the datagram."""
        return len(self.data)

    @property
    def bytes_sent(self) -> int:
        """Bytes sent so far, in however many datagrams."""
        return self.socket._total

    @property
    def state(self) -> Literal["working", "writing", "closed"]:
        """What the request is doing now."""
        if self.socket._closed:
            return "closed"
        return "writing" if self.socket._waits else "working"

    @property
    def write_timeout(self) -> float:
        """Seconds a send waits for room; ``Timeouts.write`` unless assigned."""
        return self.socket._timeout

    @write_timeout.setter
    def write_timeout(self, seconds: float) -> None:
        self.socket._timeout = attrs.evolve(self.timeouts, write=seconds).write

    async def reply(self, data: Data) -> None:
        """Send one datagram to the client; see `DatagramSocket.sendto`."""
        await self.socket.sendto(data, self.client_address)

    def idle(self) -> contextlib.AbstractContextManager[None]:
        """A block that does nothing: a datagram is a request that has begun.

        So that a handler can be written for streams and datagrams at once.
        """
        return contextlib.nullcontext()

    def fileno(self) -> int:
        """The file descriptor of the server's socket; -1 where there is none."""
        return self.socket.fileno()

    # Closing ---------------------------------------------------------------

    def close(self) -> None:
        """Give up the way back; nothing can be sent any more. Twice is once."""
        self.socket._close()
        self._transport.close()

    reset = close

    async def aclose(self) -> None:
        """The same, as a checkpoint."""
        self.close()
        await checkpoint()

    async def linger(self) -> None:
        """Nothing: what was sent cannot be lost by closing."""

    async def _flush(self) -> None:
        """Send what the handler has written to ``wfile``, if anything, as one datagram."""
        if self._sender.buffer and not self.socket._closed:
            written = bytes(self._sender.buffer)
            self._sender.buffer.clear()
            await self.reply(written)

    # For the drain: a datagram waits for nothing more to arrive.

    _new_until = float("-inf")
    _ended_idle = False
    _must_linger = False

    def _end_idle_waits(self) -> None:
        """There are none."""


@attrs.define(eq=False)
class _Packet:
    """What a reader reads from: input that has come to its end."""

    _socket: DatagramSocket
    buffer: bytearray
    portion: int = LARGEST_PORTION
    at_eof: bool = True

    def check(self) -> None:
        """Raise what a read would raise before it did anything."""
        self._socket._check_open()

    def take(self, size: int) -> bytes:
        """Take up to ``size`` bytes."""
        return cut(self.buffer, size)

    async def fill(self, *, between_requests: bool = False, deadline: float = 0) -> bool:
        """Nothing will come; false, as at any end of input."""
        await checkpoint()
        self.check()
        return False


@attrs.define(eq=False)
class _Reply:
    """What a writer writes to: collects one datagram, which the request sends at its end."""

    _socket: DatagramSocket
    buffer: bytearray = attrs.field(factory=bytearray)

    def check(self) -> None:
        """Raise what a write would raise before it did anything."""
        self._socket._check_open()

    async def send_all(self, data: Data) -> None:
        """Add to the datagram."""
        await checkpoint()
        self.check()
        self.buffer += data

    async def flush(self) -> None:
        """Nothing leaves before its end is written: that would be another datagram."""
        self.check()
