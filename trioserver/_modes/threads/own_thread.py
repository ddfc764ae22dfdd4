"""A thread for one owner: it makes all calls of that owner, no others, and ends with it.

A thread of Trio's makes calls for everybody. But some things belong to a thread: a
`threading.local`, a connection of sqlite3, a lock that it holds. The next call of the same
owner finds them only in the same thread, and no other owner finds them only if the thread
makes calls for no other.

The rules this file keeps:

* A call that was cancelled before it began is never made.
* In each call, `trio.from_thread` works in the thread as in one of Trio's own.
* That a call is over is told in Trio's thread, and only while Trio runs.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

import attrs
import trio
from trio.lowlevel import RaiseCancelT, enable_ki_protection

try:
    # Private: there is no public way to start a thread that `trio.from_thread` knows. Without
    # it, a hook has to give a token to the functions there.
    from trio._threads import PARENT_TASK_DATA
except ImportError:
    PARENT_TASK_DATA = threading.local()  # type: ignore[assignment]

T = TypeVar("T")


class Limiter(Protocol):
    """Is told of the beginning and the end of a call, as by `trio.to_thread.run_sync`."""

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait until the call may be made; it is made right after that."""

    def release_on_behalf_of(self, borrower: object) -> None:
        """Note that the call is over, or will not be made."""


@attrs.define(eq=False)
class _Call:
    """One function to call in the thread, and how that went."""

    function: Callable[[], object]
    context: contextvars.Context
    limiter: Limiter | None
    task: trio.lowlevel.Task | None
    # What `trio.from_thread.check_cancelled` looks into: how to raise the cancellation.
    cancelled: list[RaiseCancelT | None] = attrs.field(factory=lambda: [None])
    result: object = None
    error: BaseException | None = None
    _unclaimed: list[None] = attrs.field(factory=lambda: [None])

    def claim(self) -> bool:
        """Take the call, to make it or to drop it; whether this claim came first."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def make(self) -> None:
        """Call the function, in the thread, and keep what it returns or raises."""
        PARENT_TASK_DATA.cancel_register = self.cancelled
        try:
            self.result = self.context.run(self.function)
        except BaseException as error:  # noqa: BLE001  (it is raised in Trio's thread)
            self.error = error


class OwnThread:
    """A thread for one owner. It starts with the first call.

    Args:
      name: the name of the thread.
      alive: a set of threads, which it is in from its start to its end.

    Attributes:
      is_busy: whether it is in a call.
    """

    def __init__(self, name: str, alive: set[OwnThread]) -> None:
        self.is_busy = False
        self._name, self._alive = name, alive
        self._token = trio.lowlevel.current_trio_token()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._has_started = False
        self._ended = trio.Event()

    @enable_ki_protection
    async def run_sync(
        self,
        function: Callable[..., T],
        *arguments: object,
        context: contextvars.Context | None = None,
        limiter: Limiter | None = None,
    ) -> T:
        """Call ``function`` when it is its turn, and return or raise what it does.

        Cancelled, it raises at once, and the thread goes on with the call.

        Args:
          context: what it runs in; None is a copy of the caller's.
          limiter: as for `trio.to_thread.run_sync`.

        Raises:
          RuntimeError: the thread cannot be started.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task, to_call = trio.lowlevel.current_task(), partial(function, *arguments)
        call = _Call(to_call, context or contextvars.copy_context(), limiter, task)
        if limiter is not None:
            await limiter.acquire_on_behalf_of(self)
        self._calls.put(call)  # first, so that a new thread need not wait for it
        try:
            self._start()
        except BaseException:
            call.claim()
            call.task = None
            self._finish(call)
            raise

        def abort(raise_cancel: RaiseCancelT) -> trio.lowlevel.Abort:
            call.cancelled[0] = raise_cancel
            call.task = None
            if call.claim():
                self._finish(call)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        error, call.error = call.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error, call  # no cycles
        return call.result  # type: ignore[return-value]

    def release(self) -> None:
        """Have the thread end as soon as it has made the calls that it was given. Twice is once."""
        self._calls.put(None)

    async def wait_ended(self) -> None:
        """Wait until a thread that has started has ended, after `release`."""
        await self._ended.wait()

    # In Trio's thread -----------------------------------------------------------------

    def _start(self) -> None:
        if not self._has_started:
            # A daemon, as Trio's own are: one that hangs does not keep the program alive.
            threading.Thread(target=self._live, name=self._name, daemon=True).start()
            self._has_started = True
            self._alive.add(self)

    def _note_end(self) -> None:
        self._alive.discard(self)
        self._ended.set()

    def _finish(self, call: _Call) -> None:
        if call.limiter is not None:
            call.limiter.release_on_behalf_of(self)
        if call.task is None:
            call.error = None  # no task asks for it, and its traceback holds the call
        else:
            trio.lowlevel.reschedule(call.task)

    # In the thread ----------------------------------------------------------------------

    def _live(self) -> None:
        PARENT_TASK_DATA.token = self._token
        PARENT_TASK_DATA.abandon_on_cancel = True
        PARENT_TASK_DATA.task_register = [None]
        while (call := self._calls.get()) is not None:
            if call.claim():
                self.is_busy = True
                call.make()
                self.is_busy = False
                self._tell(self._finish, call)
            del call
        self._tell(self._note_end)

    def _tell(self, what: Callable[..., object], *arguments: object) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(what, *arguments)
