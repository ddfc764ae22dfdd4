"""The screen at work: what is typed and what is heard change the view, and that is drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import attrs
import trio

from .feed import Message
from .keys import Keys
from .screen import picture
from .terminal import Terminal
from .view import View

SLOWEST = 0.5
"""Seconds between two pictures of what is heard."""

FASTEST = 1 / 30
"""Seconds between two pictures, however fast somebody types: a burst of keys is one picture."""

_ESCAPE = 0.05
"""Seconds in which the rest of a key comes that begins with Esc."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Source(Protocol):
    """Where what is seen comes from."""

    async def follow(self, view: View, changed: Callable[[], None]) -> None:
        """Change the view for ever, and say so each time."""

    def order(self, message: Message, view: View) -> None:
        """Have this done, or told of; at once, as it is called for each key."""


@attrs.define
class App:
    """A terminal, what is seen there, and where that comes from.

    Attributes:
      ended_by: the signal that has ended it; 0 if somebody did.
    """

    _terminal: Terminal
    _view: View
    _source: Source
    _where: str
    ended_by: int = 0
    _wanted: trio.Event = attrs.field(factory=trio.Event)
    _urgent: trio.Event = attrs.field(factory=trio.Event)
    _drawn_at: float = 0.0

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Run until somebody wants to see no more, or a signal ends it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._draw)
            nursery.start_soon(self._source.follow, self._view, self.changed)
            nursery.start_soon(self._heed, signals, nursery.cancel_scope)
            self.typed()
            await self._read_keys()
            nursery.cancel_scope.cancel(reason="nobody wants to see more")

    def changed(self) -> None:
        """Have it drawn soon."""
        self._wanted.set()

    def typed(self) -> None:
        """Have it drawn at once."""
        self._wanted.set()
        self._urgent.set()

    async def _draw(self) -> None:
        while True:
            await self._wanted.wait()
            if not self._urgent.is_set():
                with trio.move_on_at(self._drawn_at + SLOWEST):
                    await self._urgent.wait()
            await trio.sleep_until(self._drawn_at + FASTEST)
            self._wanted, self._urgent = trio.Event(), trio.Event()
            lines = picture(self._view, *self._terminal.size, self._where)
            self._drawn_at = trio.current_time()
            await self._terminal.draw(lines)

    async def _read_keys(self) -> None:
        keys = Keys()
        while not self._view.ended:
            data = None
            with trio.move_on_after(_ESCAPE if keys.has_begun else float("inf")):
                data = await self._terminal.read()
            if data == b"":
                return
            self._press(keys.flush() if data is None else keys.feed(data))

    def _press(self, pressed: Sequence[str]) -> None:
        for key in pressed:
            for message in self._view.press(key):
                self._source.order(message, self._view)
        if pressed:
            self.typed()

    async def _heed(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if number in ENDING:
                self.ended_by = number
                scope.cancel(reason=f"{signal.Signals(number).name} has come")
            elif number == signal.SIGTSTP:
                self._terminal.leave()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._terminal.enter()  # somebody has had it go on
            else:  # another size
                self._terminal.forget()
            self.typed()
