"""The PROXY protocol as values: whom to believe, and what a header says.

Names and numbers are those of the protocol's specification (HAProxy, proxy-protocol.txt).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import attrs

from .address import Address
from .validators import as_tuple, reject

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def _user_of(peer: str) -> int | Literal["any"] | None:
    """The user id that ``"unix:1000"`` names; ``"any"`` for ``"unix"``; None for anything else."""
    kind, _, user = peer.partition(":")
    if kind != "unix" or (user and not (user.isascii() and user.isdigit())):
        return None
    return int(user) if user else "any"


def _valid_trusted(config: ProxyProtocol, field: attrs.Attribute[Any], peers: object) -> None:
    expected = (
        "a sequence of addresses and networks, such as '192.0.2.1' and '10.0.0.0/8', and 'unix' or"
        " 'unix:USERID' for peers on this machine"
    )
    if not isinstance(peers, tuple):
        reject(TypeError, config, field, expected, peers)
    for peer in peers:
        if not isinstance(peer, str):
            reject(TypeError, config, field, expected, peer)
        if peer != "unix:" and _user_of(peer) is not None:
            continue
        try:
            network = ipaddress.ip_network(peer, strict=False)
        except ValueError:
            reject(ValueError, config, field, expected, peer)
        if why := _why_never(peer, network):
            raise ValueError(f"ProxyProtocol.trusted: {peer!r} {why}")


def _why_never(peer: str, network: _Network) -> str:
    """Why a network is not what it looks like; ``""`` if it is."""
    first = network.network_address
    if "%" in peer:
        return "has a zone, and no peer can be told from those of other links: write no zone"
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped is not None:
        return f"never counts, as IPv4 peers count by their own address: '{first.ipv4_mapped}'"
    if "/" in peer and ipaddress.ip_address(peer.partition("/")[0]) != first:
        return f"has bits set beyond its prefix: the network is '{network}'"
    return ""


@attrs.frozen
class ProxyProtocol:
    """That each connection begins with a PROXY header, version 1 or 2, and from whom.

    A header says who the client is, so it is believed only from peers that are trusted. A
    connection of any other peer is refused before a byte of it is looked at, and so is one of a
    trusted peer that does not begin with a header: the specification forbids guessing.

    Args:
      trusted: the peers, which are proxies: IP addresses and networks, as text; ``"unix"`` for
        whoever can connect to the server's Unix socket, or ``"unix:USERID"`` for the processes
        of one user. An IPv4 client of an IPv6 socket counts by its IPv4 address. The default
        is every process of this machine: loopback, and whoever can connect to a Unix socket.

    Raises:
      TypeError: ``trusted`` is no sequence of text.
      ValueError: one of them is no address, network or user; it is named. A network must have
        no bits set beyond its prefix, and an address no zone.
    """

    trusted: Sequence[str] = attrs.field(
        default=("127.0.0.0/8", "::1", "unix"), converter=as_tuple, validator=_valid_trusted
    )

    @cached_property
    def _networks(self) -> Sequence[_Network]:
        return tuple(ipaddress.ip_network(it) for it in self.trusted if _user_of(it) is None)

    @cached_property
    def _users(self) -> frozenset[int | str]:
        return frozenset(user for it in self.trusted if (user := _user_of(it)) is not None)

    def trusts(self, peer_address: Address, user_id: int | None) -> bool:
        """Whether to believe a peer.

        Args:
          peer_address: the other end of the socket.
          user_id: that of a Unix peer; None where it cannot be told.
        """
        match peer_address:
            case (str(host), *_):
                try:
                    ip = ipaddress.ip_address(host.partition("%")[0])
                except ValueError:
                    return False
                ip = getattr(ip, "ipv4_mapped", None) or ip
                return any(ip in network for network in self._networks)
            case _:
                return "any" in self._users or (user_id is not None and user_id in self._users)


@attrs.frozen(kw_only=True)
class ProxyTLS:
    """What a proxy says of the TLS between the client and itself.

    Attributes:
      version: of TLS, as ``"TLSv1.3"``.
      cipher: the name of the cipher.
      common_name: of the client's certificate.
      has_certificate: whether the client has given one, in this connection or the session.
      is_verified: whether the proxy has verified that certificate.
    """

    version: str | None = None
    cipher: str | None = None
    common_name: str | None = None
    has_certificate: bool = False
    is_verified: bool = False


@attrs.frozen(kw_only=True)
class ProxyInfo:
    """What the PROXY header of a connection says.

    Attributes:
      version: of the protocol, 1 or 2.
      source: the client's address; None if the header names none: the proxy speaks for itself
        (``LOCAL``, a health check), or does not know (``UNKNOWN``).
      destination: the address that the client has asked, likewise.
      authority: the host name that the client has asked for, commonly that of SNI.
      alpn: the protocol that was agreed on by ALPN.
      unique_id: the proxy's name for the connection, at most 128 bytes.
      netns: the name of the network namespace at the proxy.
      tls: of the TLS at the proxy; None if there was none, or it does not say.
      tlvs: all that version 2 had beside the addresses, as ``(type, value)``, in order.
    """

    version: Literal[1, 2]
    source: Address | None = None
    destination: Address | None = None
    authority: str | None = None
    alpn: bytes | None = None
    unique_id: bytes | None = None
    netns: str | None = None
    tls: ProxyTLS | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
