"""From a listener to the task of its next client, by way of ``get_request``.

Nothing here waits. Whatever ``get_request`` does, the client that was accepted is either in
the task that is returned, or closed and counted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import attrs
import trio

from .._facts.address import Address, client_key
from .._facts.events import RequestInfo
from .._requests.any_request import AnyRequest
from .._requests.drain import Drain
from .._sockets.transport import DatagramTransport, Listener
from .accept_errors import Tier, next_client, tier_of
from .hooks import ServerHooks, call_hook
from .offer import Offer
from .registry import RequestRegistry
from .request_task import Course, Process, RequestEvents, RequestTask


@attrs.define(eq=False)
class Acceptor:
    """Accepts clients one by one, and makes the tasks that will own them."""

    _server: ServerHooks
    _events: RequestEvents
    _registry: RequestRegistry
    _drain: Drain
    _overrides: Callable[[str], bool]
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    _clock: trio.abc.Clock = attrs.field(factory=trio.lowlevel.current_clock)
    _course: Course = attrs.field(init=False)
    _counts_at_once: bool = attrs.field(init=False)
    _asks_hook: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        server = self._server
        self._course = Course(
            server,
            self._events,
            self._process(),
            has_introduction=server._has_introduction(),
            arrives=server._has_arrival(),
            closes_by_default=not any(map(self._overrides, ("shutdown_request", "close_request"))),
        )
        counts = server.limits.per_client is not None
        self._counts_at_once = counts and not self._course.has_introduction
        self._asks_hook = self._overrides("get_request")

    def _process(self) -> Process:
        """What constructs and awaits the handler, by the hooks that are overridden alone.

        Three calls less, and 700 bytes of an idle connection.
        """
        server = self._server
        if self._overrides("process_request"):
            return partial(call_hook, server.process_request)
        if self._overrides("finish_request"):
            return partial(call_hook, server.finish_request)
        return server._handling

    def next_task(
        self, listener: Listener, *, in_drain: bool = False
    ) -> tuple[bool, RequestTask | None]:
        """Whether a client was there; and its task, unless ``get_request`` dropped it."""
        if not self._asks_hook:
            request = None if self._drain.began and not in_drain else self._request_of(listener)
            if request is None:
                return False, None
            return True, self._task_over(request, request, request.info.client_address)
        accept = self._request_of if in_drain else self._accept
        offer = Offer(listener, accept, self._drop)
        try:
            answer = self._server.get_request(cast("Listener", offer))
            if answer is None and offer.request is None:
                return False, None
            task = self._task_for(offer.request, answer)
        except BaseException as error:
            if offer.request is None:
                if isinstance(error, OSError) and tier_of(error) is Tier.NOBODY:
                    return False, None
                raise
            offer.request.reset()
            if not isinstance(error, OSError):
                raise
            # The accept itself worked: this is about the client, not the listener.
            self._registry.accept_failed(listener.address, error)
            return True, None
        return True, task

    def next_in_row(
        self, listener: Listener, *, in_drain: bool = False
    ) -> tuple[bool, RequestTask | None]:
        """Take the next client; an error of its own is counted, and does not hide the one after."""
        try:
            return self.next_task(listener, in_drain=in_drain)
        except OSError as error:
            if tier_of(error) is not Tier.CONNECTION:
                raise
            self._registry.accept_failed(listener.address, error)
            return True, None

    def _accept(self, listener: Listener) -> AnyRequest | None:
        """Accept a client, if one is there; None during a drain, which takes in all by itself."""
        return None if self._drain.began else self._request_of(listener)

    def _request_of(self, listener: Listener) -> AnyRequest | None:
        accepted = next_client(listener)
        if accepted is None:
            return None
        transport, client_address = accepted
        info = self.info_of(client_address, listener.address)
        return self._server._request_over(transport, info, self._drain)

    def info_of(self, client_address: Address, server_address: Address) -> RequestInfo:
        """The facts of the request of a client that has just come."""
        return RequestInfo(
            id=next(self._ids),
            client_address=client_address,
            peer_address=client_address,
            server_address=server_address,
            mode=self._server._mode,
            started=self._clock.current_time(),
            started_at=time.time(),
        )

    def task_of_rest(
        self,
        transport: DatagramTransport,
        info: RequestInfo,
        rest: Process,
    ) -> RequestTask:
        """The task of a request that has begun, and has been announced: it does the rest."""
        request = self._server._request_over(transport, info, self._drain)
        course = Course(self._server, self._events, rest, closes_by_default=True, is_announced=True)
        return RequestTask(request, request, info.client_address, course)

    def _task_for(
        self, request: AnyRequest | None, answer: tuple[Any, Address] | None
    ) -> RequestTask | None:
        """Make the task for what ``get_request`` has taken and returned; None if it drops it."""
        if request is None:
            raise TypeError(
                "get_request must return what super().get_request(listener) accepted, or None"
            )
        if answer is None:
            self._drop(request)
            return None
        return self._task_over(request, *answer)

    def _task_over(
        self, request: AnyRequest, hook_argument: object, client_address: Address
    ) -> RequestTask:
        task = RequestTask(request, hook_argument, client_address, self._course)
        if self._counts_at_once:
            task.client_key = client_key(client_address, request.user_id())
        return task

    def _drop(self, request: AnyRequest) -> None:
        request.reset()
        self._registry.refused(request.info.client_address, "get_request")
