"""What a worker is told when it starts: which servers it has, and on which sockets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence

import attrs

from ..._facts.address import given_sockets
from ..._servers.base import BaseServer
from ..._servers.field_names import fields_of
from ..._sockets.inherited import Passed, inheritance
from ..._sockets.left_sockets import LeftSocket
from ..._sockets.making import socket_at
from ..application import Given, servers_of


@attrs.frozen(kw_only=True)
class Part:
    """What a worker is told of one of its servers.

    Attributes:
      name: of its class, for messages.
      sockets: how many listening sockets come with it; 0: it is not served any more.
      has_sockets: whether its address are sockets that somebody else has bound.
      inherited: by which names the program itself was passed its sockets, if it was.
      requests: how many of them it may have at once; None: as many as it says itself.
      is_suspended: whether it accepts nobody for now.
    """

    name: str
    sockets: int
    has_sockets: bool
    inherited: Sequence[str]
    requests: int | None
    is_suspended: bool


@attrs.frozen(kw_only=True)
class Setup:
    """What a worker is told when it starts.

    Attributes:
      given: what `run` was given, packed by `packed`: it is unpickled, and so imported, when
        the rest of the worker is ready.
      parts: its servers.
      levels: of the program's loggers, by name.
      place: the worker's own on the scoreboard.
      places: how many there are.
    """

    given: bytes
    parts: Sequence[Part]
    levels: Mapping[str, int]
    place: int
    places: int


def packed(given: Sequence[Given], made: Sequence[Sequence[BaseServer]]) -> bytes:
    """What workers make their servers of.

    What can be imported or called is made anew by each worker, with the code as it is then.

    Args:
      given: what `run` was given.
      made: the servers that have come of each.

    Raises:
      TypeError: something of a server does not pickle; it is named.
    """
    return pickle.dumps([_for_workers(*one) for one in zip(given, made, strict=True)])


def _for_workers(given: Given, made: Sequence[BaseServer]) -> Given | Sequence[BaseServer]:
    is_made_anew = isinstance(given, str) or (not isinstance(given, BaseServer) and _pickles(given))
    return given if is_made_anew else [_copy_for_workers(server) for server in made]


def _pickles(function: Callable[..., object]) -> bool:
    try:
        pickle.dumps(function)
    except Exception:  # noqa: BLE001  (a lambda, say; the servers that it has made will do)
        return False
    return True


def _copy_for_workers(server: BaseServer) -> BaseServer:
    twin = copy.copy(server)
    if given_sockets(server._server_address):
        vars(twin)["_server_address"] = None  # they come beside it
    name = type(server).__name__
    for attribute, value in vars(twin).items():
        field = fields_of(type(server)).get(attribute)
        _check_pickles(f"{name}.{attribute if field is None else field.alias}", value)
    _check_pickles(name, twin)
    return twin


def _check_pickles(what: str, value: object) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"{what} does not pickle, so no worker can have it ({error}): what is at the top of a"
            ' module does; or give run() a function that makes the server, or "module:attribute"'
        ) from error


# In the worker ------------------------------------------------------------------------


def servers_from(setup: Setup, numbers: Sequence[int]) -> Mapping[int, BaseServer]:
    """The servers that a worker has, by their numbers, each on its sockets.

    Args:
      setup: what it was told.
      numbers: the descriptors of all sockets, in the order of the servers.

    Raises:
      RuntimeError: they are not those that the program itself has.
      BaseException: what unpickling, importing or making them raises.
    """
    left = list(numbers)
    sockets = [[left.pop(0) for _ in range(part.sockets)] for part in setup.parts]
    named = [
        Passed(number, name)
        for part, its_own in zip(setup.parts, sockets, strict=True)
        for number, name in zip(its_own, part.inherited, strict=False)
    ]
    with inheritance.standing_in(named):
        given = pickle.loads(setup.given)  # noqa: S301  (from the program that has started this)
        servers = [server for one in given for server in servers_of(one)]
    _check_alike(setup.parts, servers)
    for server, part, its_own in zip(servers, setup.parts, sockets, strict=True):
        _put_on(server, part, its_own)
    return {number: server for number, server in enumerate(servers) if sockets[number]}


def _check_alike(parts: Sequence[Part], servers: Sequence[BaseServer]) -> None:
    theirs, ours = [part.name for part in parts], [type(server).__name__ for server in servers]
    if theirs != ours:
        raise RuntimeError(
            f"the program was started with the servers {', '.join(theirs)}, and its code makes"
            f" {', '.join(ours)} now: a rolling restart (SIGHUP) cannot change that; a handover"
            " (SIGUSR2) can"
        )


def _put_on(server: BaseServer, part: Part, numbers: Sequence[int]) -> None:
    sockets = [socket_at(number) for number in numbers]
    if part.has_sockets:
        for sock in given_sockets(server._server_address) or ():
            sock.close()  # the same, by another descriptor
        server._server_address = tuple(sockets)
    else:
        server._left = tuple(LeftSocket(sock, None) for sock in sockets)
    server._is_in_worker = True
    if part.requests is not None:
        server.limits = attrs.evolve(server.limits, requests=part.requests)
