"""Servers out of options, and of a handler or of a server that somebody has made."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

import trioserver

from . import serving_options as options
from . import values

_STREAM, _DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS: dict[tuple[str, int, bool], Any] = {
    ("task", _STREAM, False): trioserver.TCPServer,
    ("task", _STREAM, True): trioserver.UnixStreamServer,
    ("task", _DATAGRAM, False): trioserver.UDPServer,
    ("task", _DATAGRAM, True): trioserver.UnixDatagramServer,
    ("thread", _STREAM, False): trioserver.ThreadingTCPServer,
    ("thread", _STREAM, True): trioserver.ThreadingUnixStreamServer,
    ("thread", _DATAGRAM, False): trioserver.ThreadingUDPServer,
    ("thread", _DATAGRAM, True): trioserver.ThreadingUnixDatagramServer,
    ("process", _STREAM, False): trioserver.ProcessTCPServer,
    ("process", _STREAM, True): trioserver.ProcessUnixStreamServer,
    ("process", _DATAGRAM, False): trioserver.ProcessUDPServer,
    ("process", _DATAGRAM, True): trioserver.ProcessUnixDatagramServer,
}
"""The server classes: by mode, by the type of their sockets, and whether those are Unix's."""


def servers_for(
    handler: Any,
    typed: argparse.Namespace,
    *,
    mode: str = "task",
    udp: bool = False,
    mix_in: type | None = None,
    timeouts: trioserver.Timeouts | None = None,
) -> Sequence[trioserver.BaseServer]:
    """A server for each place, with this handler.

    Args:
      handler: as for all servers.
      typed: the options.
      mode: where handlers run.
      udp: whether to serve datagrams.
      mix_in: a class with hooks of its own.
      timeouts: other ones than the options say.

    Raises:
      TypeError, ValueError: something does not go together; it is named.
    """
    kind = _DATAGRAM if udp else _STREAM
    fields = options.stream_fields(typed)
    if udp and fields:
        raise ValueError("datagrams have no TLS, no PROXY header and no backlog: leave that out")
    fields["timeouts"] = options.timeouts(typed) if timeouts is None else timeouts
    fields["limits"] = options.limits(typed)
    built = []
    for address, is_path in _addresses(options.places(typed), kind):
        cls = KINDS[mode, kind, is_path]
        if mix_in is not None:
            cls = type(cls.__name__, (mix_in, cls), {})
        built.append(cls(address, handler, **fields))
    return built


def why_not_served(handler: Any, *, mode: str, udp: bool) -> str:
    """What a server of this mode says of a handler that it cannot have; ``""`` if it can."""
    try:
        KINDS[mode, _DATAGRAM if udp else _STREAM, False](("", 0), handler)  # which does nothing
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def evolved(
    server: trioserver.BaseServer, typed: argparse.Namespace
) -> Sequence[trioserver.BaseServer]:
    """A server that somebody has made, with what was given in the place of what it has."""
    changes = options.stream_fields(typed)
    for name, of in (("timeouts", trioserver.Timeouts), ("limits", trioserver.Limits)):
        if given := options.fields_of(typed, of):
            changes[name] = attrs.evolve(getattr(server, name), **given)
    if typed.bind is None:
        return [server.evolve(**changes)] if changes else [server]
    kind = getattr(server, "socket_type", _STREAM)
    places = _addresses(typed.bind, kind)
    return [server.evolve(server_address=address, **changes) for address, _ in places]


def _addresses(places: Sequence[values.Bind], kind: int) -> Iterator[tuple[Any, bool]]:
    """What servers take as their addresses, and whether they are of Unix sockets."""
    for place in places:
        if place.inherited is None:
            yield place.address, place.is_path
            continue
        for sock in place.sockets():
            if sock.type != kind:
                wanted = socket.SocketKind(kind).name
                raise ValueError(
                    f"{place.text}: a socket of type {wanted} was expected, not {sock.type.name}"
                )
            yield sock, sock.family == getattr(socket, "AF_UNIX", None)
