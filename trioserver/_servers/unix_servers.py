"""Servers of Unix sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import attrs

from .._facts.address import given_sockets, valid_unix_path
from .._facts.validators import reject
from .._sockets.binding import LARGEST_BACKLOG, bind_unix
from .._sockets.transport import Listener
from .fields import make_fields
from .ip_servers import IPServer, TCPServer, UDPServer, kind_of_fault

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


@make_fields
class UnixServer(IPServer):
    """What the two Unix servers share: a path in the place of a host and a port."""

    address_family: int | None = attrs.field(default=_UNIX, repr=False, validator=_always_unix)
    mode: int | None = attrs.field(default=None, validator=_valid_mode)

    def _check_address(self, field: attrs.Attribute[Any], address: object) -> None:
        if not given_sockets(address) and (expected := valid_unix_path(address)):
            kind = kind_of_fault(address, (str, bytes, os.PathLike))
            reject(kind, self, field, expected, address)

    async def server_bind(self) -> Sequence[Listener]:
        """Bind to the path, or use the given sockets; a stream server listens at once.

        A socket file that refuses connections looks dead to another server, which
        would replace it.

        Raises:
          OSError: with the path in its message; nothing stays bound.
          ValueError: a given socket cannot be served on.
        """
        if given_sockets(self._server_address):
            return await super().server_bind()
        if left := self._listeners_of_left():
            return self._keep(left)
        sock, path = await bind_unix(
            self._server_address,
            mode=self.mode,
            backlog=self._backlog(),
            options=self.socket_options,
        )
        return self._keep([self._listener(sock, path=path)])

    def _backlog(self) -> int | None:
        """Clients that the kernel keeps until they are accepted; None where it has no queue."""
        return None


@make_fields
class UnixStreamServer(UnixServer, TCPServer):
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

    def _backlog(self) -> int:
        size = self.request_queue_size
        return LARGEST_BACKLOG if size is None else size


@make_fields
class UnixDatagramServer(UnixServer, UDPServer):
    """Serves datagrams sent to a Unix socket, each of which is a request of its own.

    ``server_address`` is as for `UnixStreamServer`. A client that wants a reply
    binds its own socket; one that has not has the address ``""``. While all
    slots are taken, datagrams wait in the kernel, and then their senders wait.

    Args:
      mode: permission bits of the socket file, in force before it can be
        reached; None leaves them to the umask.
    """
