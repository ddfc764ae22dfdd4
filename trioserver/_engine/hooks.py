"""What the engine asks of a server: its settings, its hooks, and what handlers need around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol, TypeVar

from trio.lowlevel import disable_ki_protection

from .._facts.address import Address
from .._facts.config import Limits, Timeouts
from .._facts.events import Mode, RequestInfo
from .._facts.verdict import as_errors
from .._requests.any_request import AnyRequest
from .._requests.datagram import ReplyFunction
from .._requests.drain import Drain
from .._sockets.transport import DatagramTransport, Listener, Transport
from .peers import Peers

T = TypeVar("T")

REQUEST_HOOKS = (
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
)
"""The hooks that are called in the task of a request."""


class RequestHooks(Protocol):
    """What a request needs of its server."""

    timeouts: Timeouts
    propagate_errors: bool
    _LATE: ClassVar[str]
    """What an arrival says that had its time in `_arrive`."""

    async def shutdown_request(self, request: Any) -> None: ...
    async def handle_error(self, request: Any, client_address: Address) -> None: ...

    async def _introduce(self, request: Any) -> str:
        """Learn who the client is, and put it in ``request.info``; say why not, or ``""``."""

    async def _secure(self, request: Any) -> None:
        """Agree with the client on what protects the connection, if anything."""

    async def _secure_here(self, request: Any) -> None:
        """The same, in this process, of a client that is told that the server is full."""

    async def _arrive(self, request: Any, client_address: Address) -> bool:
        """Do what comes between the accept and ``process_request``; say whether to serve it."""


class ServerHooks(RequestHooks, Protocol):
    """What a run needs of its server."""

    limits: Limits
    observers: Sequence[object]
    _mode: ClassVar[Mode]
    access_level: ClassVar[int]
    _peers: Peers | None
    _is_in_worker: bool

    def get_request(self, listener: Listener) -> tuple[Any, Address] | None: ...
    async def process_request(self, request: Any, client_address: Address) -> None: ...
    async def finish_request(self, request: Any, client_address: Address) -> None: ...
    async def service_actions(self) -> None: ...

    def _handling(self, request: Any, client_address: Address) -> Awaitable[object]:
        """Construct the handler; what to await then, in which Ctrl-C may strike, too."""

    def _reply_function(self) -> ReplyFunction | None:
        """The handler, if it is a plain function that answers datagrams; see `answering`."""

    def _request_over(
        self, transport: Transport | DatagramTransport, info: RequestInfo, drain: Drain
    ) -> AnyRequest:
        """Make what the handler gets, over what a listener has accepted."""

    def _has_introduction(self) -> bool:
        """Whether it is not known before `_introduce` who a client is."""

    def _has_arrival(self) -> bool:
        """Whether one of both does anything; a request that has no arrival saves its scope."""

    def _waiting_room(self) -> int:
        """How many clients that have to wait for a slot a drain takes in."""

    def _most_requests(self) -> int:
        """How many requests may be served at once."""

    def _resources(self, *, for_one_request: bool) -> AbstractAsyncContextManager[object]:
        """A block of what handlers need, entered before clients are let in, left after the last."""


@disable_ki_protection
async def call_hook(hook: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Await a hook of the program's, in which Ctrl-C may strike.

    A ``GeneratorExit`` that it raises comes out as a `RuntimeError`.
    """
    try:
        return await hook(*arguments)
    except GeneratorExit as error:
        raise as_errors(error) from error
    except BaseExceptionGroup as group:
        if as_errors(group) is group:
            raise
        raise as_errors(group) from None
