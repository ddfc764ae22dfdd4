"""Synchronous handlers: what runs in a thread, and what it is given there.

Those of `socketserver`, unmodified, and plain functions of the same three
arguments. As ever, constructing such a handler handles the request.
"""

from __future__ import annotations

import inspect
import ipaddress
import socket
import socketserver
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from ..._facts.address import Address
from ..._facts.callables import has_yield, is_async_callable, name_of
from ..._facts.events import RequestInfo
from ..._servers.handler_checks import check_method, counterpart
from ..._servers.handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from ..._sockets.transport import Data

_ASYNCHRONOUS = (StreamRequestHandler, DatagramRequestHandler)

SyncHandler: TypeAlias = Callable[[Any, Address, Any], object]
"""What a server calls in a thread for each request."""


class SyncDatagramSocket:
    """The way back from one datagram, for a synchronous handler. It can only send.

    Args:
      send: sends a datagram to an address, waits for it, and returns its size.
      info: the facts of the request.
    """

    def __init__(self, send: Callable[[Data, Any], int], info: RequestInfo) -> None:
        self._send = send
        self._info = info

    def __repr__(self) -> str:
        return f"<trioserver.{type(self).__name__}: {self._info}>"

    def getsockname(self) -> Any:
        """The address that the datagram was sent to."""
        return self._info.server_address

    def sendto(self, data: Data, *flags_and_address: Any) -> int:
        """Send one datagram: ``sendto(data, address)``, or ``sendto(data, flags, address)``.

        It is sent by the server's own thread, within ``Timeouts.write``. Flags
        have no effect.

        Returns:
          The bytes of ``data``.

        Raises:
          PeerGone: the client cannot be reached, or has no address.
          WriteTimeout: the client's queue was full for ``Timeouts.write`` seconds.
          OSError: the system refused it.
          trio.ClosedResourceError: the request is over.
        """
        if len(flags_and_address) not in {1, 2}:
            raise TypeError("sendto takes (data, address) or (data, flags, address)")
        return self._send(data, _numeric(flags_and_address[-1], like=self.getsockname()))


def _numeric(address: Any, like: Any) -> Any:
    """The address without a name in it: a name is looked up here, in the handler's thread."""
    if not isinstance(like, tuple) or not isinstance(address, tuple) or len(address) < 2:
        return address
    host, port, *rest = address
    if host in _NO_NAMES:
        return address
    try:
        ipaddress.ip_address(host)
    except ValueError:
        family = socket.AF_INET6 if ":" in like[0] else socket.AF_INET
        (*_, found), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
        return (*found[:2], *rest) if rest else found
    return address


# What the socket module itself takes for all interfaces, and for all hosts on the link.
_NO_NAMES = ("", "<broadcast>")


def handle(handler: SyncHandler, request: Any, client_address: Address, server: Any) -> None:
    """Have ``handler`` handle the request.

    Raises:
      TypeError: it turns out to be asynchronous.
    """
    result = handler(request, client_address, server)
    if result is None or isinstance(result, socketserver.BaseRequestHandler):
        return
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()  # it was never started
        raise TypeError(
            f"RequestHandlerClass {name_of(handler)} returned {result!r}, in which nothing has"
            " run yet: in a thread a handler is a plain function, or derives from"
            " socketserver.BaseRequestHandler"
        )


def is_asynchronous(handler: object) -> bool:
    """Whether a handler is to be awaited, as far as can be told without calling it."""
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.isclass(handler):
        return issubclass(handler, BaseRequestHandler) or hasattr(handler, "__await__")
    return is_async_callable(handler)


def check_sync_handler(
    handler: object, *, kind: int | None = None, where: str = "in a thread"
) -> None:
    """Refuse a handler that can be seen not to work where nothing awaits it.

    Args:
      handler: what a server was given; callable.
      kind: the type of the server's sockets, if it has one.
      where: where it runs, for messages.

    Raises:
      TypeError: its methods are of the wrong colour, or it is for the other
        kind of server; says what to derive from instead.
    """
    while isinstance(handler, partial):
        handler = handler.func
    name = name_of(handler)
    if not inspect.isclass(handler):
        if is_async_callable(handler):
            raise TypeError(
                f"RequestHandlerClass {name} is asynchronous, and this server runs handlers in"
                " threads: it must be a plain `def`, or the server one without ThreadingMixIn"
            )
        if has_yield(handler):
            raise TypeError(f"RequestHandlerClass {name} has a `yield`, so calling it runs nothing")
        return
    if issubclass(handler, BaseRequestHandler):
        raise TypeError(
            f"RequestHandlerClass {name} is an asynchronous handler, and this server runs handlers"
            f" in threads: derive it from socketserver.{counterpart(handler, *_ASYNCHRONOUS)}, or"
            " the server from one without ThreadingMixIn"
        )
    for method in ("setup", "handle", "finish"):
        if is_async_callable(getattr(handler, method, None)):
            raise TypeError(
                f"RequestHandlerClass {name} runs {where}, so its {method}() must be a plain"
                " `def`, not an `async def`"
            )
        check_method(handler, method)
    _check_kind(handler, name, kind)


def _check_kind(handler: type, name: str, kind: int | None) -> None:
    datagrams = issubclass(handler, socketserver.DatagramRequestHandler)
    streams = issubclass(handler, socketserver.StreamRequestHandler)
    if datagrams and kind == socket.SOCK_STREAM:
        raise TypeError(
            f"RequestHandlerClass {name} serves datagrams, and this server has connections:"
            " derive it from socketserver.StreamRequestHandler"
        )
    if streams and kind == socket.SOCK_DGRAM:
        raise TypeError(
            f"RequestHandlerClass {name} serves connections, and this server has datagrams:"
            " derive it from socketserver.DatagramRequestHandler"
        )
