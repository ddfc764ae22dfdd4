"""The block that `Connection.idle` opens: a wait between two requests, which a drain ends."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import trio

from .._facts.errors import Draining


class IdleBlock:
    """What `Connection.idle` returns: a context manager, for one use.

    Attributes:
      has_begun: whether a request has, inside it.
    """

    def __init__(
        self,
        blocks: list[IdleBlock],
        on_enter: Callable[[], object],
        end_by_drain: Callable[[], Draining],
    ) -> None:
        """Make the block, which begins when it is entered.

        Args:
          blocks: those in which tasks are now; it is among them from its start to its end.
          on_enter: called when the block is entered: a drain may be on already.
          end_by_drain: called when a drain has ended the block; returns what it raises.
        """
        self._blocks = blocks
        self._on_enter = on_enter
        self._end_by_drain = end_by_drain
        self._task: trio.lowlevel.Task | None = None
        self.has_begun: bool = False
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._blocks.append(self)
        self._scope.__enter__()
        self._on_enter()

    def note_input(self) -> None:
        """Note that input was taken: in this block, if it is the calling task's."""
        self.has_begun = self.has_begun or self._is_of_this_task()

    def idles_here(self) -> bool:
        """Whether the calling task waits in it for a request that has not begun."""
        return not self.has_begun and self._is_of_this_task()

    def _is_of_this_task(self) -> bool:
        """Whether the calling task is in it: its own, or a child of that."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task is not self._task:
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return task is not None

    def end(self) -> None:
        """Have the block raise `Draining`, unless a request was begun inside it."""
        if not self.has_begun:
            self._scope.cancel(reason="the server drains")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._blocks.remove(self)
        self._task = None
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            # Raised, not fallen through: what the block was to assign is not there.
            raise self._end_by_drain() from None
