"""Binding sockets: every way in which a server gets its listeners.

Every function that binds either returns listeners that own all the sockets it
made, or raises and has closed them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence

from ._address import Address, resolve, with_address
from ._transport import Listener, SocketListener
from ._unix_path import bind_path

LARGEST_BACKLOG = 65_535
"""The kernel cuts it to what it can (``net.core.somaxconn``). Not larger,
because some systems keep it in 16 bits and 65536 would become 0."""

# Another program can take the port between the binds of the two families; more
# tries than this mean that something else is wrong.
_SAME_PORT_TRIES = 20

SocketOption = tuple[int, int, int | bytes]


async def bind_ip(
    host: str | None,
    port: int | str,
    *,
    family: int | None = None,
    options: Iterable[SocketOption] = (),
    reuse_address: bool = True,
    reuse_port: bool = False,
) -> list[SocketListener]:
    """TCP sockets bound to every address of ``host``, all on one port, IPv4 first.

    A family that the machine lacks is left out, as long as one is left.

    Args:
      host: name or address; None or ``""`` is every interface.
      port: 0 for an ephemeral port, the same on every address.
      family: None for every family that ``host`` has.
      options: ``(level, name, value)``, set before bind.
      reuse_address: bind although connections of an earlier server are in
        TIME_WAIT. Never set on Windows, where it means stealing the port.
      reuse_port: share the port with other processes that set it too.

    Raises:
      OSError: with the address in its message; every socket is closed.
    """
    settings = list(options)
    if reuse_address and os.name == "posix":
        settings.append((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
    if reuse_port:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise OSError(errno.ENOPROTOOPT, "allow_reuse_port: this system has no SO_REUSEPORT")
        settings.append((socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
    addresses = await resolve(host, port, family)
    tries = _SAME_PORT_TRIES if addresses[0][1][1] == 0 and len(addresses) > 1 else 1
    while True:
        tries -= 1
        try:
            sockets = _bind_all(addresses, settings)
        except OSError as error:
            if tries and error.errno == errno.EADDRINUSE:
                continue
            raise
        # Not shared, even with reuse_port: each such socket has a queue of its own.
        return [SocketListener(sock) for sock in sockets]


def _bind_all(
    addresses: Sequence[tuple[socket.AddressFamily, Address]], options: Sequence[SocketOption]
) -> list[socket.socket]:
    """A socket for each address, on the port of the first, or none at all."""
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            host, port, *rest = address
            if bound:
                port = port or bound[0].getsockname()[1]
            try:
                bound.append(_bind_one(family, (host, port, *rest), options))
            except OSError as error:
                missing = with_address(error, "listen on", (host, port, *rest))
                if not _lacks_family(family, error):
                    raise missing from error
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    if not bound and missing is not None:
        raise missing
    return bound


def _bind_one(
    family: socket.AddressFamily, address: Address, options: Sequence[SocketOption]
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            # One socket a family: clients' addresses are plain, never ::ffff:1.2.3.4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for level, name, value in options:
            sock.setsockopt(level, name, value)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _lacks_family(family: int, error: OSError) -> bool:
    """Whether ``error`` says that the machine does not have the address family.

    A kernel built without IPv6 refuses the socket; one where it is switched off
    (``net.ipv6.conf.all.disable_ipv6``) makes it and lacks every address.
    """
    if error.errno in {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}:
        return True
    return family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL


async def bind_unix(
    path: str | bytes | os.PathLike[str],
    *,
    mode: int | None,
    backlog: int,
    options: Iterable[SocketOption] = (),
) -> list[SocketListener]:
    """A Unix stream socket that listens on ``path``; see `bind_path`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for level, name, value in options:
            sock.setsockopt(level, name, value)
        owned = await bind_path(sock, path, mode=mode, backlog=backlog)
        return [SocketListener(sock, path=owned)]
    except BaseException:
        sock.close()
        raise


def adopt(sockets: Sequence[socket.socket], families: Iterable[int]) -> list[SocketListener]:
    """Listeners for sockets that somebody else has bound, IPv4 first.

    They are ours from here on, and closed at the end of the run; their paths
    are not unlinked, and what waits in their queues when the server drains is
    left there, for whoever else has them.

    Raises:
      ValueError: a socket is closed, is not a stream socket of one of
        ``families``, is not bound, or is connected; none is changed.
    """
    for sock in sockets:
        if fault := _unfit(sock, frozenset(families)):
            raise ValueError(f"cannot serve on the socket {sock!r}: it {fault}")
    in_order = sorted(sockets, key=lambda sock: sock.family != socket.AF_INET)
    return [SocketListener(sock, shared=True) for sock in in_order]


def _unfit(sock: socket.socket, families: frozenset[int]) -> str | None:
    if sock.fileno() == -1:
        return "is closed"
    if sock.type != socket.SOCK_STREAM:
        return f"is a {sock.type.name} socket; a SOCK_STREAM one was expected"
    if sock.family not in families:
        expected = " or ".join(sorted(socket.AddressFamily(family).name for family in families))
        return f"is of family {socket.AddressFamily(sock.family).name}; {expected} was expected"
    name = sock.getsockname()
    if not name or (isinstance(name, tuple) and name[1] == 0):
        return "is not bound to an address"
    try:
        sock.getpeername()
    except OSError:
        return None
    return "is connected to a client; a listening one was expected"


def activate(listeners: Iterable[Listener], backlog: int | None) -> None:
    """Begin to queue clients on each listener.

    Raises:
      OSError: with the address in its message.
    """
    for listener in listeners:
        try:
            listener.listen(LARGEST_BACKLOG if backlog is None else backlog)
        except OSError as error:
            raise with_address(error, "listen on", listener.address) from error
