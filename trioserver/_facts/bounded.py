"""A block that is cut after so many seconds, and logged if it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import attrs
import trio

from .observers import error_log, log_safely


@attrs.define(eq=False)
class Bounded:
    """Cuts its ``with`` block after so many seconds, and logs that as an error.

    The block calls a hook, or other code of the program, at a moment when a cancellation is
    pending or nobody else would notice that it hangs. (This is a class and not a generator:
    the frame of a generator would be part of the traceback of an error that passes through,
    and keep the error alive.)

    Args:
      seconds: how long it may take.
      what: what is called there, for the message.
      whose: the request it is called for, if it is.
      bound: the time-outs whose sum the seconds are, by their names.
      shield: whether a cancellation from outside has to wait for it.
      least: seconds that it has in any case.
      error: an error that may be logged nowhere else; the message shows it.
      unless: whether the work is done although the block was cut: then nothing is logged.
    """

    _seconds: float
    _what: str
    _whose: object = attrs.field(default=None, kw_only=True)
    _bound: str = attrs.field(default="cleanup", kw_only=True)
    _shield: bool = attrs.field(default=True, kw_only=True)
    _least: float = attrs.field(default=0.0, kw_only=True)
    _error: BaseException | None = attrs.field(default=None, kw_only=True)
    _unless: Callable[[], bool] = attrs.field(default=lambda: False, kw_only=True)
    _scope: trio.CancelScope = attrs.field(init=False)

    def __enter__(self) -> trio.CancelScope:
        self._scope = trio.move_on_after(max(self._seconds, self._least), shield=self._shield)
        return self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            is_caught = self._scope.__exit__(kind, error, traceback)
            if self._scope.cancelled_caught and not self._unless():
                self._tell()
            return is_caught
        finally:
            self._error = None  # no cycles
            del error

    def _tell(self) -> None:
        message = "%s did not end within %g s (%s)"
        values = [self._what, self._seconds, self._bound]
        if self._whose is not None:
            message, values = f"{message}, for %s", [*values, self._whose]
        more = {} if self._error is None else {"exc_info": self._error}
        log_safely(error_log, logging.ERROR, message, *values, **more)
