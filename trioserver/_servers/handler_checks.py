"""What may be a handler: said when a server is built, not at its first request."""

from __future__ import annotations

import inspect
import socket
import socketserver
from functools import partial

from .._facts.callables import (
    has_yield,
    is_async_callable,
    name_of,
    parameters_if_not_for,
    parameters_of_method_if_not_for,
)
from .handlers import (
    BaseRequestHandler,
    DatagramRequestHandler,
)

_THEIRS = (socketserver.StreamRequestHandler, socketserver.DatagramRequestHandler)

HANDLER_PARAMETERS = ("request", "client_address", "server")


def check_callable(handler: object) -> None:
    """Refuse what is no handler anywhere."""
    if not callable(handler):
        raise TypeError(
            "RequestHandlerClass must be a handler class or a function, called with"
            f" (request, client_address, server), not {handler!r}"
        )
    if parameters := parameters_if_not_for(handler, *HANDLER_PARAMETERS):
        raise TypeError(
            f"RequestHandlerClass {name_of(handler)} is called with"
            f" ({', '.join(HANDLER_PARAMETERS)}), and takes {parameters}"
        )


def check_method(handler: type, name: str) -> None:
    """Refuse a method of a handler that does nothing, or fails, when it is called."""
    method = getattr(handler, name, None)
    if has_yield(method):
        raise TypeError(
            f"RequestHandlerClass {handler.__name__} has a `yield` in its {name}(), so calling it"
            " runs nothing"
        )
    if parameters := parameters_of_method_if_not_for(handler, name):
        raise TypeError(
            f"RequestHandlerClass {handler.__name__} has a method {name}{parameters}, which is"
            " called with self alone"
        )


def check_handler(handler: object, *, kind: int | None = None) -> None:
    """Refuse a handler that can be seen not to work, before its first request.

    Args:
      handler: what a server was given; callable.
      kind: the type of the server's sockets, if it has one.

    Raises:
      TypeError: its methods are of the wrong colour; says what to derive from
        instead.
    """
    while isinstance(handler, partial):
        handler = handler.func
    if has_yield(handler):
        raise TypeError(
            f"RequestHandlerClass {name_of(handler)} is a generator, which cannot be awaited:"
            " a handler function must be an `async def` without `yield`"
        )
    if inspect.isclass(handler):
        _check_class(handler, kind)


def _check_class(handler: type, kind: int | None) -> None:
    if issubclass(handler, socketserver.BaseRequestHandler):
        raise TypeError(
            f"RequestHandlerClass {handler.__name__} is a synchronous handler of socketserver:"
            f" derive it from trioserver.{counterpart(handler, *_THEIRS)}, whose methods are async"
        )
    if kind == socket.SOCK_STREAM and issubclass(handler, DatagramRequestHandler):
        raise TypeError(
            f"RequestHandlerClass {handler.__name__} serves datagrams, and this server has"
            " connections: derive it from trioserver.StreamRequestHandler"
        )
    if issubclass(handler, BaseRequestHandler):
        for name in ("setup", "handle", "finish"):
            check_method(handler, name)
            if not is_async_callable(getattr(handler, name)):
                raise TypeError(
                    f"RequestHandlerClass {handler.__name__} runs as a task, so its {name}()"
                    f" must be an `async def`, not a plain `def`"
                )
    elif not hasattr(handler, "__await__") and _gives_itself(handler):
        raise TypeError(
            f"RequestHandlerClass {handler.__name__} cannot be awaited:"
            " derive it from trioserver.BaseRequestHandler"
        )


def _gives_itself(cls: type) -> bool:
    """Whether calling ``cls`` gives an instance of it, as far as can be told."""
    makes_others = any("__new__" in vars(base) for base in cls.__mro__[:-1])
    return type(cls).__call__ is type.__call__ and not makes_others


def counterpart(handler: type, *kinds: type) -> str:
    """The name of the class of the other colour: that of the kind which a handler derives from."""
    return next(
        (kind.__name__ for kind in kinds if issubclass(handler, kind)), "BaseRequestHandler"
    )
