"""How the library makes sockets, and the flags with which it uses them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from typing import Any, TypeAlias, TypeVar

if sys.platform != "win32":
    import fcntl
    import termios

Kind: TypeAlias = tuple[int, int, int]
"""Family, type and protocol."""

# "Reset on close" (socket(7)): linger on, for no time.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


# Has an operation not wait, whatever the descriptor's mode; so the mode need not be set,
# which would be a system call for each connection. Where there is none (Windows), it is.
NOT_WAITING = int(getattr(socket, "MSG_DONTWAIT", 0))

# Has a send to a peer that is gone be an error and no more. By default SIGPIPE then kills
# the program; Python ignores it, but a program can have set it back, as for `program | head`.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))

SENDING = NOT_WAITING | NO_SIGNAL

# The same as an option of the socket, for systems (macOS) that have no such flag.
_SO_NOSIGPIPE = 0x1022 if sys.platform == "darwin" and not NO_SIGNAL else None


def spare_the_program(sock: socket.socket) -> None:
    """Have no send on this socket kill the program, where the flag cannot say so."""
    if _SO_NOSIGPIPE is not None:
        with contextlib.suppress(OSError):  # the peer is gone already
            sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)


# Making sockets. Each gets `socket.setdefaulttimeout`, which is the program's to set, at any
# time: with a time-out Python waits in poll() before it asks the kernel, NOT_WAITING or not,
# and who waits here is Trio's own thread. So all that the library makes are made here.

S = TypeVar("S", bound=socket.socket)


def socket_of(kind: Kind, number: int) -> socket.socket:
    """A socket for a descriptor, for which Python does not wait; the descriptor is as it was.

    Args:
      kind: family, type and protocol.
      number: the descriptor.
    """
    return object_of(socket.socket, kind, number)


def object_of(of: type[S], kind: Kind, number: int) -> S:
    """An object of class ``of`` for the descriptor ``number``, whose kind is known."""
    # With a default Python sets the mode, which all have in common who have the same file.
    blocks = None if socket.getdefaulttimeout() is None else _blocks(number)
    sock = of(*kind, fileno=number)
    if blocks is not None or socket.socket.gettimeout(sock) is not None:
        do_not_wait(sock)
        if blocks is False:
            os.set_blocking(number, False)
    return sock


def accept_from(listener: socket.socket, kind: Kind) -> tuple[socket.socket, Any]:
    """Accept a connection as `socket.accept` does: a socket for it, and the client's address.

    That one asks the listener for its kind each time, which makes two enums.

    Args:
      listener: it.
      kind: its family, type and protocol.
    """
    number, address = listener._accept()  # type: ignore[attr-defined]
    sock = socket.socket(*kind, fileno=number)
    if not NOT_WAITING or sock.gettimeout() is not None:
        do_not_wait(sock)
    return sock, address


def new_socket(family: int, kind: int) -> socket.socket:
    """A new socket, non-blocking."""
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two stream sockets connected to each other, blocking."""
    pair = socket.socketpair()
    for sock in pair:
        sock.settimeout(None)
    return pair


def twin_of(sock: socket.socket) -> socket.socket:
    """A plain socket, and another descriptor, for the same thing."""
    return socket_of(kind_of(sock), socket.dup(sock.fileno()))


def duplicate_of(sock: socket.socket) -> socket.socket:
    """The same for somebody else, non-blocking as its descriptor is."""
    twin = twin_of(sock)
    twin.setblocking(False)
    return twin


def socket_at(number: int) -> socket.socket:
    """A socket for a descriptor of unknown kind; whether that blocks is as it was.

    Raises:
      OSError: it is no socket.
    """
    blocks = _blocks(number)
    sock = socket.socket(fileno=number)
    sock.setblocking(blocks is not False)
    return sock


def do_not_wait(sock: socket.socket) -> None:
    """Have Python not wait by itself: its time-outs know nothing of a drain."""
    if NOT_WAITING:
        socket.socket.settimeout(sock, None)
    else:
        socket.socket.setblocking(sock, False)


def kind_of(sock: socket.socket) -> Kind:
    """Family, type and protocol, as plain numbers."""
    return _FAMILY(sock), _TYPE(sock), sock.proto


# What is beneath: the attributes of `socket.socket` look each number up in an enum.
_FAMILY = socket.SocketType.family.__get__
_TYPE = socket.SocketType.type.__get__


def _blocks(number: int) -> bool | None:
    """Whether the descriptor's mode is to block; None where that cannot be told (Windows)."""
    return os.get_blocking(number) if NOT_WAITING else None


def accept_queue_of(sock: socket.socket) -> int | None:
    """How many connections wait in a listening socket to be accepted; None where nobody tells.

    Linux does, and for TCP: there the field of a listening socket that has the segments without
    an ACK otherwise is the length of its queue (``tcp_get_info`` in net/ipv4/tcp.c).
    """
    if sys.platform != "linux":
        return None
    fields = struct.Struct("8B5I")  # struct tcp_info up to tcpi_unacked, linux/tcp.h
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, fields.size)
    except OSError:  # it is closed, or of a Unix socket
        return None
    return int(fields.unpack(raw)[-1]) if len(raw) == fields.size else None


def bytes_queued(sock: socket.socket) -> int:
    """Bytes that the kernel holds for whoever receives next; 0 of a socket that is closed.

    To peek would take an error that is pending, and the next receive would be told "end of
    input" instead. And the socket may belong to a handler by now, which looks for itself.
    """
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            return len(sock.recv(1, socket.MSG_PEEK))
        return 0
    with contextlib.suppress(OSError, ValueError):  # the latter of -1
        return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
    return 0
