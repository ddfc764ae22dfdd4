"""The seam under every request: what moves bytes, without ever waiting unasked.

A transport is split in two halves that a connection puts together: operations
that happen now or not at all, and waits that move nothing. So a connection can
check for cancellation first and act afterwards, and nothing it reads or sends
is lost in between. A datagram comes whole, so its transport only goes back. The
kernel's are in `stream_sockets` and `datagram_listener`, those in memory in
`trioserver.testing`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

from .._facts.address import Address

Data: TypeAlias = bytes | bytearray | memoryview


class UncleanEnd(OSError):
    """The input has ended, and not in the way that its protocol has for that."""

    def __init__(self, why: str) -> None:
        super().__init__(None, why)

    def __str__(self) -> str:
        return str(self.strerror)


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
    """One end of a byte stream. Errors are `OSError`, as a socket raises it.

    It may also have ``holds_output``, whether a part of what `send_now` has not counted is on
    its way already, so that nothing else can be sent in its place; and ``wake_reader``, a
    function that has a `wait_readable` that waits return, or raise
    `trio.ClosedResourceError` although nothing is closed: without it, each wait has a cancel scope.

    Only what begins with ``wait_`` may wait, and cancelled it has changed nothing.
    """

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
        """Close, now; a wait raises `trio.ClosedResourceError`. Closing twice is closing once."""

    def reset(self) -> None:
        """Close so that the peer sees an error, not an orderly end, where that can be told."""

    def fileno(self) -> int:
        """The file descriptor, -1 where there is none."""


def wakes_reader(transport: Transport) -> Callable[[], None] | None:
    """What wakes who waits for its input, if it has that; see `Transport`."""
    return getattr(transport, "wake_reader", None)


def holds_output(transport: Transport) -> bool:
    """Whether output that was not counted as sent is on its way; see `Transport`."""
    return getattr(transport, "holds_output", False)


class DatagramTransport(Protocol):
    """One datagram that was received, and the way back.

    Only what begins with ``wait_`` may wait, and cancelled it has changed nothing.
    """

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
    anybody could take them; ``queued``, how many wait now, or None where nobody knows;
    ``seal()``, which lets nobody else into the
    queue, while `accept_now` takes in who is there; and, so that it can be handed
    over, ``duplicate()``, one more socket for the same queue, and ``leave()``, a
    `close` that leaves the queue, and whatever shows the way to it, as they are.

    Only what begins with ``wait_`` may wait, and cancelled it has accepted nobody.
    """

    @property
    def address(self) -> Address:
        """The address that clients connect to."""

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


@runtime_checkable
class HandsOver(Protocol):
    """What a `Listener` has whose queue can be given to somebody else."""

    def duplicate(self) -> socket.socket:
        """One more socket for the same queue, non-blocking. Raises `OSError`."""

    def leave(self) -> None:
        """Close, but leave the queue, and whatever shows the way to it, as they are."""
