"""A shutdown that came before anything serves: a value that is kept until something does."""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class StopRequest:
    """A shutdown to come: how long the start and the drain may take together, and why.

    Attributes:
      grace: seconds for whatever a server waits for before it serves, and its drain.
      ends_at: when they are over, by the Trio clock; inf as long as nothing counts them.
      reason: why, for the report.
    """

    grace: float
    ends_at: float = math.inf
    reason: str = "shutdown() was called"

    def counted_from(self, now: float) -> StopRequest:
        """Count the seconds of its grace from ``now``, unless they are counted already."""
        return attrs.evolve(self, ends_at=min(self.ends_at, now + self.grace))

    def and_earlier(self, other: StopRequest | None) -> StopRequest:
        """The earlier end of this and an older request, with the reason of the older one."""
        if other is None:
            return self
        grace, ends_at = min(self.grace, other.grace), min(self.ends_at, other.ends_at)
        return StopRequest(grace, ends_at, other.reason)

    def left(self, now: float) -> float:
        """How many seconds of the grace are left."""
        return max(0.0, min(self.grace, self.ends_at - now))
