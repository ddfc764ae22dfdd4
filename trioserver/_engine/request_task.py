"""One request, from its accept to its close: the scopes it runs in, and how it ends.

Every request is one task, and this is all that the task does::

    serve                       inside the request's own cancel scope:
      converse                    arrive, process_request, flush
      contain                     whatever was raised: whose fault, who is told
      settle                      the outcome is final: slot back, one record
      part                        half-close, discard unread input, close
                                and after the scope, in any case: close

The rules that this file keeps:

* Every path through `serve` settles once, and closes the connection.
* An ``Exception`` ends the request; everything else goes on up. A group is split
  into the two.
* The library's own steps are protected from Ctrl-C, which could otherwise strike
  between any two of them. A handler is not, so that Ctrl-C can interrupt one that is
  in an endless loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import attrs
import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from .._facts.address import Address
from .._facts.bounded import Bounded
from .._facts.events import (
    Outcome,
    RequestInfo,
    RequestRecord,
    enter_request,
)
from .._facts.observers import error_log, log_lost, log_safely
from .._facts.snapshots import RequestSnapshot
from .._facts.trio_tasks import task_number
from .._facts.verdict import (
    as_errors,
    cancellations,
    describe_error,
    lone,
    peers_doing,
    split,
)
from .._requests.any_request import AnyRequest
from .._requests.schedule_points import note_schedule_point
from .arrival import arrive, arrive_to_hear
from .hooks import RequestHooks, call_hook

Verdict: TypeAlias = tuple[Outcome, str]
"""How a request has ended, and why."""

Process: TypeAlias = Callable[[Any, Address], Awaitable[object]]
"""Makes what a request does once it has arrived."""

_COMPLETED: Verdict = Outcome.COMPLETED, ""

_NEVER_AWAITED = (
    "a handler was constructed and never awaited:"
    " finish_request must `await self.RequestHandlerClass(...)`"
)

_UNTOLD = "error while serving %s, of which handle_error has not told"


class RequestEvents(Protocol):
    """What a request needs of its run."""

    def on_introduction(self, task: RequestTask) -> str: ...
    def on_start(self, task: RequestTask) -> None: ...
    def on_exit(self, error: BaseException) -> None: ...
    def on_fatal(self, task: RequestTask, reason: str) -> None: ...
    def on_cancelled_from_outside(self) -> None: ...
    def on_outcome(self, task: RequestTask) -> None: ...
    def on_close(self, task: RequestTask) -> None: ...


@attrs.frozen(eq=False)
class Course:
    """What requests go through, the same for all of a run.

    Attributes:
      hooks: the server's.
      events: who is told of what becomes of each.
      process: calls `process_request`, as `call_hook` does; or constructs the handler, which
        is what that comes to, if no override has a say in it.
      has_introduction: whether a client is not known yet, when it is accepted.
      arrives: whether there is a step between the accept and `process_request`.
      closes_by_default: whether no override has a say in how a request is closed.
      is_announced: whether observers have heard already that the request has begun.
    """

    hooks: RequestHooks
    events: RequestEvents
    process: Process
    has_introduction: bool = False
    arrives: bool = False
    closes_by_default: bool = False
    is_announced: bool = False


@attrs.define(eq=False, weakref_slot=False)  # 16 bytes less, of each idle connection
class RequestTask:
    """The task of one request.

    Attributes:
      request: the connection or datagram that it owns.
      info: the facts of the request; ``request.info``, which an arrival may replace.
      hook_argument: what the hooks get as ``request``: the request itself, unless an
        override of ``get_request`` has wrapped it.
      client_address: what the hooks get as ``client_address``.
      rejection: instead of the server's handler, the function that tells the
        client that the server is full.
      client_key: the key under which ``Limits.per_client`` counts it.
      trio_task: Trio's task that serves it, once it runs.
      has_arrived: whether it has come to where it is served, or told why it is not.
      lingers: whether closing it at once could lose a reply, once the outcome is decided.
    """

    request: AnyRequest
    info: RequestInfo = attrs.field(init=False)
    hook_argument: Any
    client_address: Address
    _course: Course
    rejection: Callable[[Any], Awaitable[object]] | None = None
    client_key: object = None
    trio_task: trio.lowlevel.Task | None = None
    has_arrived: bool = False
    lingers: bool = False
    _phase: str = "arriving"
    _outcome: Outcome | None = None
    _reason: str = ""
    _cancelled_because: str = ""
    _record: RequestRecord | None = None

    def __attrs_post_init__(self) -> None:
        self.info = self.request.info  # kept: it is asked for nine times in a short request

    def cancel(self, reason: str) -> None:
        """Cancel the request; the first reason holds."""
        scope = self.request.cancel_scope
        if not scope.cancel_called:
            self._cancelled_because = reason
            scope.cancel(reason=reason)

    @property
    def has_introduction(self) -> bool:
        """Whether the client was not known yet, when it was accepted."""
        return self._course.has_introduction

    @property
    def _closes_by_default(self) -> bool:
        """Whether nothing but the library has a say in how it is closed."""
        return self._course.closes_by_default and self.hook_argument is self.request

    @enable_ki_protection
    async def serve(self) -> None:
        """Live the whole life of the request, up to its close.

        It converses in here, and not in a coroutine of its own: each one deeper is 200 bytes of an
        idle connection, and a fiftieth of the time of a datagram.
        """
        course = self._course
        self.trio_task = trio.lowlevel.current_task()
        enter_request(self.info)
        note_schedule_point()  # the start of a task is one
        parted = False
        try:
            with self.request.cancel_scope:
                try:
                    try:
                        if not (course.arrives or self.rejection) or await self._is_let_in():
                            self._begin()
                            end = _COMPLETED
                            try:
                                await course.process(self.hook_argument, self.client_address)
                            except Exception as error:
                                drained = self._drained_by(error)
                                if drained is None:
                                    raise
                                end = drained
                            if self.request._handlers_not_awaited:
                                raise RuntimeError(_NEVER_AWAITED)
                            if self.request._has_unsent:
                                await self.request._flush()
                            self._complete(*end)
                    except BaseException as error:  # noqa: BLE001  (it raises again what it must)
                        await self._contain(as_errors(error))
                    await checkpoint_if_cancelled()  # a handler may have swallowed it
                except BaseException:
                    # Asked only now: it takes a walk over all scopes around this one.
                    cancelled = trio.current_effective_deadline() == -math.inf
                    self._settle(cancelled=cancelled)
                    raise
                self._settle(cancelled=False)
                parted = True
                if self.lingers or not self._closes_by_default:
                    await self._part()
        finally:
            try:
                if not parted:  # cancelled, or something goes on up
                    await self._part_shielded()
            finally:
                self.request.close()
                course.events.on_close(self)
                note_schedule_point()  # so is the end, for whoever runs next

    # Converse --------------------------------------------------------------

    async def _is_let_in(self) -> bool:
        """Have it arrive, or be told that the server is full; whether it is to be served."""
        if self.rejection is not None:
            await self._reject(self.rejection)
            return False
        failure = await arrive(self, self._course.hooks)
        if failure is not None:
            self._decide(*failure)
        return failure is None

    def is_refused(self) -> str:
        """Count the client, now that it is known; why it is refused, or ``""``."""
        return self._course.events.on_introduction(self)

    def _begin(self) -> None:
        """Go on from the arrival: there is somebody to serve, or to say why not."""
        self.has_arrived, self._phase = True, "working"
        if not self._course.is_announced:
            self._course.events.on_start(self)

    def _drained_by(self, error: Exception) -> Verdict | None:
        """Its end, if a handler has let `Draining` out, so that its reply is sent; else None."""
        end = peers_doing(error, self.info)
        return end if end is not None and end[0] is Outcome.DRAINED else None

    def _complete(self, outcome: Outcome, reason: str) -> None:
        """Decide how a handler has ended that has returned."""
        self._decide(Outcome.DRAINED if self.request._ended_idle else outcome, reason)

    async def _reject(self, say_why: Callable[[Any], Awaitable[object]]) -> None:
        self._decide(Outcome.REFUSED, "the server is full (requests)")
        with trio.move_on_after(self._course.hooks.timeouts.write):
            if self._course.arrives and not await arrive_to_hear(self, self._course.hooks):
                return
            self._begin()
            await call_hook(say_why, self.request)
            await self.request._flush()

    # Contain ---------------------------------------------------------------

    async def _contain(self, error: BaseException) -> None:
        """Decide by what was raised; raise again what does not end here."""
        ours, rest = split(error)
        try:
            if rest is not None:
                self.request._must_not_linger = True
                self._decide_by_what_goes_on(rest)
            if ours is not None and not self._blame_peer(ours):
                self._decide(Outcome.FAILED, describe_error(ours))
                if self._course.hooks.propagate_errors:
                    self.request._must_not_linger = True
                    rest = error  # all of it goes on up
                else:
                    await self._report(ours)
            if rest is not None:
                self._announce(rest)
                raise lone(rest)
        finally:
            # Their tracebacks hold this frame, since Python 3.12 also as the
            # caller of a deeper one: no cycles.
            del error, ours, rest

    def _blame_peer(self, error: BaseException) -> bool:
        """Decide the outcome, and return true, if only this request's peer is behind ``error``."""
        outcome = peers_doing(error, self.info)
        if outcome is not None:
            self._decide(*outcome)
        return outcome is not None

    def _decide_by_what_goes_on(self, error: BaseException) -> None:
        cancelled = cancellations(error)
        if not cancelled:
            self._decide(Outcome.FAILED, describe_error(error))
            return
        outcome, why = self._why_cancelled(cancelled[0])
        if self.request._left_behind:
            outcome = Outcome.ABANDONED
        elif self.request._was_killed:
            outcome = Outcome.KILLED
        self._decide(outcome, why)

    def _why_cancelled(self, cancelled: trio.Cancelled) -> tuple[Outcome, str]:
        if self._deadline_was_ours(cancelled):
            return Outcome.TIMED_OUT, "the request took too long (request)"
        own = self.request.cancel_scope.cancel_called
        by_whom = "its cancel_scope was cancelled" if own else "cancelled from outside"
        # Trio knows best, unless a deadline struck that somebody had moved.
        return Outcome.CANCELLED, cancelled.reason or self._cancelled_because or by_whom

    def _announce(self, error: BaseException) -> None:
        """Tell the run of what goes on up now, not only when the connection is closed."""
        if not cancellations(error):
            self._course.events.on_fatal(self, f"the server failed: {describe_error(error)}")

    def _deadline_was_ours(self, cancelled: trio.Cancelled) -> bool:
        """Whether it was the request's own deadline that passed, not one around the server."""
        scope = self.request.cancel_scope
        return (
            cancelled.source == "deadline" and scope.cancel_called and not self._cancelled_because
        )

    async def _report(self, error: BaseException) -> None:
        """Call ``handle_error`` with ``error`` as `sys.exception`. Its own errors end nothing.

        A hook that does not return may have told nobody, so ``error`` is logged then.
        """
        seconds = self._course.hooks.timeouts.cleanup
        try:
            # The try is outside: what a hook raises when it is cut is its error, too.
            with Bounded(seconds, "handle_error", whose=self.info, error=error):
                try:
                    raise error
                except Exception:  # noqa: BLE001  (handle_error asks for it)
                    await call_hook(
                        self._course.hooks.handle_error, self.hook_argument, self.client_address
                    )
        except Exception as second:  # noqa: BLE001  (an error of handle_error ends nothing)
            log_lost(error, second, _UNTOLD, self.info)
            message = "handle_error raised, for %s"
            log_safely(error_log, logging.ERROR, message, self.info, exc_info=second)
        except BaseException as second:
            log_safely(error_log, logging.ERROR, _UNTOLD, self.info, exc_info=error)
            self._announce(second)
            raise
        finally:
            del error  # its traceback holds this frame: no cycles

    # Settle ----------------------------------------------------------------

    def _decide(self, outcome: Outcome, reason: str = "") -> None:
        """Set the outcome; the first decision holds."""
        if self._outcome is None:
            self._outcome, self._reason = outcome, reason

    def _settle(self, *, cancelled: bool) -> None:
        self._phase, self.lingers = "closing", self.request._must_linger
        if cancelled and not self.request.cancel_scope.cancel_called:
            self._course.events.on_cancelled_from_outside()
        self._course.events.on_outcome(self)

    @property
    def outcome(self) -> Outcome:
        """How it has ended."""
        return self._outcome or Outcome.FAILED

    @property
    def reason(self) -> str:
        """Why, in words; ``""`` when it has completed."""
        return self._reason

    @property
    def record(self) -> RequestRecord:
        """The one record of it, made if somebody wants it, in the step in which it ends."""
        if self._record is None:
            self._record = RequestRecord(
                info=self.info,
                outcome=self.outcome,
                reason=self._reason,
                duration=trio.current_time() - self.info.started,
                bytes_received=self.request.bytes_received,
                bytes_sent=self.request.bytes_sent,
            )
        return self._record

    # Part ------------------------------------------------------------------

    async def _part(self) -> None:
        """Let the hooks close. What they raise is reported, and does not change the outcome."""
        try:
            if not self._closes_by_default:
                await self._part_within_bounds()
            else:
                # What the hooks would do, but for the close, which comes next: without
                # two calls, a scope (it bounds itself) and a turn of the loop.
                await self.request.linger()
        except BaseException as error:  # noqa: BLE001  (reported; what is no error goes on)
            ours, rest = split(error)
            try:
                if ours is not None and peers_doing(ours, self.info) is None:
                    await self._report(ours)
                if rest is not None:
                    self._announce(rest)
                    raise rest from None
            finally:
                del ours, rest  # no cycles, as in _contain

    async def _part_within_bounds(self) -> None:
        timeouts = self._course.hooks.timeouts
        seconds = timeouts.linger + timeouts.cleanup
        bound = Bounded(
            seconds, "shutdown_request", whose=self.info, bound="linger and cleanup", shield=False
        )
        with bound:
            await call_hook(self._course.hooks.shutdown_request, self.hook_argument)

    async def _part_shielded(self) -> None:
        """Part after a cancellation, also of a handler that has swallowed it."""
        self.request._must_not_linger = True
        seconds = self._course.hooks.timeouts.cleanup
        with Bounded(seconds, "shutdown_request", whose=self.info, unless=self._is_closed):
            await self._part()

    def _is_closed(self) -> bool:
        return self.request.state == "closed"

    def snapshot(self, now: float) -> RequestSnapshot:
        """The request at this instant, which is ``now`` by the Trio clock."""
        request, info = self.request, self.info
        state = request.state if self._phase == "working" else self._phase
        time_left = request.cancel_scope.deadline - now
        task = None if self.trio_task is None else task_number(self.trio_task)
        return RequestSnapshot(  # by place, in two thirds of the time (tests/bench/views.py)
            info,
            state,
            now - info.started,
            time_left,
            request.bytes_received,
            request.bytes_sent,
            task,
        )
