"""How methods of foreign objects are called in a thread: what comes with a call, and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from .transport import ThreadOfRequest

T = TypeVar("T")


@attrs.frozen(eq=False)
class EndOfCall:
    """Waits for the end of a call that was cancelled."""

    event: trio.Event = attrs.field(factory=trio.Event)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Called by Trio before the call."""

    def release_on_behalf_of(self, borrower: object) -> None:
        """Called by Trio when the call has ended, also if nobody waits for it any more."""
        self.event.set()


def call_and_release(function: Callable[[], T], hooks: ThreadOfRequest) -> T:
    """Call ``function`` as the last one: without an error, the thread need not be told to end."""
    result = function()
    hooks.release()
    return result


def call_with_error(error: BaseException | None, function: Callable[[], T]) -> T:
    """Call ``function`` with ``error`` as `sys.exception`, as it is in the calling thread."""
    error = error or RuntimeError("handle_error was called without an error")
    before = error.__traceback__
    try:
        raise error
    except BaseException:  # noqa: BLE001  (the function asks for it)
        return function()
    finally:
        # The frames of this thread hold what was called, and that the error: no cycles.
        error.__traceback__ = before
        del error
