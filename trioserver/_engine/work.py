"""What is at work on a run: one piece of work at a time, which others wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import attrs
import trio


@attrs.define(eq=False)
class Work:
    """The binding, or what serves: in some task, for as long as a block lasts."""

    _over: trio.Event | None = None

    @property
    def is_going_on(self) -> bool:
        """Whether the block is being run."""
        return self._over is not None

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Mark the block as the work that is going on; who waits for it wakes when it is left."""
        self._over = over = trio.Event()
        try:
            yield
        finally:
            self._over = None
            over.set()

    async def wait_over(self) -> None:
        """Wait until the block is left. No checkpoint if nobody is in it."""
        if self._over is not None:
            await self._over.wait()


@attrs.define(eq=False)
class Home:
    """Trio's thread, as seen from any other: where a run's functions have to be called."""

    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in Trio's thread: now, if that is here."""
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
