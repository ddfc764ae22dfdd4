"""Which operations of ``rfile`` and ``wfile``, and which replies to datagrams, let others run.

The rule, and its one place:

* Every operation is a cancellation point, before it does anything.
* Of any two in a row of one task that reach the socket, at least one is a schedule point. One is
  not if the task comes straight from one: from the start of the task, from a wait, or from the
  operation before. A read is one before it looks, a write and a reply are after they have sent.
* Of operations that find all they need in a buffer, every 16th is a schedule point.

`Connection`'s own methods keep Trio's full rule: each of them is both.

Why there: a schedule point costs as much as a system call, and the one that pays is between an
answer and the look for the next request, which a client commonly sends meanwhile. Without it the
look finds nothing, and a wait costs three times as much. One more, between a request and its
answer, would gain nobody anything.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar

from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

_MOST_BUFFERED = 16
"""A handler that finds a megabyte of lines in its buffer must not keep others waiting for all of
them; a schedule point at each would cost more than the line."""


class _Mark:
    """Whether the task that runs comes straight from a schedule point; what it has done since.

    One for all tasks of a server, not one for each: a task sets it where it lets others run, for
    whoever runs next, who comes from there, too. If others clear it meanwhile, there is a schedule
    point more than it takes, and never one less. And a task that writes to a thousand clients lets
    others run at every second.

    Attributes:
      is_set: whether it comes straight from one.
      buffered: operations since then that have found what they need in a buffer.
    """

    __slots__ = ("buffered", "is_set")

    def __init__(self) -> None:
        self.set()

    def set(self) -> None:
        """Note that whoever runs next comes straight from a schedule point."""
        self.is_set = True
        self.buffered = 0


# A server has its own, as two of them can be in two threads.
_mark: ContextVar[_Mark] = ContextVar("trioserver.schedule_point", default=_Mark())  # noqa: B039


def begin_schedule_points() -> None:
    """Have the tasks of this context, and of its copies, be a company of their own."""
    _mark.set(_Mark())


def note_schedule_point() -> None:
    """Note that the calling task comes from a schedule point, or gives way to others now."""
    _mark.get().set()


# What these return is of Trio alone: no coroutine more than that.


def before_read() -> Awaitable[None]:
    """What a read has to await before it does anything."""
    mark = _mark.get()
    if not mark.is_set:
        mark.set()
        return checkpoint()  # noqa: ASYNC105
    mark.is_set = False
    return checkpoint_if_cancelled()  # noqa: ASYNC105


def after_write() -> Awaitable[None] | None:
    """What a write has to await once it has sent; None if there is nothing to await.

    It cannot be cancelled there: who learns of a cancellation must be sure that nothing was sent.
    """
    mark = _mark.get()
    if not mark.is_set:
        mark.set()
        return cancel_shielded_checkpoint()  # noqa: ASYNC105
    mark.is_set = False
    return None


def before_buffer() -> Awaitable[None]:
    """What an operation has to await before it looks for what it needs in a buffer."""
    mark = _mark.get()
    mark.buffered += 1
    if mark.buffered < _MOST_BUFFERED:
        return checkpoint_if_cancelled()  # noqa: ASYNC105
    mark.set()
    return checkpoint()  # noqa: ASYNC105
