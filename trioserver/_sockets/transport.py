"""The seam under every request: what moves bytes, without ever waiting unasked.

A transport is split in two halves that a connection puts together: operations
that happen now or not at all, and waits that move nothing. So a connection can
check for cancellation first and act afterwards, and nothing it reads or sends
is lost in between. A datagram comes whole, so its transport only goes back. The
kernel's stream sockets are here, its datagram sockets in `datagram_listener`,
the in-memory ones in `trioserver.testing`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Protocol, TypeAlias

import attrs
import trio

from .._facts.address import Address
from .descriptors import Identity, close_socket, identity_of, is_lost
from .making import (
    NOT_WAITING,
    RESET_ON_CLOSE,
    SENDING,
    bytes_queued,
    do_not_wait,
    spare_the_program,
)
from .sealing import seal
from .sharing import others_hold

Data: TypeAlias = bytes | bytearray | memoryview


@attrs.frozen
class PeerCredentials:
    """Who is at the other end of a Unix socket, as the kernel saw it at connect.

    Attributes:
      pid: process id.
      uid: user id.
      gid: group id.
    """

    pid: int
    uid: int
    gid: int


class Transport(Protocol):
    """One end of a byte stream. Errors are `OSError`, as a socket raises it."""

    @property
    def local_address(self) -> Address:
        """This end's address."""

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Who is at the other end, None where that cannot be told."""

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Up to ``max_bytes`` bytes; ``b""`` at the end of input; None if there are none yet."""

    def has_input(self) -> bool:
        """Whether `receive_now` would give bytes now. Takes nothing; the end of input is none."""

    def send_now(self, data: Data) -> int:
        """Send what can be sent at once; how many bytes that was, 0 if none."""

    async def wait_readable(self) -> None:
        """Wait until `receive_now` has an answer."""

    async def wait_writable(self) -> None:
        """Wait until `send_now` takes a byte."""

    def send_eof(self) -> None:
        """End the sending direction; the peer reads to its end."""

    def close(self) -> None:
        """Close, now. Whoever waits gets `trio.ClosedResourceError`. Twice is once."""

    def reset(self) -> None:
        """Close so that the peer sees an error, not an orderly end, where that can be told."""

    def fileno(self) -> int:
        """The file descriptor, -1 where there is none."""


class DatagramTransport(Protocol):
    """One datagram that was received, and the way back."""

    @property
    def data(self) -> bytes:
        """What was received, whole."""

    @property
    def local_address(self) -> Address:
        """The address it was sent to, as far as that can be told."""

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Who sent it, None where that cannot be told."""

    def send_now(self, data: Data, address: Address) -> bool:
        """Send one datagram if that can be done at once; whether it was. Raises `OSError`."""

    async def wait_writable(self) -> None:
        """Wait until it is worth trying again."""

    def fileno(self) -> int:
        """The file descriptor of the shared socket, -1 where there is none."""

    def close(self) -> None:
        """Give the way back up. Twice is once."""


class Listener(Protocol):
    """Where clients come from. What `BaseServer.server_bind` returns a list of.

    It may also have ``most_queued``, how many clients can be queued at once,
    which bounds what a drain takes in; ``dropped``, how many were lost before
    anybody could take them; and ``seal()``, which lets nobody else into the
    queue, while `accept_now` takes in who is there.
    """

    @property
    def address(self) -> Address:
        """The bound address."""

    @property
    def shared(self) -> bool:
        """Whether others accept from the same queue, so that a drain must leave it to them.

        Asked once, when the drain begins; `close` comes next.
        """

    def listen(self, backlog: int) -> None:
        """Let clients in, at most ``backlog`` at once until they are accepted."""

    def accept_now(self) -> tuple[Transport | DatagramTransport, Address] | None:
        """The next client, None if there is none. Raises `OSError` as accept(2) does.

        EAGAIN and EINTR are no errors: they mean that there is none, too.

        A `DatagramTransport` if it is one of a datagram server, else a `Transport`.
        """

    async def wait_acceptable(self) -> None:
        """Wait until `accept_now` has an answer."""

    def close(self) -> None:
        """Refuse clients from now on, now. Twice is once."""


@attrs.define(eq=False)
class SocketTransport:
    """The kernel's transport: a connected socket, for which Python itself does not wait.

    Attributes:
      socket: it.
      identity: what is behind its descriptor's number, once a handler was shown that.
    """

    socket: socket.socket
    identity: Identity | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        spare_the_program(self.socket)

    @property
    def local_address(self) -> Address:
        return self.socket.getsockname()

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        if sys.platform != "linux" or self.socket.family != socket.AF_UNIX:
            return None
        fields = struct.Struct("3i")  # struct ucred, unix(7)
        raw = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, fields.size)
        return PeerCredentials(*fields.unpack(raw))

    def receive_now(self, max_bytes: int) -> bytes | None:
        try:
            return self.socket.recv(max_bytes, NOT_WAITING)
        except BlockingIOError:
            return None

    def has_input(self) -> bool:
        return bytes_queued(self.socket) > 0

    def send_now(self, data: Data) -> int:
        try:
            return self.socket.send(data, SENDING)
        except BlockingIOError:
            return 0

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def send_eof(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def show(self) -> None:
        """A handler gets to know the descriptor's number, and might close it."""
        if self.identity is None:
            self.identity = identity_of(self.socket.fileno())

    def is_lost(self) -> bool:
        """Whether a handler has closed the number, so that it may be somebody else's."""
        return is_lost(self.socket.fileno(), self.identity)

    def close(self) -> None:
        if self.socket.fileno() != -1:
            close_socket(self.socket, self.identity)

    def give_away(self) -> None:
        """Forget the socket; somebody else has its descriptor, and closes it."""
        self.socket.detach()

    def reset(self) -> None:
        # Fails on a socket that is closed or reset already: then there is nothing to tell.
        with contextlib.suppress(OSError):
            if not self.is_lost():
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.close()

    def fileno(self) -> int:
        return self.socket.fileno()


@attrs.define(eq=False)
class SocketListener:
    """The kernel's listener: a bound, non-blocking stream socket, and its path if it has one.

    Attributes:
      was_given: whether somebody else has bound it, who may have it still.
    """

    socket: socket.socket
    was_given: bool = False
    path: OwnedPath | None = None
    address: Address = attrs.field(init=False)
    _identity: Identity | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)
        self._identity = identity_of(self.socket.fileno())  # its number is shown to everybody
        # Kept, because a closed socket has none.
        self.address = self.socket.getsockname()
        if self.socket.family != getattr(socket, "AF_UNIX", None):
            # Accepted sockets inherit it, so it costs nothing a connection. A
            # reply of several small writes waits 40 ms for an ACK without it.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def shared(self) -> bool:
        return self.was_given and others_hold(self.socket)

    def seal(self) -> None:
        seal(self.socket)

    def listen(self, backlog: int) -> None:
        self.socket.listen(backlog)

    def accept_now(self) -> tuple[SocketTransport, Address] | None:
        try:
            accepted, address = self.socket.accept()
        except BlockingIOError:
            return None
        if not NOT_WAITING or accepted.gettimeout() is not None:
            do_not_wait(accepted)
        return SocketTransport(accepted), address

    async def wait_acceptable(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("the listening socket was closed")
        await trio.lowlevel.wait_readable(self.socket)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        if self.socket.fileno() == -1:
            return
        if self.path is not None:
            # Before the close: while our socket lives, its inode number cannot
            # be given to somebody else's file.
            self.path.unlink()
        close_socket(self.socket, self._identity)


class OwnedPath(Protocol):
    """A file that a listener made, and removes when it closes."""

    def unlink(self) -> None:
        """Remove the file if it is still the one that was made."""
