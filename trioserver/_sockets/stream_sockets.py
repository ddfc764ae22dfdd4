"""The kernel's stream sockets, as a transport and as a listener."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Coroutine
from socket import socket as KernelSocket  # noqa: N812  (the class has an attribute of that name)
from typing import Any

import attrs
import trio

from .._facts.address import Address
from .descriptors import Identity, close_socket, identity_of, is_lost
from .making import (
    NOT_WAITING,
    RESET_ON_CLOSE,
    SENDING,
    Kind,
    accept_from,
    accept_queue_of,
    bytes_queued,
    duplicate_of,
    kind_of,
    spare_the_program,
)
from .sealing import seal
from .sharing import others_hold
from .transport import Data, PeerCredentials
from .unix_path import BoundPath


@attrs.define(eq=False, weakref_slot=False)  # 16 bytes less, of each idle connection
class SocketTransport:
    """The kernel's transport: a connected socket, for which Python itself does not wait.

    Attributes:
      socket: it.
      identity: what is behind its descriptor's number, once a handler was shown that.
      was_waited_for: whether Trio may know the socket.
    """

    socket: socket.socket
    identity: Identity | None = attrs.field(default=None, kw_only=True)
    was_waited_for: bool = attrs.field(default=False, kw_only=True)

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

    # No coroutine of its own: of each idle connection that would be 200 bytes more.
    def wait_readable(self) -> Coroutine[Any, Any, None]:
        self.was_waited_for = True
        return trio.lowlevel.wait_readable(self.socket)  # noqa: ASYNC105

    async def wait_writable(self) -> None:
        self.was_waited_for = True
        while True:
            try:
                await trio.lowlevel.wait_writable(self.socket)
            except trio.ClosedResourceError:
                if self.socket.fileno() == -1:
                    raise
                # It was only `wake_reader`, which cannot tell the two apart.
            else:
                return

    def wake_reader(self) -> None:
        try:
            trio.lowlevel.notify_closing(self.socket)
        except trio.ClosedResourceError:
            # Between two steps, as for an instrument, Trio takes the task that has made the last
            # one for the caller, and leaves it to that to be woken.
            trio.lowlevel.reschedule(trio.lowlevel.current_task())

    def send_eof(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def show(self) -> None:
        """A handler gets to know the descriptor's number, and might close it, or wait for it."""
        self.was_waited_for = True  # where a number has no identity, too, as on Windows
        if self.identity is None:
            self.identity = identity_of(self.socket.fileno())

    def is_lost(self) -> bool:
        """Whether a handler has closed the number, so that it may be somebody else's."""
        return is_lost(self.socket.fileno(), self.identity)

    def close(self) -> None:
        if self.socket.fileno() != -1:
            was_waited_for = self.was_waited_for or self.identity is not None
            close_socket(self.socket, self.identity, was_waited_for=was_waited_for)

    def give_away(self) -> None:
        """Forget the socket; somebody else has its descriptor, and closes it."""
        self.socket.detach()

    def reset(self) -> None:
        # Fails on a socket that is closed or reset already: then there is nothing to tell.
        with contextlib.suppress(OSError):
            if not self.is_lost():
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                # Another thread of the handler may wait in it, here or in a worker, and the
                # connection lasts until it does not.
                self.socket.shutdown(socket.SHUT_RD)
        self.close()

    def fileno(self) -> int:
        return self.socket.fileno()


@attrs.define(eq=False)
class SocketListener:
    """The kernel's listener: a bound, non-blocking stream socket, and its path if it has one.

    Attributes:
      was_given: whether somebody else has bound it, who may have it still.
      path: the socket file to remove.
      is_kept: whether a service manager keeps it, and its file, for the next program: it does
        not accept from it meanwhile, so a drain serves who is queued, and shuts nobody out.
    """

    socket: socket.socket
    was_given: bool = False
    path: BoundPath | None = None
    is_kept: bool = attrs.field(default=False, kw_only=True)
    address: Address = attrs.field(init=False)
    _identity: Identity | None = attrs.field(init=False)
    _kind: Kind = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)
        self._kind = kind_of(self.socket)
        self._identity = identity_of(self.socket.fileno())  # its number is shown to everybody
        # Kept, because a closed socket has none.
        self.address = self.socket.getsockname()
        if self.socket.family != getattr(socket, "AF_UNIX", None):
            # Accepted sockets inherit it, so it costs nothing a connection. A
            # reply of several small writes waits 40 ms for an ACK without it.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def shared(self) -> bool:
        return self.was_given and not self.is_kept and others_hold(self.socket)

    def seal(self) -> None:
        if not self.is_kept:
            seal(self.socket)

    def listen(self, backlog: int) -> None:
        self.socket.listen(backlog)

    def accept_now(self) -> tuple[SocketTransport, Address] | None:
        try:
            accepted, address = accept_from(self.socket, self._kind)
        except BlockingIOError:
            return None
        return SocketTransport(accepted), address

    async def wait_acceptable(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("the listening socket was closed")
        await trio.lowlevel.wait_readable(self.socket)

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def queued(self) -> int | None:
        return accept_queue_of(self.socket)

    def duplicate(self) -> KernelSocket:
        return duplicate_of(self.socket)

    def leave(self) -> None:
        self.path = None
        self.close()

    def close(self) -> None:
        if self.socket.fileno() == -1:
            return
        if self.path is not None and not self.is_kept:
            self.path.unlink()  # before the close
        close_socket(self.socket, self._identity)
