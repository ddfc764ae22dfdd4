"""One datagram, and the way back to who sent it: what a datagram server's handler gets.

The rules this file keeps:

* Nothing is ever sent that the handler did not write: no forced reply.
* The request ends when the handler does: a datagram waits for nothing more to arrive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import attrs
import trio
from trio.lowlevel import checkpoint

from .._facts.address import Address
from .._facts.callables import close_unawaited
from .._facts.config import LARGEST_PORTION, Limits, Timeouts
from .._facts.events import RequestInfo
from .._facts.made_when_needed import made_when_needed
from .._sockets.transport import Data, DatagramTransport
from .client import OfClient
from .datagram_socket import DatagramSocket
from .receiving import Reader
from .stream_state import cut, cut_line

ReplyFunction: TypeAlias = Callable[[bytes, Address, Any], Data | None]
"""A plain function that answers a datagram: called with its data, the client and the server."""


class _Pair(NamedTuple):
    data: bytes
    socket: DatagramSocket


class Datagram(OfClient, _Pair):
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
    _reply: _Reply | None = None  # a look whether it is there must not make a dict of each datagram

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
        return self

    @made_when_needed
    def _receiver(self) -> _Packet:
        return _Packet(self.socket, bytearray(self.data))

    @property
    def _sender(self) -> _Reply:
        if self._reply is None:
            self._reply = _Reply(self.socket)
        return self._reply

    def __repr__(self) -> str:
        return f"<trioserver.Datagram: {self.info}, {len(self.data)} bytes>"

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
        """Close it, and execute a checkpoint."""
        self.close()
        await checkpoint()

    async def linger(self) -> None:
        """Nothing: what was sent cannot be lost by closing."""

    @property
    def _has_unsent(self) -> bool:
        return self._reply is not None and bool(self._reply.buffer) and not self.socket._closed

    async def _flush(self) -> None:
        """Send what the handler has written to ``wfile``, if anything, as one datagram."""
        if self._has_unsent:
            written = bytes(self._sender.buffer)
            self._sender.buffer = bytearray()
            await self.reply(written)

    def _note_arrival(self) -> None:
        """Do nothing: the datagram is there already."""

    # For the drain: a datagram waits for nothing more to arrive.

    _new_until = float("-inf")
    _ended_idle = False
    _must_linger = False

    def _end_idle_waits(self) -> None:
        """Do nothing: a datagram is complete, so its handler waits for no input."""


def checked_reply(reply: object) -> Data | None:
    """What a plain function has answered with, if it is fit to be sent.

    Raises:
      TypeError: it is no bytes.
    """
    if reply is None or isinstance(reply, (bytes, bytearray, memoryview)):
        return reply
    close_unawaited(reply)
    raise TypeError(
        f"a plain function answers a datagram with bytes, or None, not {reply!r}: one that waits"
        " is an `async def`"
    )


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

    def take_line(self, most: int) -> bytes | None:
        """The next line, if it has an end, and up to ``most`` bytes; raises as `check` does."""
        self.check()
        return cut_line(self.buffer, most)

    async def next_line(self, most: int, reader: Reader) -> bytes:
        """There is none: all was there from the beginning."""
        await checkpoint()
        self.check()
        raise StopAsyncIteration

    async def fill(self, *, between_requests: bool = False, deadline: float = 0) -> bool:
        """Nothing will come; false, as at any end of input."""
        await checkpoint()
        self.check()
        return False


@attrs.define(eq=False)
class _Reply:
    """What a writer writes to: collects one datagram, which the request sends at its end."""

    _socket: DatagramSocket
    buffer: bytearray | bytes = attrs.field(factory=bytearray)

    def check(self) -> None:
        """Raise what a write would raise before it did anything."""
        self._socket._check_open()

    def keep(self, data: Data) -> None:
        """Append to the datagram that is sent when the handler has returned."""
        self.check()
        self.buffer += data

    send_at_once = keep

    async def flush(self) -> None:
        """Nothing leaves before its end is written: that would be another datagram."""
        self.check()
