"""Which operations of ``rfile`` and ``wfile`` let other tasks run.

The rule, and its one place:

* Every operation is a cancellation point.
* Of any two in a row of one task that reach the socket, at least one is a schedule point.
  A read that reaches it always is, before it looks. A write is, unless the operation
  before it was one.
* Of operations that find all they need in a buffer, every 16th is a schedule point.

`Connection`'s own methods keep Trio's full rule: each of them is both.

Why there: a schedule point costs as much as a system call, and the one that pays is between
an answer and the look for the next request, which a client commonly sends meanwhile. Without
it the look finds nothing, and a wait costs three times as much; with one more before the
answer, nobody gains anything.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar

from trio.lowlevel import checkpoint, checkpoint_if_cancelled

# Whether the task's last operation was a schedule point: of the task, not of a connection, so that
# one which writes to a thousand clients lets others run at every second. A child inherits it, and
# has begun with one.
_has_rested: ContextVar[bool] = ContextVar("trioserver.has_rested", default=False)


def note_schedule_point() -> None:
    """Note that the operation that ends now was a schedule point."""
    _has_rested.set(True)


def before_write() -> Awaitable[None]:
    """What a write has to await before it does anything."""
    if not _has_rested.get():
        return schedule_point()
    _has_rested.set(False)
    return checkpoint_if_cancelled()  # noqa: ASYNC105  (no coroutine more than that)


async def schedule_point() -> None:
    """Be a cancellation point and a schedule point."""
    await checkpoint()
    note_schedule_point()
