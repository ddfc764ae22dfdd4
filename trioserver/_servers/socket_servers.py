"""The socket servers."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import attrs

from .._facts.address import given_sockets, valid_ip_address, valid_unix_path
from .._facts.config import LARGEST_INT, a, count, reject
from .._facts.events import RequestInfo
from .._requests.any_request import AnyRequest
from .._requests.datagram import Datagram
from .._requests.drain import Drain
from .._sockets.binding import (
    LARGEST_BACKLOG,
    activate,
    bind_ip,
    bind_unix,
    listeners_of,
    use_sockets,
)
from .._sockets.datagram_listener import DatagramListener
from .._sockets.transport import Listener, SocketListener
from .base import BaseServer

DATAGRAMS_TAKEN_IN = 4096
"""Datagrams that a drain takes in, or ``limits.requests`` if that is more. The buffer that
Linux gives a socket unless told otherwise (212 992 bytes) holds 278 of them at most, and
the queue of a Unix socket 512 where systemd has set it."""

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _valid_family(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and value not in _IP_FAMILIES:
        reject(ValueError, server, field, "None, socket.AF_INET or socket.AF_INET6", value)
    address = getattr(server, "_server_address", None)
    if value == socket.AF_INET and _has_ipv6_parts(address):
        expected = f"None or socket.AF_INET6, as server_address is {address!r}"
        reject(ValueError, server, field, expected, value)


@attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
)
class TCPServer(BaseServer):
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
    """

    socket_type: ClassVar[int] = socket.SOCK_STREAM

    address_family: int | None = attrs.field(default=None, validator=_valid_family)
    allow_reuse_address: bool = attrs.field(default=True, validator=a(bool, "True or False"))
    allow_reuse_port: bool = attrs.field(default=False, validator=a(bool, "True or False"))
    request_queue_size: int | None = attrs.field(
        default=None, validator=count(0, most=LARGEST_INT, optional=True)
    )

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        _check_ip_address(self, field, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to every address of the host, or adopt the given sockets.

        Raises:
          OSError: with the address in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        if sockets := given_sockets(self._server_address):
            used = use_sockets(sockets, self._families(), self.socket_type)
            return self._keep(listeners_of(used, partial(SocketListener, was_given=True)))
        # Not shared, even with reuse_port: each such socket has a queue of its own.
        return self._keep(listeners_of(await _bind_host(self), SocketListener))

    def _families(self) -> Sequence[int]:
        return _families(self.address_family)

    async def server_activate(self) -> None:
        """Listen, with a queue of ``request_queue_size``."""
        activate(self._bound_run().listeners, self.request_queue_size)


@attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
)
class UDPServer(BaseServer):
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

    address_family: int | None = attrs.field(default=None, validator=_valid_family)
    allow_reuse_address: bool = attrs.field(default=False, validator=a(bool, "True or False"))
    allow_reuse_port: bool = attrs.field(default=False, validator=a(bool, "True or False"))
    max_packet_size: int = attrs.field(
        default=65_535, validator=count(1, most=LARGEST_INT, unit="of bytes ")
    )

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        _check_ip_address(self, field, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to every address of the host, or adopt the given sockets.

        Raises:
          OSError: with the address in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        make_listener = partial(DatagramListener, largest=self.max_packet_size)
        if sockets := given_sockets(self._server_address):
            used = use_sockets(sockets, self._families(), self.socket_type)
            return self._keep(listeners_of(used, partial(make_listener, was_given=True)))
        return self._keep(listeners_of(await _bind_host(self), make_listener))

    def _families(self) -> Sequence[int]:
        return _families(self.address_family)

    def _request_over(self, transport: Any, info: RequestInfo, drain: Drain) -> AnyRequest:
        if transport.local_address != info.server_address:
            info = attrs.evolve(info, server_address=transport.local_address)
        return Datagram(transport, info, timeouts=self.timeouts, limits=self.limits)

    def _waiting_room(self) -> int:
        # Unlike a connection, a datagram that is turned away tells its client nothing.
        return max(super()._waiting_room(), DATAGRAMS_TAKEN_IN)


# What the two IP servers share ------------------------------------------------------


def _check_ip_address(server: BaseServer, field: attrs.Attribute[Any], address: object) -> None:
    if given_sockets(address):
        return
    if expected := valid_ip_address(address):
        reject(_kind(address, (tuple, list)), server, field, expected, address)
    if _has_ipv6_parts(address) and getattr(server, "address_family", None) == socket.AF_INET:
        expected = "a pair (host, port), as address_family is AF_INET"
        reject(ValueError, server, field, expected, address)


def _has_ipv6_parts(address: object) -> bool:
    return isinstance(address, (tuple, list)) and len(address) == 4 and not given_sockets(address)


def _families(family: int | None) -> Sequence[int]:
    return _IP_FAMILIES if family is None else (family,)


async def _bind_host(server: TCPServer | UDPServer) -> Sequence[socket.socket]:
    return await bind_ip(
        *server._server_address,
        kind=server.socket_type,
        family=server.address_family,
        options=server.socket_options,
        reuse_address=server.allow_reuse_address,
        reuse_port=server.allow_reuse_port,
    )


def _kind(address: object, right: tuple[type, ...]) -> type[Exception]:
    """What is wrong with an address: its value if it is of the right type, else its type."""
    return ValueError if isinstance(address, right) else TypeError


# The Unix servers ---------------------------------------------------------------------

_UNIX = getattr(socket, "AF_UNIX", None)


def _always_unix(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value != _UNIX:
        reject(ValueError, server, field, "socket.AF_UNIX", value)


def _valid_mode(server: object, field: attrs.Attribute[Any], value: object) -> None:
    expected = "permission bits between 0 and 0o777, or None"
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        reject(TypeError, server, field, expected, value)
    if not 0 <= value <= 0o777:
        reject(ValueError, server, field, expected, value)


@attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
)
class UnixStreamServer(TCPServer):
    """Serves connections to a Unix socket.

    ``server_address`` is a path (``str``, ``bytes`` or ``os.PathLike``), a name
    of Linux's abstract namespace (its first byte is NUL; everybody on the
    machine may connect to it), or bound sockets. A socket file that nobody
    listens on is replaced; one with a living server, and anything that is not
    a socket, is not. The file is removed at the end if it is still ours.

    Args:
      mode: permission bits of the socket file, in force before it can be
        reached; None leaves them to the umask.
    """

    address_family: int | None = attrs.field(default=_UNIX, repr=False, validator=_always_unix)
    mode: int | None = attrs.field(default=None, validator=_valid_mode)

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        _check_unix_address(self, field, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to the path and listen, or adopt the given sockets.

        It listens at once: a socket file that refuses connections looks dead
        to another server, which would replace it.

        Raises:
          OSError: with the path in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        if given_sockets(self._server_address):
            return await super().server_bind()
        backlog = LARGEST_BACKLOG if self.request_queue_size is None else self.request_queue_size
        sock, path = await bind_unix(
            self._server_address, mode=self.mode, backlog=backlog, options=self.socket_options
        )
        return self._keep([SocketListener(sock, path=path)])


@attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
)
class UnixDatagramServer(UDPServer):
    """Serves datagrams sent to a Unix socket, each of which is a request of its own.

    ``server_address`` is as for `UnixStreamServer`. A client that wants a reply
    binds its own socket; one that has not has the address ``""``. While all
    slots are taken, datagrams wait in the kernel, and then their senders wait.

    Args:
      mode: permission bits of the socket file, in force before it can be
        reached; None leaves them to the umask.
    """

    address_family: int | None = attrs.field(default=_UNIX, repr=False, validator=_always_unix)
    mode: int | None = attrs.field(default=None, validator=_valid_mode)

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        _check_unix_address(self, field, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to the path, or adopt the given sockets.

        Raises:
          OSError: with the path in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        if given_sockets(self._server_address):
            return await super().server_bind()
        sock, path = await bind_unix(
            self._server_address, mode=self.mode, backlog=None, options=self.socket_options
        )
        return self._keep([DatagramListener(sock, self.max_packet_size, path=path)])


def _check_unix_address(server: BaseServer, field: attrs.Attribute[Any], address: object) -> None:
    if not given_sockets(address) and (expected := valid_unix_path(address)):
        reject(_kind(address, (str, bytes, os.PathLike)), server, field, expected, address)
