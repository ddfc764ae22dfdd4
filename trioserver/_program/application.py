"""Servers that are named by their place in the code, or made when signals are heard already."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from .._servers.base import BaseServer

Made: TypeAlias = BaseServer | Sequence[BaseServer]
Given: TypeAlias = "BaseServer | str | Callable[[], Made]"


def servers_of(given: Given | Sequence[BaseServer]) -> Sequence[BaseServer]:
    """The servers that are meant.

    Args:
      given: a server, or several; a plain function without arguments that returns that; or
        ``"module:attribute"``, where one of all these is.

    Raises:
      ValueError: it is a text of another form.
      TypeError: it is something else, or what is found there, or returned, is.
      ImportError, AttributeError: there is no such module or attribute.
    """
    if isinstance(given, str):
        return _made(_found_at(given), f"what {given} is")
    return _made(given, "what run() serves")


def _found_at(place: str) -> object:
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise ValueError(f"{place!r} must be module:attribute, as in my_package.servers:server")
    return pkgutil.resolve_name(place)


def _made(given: object, what: str) -> Sequence[BaseServer]:
    if callable(given) and not isinstance(given, (BaseServer, type)):
        given = given()
    servers = given if isinstance(given, (list, tuple)) else [given]
    if not servers or not all(isinstance(server, BaseServer) for server in servers):
        raise TypeError(f"{what} must be a server, or several, not {given!r}")
    return cast("Sequence[BaseServer]", servers)
