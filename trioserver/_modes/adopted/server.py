"""A server over an object of `socketserver`: its hooks, called where they may block.

The object was built, and commonly bound, by somebody else. Its socket is our
listener, what its ``get_request`` returns is lent to a thread for as long as the
request lasts, and its other methods are called in threads, as ever: one that
serves many at once has a thread for each request, which calls all of that
request's hooks and nobody else's, and one for what is no request's. Any other one
does everything in one and the same thread, one thing at a time.
"""

from __future__ import annotations

import errno
import logging
import ssl
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from ..._facts.address import Address
from ..._facts.errors import PeerGone
from ..._facts.events import RequestInfo
from ..._facts.observers import error_log, log_safely
from ..._requests.any_request import AnyRequest
from ..._requests.datagram import Datagram
from ..._requests.drain import Drain
from ..._servers.fields import make_fields
from ..._sockets.descriptors import lost
from ..._sockets.transport import Listener
from ..threads.lent_connection import LentConnection
from ..threads.mixin import LEAST_PATIENCE, ThreadingMixIn
from ..threads.own_thread import OwnThread
from .calls import EndOfCall, call_and_release, call_with_error
from .listener import AdoptedListener, Visit, overrides
from .tls import over_tls, shake_hands
from .transport import (
    AdoptedDatagramTransport,
    AdoptedSocket,
    AdoptedTransport,
    ThreadOfRequest,
)

T = TypeVar("T")


@make_fields
class AdoptedServer(ThreadingMixIn):
    """Serves with the methods of a `socketserver` object."""

    _LATE = "get_request, its TLS handshake, or verify_request took too long (handshake)"

    def __init__(self, theirs: Any, *, one_at_a_time: bool, **fields: Any) -> None:
        self.theirs = theirs
        self.socket_type: int = theirs.socket.type
        self._one_at_a_time = one_at_a_time
        self._has_warned = False
        self._threads: set[OwnThread] = set()
        self._thread = OwnThread(type(theirs).__name__, self._threads)
        self._telling: set[int] = set()
        self._verifies = overrides(theirs, "verify_request")
        # As of now: the listener has it not be done in Trio's thread.
        self._owes_tls = bool(getattr(theirs.socket, "do_handshake_on_connect", False))
        may_be_tls = overrides(theirs, "get_request") or isinstance(theirs.socket, ssl.SSLSocket)
        self._arrives = (
            self._verifies or may_be_tls
        )  # else it saves a sixth of a short request's time
        self._parts = overrides(theirs, "shutdown_request", "close_request")
        if overrides(theirs, "service_actions"):
            self.service_actions = self._service_actions  # type: ignore[method-assign]
        super().__init__(theirs.server_address, _never_called, **fields)

    @classmethod
    def _check_handler(cls, handler: object) -> None:
        """Accept any: the object has a handler of its own, which this server never calls."""

    async def server_bind(self) -> Sequence[Listener]:
        """Listen on the socket of the object, as it is bound."""
        return self._keep([AdoptedListener(self.theirs)])

    def _request_over(self, transport: Any, info: RequestInfo, drain: Drain) -> AnyRequest:
        if isinstance(transport, AdoptedDatagramTransport):
            return Datagram(transport, info, timeouts=self.timeouts, limits=self.limits)
        return LentConnection(
            transport, info, timeouts=self.timeouts, limits=self.limits, drain=drain
        )

    # Their hooks, each in a thread ---------------------------------------------------

    def _has_arrival(self) -> bool:
        return self._arrives

    async def _arrive(self, request: Any, client_address: Address) -> bool:
        """Call ``get_request`` and agree on TLS, if that is due, and call ``verify_request``."""
        if self._is_new(request):
            await self._get_request(request)
        client_address = self._address(request, client_address)
        transport = request._transport
        if isinstance(transport, AdoptedTransport) and transport.needs_handshake:
            await self._in_thread(request, partial(shake_hands, request, owed=self._owes_tls))
        if not self._verifies:
            return True
        verify = partial(self.theirs.verify_request, request._transport.theirs, client_address)
        return bool(await self._in_thread(request, verify))

    async def finish_request(self, request: Any, client_address: Address) -> None:
        """Call ``finish_request`` of the object."""
        theirs, client_address = request._transport.theirs, self._address(request, client_address)
        finish = partial(self.theirs.finish_request, theirs, client_address)
        if isinstance(theirs, ssl.SSLSocket):
            finish = partial(over_tls, request, finish)
        if not self._shuts_in_thread(request._transport):
            finish = partial(call_and_release, finish, self._hooks_of(request))
        await self._in_thread(request, finish)

    async def handle_error(self, request: Any, client_address: Address) -> None:
        """Call ``handle_error`` of the object, with the error as `sys.exception`."""
        if self._is_new(request):  # and none of their requests yet
            await super().handle_error(request, client_address)
            return
        theirs, client_address = request._transport.theirs, self._address(request, client_address)
        handle = partial(self.theirs.handle_error, theirs, client_address)
        number = request.info.id
        self._telling.add(number)
        try:
            await self._in_thread(request, partial(call_with_error, sys.exception(), handle))
        finally:
            self._telling.discard(number)

    def _patience(self, request: LentConnection | Datagram) -> float:
        seconds = super()._patience(request)
        # Cancelled, a handle_error has had its ``timeouts.cleanup`` already.
        return min(seconds, LEAST_PATIENCE) if request.info.id in self._telling else seconds

    async def shutdown_request(self, request: Any) -> None:
        """Call ``shutdown_request`` of the object, unless a thread that is left behind does."""
        if request._left_behind is None and not self._is_new(request):
            theirs = request._transport.theirs
            self._ensure_lent(request)  # so that their close() does not close our descriptor
            if self._shuts_in_thread(request._transport):
                await self._in_thread(request, partial(self.theirs.shutdown_request, theirs))
            else:
                self.theirs.shutdown_request(theirs)
            self._hooks_of(request).release()  # not only after the linger
        if isinstance(request, LentConnection):
            request._take_back()
        await super().shutdown_request(request)

    def _shuts_in_thread(self, transport: Any) -> bool:
        """Whether any code of theirs is called when a request is shut down."""
        if self._parts or isinstance(transport, AdoptedDatagramTransport):
            return self._parts
        return not transport.shares and type(transport.theirs) is not ssl.SSLSocket

    async def _service_actions(self) -> None:
        """Call ``service_actions`` of the object; the drain waits for it."""
        ends = EndOfCall()
        try:
            await self._thread.run_sync(self.theirs.service_actions, limiter=ends)
        except trio.Cancelled:
            seconds = self.timeouts.cleanup
            with trio.move_on_after(max(seconds, LEAST_PATIENCE), shield=True):
                await ends.event.wait()
            if not ends.event.is_set():
                message = "%s.service_actions did not end within %g s (cleanup); left behind"
                name = type(self.theirs).__name__
                log_safely(error_log, logging.ERROR, message, name, seconds)
            raise

    async def close_theirs(self) -> None:
        """Call ``server_close`` of the object, where it need not wait for what was left behind."""
        thread = self._thread
        if thread.is_busy:
            thread = OwnThread(type(self.theirs).__name__, self._threads)
        await thread.run_sync(self.theirs.server_close)

    async def end_threads(self) -> None:
        """Wait for the threads, but for those that were left behind: they are still in a call.

        For a moment at most. A thread that is in no call needs less; but nothing is waited
        for without a bound where nobody can cancel it.
        """
        for thread in self._threads:
            thread.release()
        with trio.move_on_after(max(self.timeouts.cleanup, LEAST_PATIENCE), shield=True):
            for thread in list(self._threads):
                if not thread.is_busy:
                    await thread.wait_ended()

    # Their get_request -----------------------------------------------------------------

    def _is_new(self, request: Any) -> bool:
        """Whether ``get_request`` has still to be called."""
        return getattr(request._transport, "accepted", None) is not None

    def _address(self, request: Any, client_address: Address) -> Address:
        """The client's, as ``get_request`` returned it."""
        transport = request._transport
        deferred = isinstance(transport, AdoptedTransport) and transport.was_deferred
        return transport.address if deferred else client_address

    async def _get_request(self, request: Any) -> None:
        """Call theirs, for a client that was accepted; in the thread of what is no request's.

        An `OSError` in it is the client's own affair, as ever.
        """
        transport = request._transport
        visit = Visit(self.theirs, transport.accepted)
        run_sync = self._thread.run_sync
        call = self._call_for(request, request._interrupt, visit.end, run_sync)
        request._lend(ends_idle=False)  # what the client sends meanwhile is for nobody else
        try:
            transport.become(*await call.run(visit.make))
        except trio.Cancelled:
            self._warn_of_waiting()
            raise
        except OSError as error:
            traceback.clear_frames(error.__traceback__)
            told = ConnectionAbortedError(errno.ECONNABORTED, f"get_request: {error}")
            self._bound_run().admission.accept_failed(request.info.server_address, told)
            raise PeerGone(f"get_request: {error}", info=request.info) from error
        finally:
            request._take_back()

    def _warn_of_waiting(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            message = (
                "%s.get_request did not end in time for a client; while it waits for one, it lets"
                " nobody else in: wait in finish_request instead, or with"
                " do_handshake_on_connect=False"
            )
            log_safely(error_log, logging.WARNING, message, type(self.theirs).__name__)

    # Threads ---------------------------------------------------------------------------

    async def _in_thread(self, request: Any, function: Callable[[], T]) -> T:
        theirs, interrupt = request._transport.theirs, lambda: None
        if isinstance(request, LentConnection):
            interrupt = request._interrupt
        self._ensure_lent(request)
        hooks = self._hooks_of(request)
        run_sync = partial(hooks.thread.run_sync, context=hooks.context)
        call = self._call_for(request, interrupt, partial(self._clean_up, theirs), run_sync)
        try:
            return await call.run(partial(self._call, request._transport, function))
        finally:
            if call.is_left_behind:
                hooks.release()
                if isinstance(request, LentConnection):
                    request._give_away()

    def _hooks_of(self, request: Any) -> ThreadOfRequest:
        transport = request._transport
        hooks: ThreadOfRequest | None = transport.hooks
        if hooks is None or hooks.is_released:
            thread = self._thread
            if not self._one_at_a_time:
                thread = OwnThread(str(request.info), self._threads)
            hooks = transport.hooks = ThreadOfRequest(thread, self._one_at_a_time)
        return hooks

    def _ensure_lent(self, request: Any) -> None:
        """Once for each connection: from its first hook to its last."""
        transport = request._transport
        if isinstance(transport, AdoptedTransport) and not transport.is_lent:
            transport.lend(request, ends_idle=self.ends_idle_reads)

    def _call(self, transport: Any, function: Callable[[], T]) -> T:
        """Call ``function`` in a handler's thread, with what it needs from its transport."""
        if isinstance(transport.theirs, AdoptedSocket):
            return transport.theirs.call(function)
        is_stream = isinstance(transport, AdoptedTransport)
        try:
            result = function()
        except BaseException:
            if is_stream:
                transport.let_go_of_lost()
            raise
        if is_stream and transport.let_go_of_lost():
            raise lost()
        return result

    def _clean_up(self, theirs: Any) -> None:
        """What a thread does at its end that was left behind: the request is its own."""
        if not isinstance(theirs, AdoptedSocket):
            self.theirs.shutdown_request(theirs)
            return
        try:
            self.theirs.shutdown_request(theirs)
        finally:
            theirs.end_for_good()


def _never_called(request: Any, client_address: Address, server: Any) -> None:
    """Their object has a handler of its own."""
