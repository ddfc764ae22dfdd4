"""One wait for input, as a block: its time, and what may end it.

There are two kinds, which do the same. `ScopedWait` has a cancel scope, and works with every
transport. `AlarmedWait` has none: see `alarms`.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._sockets.transport import Transport, wakes_reader
from .alarms import Alarms

Bound: TypeAlias = Literal["idle", "line"]
"""The time-outs that a wait has."""


class Waits(Protocol):
    """Who waits: it has its wait at hand, for the time that it lasts."""

    wait: InputWait | None


class InputWait(Protocol):
    """A block that ends when its time is up; commonly there is one in an idle connection.

    Not a coroutine of its own, which would be 250 bytes more of each of those.

    Attributes:
      between_requests: whether a drain may end it.
      bound: the time-out that it has.
      before: bytes that were there before it.
    """

    between_requests: bool
    before: int

    @property
    def bound(self) -> Bound: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...

    def end_by_drain(self) -> None:
        """End it, because the server drains."""

    @property
    def was_ended(self) -> bool:
        """Whether its time was up, or a drain has ended it."""


@attrs.define(eq=False, weakref_slot=False)
class ScopedWait:
    """One that is cancelled."""

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


@attrs.define(eq=False, weakref_slot=False)
class AlarmedWait:
    """One that is woken. It is for the idle time-out."""

    _owner: Waits
    _alarms: Alarms
    _transport: Transport
    seconds: float
    deadline: float
    between_requests: bool
    before: int
    was_ended: bool = False
    _was_woken: bool = False

    @enable_ki_protection
    def __enter__(self) -> Self:
        self._owner.wait = self
        if self.deadline != math.inf:
            self._alarms.set(self)
        return self

    @enable_ki_protection
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._owner.wait = None
        if self.deadline != math.inf:
            self._alarms.clear(self)
        return self._was_woken and isinstance(error, trio.ClosedResourceError)

    @property
    def bound(self) -> Bound:
        """The time-out that it has."""
        return "idle"

    def ring(self) -> None:
        """End it, because its time is up."""
        self.was_ended = True
        self.wake()

    end_by_drain = ring

    def wake(self) -> None:
        """Have it look again, and wait by other means."""
        self._was_woken = True
        wake_reader = wakes_reader(self._transport)
        if wake_reader is not None:
            wake_reader()
