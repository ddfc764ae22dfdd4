"""A thread that asks Trio's loop again and again whether it turns, and says what holds it.

Theory of operation: the thread has the loop run a function soon, an *inquiry*, and waits for the
answer. A loop that is idle answers at once. One that does not answer for ``block_warning`` seconds
is blocked: the thread takes the stack of the loop's thread, logs it, and waits for the answer,
without asking again. Then it rests for a quarter of a second or more, and asks again.

The rules this file keeps:

* Only time in which the process ran counts. When the thread's own wait has taken far too long,
  either the process was stopped, and has used no processor meanwhile: that counts for nothing. Or
  a call has held Python's lock: then the loop was blocked by that.
* What fails in the thread, or in ``on_blocked``, is logged at most, and ends nothing.
* The thread ends with the block.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NoReturn, Self

import attrs
import trio

from trioserver import BaseServer

from .blocked import Blocked
from .holder import Holder, holder_of

log = logging.getLogger("trioserver.monitoring")

_LEAST_REST = 0.25
"""Seconds between two inquiries: four times a second is nothing for the loop."""

_LONGEST_END = 5.0
"""Seconds that the thread has to end. It does so at once, unless a logging handler of the
program's holds it."""


def _check_warning(watchdog: object, field: attrs.Attribute[float], value: object) -> None:
    name = f"{type(watchdog).__name__}.{field.alias}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")


@attrs.define(eq=False)
class Watchdog:
    """Notices when Trio's loop does not turn, because a task blocks it, and logs what does.

    A plain context manager, to be used once, in Trio's thread. It logs warnings of the logger
    ``trioserver.monitoring``, two for each time that the loop is blocked: with the task, its
    request and its stack while it is so, and with the seconds when it is over. Its seconds are
    real ones, whatever clock Trio has. It wakes the loop four times a second at most.

    A process that was stopped, or a program at a breakpoint of a debugger, is not taken for
    blocked.

    Args:
      block_warning: real seconds. What blocks the loop for less than that is never told of, and
        what blocks it for a quarter longer (or 0.25 s, if that is more) always.
      on_blocked: is called afterwards, in the loop, with what it was; at the end of the block at
        the latest. `Linter.note_blocked` is such a function. What it raises is logged.
    """

    block_warning: float = attrs.field(default=1.0, validator=_check_warning)
    on_blocked: Callable[[Blocked], object] | None = attrs.field(default=None, kw_only=True)
    _is_over: threading.Event = attrs.field(init=False, factory=threading.Event, repr=False)
    _untold: deque[Blocked] = attrs.field(init=False, factory=deque, repr=False)
    _inquirer: _Inquirer | None = attrs.field(init=False, default=None, repr=False)
    _watching: threading.Thread | None = attrs.field(init=False, default=None, repr=False)

    def __enter__(self) -> Self:
        """Begin to watch the loop of this thread.

        Raises:
          RuntimeError: no Trio program runs in this thread; or it has watched already.
        """
        token = trio.lowlevel.current_trio_token()
        root = trio.lowlevel.current_root_task()
        if self._watching is not None:
            raise RuntimeError("a Watchdog watches once: make another one")
        thread = threading.get_ident()
        inquirer = self._inquirer = _Inquirer(token, self.block_warning, self._is_over)
        self._watching = threading.Thread(
            target=self._watch,
            args=(inquirer, lambda: holder_of(thread, root)),
            name="trioserver watchdog",
            daemon=True,  # where a logging handler holds it, the program still ends
        )
        self._watching.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the thread, and wait for that."""
        self._is_over.set()
        if self._watching is not None and self._inquirer is not None:
            self._inquirer.answered.set()  # which it may wait for, and no loop will do now
            self._watching.join(_LONGEST_END)
        self._tell()

    # In the thread -----------------------------------------------------------

    def _watch(self, inquirer: _Inquirer, look: Callable[[], Holder]) -> None:
        try:
            while not self._is_over.is_set():
                held = inquirer.rest()
                if held:
                    self._note(Blocked(seconds=held), inquirer)
                if not self._is_over.is_set():
                    self._ask(inquirer, look)
        except Exception as error:  # noqa: BLE001  (it must not end the program)
            _log("the watchdog has failed, and watches no more", error=error)

    def _ask(self, inquirer: _Inquirer, look: Callable[[], Holder]) -> None:
        """Ask once whether the loop turns, and say so if it does not."""
        if not inquirer.ask():
            return  # it has ended
        held = inquirer.wait(self.block_warning)
        if held < self.block_warning:
            return
        holder = Holder() if inquirer.answered.is_set() else look()
        if holder.is_debugged:
            inquirer.wait(math.inf)
            return
        _log("Trio's loop has been blocked for %.1f s %s", held, _in_words(holder))
        held += inquirer.wait(math.inf)
        blocked = Blocked(
            seconds=held, task=holder.task, request=holder.request, stack=holder.stack
        )
        self._note(blocked, inquirer)

    def _note(self, blocked: Blocked, inquirer: _Inquirer) -> None:
        by = f" by task {blocked.task!r}" if blocked.task else ""
        if not blocked.stack:
            by = " by a call that holds Python's lock, so that nobody could see which"
        _log("Trio's loop was blocked for %.1f s in all%s", blocked.seconds, by)
        self._untold.append(blocked)
        inquirer.soon(self._tell)

    # In the loop -------------------------------------------------------------

    def _tell(self) -> None:
        while self._untold:
            blocked = self._untold.popleft()
            try:
                if self.on_blocked is not None:
                    self.on_blocked(blocked)
            except Exception as error:  # noqa: BLE001  (the program's; Trio would end by it)
                _log("on_blocked of a Watchdog has raised", error=error)


@attrs.define(eq=False)
class _Inquirer:
    """Asks a loop whether it turns, and counts the seconds in which it does not."""

    _token: trio.lowlevel.TrioToken
    _warning: float
    _is_over: threading.Event
    answered: threading.Event = attrs.field(factory=threading.Event)

    def ask(self) -> bool:
        """Have the loop answer soon; whether it still runs."""
        self.answered = threading.Event()
        return self.soon(self.answered.set)

    def soon(self, function: Callable[[], object]) -> bool:
        """Have the loop call a function soon; whether it still runs."""
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    def wait(self, most: float) -> float:
        """Wait for the answer, or the end of the block; the seconds for which there was none."""
        held = 0.0
        slice_ = self._warning / 4
        while held < most and not (self.answered.is_set() or self._is_over.is_set()):
            held += _count(self.answered.wait, min(slice_, _LEAST_REST), self._warning)
        return held

    def rest(self) -> float:
        """Wait before the next inquiry; the seconds for which a call has held Python's lock."""
        seconds = max(self._warning / 4, _LEAST_REST)
        over = _count(self._is_over.wait, seconds, self._warning) - seconds
        return over if over > self._warning else 0.0


def _count(wait: Callable[[float], bool], seconds: float, far_too_long: float) -> float:
    """Wait, and return how long, without the time in which the process was stopped."""
    began, used = time.perf_counter(), time.process_time()
    wait(seconds)
    took, used = time.perf_counter() - began, time.process_time() - used
    if took - seconds > far_too_long and used < took / 2:
        return 0.0
    return took


def _in_words(holder: Holder) -> str:
    by = f"by task {holder.task!r}" if holder.task else "by no task that can be seen"
    whose = "" if holder.request is None else str(holder.request)
    whose = f" of {whose}" if whose not in holder.task else ""
    return f"{by}{whose}:\n{holder.stack.rstrip()}" if holder.stack else by


def _log(message: str, *values: object, error: Exception | None = None) -> None:
    with contextlib.suppress(Exception):  # of a logging handler's: there is nobody left to tell
        log.warning(message, *values, exc_info=error)


async def watch_loop(
    servers: BaseServer | Iterable[BaseServer] = (),  # noqa: ARG001  (as all that runs beside them)
    *,
    block_warning: float = 1.0,
    on_blocked: Callable[[Blocked], object] | None = None,
) -> NoReturn:
    """Watch this program's loop until cancelled: a `Watchdog` as a task beside servers.

    Args:
      servers: not needed; so that it is called as all that runs beside servers is.
      block_warning: as of `Watchdog`.
      on_blocked: as of `Watchdog`.
    """
    with Watchdog(block_warning, on_blocked=on_blocked):
        while True:
            await trio.sleep_forever()
