"""The socket servers."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs

from ._address import adopted_sockets, valid_ip_address, valid_unix_path
from ._base import BaseServer
from ._config import LARGEST_INT, a, count, reject
from ._listeners import LARGEST_BACKLOG, activate, adopt, bind_ip, bind_unix
from ._transport import Listener

_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _valid_family(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and value not in _IP_FAMILIES:
        reject(ValueError, server, field, "None, socket.AF_INET or socket.AF_INET6", value)


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

    ``server_address`` is ``(host, port)``. A host of ``""`` or None is every
    interface, of every family that the machine has; port 0 is an ephemeral
    port, the same for all of them. Sockets that are bound already can be given
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
        if not adopted_sockets(address) and (expected := valid_ip_address(address)):
            reject(_kind(address, (tuple, list)), self, field, expected, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to every address of the host, or adopt the given sockets.

        Raises:
          OSError: with the address in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        if sockets := adopted_sockets(self._server_address):
            return self._keep(adopt(sockets, self._families()))
        host, port = self._server_address
        bound = await bind_ip(
            host,
            port,
            family=self.address_family,
            options=self.socket_options,
            reuse_address=self.allow_reuse_address,
            reuse_port=self.allow_reuse_port,
        )
        return self._keep(bound)

    def _keep(self, listeners: Sequence[Listener]) -> Sequence[Listener]:
        """Have the run close them, even when an override fails before it returns them."""
        if self._run is not None:
            self._run.listeners[:] = listeners
        return listeners

    def _families(self) -> Sequence[int]:
        return _IP_FAMILIES if self.address_family is None else (self.address_family,)

    async def server_activate(self) -> None:
        """Listen, with a queue of ``request_queue_size``."""
        activate(self._bound_run().listeners, self.request_queue_size)


def _kind(address: object, right: tuple[type, ...]) -> type[Exception]:
    """What is wrong with an address: its value if it is of the right type, else its type."""
    return ValueError if isinstance(address, right) else TypeError


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
        if not adopted_sockets(address) and (expected := valid_unix_path(address)):
            reject(_kind(address, (str, bytes, os.PathLike)), self, field, expected, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to the path and listen, or adopt the given sockets.

        It listens at once: a socket file that refuses connections looks dead
        to another server, which would replace it.

        Raises:
          OSError: with the path in its message; nothing stays bound.
          ValueError: an adopted socket cannot be served on.
        """
        if sockets := adopted_sockets(self._server_address):
            return self._keep(adopt(sockets, self._families()))
        backlog = LARGEST_BACKLOG if self.request_queue_size is None else self.request_queue_size
        bound = await bind_unix(
            self._server_address, mode=self.mode, backlog=backlog, options=self.socket_options
        )
        return self._keep(bound)
