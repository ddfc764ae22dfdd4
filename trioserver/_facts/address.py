"""Addresses: families, resolving, printing, Unix paths, and whose they are.

Nothing here touches a server's socket; everything but `resolve` is a pure
function.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import trio

Address: TypeAlias = Any
"""What the socket module calls an address: ``(host, port)`` for IPv4,
``(host, port, flowinfo, scope_id)`` for IPv6, a path for Unix sockets
(``str``, or ``bytes`` for an abstract name; ``""`` for a client without one)."""

_HAS_UNIX = hasattr(socket, "AF_UNIX")

# sun_path holds 108 bytes on Linux and 104 on the BSDs and macOS, and its end
# is a NUL that must fit (unix(7)).
LONGEST_UNIX_PATH = 107 if sys.platform == "linux" else 103


async def resolve(
    host: str | None,
    port: int | str,
    family: int | None,
    kind: int = socket.SOCK_STREAM,
    ipv6_parts: Sequence[int] = (),
) -> list[tuple[socket.AddressFamily, Address]]:
    """The addresses to listen on for ``host`` and ``port``, IPv4 first.

    Args:
      host: a name or address; None or ``""`` is every interface.
      port: a number, 0 for an ephemeral one, or a service name.
      family: None for every family, or the one to use.
      kind: for streams or for datagrams; names of services depend on it.
      ipv6_parts: flow information and scope id, which only IPv6 addresses
        have. A scope id of 0 leaves the zone to the host (``fe80::1%eth0``).

    Raises:
      OSError: the name does not resolve; the message holds it.
    """
    try:
        found = await trio.socket.getaddrinfo(
            host or None,
            port,
            family=family or (socket.AF_INET6 if ipv6_parts else socket.AF_UNSPEC),
            type=kind,
            flags=socket.AI_PASSIVE,
        )
    except socket.gaierror as error:
        shown = describe((host or "", port))
        raise socket.gaierror(error.errno, f"{error.strerror}: cannot resolve {shown}") from error
    # A name can resolve to one address twice (once a protocol, /etc/hosts).
    unique = dict.fromkeys((entry[0], _with_parts(entry[4], ipv6_parts)) for entry in found)
    return sorted(unique, key=lambda entry: entry[0] != socket.AF_INET)


def _with_parts(address: Address, ipv6_parts: Sequence[int]) -> Address:
    if not ipv6_parts:
        return address
    (flowinfo, scope_id), (host, port, _, found_zone) = ipv6_parts, address
    return host, port, flowinfo, scope_id or found_zone


def describe(address: Address) -> str:
    """``address`` as people write it: ``127.0.0.1:80``, ``[fe80::1%eth0]:80``, ``unix:/run/x``.

    On one line, and never an error: an address that a ``get_request`` has made
    up can be anything.
    """
    if type(address) is tuple and len(address) == 2:  # of each request: the others take longer
        host, port = address
        if type(host) is str and type(port) is int and host.isprintable() and ":" not in host:
            return f"{host[:500]}:{port}"
    try:
        return printable(_in_words(address))
    except Exception:  # noqa: BLE001  (its own __str__, say)
        return f"<{type(address).__name__}>"


def _in_words(address: Address) -> str:
    match address:
        case (str(host), port, *rest):
            return (
                f"[{host}{_zone_in_words(host, rest)}]:{port}" if ":" in host else f"{host}:{port}"
            )
        case str() | bytes() | os.PathLike():
            return f"unix:{_path_in_words(os.fsencode(address))}" if address else "unix:(unnamed)"
        case _:
            return str(address)


def _zone_in_words(host: str, rest: Sequence[object]) -> str:
    """``%`` and the interface of a link-local address, whose scope id the kernel has told."""
    match rest:
        case (_, int(scope_id)) if scope_id and "%" not in host:
            try:
                return f"%{socket.if_indextoname(scope_id)}"
            except (OSError, OverflowError):  # the interface is gone, or never was
                return f"%{scope_id}"
        case _:
            return ""


def _path_in_words(path: bytes) -> str:
    if path.startswith(b"\0"):
        path = b"@" + path[1:]  # as ss(8) and systemd write abstract names
    return path.decode(errors="backslashreplace")


def printable(text: str, most: int = 500) -> str:
    """``text`` on one line, for a log: it may hold what a client sent."""
    if len(text) > most:
        text = text[:most] + "..."
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def client_key(address: Address, user_id: int | None) -> Hashable | None:
    """What ``Limits.per_client`` counts as one client; None if that cannot be told.

    An IPv6 client commonly owns a /64 network, so that is what counts; on a
    link, though, fe80::/64 is everybody's, so each address does, with its zone.
    A Unix client is its user id. Any other address that a ``get_request`` has
    made up counts as itself, if it hashes.
    """
    match address:
        case (str(host), *rest):
            key: object = _owned_by_one(host, rest)
        case _:
            key = address if user_id is None else user_id
    try:
        hash(key)
    except Exception:  # noqa: BLE001  (a list's, or what its own __hash__ raises)
        return None
    return key


def _owned_by_one(host: str, rest: Sequence[object]) -> object:
    """The addresses that are one client's, if ``host`` is one of them."""
    host, _, zone = host.partition("%")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip.is_link_local:
        return ip, zone or tuple(rest[2:])
    return ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False)


_LARGEST_FLOWINFO = 2**20 - 1
_LARGEST_SCOPE_ID = 2**32 - 1


def valid_ip_address(address: object) -> str | None:
    """What is wrong with ``address`` as a place to listen, or None."""
    if not (isinstance(address, (tuple, list)) and len(address) in {2, 4}):
        return "a pair (host, port) or bound sockets to adopt"
    host, port, *ipv6_parts = address
    if not isinstance(host, (str, type(None))):
        return "a pair (host, port) whose host is a str or None"
    if host and host.startswith("["):
        bare = host[1:].partition("]")[0]
        return f"a pair (host, port) whose host is without the brackets of a URL, {bare!r}"
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        return "a pair (host, port) whose port is an int or a service name"
    if isinstance(port, int) and not 0 <= port <= 65_535:
        return "a pair (host, port) whose port is between 0 and 65535"
    for part, most in zip(ipv6_parts, (_LARGEST_FLOWINFO, _LARGEST_SCOPE_ID), strict=False):
        if isinstance(part, bool) or not isinstance(part, int) or not 0 <= part <= most:
            return "(host, port, flowinfo, scope_id) whose last two are ints that IPv6 has room for"
    return None


def valid_unix_path(path: object) -> str | None:
    """What is wrong with ``path`` as the name of a Unix socket, or None."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return "a path (str, bytes or os.PathLike) or bound sockets to adopt"
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return "a path that the file system's encoding can hold"
    if not raw:
        return "a path that is not empty"
    if is_abstract(raw):
        if sys.platform != "linux":
            return "a path in the file system: abstract names exist on Linux alone"
        return (
            None
            if len(raw) <= LONGEST_UNIX_PATH + 1
            else f"at most {LONGEST_UNIX_PATH + 1} bytes long"
        )
    if b"\0" in raw:
        return "a path without NUL bytes"
    if len(raw) > LONGEST_UNIX_PATH:
        return (
            f"a path of at most {LONGEST_UNIX_PATH} bytes, the most a socket address holds"
            f" (this one has {len(raw)}; a relative path may fit)"
        )
    return None


def is_abstract(path: str | bytes | os.PathLike[str]) -> bool:
    """Whether ``path`` is a name in Linux's abstract namespace, without a file."""
    return os.fsencode(path).startswith(b"\0")


def given_sockets(address: object) -> tuple[socket.socket, ...]:
    """The sockets that a configured address hands over, none if it is an address."""
    if isinstance(address, socket.socket):
        return (address,)
    if isinstance(address, Sequence) and not isinstance(address, (str, bytes)):
        sockets = tuple(item for item in address if isinstance(item, socket.socket))
        return sockets if len(sockets) == len(address) else ()
    return ()


def with_address(error: OSError, doing: str, address: Address) -> OSError:
    """The same error, of the same class, saying which address it is about."""
    reason = error.strerror or str(error)
    return OSError(error.errno or errno.EIO, f"{reason}: cannot {doing} {describe(address)}")
