"""What a worker is told when it starts: above all, a copy of its server."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import attrs

from ...._facts.observers import error_log, log_safely
from ...._servers.field_names import fields_of
from ...._servers.hooks import DefaultHooks
from .log import levels


@attrs.frozen(kw_only=True)
class WorkerSetup:
    """What a worker is told when it starts.

    Attributes:
      server: the server, pickled: it is unpickled when the rest of the worker is ready.
      preload: names of modules to import, if the fork server has not.
      init: called once, before the first request.
      levels: of the server's loggers, by name; None: records stay here.
    """

    server: bytes
    preload: tuple[str, ...]
    init: Callable[[], object] | None
    levels: Mapping[str, int] | None


def setup_of(server: Any) -> WorkerSetup:
    """The setup for workers of a server.

    Raises:
      TypeError: something of it does not pickle; it is named.
    """
    return WorkerSetup(
        server=_pickled_copy(server),
        preload=tuple(server.preload),
        init=server.child_init,
        levels=levels() if server.forward_logging else None,
    )


def _pickled_copy(server: Any) -> bytes:
    twin = copy.copy(server)
    facts = vars(twin)
    facts["_server_address"] = server.server_address
    facts["observers"] = ()  # this process tells them of everything
    facts["limits"] = attrs.evolve(server.limits, when_full="wait")
    name = type(server).__name__
    for attribute in list(facts):
        if attribute in vars(DefaultHooks):  # set on the object; hooks run in this process alone
            del facts[attribute]
            continue
        try:
            pickle.dumps(facts[attribute])
        except Exception as error:  # noqa: BLE001  (whatever somebody's own raises)
            if attribute in fields_of(type(server)):
                _refuse(f"{name}.{attribute}", error)
            message = "workers do not have %s.%s, which does not pickle: %s"
            log_safely(error_log, logging.WARNING, message, name, attribute, error)
            del facts[attribute]
    try:
        return pickle.dumps(twin)
    except Exception as error:  # noqa: BLE001  (of its class: all that it has does pickle)
        _refuse(name, error)


def _refuse(what: str, error: Exception) -> NoReturn:
    raise TypeError(
        f"{what} does not pickle, so no worker process can have it ({error}): what is at the top"
        " of a module does"
    ) from error
