"""The kernel's datagrams: where they come from, and the way back.

A listener gives one datagram at a time, each with its way back. They all share
one socket, so closing the listener only ends the receiving; the socket itself
closes with the last datagram that could still be answered.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from socket import socket as KernelSocket  # noqa: N812  (the class has an attribute of that name)

import attrs
import trio

from .._facts.address import Address, describe
from .._facts.backoff import Backoff
from .ancillary import Ancillary, AncillaryItem, enable_ancillary, is_unix
from .descriptors import Identity, close_socket, identity_of
from .making import NO_SIGNAL, duplicate_of
from .sharing import others_hold
from .transport import Data, DatagramTransport, PeerCredentials
from .unix_path import BoundPath

UNNAMED = ""
"""The address of a client whose socket is not bound: nobody can reply to it."""

_LINUX = sys.platform == "linux"
# The options of IP_RECVERR and IPV6_RECVERR, from <linux/in.h> and <linux/in6.h>,
# which the socket module does not have.
_RECVERR: dict[int, tuple[int, int]] = (
    {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
    if _LINUX
    else {}
)

# A plain int: an operation with the enum's member takes longer than the system call's own share.
_CUT = int(socket.MSG_TRUNC)

# What Linux takes from SO_RCVBUF for an empty datagram is more (768 bytes on
# x86-64): its headers and its bookkeeping count.
_LEAST_COST = 256

# On a Unix socket they count, whatever their size, up to net.unix.max_dgram_qlen:
# 10 unless raised, and 512 where systemd raises it.
_MOST_ON_UNIX = 4096


@attrs.define(eq=False)
class DatagramListener:
    """The kernel's: a bound, non-blocking datagram socket, and its path if it has one.

    Attributes:
      largest: bytes of the largest datagram to receive. Of larger ones nothing
        is received: they are an `OSError` of `accept_now`, EMSGSIZE.
      was_given: whether somebody else has bound the socket, who may have it still.
      path: the socket file to remove.
      is_kept: whether a service manager keeps it; see `SocketListener`.
      address: the bound address.
      most_queued: datagrams that the kernel can hold at once, so that a drain
        under a flood comes to an end; 0 once the socket is closed.
      dropped: datagrams that the kernel dropped because nobody had received
        the earlier ones in time, as far as it tells (on Linux, for UDP, as of
        the last datagram received).
    """

    socket: socket.socket
    largest: int
    was_given: bool = False
    path: BoundPath | None = None
    is_kept: bool = attrs.field(default=False, kw_only=True)
    address: Address = attrs.field(init=False)
    dropped: int = 0
    closed: bool = False
    _identity: Identity | None = None
    _ways_back: int = 0
    _view: memoryview = attrs.field(init=False)
    _keeps_errors: bool = attrs.field(init=False)
    _room_for_notes: int = attrs.field(init=False)
    _no_notes: Ancillary = attrs.field(init=False)
    _turn_to_wait: trio.Lock = attrs.field(factory=trio.Lock)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)
        self.address = self.socket.getsockname()  # kept, because a closed socket has none
        self._view = memoryview(bytearray(self.largest))
        self._no_notes = Ancillary(self.address)
        self._keeps_errors = _keeps_errors(self.socket)
        self._room_for_notes = enable_ancillary(self.socket, self.address)

    @property
    def shared(self) -> bool:
        return self.was_given and not self.is_kept and others_hold(self.socket)

    @property
    def most_queued(self) -> int:
        if self.fileno() == -1:
            return 0
        room = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        most = room // _LEAST_COST + 1
        return max(most, _MOST_ON_UNIX) if self.is_unix() else most

    def listen(self, backlog: int) -> None:
        """Nothing: a bound socket receives."""

    def accept_now(self) -> tuple[DatagramTransport, Address] | None:
        """The next datagram and who sent it, None if there is none."""
        if self.closed:
            raise OSError(errno.EBADF, "the listener is closed")
        try:
            size, items, flags, sender = self._receive()
        except BlockingIOError:
            if self._keeps_errors:
                self._forget_errors()
            return None
        client_address = UNNAMED if sender is None else sender
        ancillary = Ancillary.by(items, self.address) if items else self._no_notes
        if ancillary.dropped is not None:
            self.dropped = ancillary.dropped
        if flags & _CUT:
            raise OSError(
                errno.EMSGSIZE,
                f"dropped a datagram from {describe(client_address)} of more than"
                f" {self.largest} bytes (max_packet_size)",
            )
        self._ways_back += 1
        data = self._view[:size].tobytes()
        return _Received(self, data, client_address, ancillary), client_address

    def _receive(self) -> tuple[int, list[AncillaryItem], int, Address]:
        if sys.platform == "win32":  # which has no recvmsg, and raises EMSGSIZE by itself
            size, sender = self.socket.recvfrom_into(self._view)
            return size, [], 0, sender
        return self.socket.recvmsg_into([self._view], self._room_for_notes)

    def _forget_errors(self) -> None:
        """Empty the queue that ip(7) calls IP_RECVERR: poll(2) never waits while it is full."""
        with suppress(OSError):
            while True:
                self.socket.recvmsg(0, 0, socket.MSG_ERRQUEUE)

    async def wait_acceptable(self) -> None:
        """Wait until `accept_now` has an answer."""
        if self.closed:
            raise trio.ClosedResourceError("the listener is closed")
        await trio.lowlevel.wait_readable(self.socket)

    def send_now(self, data: Data, address: Address, items: Iterable[AncillaryItem]) -> bool:
        """Send a datagram if that can be done at once; whether it was."""
        if self._keeps_errors:
            # Clears what an earlier one met, which would be raised here.
            self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if items:
                self.socket.sendmsg([data], items, NO_SIGNAL, address)
            else:
                self.socket.sendto(data, NO_SIGNAL, address)
        except BlockingIOError:
            return False
        return True

    async def wait_writable(self) -> None:
        """Wait until the socket's own buffer has room."""
        # Trio lets one task at a time wait for a socket; here many can want to.
        async with self._turn_to_wait:
            await trio.lowlevel.wait_writable(self.socket)

    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return is_unix(self.socket)

    def fileno(self) -> int:
        """The file descriptor, -1 once closed."""
        return self.socket.fileno()

    def show(self) -> int:
        """The descriptor's number for a handler, which may close it: remember which file it is."""
        if self._identity is None:
            self._identity = identity_of(self.fileno())
        return self.fileno()

    def duplicate(self) -> KernelSocket:
        """One more socket for the same queue."""
        return duplicate_of(self.socket)

    def leave(self) -> None:
        """Receive no more, and leave the queue, and its file, to somebody else."""
        self.path, self.was_given = None, True
        self.close()

    def close(self) -> None:
        """Receive no more. The socket stays open as long as there are ways back."""
        if self.closed:
            return
        self.closed = True
        if self.path is not None and not self.is_kept:
            self.path.unlink()  # before the close
        if self._ways_back and self.is_unix() and not (self.was_given or self.is_kept):
            # Tells who sends from now on (EPIPE), and who waits to; UDP cannot.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)
        self._close_if_unused()

    def way_back_closed(self) -> None:
        """One datagram less that could be answered."""
        self._ways_back -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.closed and not self._ways_back and self.socket.fileno() != -1:
            close_socket(self.socket, self._identity)


@attrs.define(eq=False)
class _Received:
    """The kernel's `DatagramTransport`."""

    _listener: DatagramListener
    data: bytes
    _client_address: Address
    _ancillary: Ancillary
    _open: bool = True
    # Made when it is needed, as most replies never wait. The pauses grow because the
    # receiver's queue gives no sign of its own.
    _backoff: Backoff | None = None

    @property
    def local_address(self) -> Address:
        return self._ancillary.local_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        return self._ancillary.peer_credentials

    def send_now(self, data: Data, address: Address) -> bool:
        # From the address that was asked; only to who asked there, for the
        # way to somebody else may lead through another interface.
        items = self._ancillary.reply_items if address == self._client_address else ()
        sent = self._listener.send_now(data, address, items)
        if sent:
            self._backoff = None
        return sent

    async def wait_writable(self) -> None:
        if self._listener.is_unix():
            # poll(2) on our socket knows nothing of the receiver's queue, and
            # says "writable" all the time.
            self._backoff = self._backoff or Backoff(0.001, 0.1)
            await trio.sleep(self._backoff.grow())
        else:
            await self._listener.wait_writable()

    def fileno(self) -> int:
        return self._listener.show()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._listener.way_back_closed()


def _keeps_errors(sock: socket.socket) -> bool:
    """Whether somebody has had the kernel keep what becomes of datagrams that were sent."""
    asked = _RECVERR.get(sock.family)
    return asked is not None and bool(sock.getsockopt(*asked))
