"""Ancillary data of datagrams, as recvmsg(2) calls it: asking the kernel for it, and reading it.

It tells the address a datagram was sent to (on a
wildcard bind the reply has to come from there), who sent it (over a Unix socket),
and how many were dropped before it.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from typing import TypeAlias

import attrs

from .._facts.address import Address
from .transport import PeerCredentials

AncillaryItem: TypeAlias = tuple[int, int, bytes]
"""What the socket module calls an ancillary data item: (level, type, data)."""

_LINUX = sys.platform == "linux"
# Not in the socket module of every Python; the numbers are those of
# <linux/in.h> and <asm-generic/socket.h>.
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8 if _LINUX else None)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
_SO_RXQ_OVFL = 40 if _LINUX else None
_SCM_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", None)
_SCM_RIGHTS = getattr(socket, "SCM_RIGHTS", None)
_WILDCARD = "0.0.0.0"  # noqa: S104  (to recognise one, not to bind to it)
_WILDCARD_V6 = "::"

_in_pktinfo = struct.Struct("i4s4s")  # ip(7): interface, our address, the header's address
_in6_pktinfo = struct.Struct("16sI")  # ipv6(7): the header's address, interface
_ucred = struct.Struct("3i")  # unix(7): process, user, group
_drops = struct.Struct("I")  # socket(7): datagrams dropped since the socket was made

# For items that a program has asked for by an option of its own (the time of
# arrival, say): they can come first, and leave no room for ours.
_ROOM_FOR_OTHERS = 256

# What Linux says of a datagram that was sent before it was asked for credentials.
_NOBODY = PeerCredentials(pid=0, uid=65_534, gid=65_534)


@attrs.define(eq=False)
class Ancillary:
    """What the kernel has told of a datagram."""

    local_address: Address
    dropped: int | None = None
    reply_items: list[AncillaryItem] = attrs.field(factory=list)
    peer_credentials: PeerCredentials | None = None

    @classmethod
    def by(cls, items: Iterable[AncillaryItem], bound: Address) -> Ancillary:
        """What ``items`` say of a datagram that a socket bound to ``bound`` received."""
        ancillary = cls(bound)
        for level, kind, value in items:
            ancillary._understand(level, kind, value)
        return ancillary

    def _understand(self, level: int, kind: int, value: bytes) -> None:
        # There may be items of other kinds, and the last one may be cut off.
        kind_and_size = (level, kind, len(value))
        if kind_and_size == (socket.SOL_SOCKET, _SO_RXQ_OVFL, _drops.size):
            [self.dropped] = _drops.unpack(value)
        elif kind_and_size == (socket.IPPROTO_IP, _IP_PKTINFO, _in_pktinfo.size):
            _, reply_from, _ = _in_pktinfo.unpack(value)
            self._set_local(socket.inet_ntop(socket.AF_INET, reply_from))
            # No interface: the routing table knows better.
            self.reply_items = [(level, kind, _in_pktinfo.pack(0, reply_from, bytes(4)))]
        elif kind_and_size == (socket.IPPROTO_IPV6, _IPV6_PKTINFO, _in6_pktinfo.size):
            asked, interface = _in6_pktinfo.unpack(value)
            address = IPv6Address(asked)
            if not address.is_multicast:  # from which nobody can reply
                interface = interface if address.is_link_local else 0
                self._set_local(str(address), interface)
                self.reply_items = [(level, kind, _in6_pktinfo.pack(asked, interface))]
        elif kind_and_size == (socket.SOL_SOCKET, _SCM_CREDENTIALS, _ucred.size):
            credentials = PeerCredentials(*_ucred.unpack(value))
            self.peer_credentials = None if credentials == _NOBODY else credentials
        elif level == socket.SOL_SOCKET and kind == _SCM_RIGHTS:
            _close_descriptors(value)

    def _set_local(self, host: str, interface: int | None = None) -> None:
        _, port, *rest = self.local_address
        if interface is not None:
            rest[-1] = interface
        self.local_address = (host, port, *rest)


def enable_ancillary(sock: socket.socket, address: Address) -> int:
    """Have the kernel tell of each datagram what it can; returns the bytes that this takes."""
    # On a Unix socket there is none to spare: descriptors would come in.
    room = 0 if is_unix(sock) else _ROOM_FOR_OTHERS
    for level, name, size in _options(sock.family, address):
        with suppress(OSError):  # a kernel that cannot
            sock.setsockopt(level, name, 1)
            room += socket.CMSG_SPACE(size)
    return room


def _options(family: int, address: Address) -> Iterable[tuple[int, int, int]]:
    """Options that ask for ancillary data: level, option, and the size of the item in bytes."""
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


def is_unix(sock: socket.socket) -> bool:
    """Whether it is a Unix socket."""
    return sock.family == getattr(socket, "AF_UNIX", None)
