"""The listener of an adopted server: its own socket, and its own ``get_request``."""

from __future__ import annotations

import errno
import socket
import socketserver
import ssl
import time
import traceback
from typing import Any

import attrs
import trio

from ..._engine.accept_errors import Tier, tier_of
from ..._facts.address import Address
from ..._sockets.binding import is_bound
from ..._sockets.making import NOT_WAITING, do_not_wait, twin_of
from ..._sockets.sealing import seal
from ..._sockets.sharing import others_hold
from ..threads.polling import has_input
from .accept import Accepted, handing_out, have_hand_out
from .transport import AdoptedDatagramTransport, AdoptedTransport


def overrides(theirs: socketserver.BaseServer, *names: str) -> bool:
    """Whether a method is not the one that `socketserver` gives its classes."""
    return any(
        getattr(getattr(theirs, name, None), "__module__", None) != socketserver.__name__
        for name in names
        if hasattr(theirs, name)
    )


class AdoptedListener:
    """Where their clients come from.

    It waits with a twin of their socket, of its own descriptor: theirs can be
    closed at any time, and its number given to somebody else.
    """

    shared = False

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._socket: Any = theirs.socket
        self._twin = twin_of(self._socket)
        self.address: Address = self._socket.getsockname()
        self._datagrams = self._socket.type == socket.SOCK_DGRAM
        self._closed = False
        self._gets_its_own = overrides(theirs, "get_request")
        # Theirs may wait for its client, so it is called later: see `get_request`.
        self._accepts_first = (
            self._gets_its_own and not self._datagrams and have_hand_out(self._socket)
        )
        # That of datagrams blocks, for its handlers send with it.
        self._socket.settimeout(None if self._datagrams else 0)
        if isinstance(self._socket, ssl.SSLSocket):
            theirs.socket.do_handshake_on_connect = False  # not in Trio's thread

    def listen(self, backlog: int) -> None:
        """Do nothing: the socket listens already."""

    def seal(self) -> None:
        """Let nobody else into the queue, unless others go on accepting from it.

        Datagrams have no connect that could succeed.
        """
        theirs_and_twin = 2
        if not self._datagrams and not others_hold(self._twin, ours=theirs_and_twin):
            seal(self._twin)

    def accept_now(self) -> tuple[Any, Address] | None:
        """What their ``get_request`` returns, or a client for which it has still to be called.

        Raises:
          OSError: of the fatal tier only if their socket does not listen any more.
        """
        if self._closed:
            raise OSError(errno.EBADF, "the listener is closed")
        if self._gets_its_own and not has_input(self._twin.fileno()):
            return None  # as ever, it is not called for nobody: it may wait, or tell
        if self._socket.fileno() == -1:
            message = f"{type(self._theirs).__name__} was closed while adopt() served with it"
            raise OSError(errno.EBADF, f"{message}: call shutdown() first")
        try:
            return self._get_request()
        except BlockingIOError:
            return None
        except OSError as error:
            # Who keeps the error is not to keep the client's descriptor open: ssl leaves a
            # socket that it could not wrap (3.11) to whoever lets go of its frame.
            traceback.clear_frames(error.__traceback__)
            if tier_of(error) is not Tier.FATAL or not listens(self._socket):
                raise
            # As for socketserver, it is one client's: TLS alone raises half a dozen for
            # clients who are gone before they were accepted.
            raise ConnectionAbortedError(errno.ECONNABORTED, f"get_request: {error}") from error

    def _get_request(self) -> tuple[Any, Address]:
        if self._accepts_first:
            sock, client_address = self._twin.accept()
            if sock.gettimeout() is not None:
                do_not_wait(sock)
            return AdoptedTransport.before_get_request(sock, client_address), client_address
        if self._datagrams:
            request, client_address = self._receive()
            return AdoptedDatagramTransport(request, self.address, self._socket), client_address
        return get_request(self._theirs)

    def _receive(self) -> tuple[Any, Address]:
        if self._gets_its_own:
            request, client_address = self._theirs.get_request()
            return request, client_address
        # What UDPServer does, but never blocking: who shares the socket, be it one of its
        # handlers, may have taken the datagram by now.
        data, client_address = self._twin.recvfrom(self._theirs.max_packet_size, NOT_WAITING)
        return (data, self._socket), client_address

    async def wait_acceptable(self) -> None:
        """Wait until `accept_now` has an answer."""
        if self._closed:
            raise trio.ClosedResourceError("the listener is closed")
        await trio.lowlevel.wait_readable(self._twin)

    def close(self) -> None:
        """Accept no more. A datagram socket stays open for replies, until their server closes."""
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._twin)
        self._twin.close()
        if not self._datagrams:
            self._socket.close()


def get_request(theirs: Any) -> tuple[AdoptedTransport, Address]:
    """Call the foreign server's ``get_request``, and wrap the socket that it returns."""
    request, client_address = theirs.get_request()
    if isinstance(request, socket.socket) and request.fileno() == -1:
        raise OSError(errno.EBADF, "it returned a socket that is closed")
    try:
        return AdoptedTransport.of(request), client_address
    except BaseException:
        theirs.close_request(request)
        raise


@attrs.define(eq=False)
class Visit:
    """One call of their ``get_request``, for a client."""

    _theirs: Any
    _accepted: Accepted
    _got: AdoptedTransport | None = None

    # Before the next try, if it has found nobody, though somebody is there.
    _PAUSE = 0.005

    def make(self) -> tuple[AdoptedTransport, Address]:
        """What it returns; in a thread that can be cancelled."""
        with handing_out(self._accepted):
            while True:
                try:
                    self._got, address = get_request(self._theirs)
                except (BlockingIOError, InterruptedError):
                    if self._accepted.is_taken:
                        raise
                    time.sleep(self._PAUSE)
                    trio.from_thread.check_cancelled()
                else:
                    return self._got, address

    def end(self) -> None:
        """Close what it has returned when nobody waited for it any more."""
        if self._got is None:
            return
        if self._got.shares:
            self._got.give_away()
        else:
            self._got.socket.close()
        self._theirs.close_request(self._got.theirs)


def listens(sock: socket.socket) -> bool:
    """Whether a client can come in by way of it."""
    if sock.fileno() == -1:
        return False
    if sock.type == socket.SOCK_DGRAM:
        return is_bound(sock)
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
