"""Trio's thread, in which the functions of a run are called, whichever thread asks for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import attrs
import trio


@attrs.define(eq=False)
class HomeThread:
    """The thread of the `trio.run` that this is made in."""

    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def is_here(self) -> bool:
        """Whether the calling thread is the one."""
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:  # a thread without Trio
            return False

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function`` in Trio's thread: now, if this is that thread; else soon."""
        if self.is_here():
            function(*arguments)
        else:
            # When its trio.run has ended, there is nothing left to end.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function, *arguments)
