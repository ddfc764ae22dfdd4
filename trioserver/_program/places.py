"""Which listening sockets of an earlier program are whose, and what the next one is to find.

A program leaves its sockets to the one that it starts in its place, and to a service manager
that keeps them for the next start. Either way a server finds its own by its place: the kind of
its socket and the address that it is configured with (see `Place`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs

from .._facts.address import describe, given_sockets
from .._servers.base import BaseServer
from .._sockets.datagram_listener import DatagramListener
from .._sockets.inherited import inheritance
from .._sockets.left_sockets import Place
from .._sockets.stream_sockets import SocketListener

KernelListener: TypeAlias = SocketListener | DatagramListener


@attrs.frozen(eq=False)
class Places:
    """The places of a program's servers; None of one that has sockets which it was given."""

    _servers: Sequence[BaseServer]
    _places: Sequence[Place | None]

    @classmethod
    def of(cls, servers: Sequence[BaseServer]) -> Places:
        """The places of these servers, as they are configured."""
        before: Counter[Any] = Counter()
        places: list[Place | None] = []
        for server in servers:
            address, kind = server.server_address, getattr(server, "socket_type", None)
            if kind is None or given_sockets(address):
                places.append(None)
                continue
            place = Place(kind, address, before[kind, repr(address)])
            before[kind, repr(address)] += 1
            places.append(place)
        return cls(servers, places)

    def claim(self) -> None:
        """Have each server find what was left for it when it is bound."""
        for server, place in zip(self._servers, self._places, strict=True):
            server._left = () if place is None else inheritance.take_for(place)

    def named(self) -> Sequence[tuple[int, str]]:
        """The descriptors of all listening sockets, and the names by which they are found again.

        Raises:
          RuntimeError: the next program would not find one; it is named.
        """
        return [self._named(listener, place) for listener, place in self._listeners()]

    def keep(self) -> Iterator[tuple[int, str]]:
        """Leave the sockets that the servers have bound to who keeps them; as `named` has them."""
        for listener, place in self._listeners():
            if place is not None and isinstance(listener, KernelListener):
                listener.is_kept = True
                yield listener.fileno(), place.name_for(listener.path)

    def _listeners(self) -> Iterator[tuple[Any, Place | None]]:
        for server, place in zip(self._servers, self._places, strict=True):
            for listener in () if server._run is None else server._run.listeners:
                yield listener, place

    def _named(self, listener: Any, place: Place | None) -> tuple[int, str]:
        where = describe(listener.address)
        if not isinstance(listener, KernelListener):
            raise RuntimeError(f"the listener at {where} has no socket to hand over")  # noqa: TRY004
        if place is not None:
            return listener.fileno(), place.name_for(listener.path)
        name = inheritance.taken.get(listener.fileno())
        if name is None:
            raise RuntimeError(
                f"the socket at {where} was made by the program itself, which would make another"
                " one: have its server bind it, or use trioserver.inherited_sockets"
            )
        return listener.fileno(), name
