"""The one task that binds or serves a run, and who waits for its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio


@attrs.define(eq=False)
class Work:
    """The one task that binds a run or serves it, for as long as its block lasts."""

    _over: trio.Event | None = None

    @property
    def is_going_on(self) -> bool:
        """Whether a task is in the block."""
        return self._over is not None

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Run the block as this work. `wait_over` returns when the block is left."""
        self._over = over = trio.Event()
        try:
            yield
        finally:
            self._over = None
            over.set()

    async def wait_over(self) -> None:
        """Wait until the block is left. No checkpoint if no task is in it."""
        if self._over is not None:
            await self._over.wait()
