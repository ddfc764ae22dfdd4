"""What a request owns, as those see it who must not know more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class KeepsSlot(Protocol):
    """Works on for a request after its outcome, so that its slot is not free yet."""

    def when_over(self, after: Callable[[], object]) -> None:
        """Call ``after`` when it is."""
