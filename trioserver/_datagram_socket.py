"""The kernel's datagrams: where they come from, and the way back.

A listener gives one datagram at a time, each with its way back. They all share
one socket, so closing the listener only ends the receiving; the socket itself
closes with the last datagram that could still be answered.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from typing import TypeAlias

import attrs
import trio

from ._address import Address, describe
from ._transport import Data, DatagramTransport, OwnedPath, PeerCredentials

Note: TypeAlias = tuple[int, int, bytes]
"""What the socket module calls an ancillary data item: (level, type, data)."""

UNNAMED = ""
"""The address of a client whose socket is not bound: nobody can reply to it."""

_LINUX = sys.platform == "linux"
# Not in the socket module of every Python; the numbers are those of
# <linux/in.h> and <asm-generic/socket.h>.
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8 if _LINUX else None)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
_SO_RXQ_OVFL = 40 if _LINUX else None
_SCM_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", None)
_SCM_RIGHTS = getattr(socket, "SCM_RIGHTS", None)
# The options of IP_RECVERR and IPV6_RECVERR, from <linux/in.h> and <linux/in6.h>.
_RECVERR: dict[int, tuple[int, int]] = (
    {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
    if _LINUX
    else {}
)
_WILDCARD = "0.0.0.0"  # noqa: S104  (to recognise one, not to bind to it)
_WILDCARD_V6 = "::"

# What Linux takes from SO_RCVBUF for an empty datagram is more (768 bytes on
# x86-64): its headers and its bookkeeping count.
_LEAST_COST = 256

# On a Unix socket they count, whatever their size, up to net.unix.max_dgram_qlen:
# 10 unless raised, and 512 where systemd raises it.
_MOST_ON_UNIX = 4096

_in_pktinfo = struct.Struct("i4s4s")  # ip(7): interface, our address, the header's address
_in6_pktinfo = struct.Struct("16sI")  # ipv6(7): the header's address, interface
_ucred = struct.Struct("3i")  # unix(7): process, user, group
_drops = struct.Struct("I")  # socket(7): datagrams dropped since the socket was made

# For the notes that somebody else has asked for by an option of his own (the
# time of arrival, say): they can come first, and leave no room for ours.
_ROOM_FOR_OTHERS = 256

# What Linux notes on a datagram that was sent before it was asked to note who did.
_NOBODY = PeerCredentials(pid=0, uid=65_534, gid=65_534)


@attrs.define(eq=False)
class DatagramListener:
    """The kernel's: a bound, non-blocking datagram socket, and its path if it has one.

    Attributes:
      largest: bytes of the largest datagram to receive. Of larger ones nothing
        is received: they are an `OSError` of `accept_now`, EMSGSIZE.
      shared: whether others receive from the same socket.
      path: the socket file to remove.
      address: the bound address.
      most_queued: datagrams that the kernel can hold at once, so that a drain
        under a flood comes to an end; 0 once the socket is closed.
      dropped: datagrams that the kernel dropped because nobody had received
        the earlier ones in time, as far as it tells (on Linux, for UDP, as of
        the last datagram received).
    """

    socket: socket.socket
    largest: int
    shared: bool = False
    path: OwnedPath | None = None
    address: Address = attrs.field(init=False)
    dropped: int = 0
    closed: bool = False
    _ways_back: int = 0
    _buffer: bytearray = attrs.field(init=False)
    _keeps_errors: bool = attrs.field(init=False)
    _room_for_notes: int = attrs.field(init=False)
    _turn_to_wait: trio.Lock = attrs.field(factory=trio.Lock)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)
        self.address = self.socket.getsockname()  # kept, because a closed socket has none
        self._buffer = bytearray(self.largest)
        self._keeps_errors = _keeps_errors(self.socket)
        self._room_for_notes = _ask_for_notes(self.socket, self.address)

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
            size, notes, flags, sender = self._receive()
        except BlockingIOError:
            if self._keeps_errors:
                self._forget_errors()
            return None
        client_address = UNNAMED if sender is None else sender
        told = self._understand(notes)
        if flags & socket.MSG_TRUNC:
            raise OSError(
                errno.EMSGSIZE,
                f"dropped a datagram from {describe(client_address)} of more than"
                f" {self.largest} bytes (max_packet_size)",
            )
        data = bytes(memoryview(self._buffer)[:size])
        self._ways_back += 1
        return _Received(self, data, client_address, told), client_address

    def _receive(self) -> tuple[int, list[Note], int, Address]:
        if sys.platform == "win32":  # which has no recvmsg, and raises EMSGSIZE by itself
            size, sender = self.socket.recvfrom_into(self._buffer)
            return size, [], 0, sender
        return self.socket.recvmsg_into([self._buffer], self._room_for_notes)

    def _understand(self, notes: Iterable[Note]) -> _Told:
        told = _Told(self.address)
        for level, kind, value in notes:
            if (level, kind, len(value)) == (socket.SOL_SOCKET, _SO_RXQ_OVFL, _drops.size):
                [self.dropped] = _drops.unpack(value)
            else:
                told.understand(level, kind, value)
        return told

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

    def send_now(self, data: Data, address: Address, notes: Iterable[Note]) -> bool:
        """Send a datagram if that can be done at once; whether it was."""
        if self._keeps_errors:
            # Clears what an earlier one met, which would be raised here.
            self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if notes:
                self.socket.sendmsg([data], notes, 0, address)
            else:
                self.socket.sendto(data, address)
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
        return _is_unix(self.socket)

    def fileno(self) -> int:
        """The file descriptor, -1 once closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Receive no more. The socket stays open as long as there are ways back."""
        if self.closed:
            return
        self.closed = True
        if self.path is not None:
            # Before the close: while our socket lives, its inode number cannot
            # be given to somebody else's file.
            self.path.unlink()
        if self._ways_back and self.is_unix() and not self.shared:
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
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


@attrs.define(eq=False)
class _Told:
    """What the kernel has noted on a datagram."""

    local_address: Address
    reply_notes: list[Note] = attrs.field(factory=list)
    peer_credentials: PeerCredentials | None = None

    def understand(self, level: int, kind: int, value: bytes) -> None:
        """Take one note in; there may be others, and the last one may be cut off."""
        note = (level, kind, len(value))
        if note == (socket.IPPROTO_IP, _IP_PKTINFO, _in_pktinfo.size):
            _, reply_from, _ = _in_pktinfo.unpack(value)
            self._asked(socket.inet_ntop(socket.AF_INET, reply_from))
            # No interface: the routing table knows better.
            self.reply_notes = [(level, kind, _in_pktinfo.pack(0, reply_from, bytes(4)))]
        elif note == (socket.IPPROTO_IPV6, _IPV6_PKTINFO, _in6_pktinfo.size):
            asked, interface = _in6_pktinfo.unpack(value)
            address = IPv6Address(asked)
            if not address.is_multicast:  # from which nobody can reply
                interface = interface if address.is_link_local else 0
                self._asked(str(address), interface)
                self.reply_notes = [(level, kind, _in6_pktinfo.pack(asked, interface))]
        elif note == (socket.SOL_SOCKET, _SCM_CREDENTIALS, _ucred.size):
            credentials = PeerCredentials(*_ucred.unpack(value))
            self.peer_credentials = None if credentials == _NOBODY else credentials
        elif level == socket.SOL_SOCKET and kind == _SCM_RIGHTS:
            _close_descriptors(value)

    def _asked(self, host: str, interface: int | None = None) -> None:
        _, port, *rest = self.local_address
        if interface is not None:
            rest[-1] = interface
        self.local_address = (host, port, *rest)


@attrs.define(eq=False)
class _Received:
    """The kernel's `DatagramTransport`."""

    _listener: DatagramListener
    data: bytes
    _client_address: Address
    _told: _Told
    _open: bool = True
    _pause: float = 0.0

    # Longer each time, as the receiver's queue gives no sign of its own.
    _FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1

    @property
    def local_address(self) -> Address:
        return self._told.local_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        return self._told.peer_credentials

    def send_now(self, data: Data, address: Address) -> bool:
        # From the address that was asked; only to who asked there, for the
        # way to somebody else may lead through another interface.
        notes = self._told.reply_notes if address == self._client_address else ()
        sent = self._listener.send_now(data, address, notes)
        if sent:
            self._pause = 0.0
        return sent

    async def wait_writable(self) -> None:
        if self._listener.is_unix():
            # poll(2) on our socket knows nothing of the receiver's queue, and
            # says "writable" all the time.
            self._pause = min(self._pause * 2 or self._FIRST_PAUSE, self._LONGEST_PAUSE)
            await trio.sleep(self._pause)
        else:
            await self._listener.wait_writable()

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._listener.way_back_closed()


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == getattr(socket, "AF_UNIX", None)


def _keeps_errors(sock: socket.socket) -> bool:
    """Whether somebody has had the kernel keep what becomes of datagrams that were sent."""
    asked = _RECVERR.get(sock.family)
    return asked is not None and bool(sock.getsockopt(*asked))


def _ask_for_notes(sock: socket.socket, address: Address) -> int:
    """Have the kernel note on each datagram what it can; the room that its notes need."""
    # On a Unix socket there is none to spare: descriptors would come in.
    room = 0 if _is_unix(sock) else _ROOM_FOR_OTHERS
    for level, name, size in _notes_to_ask_for(sock.family, address):
        with suppress(OSError):  # a kernel that cannot
            sock.setsockopt(level, name, 1)
            room += socket.CMSG_SPACE(size)
    return room


def _notes_to_ask_for(family: int, address: Address) -> Iterable[tuple[int, int, int]]:
    """Options that ask for notes, each with the size of the note."""
    if family not in {socket.AF_INET, socket.AF_INET6}:
        if _LINUX:
            yield socket.SOL_SOCKET, socket.SO_PASSCRED, _ucred.size
        return
    if _SO_RXQ_OVFL is not None:
        yield socket.SOL_SOCKET, _SO_RXQ_OVFL, _drops.size
    # On a wildcard the kernel would choose the address that a reply comes from.
    if family == socket.AF_INET and address[0] == _WILDCARD and _IP_PKTINFO is not None:
        yield socket.IPPROTO_IP, _IP_PKTINFO, _in_pktinfo.size
    if family == socket.AF_INET6 and address[0] == _WILDCARD_V6 and _IPV6_PKTINFO is not None:
        yield socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, _in6_pktinfo.size


def _close_descriptors(value: bytes) -> None:
    """Close descriptors that a client has passed, and nobody asked for."""
    numbers = array.array("i")
    numbers.frombytes(value[: len(value) - len(value) % numbers.itemsize])
    for number in numbers:
        os.close(number)
