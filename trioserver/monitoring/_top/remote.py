"""What another process tells, through its monitor; when that is gone, it is looked for again."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from .._text.words import printable
from .feed import Address, Feed, Message, connected
from .parts import MonitorError
from .state import state_of
from .view import WATCH, View

PATIENCE = 5.0
"""Seconds without news after which what is shown is called stale."""

_AGAIN = 1.0
"""Seconds from a connection that is lost to the next attempt."""

_MOST_ORDERS = 64
"""That wait to be sent; more are refused."""


@attrs.define
class Remote:
    """A `Source` that is the monitor of another process."""

    _address: Address
    _interval: float
    _most: int
    _orders: trio.MemorySendChannel[Message] | None = None

    async def follow(self, view: View, changed: Callable[[], None]) -> None:
        """Have the view show what the monitor tells, and connect anew whenever that ends."""
        while True:
            try:
                async with connected(self._address, PATIENCE) as feed:
                    why = await self._talk(feed, view, changed)
            except MonitorError as error:
                why = str(error)
            view.lose(f"{why}; trying again every second")
            changed()
            await trio.sleep(_AGAIN)

    def order(self, message: Message, view: View) -> None:
        """Send it; what cannot be sent now is never sent, since nobody would expect it later."""
        if message is WATCH:
            message = view.watch(self._interval, self._most)
        try:
            if self._orders is not None:
                self._orders.send_nowait(message)
                return
        except trio.WouldBlock:
            pass
        if "control" in message:
            view.message = "nothing was done: the monitor takes no orders now"

    async def _talk(self, feed: Feed, view: View, changed: Callable[[], None]) -> str:
        """Talk until the connection is lost; why it is."""
        self._orders, orders = trio.open_memory_channel[Message](_MOST_ORDERS)
        self.order(WATCH, view)
        why = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, feed, orders)
                try:
                    await self._listen(feed, view, changed)
                except MonitorError as error:
                    why = str(error)
                nursery.cancel_scope.cancel(reason="the connection is lost")
        finally:
            self._orders = None
        return why

    async def _listen(self, feed: Feed, view: View, changed: Callable[[], None]) -> None:
        patience = max(PATIENCE, 3 * self._interval)
        while True:
            with trio.move_on_after(patience) as waiting:
                self._take(await feed.receive(), view)
            if waiting.cancelled_caught:
                view.lose(f"nothing was heard for {patience:g} s")
            changed()

    def _take(self, message: Message, view: View) -> None:
        kind = message.get("type")
        if kind == "request":
            view.take_detail(message)
        elif kind in {"done", "error"}:
            prefix = "error: " if kind == "error" else ""
            view.message = prefix + printable(str(message.get("message")))
        else:
            for asked in view.update(state_of(message)):
                self.order(asked, view)


async def _send(feed: Feed, orders: trio.MemoryReceiveChannel[Message]) -> None:
    try:
        async for message in orders:
            await feed.send(message)
    except MonitorError:
        pass  # who listens knows, too, and says so
