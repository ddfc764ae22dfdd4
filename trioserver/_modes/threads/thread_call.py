"""One call in a thread, for a request that can be cancelled while it runs.

Trio cannot stop a thread. What a thread waits for in its socket can be ended, so most end
at once. One that computes, or waits for something else, is waited for within bounds. Then it
is left behind, named in the log, and counted until it ends.

The request's slot is the thread's token. A slot is free before a client is
accepted and kept until the thread has ended, so an accepted client never waits
for a thread, and threads that were left behind count.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import NoneType
from typing import TypeVar, cast

import attrs
import trio

from ..._facts.errors import RequestEnded
from ..._facts.events import RequestInfo
from ..._facts.observers import error_log, log_safely
from ..._facts.verdict import describe_error
from ..._requests.any_request import Fate

T = TypeVar("T")

_PACKAGE = Path(__file__).parents[2]


@attrs.define(eq=False)
class ThreadCall:
    """A function that runs in a thread for one request.

    Attributes:
      info: the facts of the request.
      request: that request, on which it is noted that the thread is left behind.
      interrupt: ends whatever the thread waits for in its socket.
      patience: seconds from a cancellation until the thread is left behind.
      run_sync: what has a thread call a function; None is `trio.to_thread.run_sync`.
      clean_up: what the thread itself does at its end when it was left behind.
      is_left_behind: whether it was.
      after: called in Trio's thread when a thread that was left behind has
        ended, if Trio still runs.
    """

    info: RequestInfo
    request: Fate
    interrupt: Callable[[], object]
    patience: Callable[[], float]
    run_sync: Callable[..., Awaitable[object]] | None = None
    clean_up: Callable[[], object] = lambda: None
    is_left_behind: bool = False
    after: Callable[[], object] | None = None
    _started: bool = False
    _has_ended: bool = False
    _over: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _ended: trio.Event | None = None
    _thread: int | None = None
    _error: BaseException | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Call it, and return or raise what it does.

        Cancelled, it ends the thread's waits, and waits for its end for
        ``patience`` seconds. What is raised in the thread after that is told in
        the log; but what ends programs goes on.
        """
        try:
            result = await (self.run_sync or self._in_trios_thread)(
                self._call, function, limiter=self
            )
        except trio.Cancelled as cancelled:
            if self._started:
                await self._end(cancelled)
            raise
        finally:
            error, self._error = self._error, None  # no cycles
        if error is not None:
            try:
                raise error
            finally:
                del error
        return cast("T", result)

    async def _in_trios_thread(
        self, call: Callable[..., object], function: Callable[[], T], *, limiter: object
    ) -> object:
        return await trio.to_thread.run_sync(
            call,
            function,
            thread_name=str(self.info),
            abandon_on_cancel=True,  # else this would not be told of a cancellation
            limiter=cast("trio.CapacityLimiter", limiter),  # its two methods are all that counts
        )

    # As a limiter. Trio calls the second one when the thread has ended, also
    # after a cancellation, in its own thread.

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Nothing to wait for: the request has its slot."""
        self._started = True

    def release_on_behalf_of(self, borrower: object) -> None:
        """The thread has ended, or could not be started, or was never asked."""
        with self._lock:
            self._has_ended = True
        self._over = True
        if self._ended is not None:
            self._ended.set()
        if self.is_left_behind:
            error, self._error = self._error, None
            if error is not None:
                message = "the thread of %s, which was left behind, has raised: %s"
                log_safely(error_log, logging.INFO, message, self.info, describe_error(error))
        if self.after is not None:
            self.after()

    def when_over(self, after: Callable[[], object]) -> None:
        """Call ``after`` in Trio's thread when the thread is over, or now if it is."""
        if self._over:
            after()
        else:
            self.after = after

    # In the thread -------------------------------------------------------------

    def _call(self, function: Callable[[], T]) -> T | None:
        self._thread = threading.get_ident()
        try:
            return function()
        except BaseException as error:  # noqa: BLE001  (it is raised in Trio's thread)
            # Not through Trio, which would hold it in a frame of its own traceback.
            self._error = error
        finally:
            self._thread = None
            with self._lock:
                self._has_ended = True
            if self.is_left_behind:
                self.clean_up()
        return None

    # After a cancellation --------------------------------------------------------

    async def _end(self, cancelled: trio.Cancelled) -> None:
        self.interrupt()
        seconds = self.patience()
        self.request._awaits_thread = True
        if not self._over:
            self._ended = trio.Event()
            with trio.move_on_after(seconds, shield=True):
                await self._ended.wait()
        self.request._awaits_thread = False
        with self._lock:  # Trio may not have heard of the end yet
            self.is_left_behind = not self._has_ended
        if self.is_left_behind:
            self.request._left_behind = self
            message = "the thread of %s still runs %g s after it was cancelled; left behind:\n%s"
            log_safely(error_log, logging.ERROR, message, self.info, seconds, self._stack())
        elif not isinstance(self._error, (trio.Cancelled, RequestEnded, NoneType)):
            if not isinstance(self._error, Exception):
                raise BaseExceptionGroup("a handler's thread", [cancelled, self._error])
            message = "%s raised after it was cancelled: %s"
            log_safely(error_log, logging.INFO, message, self.info, describe_error(self._error))

    def _stack(self) -> str:
        """Where the thread is, from the handler on."""
        frame = None if self._thread is None else sys._current_frames().get(self._thread)
        if frame is None:
            return ""
        stack = traceback.extract_stack(frame)
        ours = [_PACKAGE in Path(entry.filename).parents for entry in stack]
        # Threading, Trio and this library have called it; what it has called since
        # may be of this library, too.
        start = ours.index(True) if True in ours else 0
        while start < len(stack) - 1 and ours[start]:
            start += 1
        return "".join(traceback.format_list(stack[start:]))
