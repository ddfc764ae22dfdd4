"""What works on a run, one piece of work at a time, and the thread that it works in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


@attrs.define(eq=False)
class Home:
    """Trio's thread, in which the functions of a run have to be called, from any thread."""

    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function`` in Trio's thread: now, if this is that thread; else soon."""
        try:
            is_here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:  # a thread without Trio
            is_here = False
        if is_here:
            function(*arguments)
        else:
            # When its trio.run has ended, there is nothing left to end.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function, *arguments)
