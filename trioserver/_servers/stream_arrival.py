"""What a client and a stream server agree on before any handler: who it is, and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Self, SupportsIndex

import attrs

from .._facts.callables import has_yield, is_async_callable, parameters_if_not_for
from .._facts.proxy import ProxyProtocol
from .._facts.validators import instance_of, reject
from .._requests.begin_tls import begin_tls
from .._requests.proxy_header import read_proxy_header
from .._sockets.credentials import Credentials, fault_of_context
from .._sockets.proxy_protocol import BadHeader
from .base import BaseServer
from .fields import make_fields


def _valid_ssl_context(server: object, field: attrs.Attribute[Any], value: object) -> None:
    expected = "or a plain function without arguments that returns one, or None"
    if isinstance(value, ssl.SSLContext) or not callable(value):
        fault = None if value is None else fault_of_context(value)
        if fault is not None:
            reject(fault[0], server, field, f"{fault[1]}, {expected}", value)
    elif is_async_callable(value) or has_yield(value) or parameters_if_not_for(value):
        reject(TypeError, server, field, f"an ssl.SSLContext, {expected}", value)


@make_fields
class StreamArrival(BaseServer):
    """The arrival of connections: a PROXY header, `verify_request`, and a TLS handshake."""

    proxy_protocol: ProxyProtocol | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(
            instance_of(ProxyProtocol, "a trioserver.ProxyProtocol or None")
        ),
    )
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = attrs.field(
        default=None, validator=_valid_ssl_context
    )

    def _has_arrival(self) -> bool:
        return self.ssl_context is not None or super()._has_arrival()

    # The PROXY header ------------------------------------------------------------

    def _has_introduction(self) -> bool:
        return self.proxy_protocol is not None

    async def _introduce(self, request: Any) -> str:
        config, info = self.proxy_protocol, request.info
        if config is None:
            return ""
        if not config.trusts(info.peer_address, request.user_id()):
            return "PROXY: the peer is not trusted"
        try:
            header = await read_proxy_header(request._receiver, info)
        except BadHeader as error:
            return f"PROXY: {error}"
        client = info.client_address if header.source is None else header.source
        request.info = attrs.evolve(info, client_address=client, proxy=header)
        return ""

    # TLS ---------------------------------------------------------------------------

    def _credentials(self) -> Credentials | None:
        if self.ssl_context is None:
            return None
        return Credentials(self.ssl_context, type(self).__name__)

    async def _secure(self, request: Any) -> None:
        await self._secure_here(request)

    async def _secure_here(self, request: Any) -> None:
        credentials = self._bound_run().credentials
        if credentials is not None:
            await begin_tls(request, credentials.context)

    def __copy__(self) -> Self:
        # Not by way of what pickles: a context can be copied, and does not pickle.
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if isinstance(self.ssl_context, ssl.SSLContext):
            raise TypeError(
                f"{type(self).__name__}.ssl_context is an ssl.SSLContext, which does not pickle:"
                " give a function at the top of a module that returns one"
            )
        return super().__reduce_ex__(protocol)
