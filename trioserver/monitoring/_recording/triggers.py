"""What has gone wrong, told to those who keep recordings of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio


@attrs.define(eq=False)
class Triggers:
    """Tells everybody who listens of each trigger, at its instant."""

    _listeners: list[tuple[Callable[[str], None], float]] = attrs.field(factory=list)
    _open: int = 0
    _waiting: list[trio.Event] = attrs.field(factory=list)

    @contextmanager
    def told_to(self, listener: Callable[[str], None], slow: float) -> Iterator[None]:
        """Tell a plain function of them in the block; and of requests longer than ``slow``."""
        entry = (listener, slow)
        self._listeners.append(entry)
        try:
            yield
        finally:
            self._listeners.remove(entry)

    def pull(self, trigger: str) -> None:
        """Something has gone wrong."""
        for listener, _ in list(self._listeners):
            listener(trigger)

    def took(self, seconds: float) -> None:
        """A request has ended, after so many seconds."""
        for listener, slow in list(self._listeners):
            if seconds > slow:
                listener("slow")

    def opened(self) -> None:
        """One server more serves."""
        self._open += 1

    def closed(self) -> None:
        """A server's run is over."""
        self._open = max(0, self._open - 1)
        while self._waiting and not self._open:
            self._waiting.pop().set()

    async def wait_closed(self) -> None:
        """Wait until no server serves."""
        if self._open:
            self._waiting.append(event := trio.Event())
            await event.wait()
