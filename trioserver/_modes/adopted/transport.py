"""The requests of an adopted server: what its ``get_request`` returns, as a transport of ours."""

from __future__ import annotations

import socket
import ssl
import weakref
from contextvars import Context, copy_context
from typing import Any, cast

import attrs
import trio

from ..._facts.address import Address
from ..._facts.cpython import require_private_names
from ..._sockets.descriptors import Identity, identity_of, is_lost
from ..._sockets.making import SENDING, do_not_wait, kind_of, socket_of, twin_of
from ..._sockets.stream_sockets import SocketTransport
from ..._sockets.transport import Data, PeerCredentials
from ..threads.accounting import Accounting
from ..threads.lent_connection import LentConnection
from ..threads.loan import Loan, LoanState
from ..threads.own_thread import OwnThread
from .accept import Accepted


class AdoptedSocket(Accounting):
    """A socket that the adopted server has accepted, and that keeps account of its loan.

    It is still the same object, which methods of the adopted server may have put into a set.
    """

    __slots__ = ()

    @property
    def _loan(self) -> Loan:  # type: ignore[override]
        return _loans[self]


_loans: weakref.WeakKeyDictionary[AdoptedSocket, Loan] = weakref.WeakKeyDictionary()


def keep_account(sock: socket.socket, loan: Loan) -> None:
    """Make a plain socket one that keeps account of a loan.

    Raises:
      PythonHasChanged: see `require_private_names`.
    """
    require_private_names()
    if loan.state.timeout is not None:
        do_not_wait(sock)
    sock.__class__ = AdoptedSocket
    _loans[cast("AdoptedSocket", sock)] = loan


@attrs.define(eq=False)
class ThreadOfRequest:
    """Where the hooks of one request are called.

    Attributes:
      thread: it makes all their calls.
      context: what they see of context variables, and what they leave there.
      is_shared: whether all requests have this thread, and are served one after the other.
    """

    thread: OwnThread
    is_shared: bool
    context: Context = attrs.field(factory=copy_context)
    is_released: bool = False

    def release(self) -> None:
        """Let the thread end: it has been asked for the last time. Twice is once."""
        if not self.is_shared and not self.is_released:
            self.is_released = True
            self.thread.release()


@attrs.define(eq=False)
class AdoptedTransport(SocketTransport):
    """Our own object for the descriptor of a connection, beside the one that theirs is.

    Attributes:
      theirs: what ``get_request`` returned.
      shares: whether both have one descriptor, which we close; of what is more than
        a plain socket we have a duplicate.
      needs_handshake: whether TLS has still to be agreed on.
      is_lent: whether it has been.
      hooks: where the hooks are called, once one was.
      accepted: the client for whom ``get_request`` has still to be called.
      was_deferred: whether that was called after the accept.
      address: what it returned as the client's address then.
    """

    theirs: Any = None
    shares: bool = False
    needs_handshake: bool = False
    is_lent: bool = False
    hooks: ThreadOfRequest | None = None
    accepted: Accepted | None = None
    was_deferred: bool = False
    address: Address = None
    _is_ours: bool = True
    _their_identity: Identity | None = None

    @classmethod
    def of(cls, request: Any) -> AdoptedTransport:
        """The transport beneath a request.

        Raises:
          TypeError: it is no socket.
        """
        if not isinstance(request, socket.socket):
            raise TypeError(f"get_request must return a socket of socket.socket, not {request!r}")
        if type(request) is socket.socket:
            ours = socket_of(kind_of(request), request.fileno())
            return cls(ours, request, shares=True)
        if request.gettimeout() == 0:
            request.setblocking(True)  # on some systems accept hands the listener's mode on
        ours = twin_of(request)
        tls = isinstance(request, ssl.SSLSocket)
        waits = tls and not getattr(request, "do_handshake_on_connect", True)
        transport = cls(ours, request, needs_handshake=waits)
        # Their socket does not note whether a handler asks for its number.
        transport._their_identity = identity_of(request.fileno())
        return transport

    @classmethod
    def before_get_request(cls, sock: socket.socket, address: Address) -> AdoptedTransport:
        """One for a client that was accepted, and has still to pass ``get_request``."""
        return cls(twin_of(sock), accepted=Accepted(sock, address))

    def become(self, other: AdoptedTransport, address: Address) -> None:
        """Go on with what ``get_request`` returned."""
        self.socket.close()  # no task waits for it
        self.socket, self.theirs, self.shares = other.socket, other.theirs, other.shares
        self.needs_handshake, self._their_identity = other.needs_handshake, other._their_identity
        self.accepted, self.was_deferred, self.address = None, True, address

    def lend(self, connection: LentConnection, *, ends_idle: bool) -> None:
        """Lend the connection's socket, and keep account of what happens in it.

        Args:
          connection: the one over this transport.
          ends_idle: whether a drain may end waits between requests.

        Of a socket that is more than a plain one (TLS), nothing can be counted.
        """
        self.is_lent = True
        state = LoanState(timeout=self.theirs.gettimeout()) if self.shares else None
        loan = connection._lend(ends_idle=ends_idle, state=state)
        if self.shares:
            keep_account(self.theirs, loan)
        else:
            connection._stream.may_have_sent = True

    def let_go_of_lost(self) -> bool:
        """Have their socket not close a number that is not its own any more; whether that is so."""
        if not is_lost(self.theirs.fileno(), self._their_identity):
            return False
        socket.socket.detach(self.theirs)
        return True

    def close(self) -> None:
        if self.hooks is not None:
            self.hooks.release()
        if not self._is_ours:
            return
        self._is_ours = False
        if self.shares:
            socket.socket.detach(self.theirs)
        super().close()
        if self.accepted is not None:
            self.accepted.close()
        elif not self.let_go_of_lost():
            self.theirs.close()

    def give_away(self) -> None:
        self._is_ours = False
        if self.shares:
            super().give_away()
        else:
            super().close()


@attrs.define(eq=False)
class AdoptedDatagramTransport:
    """One datagram, as ``get_request`` returned it: commonly the pair of data and socket."""

    theirs: Any
    local_address: Address
    _socket: socket.socket
    peer_credentials: PeerCredentials | None = None
    hooks: ThreadOfRequest | None = None

    _PAUSE = 0.05

    @property
    def data(self) -> bytes:
        """The bytes of the pair; none if theirs is something else, which is their affair."""
        data = self.theirs[0] if isinstance(self.theirs, tuple) and self.theirs else b""
        return bytes(data) if isinstance(data, (bytes, bytearray)) else b""

    def send_now(self, data: Data, address: Address) -> bool:
        # By a twin, for a moment: their socket may have been given a time-out, and would wait.
        with twin_of(self._socket) as sock:
            try:
                sock.sendto(data, SENDING, address)
            except BlockingIOError:
                return False
        return True

    async def wait_writable(self) -> None:
        # Of a full receiver poll(2) knows nothing, and says "writable"; see DatagramListener.
        # There is no hurry: only a client that is turned away is answered by way of this.
        await trio.sleep(self._PAUSE)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Their socket is closed with their server."""
        if self.hooks is not None:
            self.hooks.release()
