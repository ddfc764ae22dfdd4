"""One wait for input, as a block: its time, and what may end it."""

from __future__ import annotations

from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

import attrs
import trio
from trio.lowlevel import enable_ki_protection

Bound: TypeAlias = Literal["idle", "line"]
"""The time-outs that a wait has."""


class Waits(Protocol):
    """Who waits: it has its wait at hand, for the time that it lasts."""

    wait: InputWait | None


@attrs.define(eq=False, weakref_slot=False)
class InputWait:
    """A block that is cancelled when its time is up; commonly there is one in an idle connection.

    Not a coroutine of its own, which would be 250 bytes more of each of those.

    Attributes:
      between_requests: whether a drain may end it.
      bound: the time-out that it has.
      before: bytes that were there before it.
    """

    _owner: Waits
    _scope: trio.CancelScope
    between_requests: bool
    bound: Bound
    before: int

    @enable_ki_protection
    def __enter__(self) -> Self:
        self._scope.__enter__()
        self._owner.wait = self
        return self

    @enable_ki_protection
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._owner.wait = None
        return self._scope.__exit__(kind, error, traceback)

    def end_by_drain(self) -> None:
        """End it, because the server drains."""
        self._scope.cancel(reason="the server drains")

    @property
    def was_ended(self) -> bool:
        """Whether its time was up, or a drain has ended it."""
        return self._scope.cancelled_caught
