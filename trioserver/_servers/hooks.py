"""What a server does unless told otherwise: the hooks to override.

They stand in the order in which they are called for a request. All run in the server's
own Trio tasks. All are async, except `get_request`, which must not wait.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Awaitable, Sequence
from typing import Any

from trio.lowlevel import disable_ki_protection

from .._engine.offer import Offer
from .._facts.address import Address, describe
from .._facts.callables import parameters_of_method_if_not_for
from .._facts.observers import error_log, log_safely
from .._sockets.transport import Listener
from .fields import Configured, is_ours
from .handlers import awaitable


class DefaultHooks(Configured):
    """The hooks of `BaseServer`."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if is_ours(cls):
            return  # they are right, and to look is a twelfth of the library's import
        for name, original in vars(DefaultHooks).items():
            if inspect.isfunction(original) and not name.startswith("_"):
                _check_parameters(cls, name, *[*inspect.signature(original).parameters][1:])

    async def server_bind(self) -> Sequence[Listener]:
        """Make the listeners, and return them; override it to serve over something else."""
        raise NotImplementedError(f"{type(self).__name__} has no server_bind")

    async def server_activate(self) -> None:
        """Begin to queue clients on the listeners."""

    def get_request(self, listener: Listener) -> tuple[Any, Address] | None:
        """Accept a client, now: called when ``listener`` has one; must not wait.

        Args:
          listener: stands for one of the listeners that `server_bind` has returned, and
            has all attributes of that. Pass it on as it is.

        Returns:
          The request and the client's address, as the other hooks and the
          handler get them (the address can be any value; `Limits` says how
          ``per_client`` counts it); None if there was no client, or to drop it. An
          override calls this one to get the client. One that returns None without
          that leaves the client in the queue, and is called again at once.

        Raises:
          OSError: the accept failed; see the accept tiers.
          TypeError: ``listener`` is not what the override was called with.
        """
        if not isinstance(listener, Offer):
            raise TypeError(
                f"super().get_request takes the listener that get_request was called with,"
                f" not {listener!r}"
            )
        request = listener.take()
        return None if request is None else (request, request.info.client_address)

    async def _introduce(self, request: Any) -> str:
        """Learn who the client is, and put it in ``request.info``; say why not, or ``""``."""
        return ""

    def _has_introduction(self) -> bool:
        """Whether `_introduce` does anything."""
        return False

    async def _arrive(self, request: Any, client_address: Address) -> bool:
        """Do what comes between the accept and `process_request`; say whether to serve it."""
        return await self.verify_request(request, client_address)

    async def _secure(self, request: Any) -> None:
        """Agree with the client on what protects the connection, if anything."""

    async def _secure_here(self, request: Any) -> None:
        """The same, in this process, of a client that is told that the server is full."""

    async def verify_request(self, request: Any, client_address: Address) -> bool:
        """Whether to serve this client.

        With a TLS handshake, which comes next, it has ``timeouts.handshake`` seconds.
        """
        return True

    async def process_request(self, request: Any, client_address: Address) -> None:
        """Call `finish_request`; override it to do something around it."""
        await self.finish_request(request, client_address)

    async def finish_request(self, request: Any, client_address: Address) -> None:
        """Construct the handler, and await it."""
        await self._handling(request, client_address)

    @disable_ki_protection
    def _handling(self, request: Any, client_address: Address) -> Awaitable[object]:
        """Construct the handler; what to await then, in which Ctrl-C may strike, too."""
        handler = self.RequestHandlerClass
        return awaitable(handler(request, client_address, self), handler)

    async def shutdown_request(self, request: Any) -> None:
        """End the request in order, then call `close_request`.

        The server closes the connection afterwards, whatever this does, so an override
        cannot keep it open.
        """
        try:
            await request.linger()
        finally:
            await self.close_request(request)

    async def close_request(self, request: Any) -> None:
        """Close the request's connection, or its way back; called by `shutdown_request`."""
        await request.aclose()

    async def handle_error(self, request: Any, client_address: Address) -> None:
        """Report an error in a hook or handler, which is `sys.exception`.

        It logs the error with its traceback, as ERROR, on ``trioserver.error``. An
        override has ``timeouts.cleanup`` seconds. What it raises is logged, and ends
        nothing. When it does not return in time, the error that it was told of is logged.
        """
        message = "error while serving %s"
        shown = describe(client_address)
        log_safely(error_log, logging.ERROR, message, shown, exc_info=sys.exception())

    async def handle_timeout(self) -> None:
        """Called when `handle_request` got no request in time."""

    async def service_actions(self) -> None:
        """Called every ``poll_interval`` seconds, if overridden, until the drain begins.

        What it raises stops the server.
        """


def _check_parameters(cls: type, hook: str, *names: str) -> None:
    """Raise a `TypeError` for a hook that does not take the arguments it will get."""
    if parameters := parameters_of_method_if_not_for(cls, hook, *names):
        raise TypeError(
            f"{cls.__name__}.{hook}{parameters} must take ({', '.join(['self', *names])})"
        )
