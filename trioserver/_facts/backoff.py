"""Pauses between two tries, which grow: a value, without a clock."""

from __future__ import annotations

import attrs


@attrs.define
class Backoff:
    """The pauses before the next try after one that failed; doubled each time.

    Args:
      first: seconds of the first one.
      longest: seconds of the longest one.

    Attributes:
      pause: seconds of the last one; 0 before the first.
    """

    first: float
    longest: float
    pause: float = 0.0

    def grow(self) -> float:
        """One more try has failed: the seconds to pause."""
        self.pause = min(self.pause * 2 or self.first, self.longest)
        return self.pause

    def reset(self) -> None:
        """A try has succeeded: begin with the first pause again."""
        self.pause = 0.0

    @property
    def is_longest(self) -> bool:
        """Whether the pauses grow no more."""
        return self.pause == self.longest
