"""The starts of workers that are going on, which are cancelled when nobody is wanted any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio


@attrs.define(eq=False)
class Starts:
    """Those of one program.

    Args:
      on_end: called when one is over.
    """

    _on_end: Callable[[], object]
    _scopes: set[trio.CancelScope] = attrs.field(factory=set)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._scopes)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """A block that is one of them, be it that it only waits for its turn."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                self._on_end()

    def cancel(self, reason: str) -> None:
        """Cancel all of them."""
        for scope in self._scopes:
            scope.cancel(reason=reason)
