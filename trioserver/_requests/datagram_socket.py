"""The way back from one datagram: it sends, and does nothing else.

The rules this file keeps:

* A datagram that cannot be delivered to the client is the client's doing, and
  ends this request at most. One to somebody else is the handler's own affair.
* A send is a cancellation point first (see `schedule_points`), then tried at once, and waits
  only where it would block, for ``Timeouts.write`` seconds at most.
"""

from __future__ import annotations

import errno
from typing import Any

import trio
from trio.lowlevel import checkpoint_if_cancelled

from .._facts.errors import PeerGone, WriteTimeout
from .._facts.events import RequestInfo
from .._sockets.transport import Data, DatagramTransport
from .schedule_points import after_write

# What a send to a client that is not there, or no longer, can meet.
_PEER_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "EHOSTDOWN"),
        # A firewall forbids it; or a Unix client talks to somebody else alone
        # (its socket is connected to that one).
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

    _closed = False
    _total = 0
    _waits: tuple[trio.CancelScope, ...] = ()

    def __init__(self, transport: DatagramTransport, info: RequestInfo, timeout: float) -> None:
        self._transport = transport
        self._info = info
        self._timeout = timeout

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
        if type(data) is not bytes:
            data = memoryview(data).cast("B")
        await checkpoint_if_cancelled()
        self._check_open()
        if address == self._info.client_address and (fault := no_way_back(address)):
            raise PeerGone(fault, info=self._info)
        try:
            if not self._transport.send_now(data, address):
                await self._send_when_possible(data, address)
        except OSError as error:
            if self._is_clients_doing(error, address):
                fault = f"the client cannot be reached: {error.strerror or error}"
                raise PeerGone(fault, info=self._info) from error
            raise
        self._total += len(data)
        rest = after_write()
        if rest is not None:
            await rest
        return len(data)

    async def _send_when_possible(self, data: Data, address: Any) -> None:
        with trio.move_on_after(self._timeout) as patience:
            self._waits = (*self._waits, patience)
            try:
                while True:
                    await self._transport.wait_writable()
                    self._check_open()
                    if self._transport.send_now(data, address):
                        return
            finally:
                self._waits = tuple(wait for wait in self._waits if wait is not patience)
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
        """Send no more. A send that waits raises `trio.ClosedResourceError`."""
        self._closed = True
        for wait in self._waits:
            wait.cancel(reason="the way back was closed")

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the request is over, and its way back is closed")


def no_way_back(address: Any) -> str | None:
    """Why nobody can be reached at a client's address; None if somebody can."""
    if isinstance(address, tuple):
        if len(address) > 1 and address[1] == 0:
            return "the client sent from port 0, where nobody receives"
        return None
    return None if address else "the client's socket has no address to reply to"
