"""What the peers on bare Trio, and ours, do alike: they go on until they are told to stop."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from _common import Stopping


@asynccontextmanager
async def until_told_to_stop() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at SIGTERM; the driver is told when all of it has ended."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            yield nursery
            await anext(signals)
            stopping = Stopping()
            nursery.cancel_scope.cancel()
    stopping.done()
