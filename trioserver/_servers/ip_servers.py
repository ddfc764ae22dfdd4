"""Servers of IP sockets."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import attrs
from trio.lowlevel import disable_ki_protection

from .._facts.address import Address, given_sockets, valid_ip_address
from .._facts.callables import is_plain_function
from .._facts.events import RequestInfo
from .._facts.validators import LARGEST_INT, count, reject, true_or_false
from .._requests.any_request import AnyRequest
from .._requests.datagram import Datagram, ReplyFunction, checked_reply
from .._requests.drain import Drain
from .._sockets.binding import activate, bind_ip, listeners_of, use_sockets
from .._sockets.datagram_listener import DatagramListener
from .._sockets.stream_sockets import SocketListener
from .._sockets.transport import Listener
from .base import BaseServer
from .fields import make_fields
from .stream_arrival import StreamArrival

DATAGRAMS_TAKEN_IN = 4096
"""Datagrams that a drain takes in although they have to wait for a slot, or
``limits.requests`` if that is more. The buffer that Linux gives a socket unless told
otherwise (212 992 bytes) holds 278 of them at most, and the queue of a Unix socket 512
where systemd has set it."""

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _valid_family(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and value not in _IP_FAMILIES:
        reject(ValueError, server, field, "None, socket.AF_INET or socket.AF_INET6", value)
    address = getattr(server, "_server_address", None)
    if value == socket.AF_INET and _has_ipv6_parts(address):
        expected = f"None or socket.AF_INET6, as server_address is {address!r}"
        reject(ValueError, server, field, expected, value)


@make_fields
class IPServer(BaseServer):
    """What `TCPServer` and `UDPServer` share: an address of IP, and how it is bound."""

    socket_type: ClassVar[int]

    address_family: int | None = attrs.field(default=None, validator=_valid_family)
    allow_reuse_address: bool = attrs.field(default=False, validator=true_or_false)
    allow_reuse_port: bool = attrs.field(default=False, validator=true_or_false)

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        if given_sockets(address):
            return
        if expected := valid_ip_address(address):
            reject(kind_of_fault(address, (tuple, list)), self, field, expected, address)
        family = getattr(self, "address_family", None)
        if _has_ipv6_parts(address) and family == socket.AF_INET:
            expected = "a pair (host, port), as address_family is AF_INET"
            reject(ValueError, self, field, expected, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to every address of the host, or use the given sockets.

        Raises:
          OSError: with the address in its message; nothing stays bound.
          ValueError: a given socket cannot be served on.
        """
        if sockets := given_sockets(self._server_address):
            families = _IP_FAMILIES if self.address_family is None else (self.address_family,)
            used = use_sockets(sockets, families, self.socket_type)
            return self._keep(listeners_of(used, partial(self._listener, was_given=True)))
        if left := self._listeners_of_left():
            return self._keep(left)
        bound = await bind_ip(
            *self._server_address,
            kind=self.socket_type,
            family=self.address_family,
            options=self.socket_options,
            reuse_address=self.allow_reuse_address,
            reuse_port=self.allow_reuse_port,
        )
        # Not shared, even with reuse_port: each such socket has a queue of its own.
        return self._keep(listeners_of(bound, self._listener))

    def _listeners_of_left(self) -> Sequence[Listener]:
        """Listeners over the sockets that an earlier program has left for this server."""
        left, self._left = self._left, ()
        return [self._listener(it.socket, was_given=True, path=it.path) for it in left]

    def _listener(self, sock: socket.socket, **facts: Any) -> Listener:
        """A listener over a bound socket."""
        raise NotImplementedError


@make_fields
class TCPServer(IPServer, StreamArrival):
    """Serves TCP connections.

    ``server_address`` is ``(host, port)``, or IPv6's ``(host, port, flowinfo,
    scope_id)``. A host of ``""`` or None is every interface, of every family
    that the machine has; port 0 is an ephemeral port, the same for all of
    them. The zone of a link-local host is part of its name (``fe80::1%eth0``),
    or the scope id. Sockets that are bound already can be given
    instead: they are closed at the end, so such a server runs once, and does
    not pickle.

    Args:
      address_family: None for every family that the host resolves to, or
        ``AF_INET`` or ``AF_INET6``.
      allow_reuse_address: bind although old connections are in TIME_WAIT; never
        set on Windows, where it means stealing the port.
      allow_reuse_port: let other processes that say so, too, bind the same port.
      request_queue_size: clients that the kernel keeps until they are accepted;
        None is as many as it can.
      proxy_protocol: that a proxy stands in front of the server, and says in a PROXY header
        who each client is; None: nobody does.
      ssl_context: have all connections be TLS: an `ssl.SSLContext` for servers, as
        `server_context` makes them; or a plain function without arguments that returns one. It
        is called when the server is bound, and by `TCPServer.reload`; a server with one that is
        at the top of a module pickles. None: no TLS.
    """

    socket_type: ClassVar[int] = socket.SOCK_STREAM

    allow_reuse_address = True
    request_queue_size: int | None = attrs.field(
        default=None, validator=count(0, most=LARGEST_INT, optional=True)
    )

    def reload(self) -> None:
        """Have the function that is ``ssl_context`` make the TLS context anew, now.

        From any task or thread. New connections get the new context; those that there are
        keep theirs.

        Raises:
          RuntimeError: the server is not bound, or ``ssl_context`` is no function.
          TypeError, ValueError: the function returns something else than a context for servers.
          Exception: what the function raises.

        When it raises, everything is as before.
        """
        run = self._bound_run()
        credentials = run.credentials
        if credentials is None:
            name = type(self).__name__
            raise RuntimeError(f"there is nothing to reload: {name}.ssl_context is None")
        credentials.reload()
        if run.deputy is not None:
            run.deputy.reload()

    async def server_activate(self) -> None:
        """Listen, with a queue of ``request_queue_size``."""
        activate(self._bound_run().listeners, self.request_queue_size)

    def _listener(self, sock: socket.socket, **facts: Any) -> Listener:
        return SocketListener(sock, **facts)


@make_fields
class UDPServer(IPServer):
    """Serves UDP datagrams, each of which is a request of its own.

    ``server_address`` is as for `TCPServer`. Handlers run side by side, so a
    client's replies need not come in the order of its datagrams, unless
    ``Limits(requests=1)`` says so. While all slots are taken, datagrams wait in
    the kernel, and are dropped there when its buffer (``SO_RCVBUF``) is full.

    Args:
      address_family: None for every family that the host resolves to, or
        ``AF_INET`` or ``AF_INET6``.
      allow_reuse_address: set ``SO_REUSEADDR``. For UDP there is no TIME_WAIT:
        it lets a second server take the port over, silently, and is wanted for
        multicast alone.
      allow_reuse_port: let other processes that say so, too, bind the same port.
      max_packet_size: bytes of the largest datagram; larger ones are detected,
        counted (``Statistics.accept_errors``) and dropped, never cut.
    """

    socket_type: ClassVar[int] = socket.SOCK_DGRAM

    max_packet_size: int = attrs.field(
        default=65_535, validator=count(1, most=LARGEST_INT, unit="of bytes ")
    )

    def _listener(self, sock: socket.socket, **facts: Any) -> Listener:
        return DatagramListener(sock, self.max_packet_size, **facts)

    def _request_over(self, transport: Any, info: RequestInfo, drain: Drain) -> AnyRequest:
        if transport.local_address != info.server_address:
            info = attrs.evolve(info, server_address=transport.local_address)
        return Datagram(transport, info, timeouts=self.timeouts, limits=self.limits)

    def _reply_function(self) -> ReplyFunction | None:
        is_plain = self._mode == "task" and is_plain_function(self.RequestHandlerClass)
        return cast("Any", self.RequestHandlerClass) if is_plain else None

    def _handling(self, request: Any, client_address: Address) -> Awaitable[object]:
        function = None if self._run is None else self._run.reply_function
        if function is None:
            return super()._handling(request, client_address)
        return _answer(function, request, client_address, self)

    def _waiting_room(self) -> int:
        # Unlike a connection, a datagram that is turned away tells its client nothing.
        return max(super()._waiting_room(), DATAGRAMS_TAKEN_IN)


@disable_ki_protection
async def _answer(
    function: ReplyFunction,
    request: Any,
    client_address: Address,
    server: object,
) -> None:
    """Have a plain function answer in a task, where something else has a say in the request."""
    reply = checked_reply(function(request.data, client_address, server))
    if reply is not None:
        await request.reply(reply)


def _has_ipv6_parts(address: object) -> bool:
    return isinstance(address, (tuple, list)) and len(address) == 4 and not given_sockets(address)


def kind_of_fault(address: object, right: tuple[type, ...]) -> type[Exception]:
    """The error for a wrong address: ValueError if its type is right, else TypeError."""
    return ValueError if isinstance(address, right) else TypeError
