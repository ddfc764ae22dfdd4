"""A request of any kind, as the engine sees it: one client's connection, or one datagram."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from .._facts.events import RequestInfo


class KeepsSlot(Protocol):
    """What works on for a request after its outcome, so that the slot is not free yet."""

    def when_over(self, after: Callable[[], object]) -> None:
        """Call ``after`` when the work is over, or now if it is."""


class Fate:
    """What has become of a request so far, as far as it bears on its end.

    Defaults of the class, so that a request has only what is otherwise.

    Attributes:
      _must_not_linger: whether it is closed without a wait for its peer.
      _handlers_not_awaited: handlers that were constructed for it, and not awaited yet.
      _awaits_thread: whether it waits for the end of a thread that was cancelled; it will
        say itself if the thread is left behind.
      _left_behind: the thread that works on for it after its outcome.
      _was_killed: whether its worker process was killed.
    """

    _must_not_linger: bool = False
    _handlers_not_awaited: int = 0
    _awaits_thread: bool = False
    _left_behind: KeepsSlot | None = None
    _was_killed: bool = False


class AnyRequest(Protocol):
    """What a request owns: the connection of one client, or one datagram."""

    cancel_scope: trio.CancelScope
    _must_not_linger: bool
    _handlers_not_awaited: int
    _awaits_thread: bool
    _left_behind: KeepsSlot | None
    _was_killed: bool

    @property
    def info(self) -> RequestInfo: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def state(self) -> str: ...

    @property
    def _has_unsent(self) -> bool:
        """Whether there is anything for `_flush` to do."""

    async def _flush(self) -> None:
        """Send what the handler has left in a buffer."""

    async def linger(self) -> None:
        """End the output, and wait until the peer has what was sent, within bounds."""

    def close(self) -> None:
        """Give it back, in order. Twice is once."""

    def reset(self) -> None:
        """Give it back so that the peer sees an error, where that can be told."""

    def _note_arrival(self) -> None:
        """Note that the request has arrived: its first bytes are waited for from now on."""

    # For the drain.

    @property
    def _new_until(self) -> float:
        """Until when, by the Trio clock, a drain waits for the very first byte."""

    @property
    def _ended_idle(self) -> bool:
        """Whether a drain has ended a wait between two requests."""

    @property
    def _must_linger(self) -> bool:
        """Whether closing at once could lose a reply."""

    def _end_idle_waits(self) -> None:
        """End the waits between two requests, unless one has begun."""

    def user_id(self) -> int | None:
        """The user id of a client on this machine; None where it cannot be told."""
