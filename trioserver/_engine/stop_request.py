"""A shutdown that was asked for before anything serves: kept as a value until something does."""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class StopRequest:
    """How long may take what a server waits for before it serves, and then its drain.

    Attributes:
      grace: seconds, for both together.
      ends_at: when they are over, by the Trio clock, once they are counted; else inf.
      reason: why, for the report.
    """

    grace: float
    ends_at: float = math.inf
    reason: str = "shutdown() was called"

    def counted_from(self, now: float) -> StopRequest:
        """The same, for a server that waits for something from ``now`` on."""
        return attrs.evolve(self, ends_at=min(self.ends_at, now + self.grace))

    def and_earlier(self, other: StopRequest | None) -> StopRequest:
        """Of two requests, whatever ends earlier; the reason is that of the first one."""
        if other is None:
            return self
        grace, ends_at = min(self.grace, other.grace), min(self.ends_at, other.ends_at)
        return StopRequest(grace, ends_at, other.reason)

    def left(self, now: float) -> float:
        """Seconds of the grace that are left."""
        return max(0.0, min(self.grace, self.ends_at - now))
