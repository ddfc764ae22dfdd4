"""Binding sockets: every way in which a server gets its listeners.

Every function that binds either returns all the sockets it made, or raises and
has closed them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .._facts.address import Address, resolve, with_address
from .making import new_socket
from .transport import Listener
from .unix_path import BoundPath, bind_path

LARGEST_BACKLOG = 65_535
"""The kernel cuts it to what it can (``net.core.somaxconn``). Not larger,
because some systems keep it in 16 bits and 65536 would become 0."""

# Another program can take the port between the binds of the two families; more
# tries than this mean that something else is wrong.
_SAME_PORT_TRIES = 20

SocketOption = tuple[int, int, int | bytes]
L = TypeVar("L", bound=Listener)


async def bind_ip(
    host: str | None,
    port: int | str,
    *ipv6_parts: int,
    kind: int = socket.SOCK_STREAM,
    family: int | None = None,
    options: Iterable[SocketOption] = (),
    reuse_address: bool = True,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Sockets bound to every address of ``host``, all on one port, IPv4 first.

    A family that the machine lacks is left out, as long as one is left.

    Args:
      host: name or address; None or ``""`` is every interface.
      port: 0 for an ephemeral port, the same on every address.
      ipv6_parts: flow information and scope id, of an address that is IPv6's.
      kind: TCP or UDP, by the type of their sockets.
      family: None for every family that ``host`` has.
      options: ``(level, name, value)``, set before bind.
      reuse_address: bind although connections of an earlier server are in
        TIME_WAIT. Never set on Windows, where it means stealing the port. (For
        UDP it means that everywhere; there it is wanted for multicast alone.)
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
    addresses = await resolve(host, port, family, kind, ipv6_parts)
    tries = _SAME_PORT_TRIES if addresses[0][1][1] == 0 and len(addresses) > 1 else 1
    while True:
        tries -= 1
        try:
            return _bind_all(addresses, kind, settings)
        except OSError as error:
            if tries and error.errno == errno.EADDRINUSE:
                continue
            raise


def listeners_of(
    sockets: Sequence[socket.socket], make_listener: Callable[[socket.socket], L]
) -> list[L]:
    """A listener for each socket, or all of them closed."""
    try:
        return [make_listener(sock) for sock in sockets]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


def _bind_all(
    addresses: Sequence[tuple[socket.AddressFamily, Address]],
    kind: int,
    options: Sequence[SocketOption],
) -> list[socket.socket]:
    """A socket for each address, on the port of the first, or none at all."""
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, port, *rest) in addresses:
            if bound:
                port = port or bound[0].getsockname()[1]  # noqa: PLW2901
            address = (host, port, *rest)
            try:
                sock = _unbound(family, kind)
            except OSError as error:
                missing = _missing(family, error, address)
                continue
            bound.append(sock)
            _set(sock, options)
            try:
                sock.bind(address)
            except OSError as error:
                missing = _missing(family, error, address)
                bound.pop().close()
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    if not bound and missing is not None:
        raise missing
    return bound


def _unbound(family: socket.AddressFamily, kind: int) -> socket.socket:
    sock = new_socket(family, kind)
    try:
        if family == socket.AF_INET6:
            # One socket a family: clients' addresses are plain, never ::ffff:1.2.3.4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _set(sock: socket.socket, options: Iterable[SocketOption]) -> None:
    for level, name, value in options:
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            option = f"{(level, name, value)} of socket_options"
            message = f"{error.strerror}: cannot set {option} on an {sock.family.name} socket"
            raise OSError(error.errno, message) from error


def _missing(family: int, error: OSError, address: Address) -> OSError:
    """``error`` in words; raised, unless it says that the machine does not have the family."""
    told = with_address(error, "listen on", address)
    if not _lacks_family(family, error):
        raise told from error
    return told


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
    backlog: int | None,
    options: Iterable[SocketOption] = (),
) -> tuple[socket.socket, BoundPath | None]:
    """A socket bound to ``path``, and its file; see `bind_path`.

    It listens, unless ``backlog`` is None: then it is for datagrams.
    """
    kind = socket.SOCK_DGRAM if backlog is None else socket.SOCK_STREAM
    sock = new_socket(socket.AF_UNIX, kind)
    try:
        _set(sock, options)
        return sock, await bind_path(sock, path, mode=mode, backlog=backlog)
    except BaseException:
        sock.close()
        raise


def use_sockets(
    sockets: Sequence[socket.socket], families: Iterable[int], kind: int
) -> list[socket.socket]:
    """The sockets that somebody else has bound, IPv4 first.

    They are ours from here on, and closed at the end of the run; their paths
    are not unlinked, and what waits in their queues when the server drains is
    left there if somebody else has them.

    Raises:
      ValueError: a socket is closed, is not of the right kind and of one of
        ``families``, is not bound, or is connected; none is changed.
    """
    for sock in sockets:
        if fault := _unfit(sock, frozenset(families), kind):
            raise ValueError(f"cannot serve on the socket {sock!r}: it {fault}")
    return sorted(sockets, key=lambda sock: sock.family != socket.AF_INET)


def _unfit(sock: socket.socket, families: frozenset[int], kind: int) -> str | None:
    if sock.fileno() == -1:
        return "is closed"
    if sock.type != kind:
        expected = socket.SocketKind(kind).name
        return f"is a {sock.type.name} socket; a {expected} one was expected"
    if sock.family not in families:
        expected = " or ".join(sorted(socket.AddressFamily(family).name for family in families))
        return f"is of family {socket.AddressFamily(sock.family).name}; {expected} was expected"
    if not is_bound(sock):
        return "is not bound to an address"
    try:
        sock.getpeername()
    except OSError:
        return None
    return "is connected to a client; one that is not was expected"


def is_bound(sock: socket.socket) -> bool:
    """Whether clients can find it. Of an IP socket that is not, the name is a port of 0."""
    name = sock.getsockname()
    return bool(name[1] if isinstance(name, tuple) else name)


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


def seal(listener: Listener) -> None:
    """Let nobody else into the queue of ``listener``, if it can do that."""
    if hasattr(listener, "seal"):
        listener.seal()


def most_queued(listener: Listener) -> int:
    """How many clients can be queued at ``listener`` at once, at most."""
    queued: int = getattr(listener, "most_queued", LARGEST_BACKLOG)
    return queued
