"""What the engine asks of a server: its settings, its hooks, and what handlers need around them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

from .._facts.address import Address
from .._facts.config import Limits, Timeouts
from .._facts.events import Mode, RequestInfo
from .._requests.any_request import AnyRequest
from .._requests.drain import Drain
from .._sockets.transport import DatagramTransport, Listener, Transport


class RequestHooks(Protocol):
    """What a request needs of its server."""

    timeouts: Timeouts
    propagate_errors: bool

    async def verify_request(self, request: Any, client_address: Address) -> bool: ...
    async def process_request(self, request: Any, client_address: Address) -> None: ...
    async def shutdown_request(self, request: Any) -> None: ...
    async def handle_error(self, request: Any, client_address: Address) -> None: ...


class ServerHooks(RequestHooks, Protocol):
    """What a run needs of its server."""

    limits: Limits
    observers: Sequence[object]
    _mode: ClassVar[Mode]

    def get_request(self, listener: Listener) -> tuple[Any, Address] | None: ...
    async def service_actions(self) -> None: ...

    def _request_over(
        self, transport: Transport | DatagramTransport, info: RequestInfo, drain: Drain
    ) -> AnyRequest:
        """What the handler gets, over what a listener has accepted."""

    def _waiting_room(self) -> int:
        """How many clients a drain takes in that have to wait for a slot."""

    def _most_requests(self) -> int:
        """How many requests may be served at once."""

    def _resources(self, *, for_one_request: bool) -> AbstractAsyncContextManager[object]:
        """What handlers need around them, before clients are let in and until all have left."""
