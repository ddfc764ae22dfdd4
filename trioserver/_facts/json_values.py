"""Times as JSON has them, which knows no infinity."""

from __future__ import annotations

import math

LONG_AGO = -1e12
"""Seconds, in the place of minus infinity: a deadline that has passed whatever the time is."""


def finite(seconds: float) -> float | None:
    """A time in seconds; None of one that never comes."""
    return None if seconds == math.inf or math.isnan(seconds) else max(seconds, LONG_AGO)
