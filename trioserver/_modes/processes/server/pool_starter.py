"""What starts the workers of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .pool_config import PoolConfig
from .starter import Starter

if TYPE_CHECKING:  # it brings multiprocessing
    from .pool_process import PoolProcess


def starter_of(config: PoolConfig, setup: bytes) -> Starter:
    """Starts processes as a pool's config says.

    Args:
      config: that.
      setup: what each worker is told, packed.
    """

    def start(method: str) -> PoolProcess:
        # Not before: whoever has no workers does without multiprocessing.
        from .pool_process import spawn_for_pool  # noqa: PLC0415

        return spawn_for_pool(config.preload, setup, method)

    return Starter(config.start_method, config.preload, start, config.patience)
