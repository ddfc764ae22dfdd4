"""The process of a worker of a pool, which shows what it does in memory that both share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import cast

import attrs

from ..protocol.status import SharedStatus, new_shared_status
from ..worker import main as worker
from .spawn import Recipe, Spawned, spawn


@attrs.define(eq=False)
class PoolProcess(Spawned):
    """A worker process that was started for a pool.

    Attributes:
      shared_status: what it does.
    """

    shared_status: SharedStatus = attrs.field(kw_only=True)

    def give_back(self) -> None:
        """Close everything but the process. Twice is once."""
        super().give_back()
        self.shared_status.close()


def spawn_for_pool(preload: Sequence[str], setup: bytes, method: str) -> PoolProcess:
    """Start a worker of a pool.

    Args:
      preload: see `Recipe`.
      setup: packed, for `worker.main`.
      method: see `spawn`, which says what is raised, too.
    """
    number = new_shared_status()
    with ExitStack() as unless_started:
        try:
            shared_status = SharedStatus(number)
            unless_started.callback(shared_status.close)
            recipe = Recipe(worker.main, setup, (number,), preload=preload)
            spawned = spawn(method, recipe, partial(PoolProcess, shared_status=shared_status))
        finally:
            os.close(number)
        unless_started.pop_all()
        return cast("PoolProcess", spawned)
