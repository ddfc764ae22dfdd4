"""Servers that are given by their place in the code: ``"module:attribute"``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

from .._servers.base import BaseServer


def servers_of(given: BaseServer | str) -> Sequence[BaseServer]:
    """The servers that are meant.

    Args:
      given: a server, or ``"module:attribute"``, which is one, several, or a plain function
        without arguments that returns them.

    Raises:
      ValueError: it is a text of another form.
      TypeError: it is something else, or what is found there is.
      ImportError, AttributeError: there is no such module or attribute.
    """
    if not isinstance(given, str):
        return _checked(given, f"{given!r}")
    found = attribute_of(given)
    if callable(found) and not isinstance(found, (BaseServer, type)):
        return _checked(found(), f"what {given} returns")
    return _checked(found, given)


def attribute_of(place: str) -> Any:
    """What stands at ``"module:attribute"``; an attribute may have dots.

    Raises:
      ValueError: it is a text of another form.
      ImportError, AttributeError: there is no such module or attribute.
    """
    module, _, path = place.partition(":")
    if not module or not path:
        raise ValueError(f"{place!r} must be module:attribute, as in my_package.servers:server")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _checked(found: object, what: str) -> Sequence[BaseServer]:
    servers = found if isinstance(found, (list, tuple)) else [found]
    if not servers or not all(isinstance(server, BaseServer) for server in servers):
        raise TypeError(f"{what} must be a server, or several, not {found!r}")
    return cast("Sequence[BaseServer]", servers)
