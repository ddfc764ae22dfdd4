"""How many workers a pool has, and how they are started: the mix-in's fields, as values."""

from __future__ import annotations

import math
import random
import sys

import attrs


@attrs.frozen(kw_only=True)
class PoolConfig:
    """How many workers, and how they are started; see `trioserver.ProcessMixIn`."""

    at_least: int
    at_most: int
    idle: float
    max_requests: int | None
    max_requests_jitter: int
    start_method: str
    preload: tuple[str, ...]
    start_timeout: float
    patience: float
    stopped: float

    def most_requests(self) -> float:
        """How many requests one more worker may have: by chance, so that not all go at once."""
        if self.max_requests is None:
            return math.inf
        jitter = random.randint(0, self.max_requests_jitter)  # noqa: S311
        return self.max_requests + jitter


START_METHOD = "spawn" if sys.platform == "darwin" else "forkserver"
