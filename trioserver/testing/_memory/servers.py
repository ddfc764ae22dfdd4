"""Servers in memory: for each run a listener of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trioserver

from .listener import MemoryListener
from .pipe import DEFAULT_CAPACITY


class MemoryBase(trioserver.BaseServer):
    """A server in memory: one that makes its listener itself, for each run."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("listener", None)  # a copy has none, until it is bound
        return state


class MemoryMixIn(MemoryBase):
    """Serves in memory instead: put it first in the bases of a stream server.

    ``class InMemory(MemoryMixIn, MyServer): pass``. Every run has a
    `MemoryListener` of its own, ``server.listener``, at the configured address.
    """

    memory_capacity = DEFAULT_CAPACITY

    async def server_bind(self) -> Sequence[trioserver.Listener]:
        """Make the listener."""
        self.listener: MemoryListener = MemoryListener(self.server_address, self.memory_capacity)
        return [self.listener]

    async def connect(
        self, client_address: Any = None, credentials: trioserver.PeerCredentials | None = None
    ) -> trioserver.Connection:
        """Connect to the server; see `MemoryListener.connect`."""
        return await self.listener.connect(client_address, credentials)


class MemoryServer(MemoryMixIn, trioserver.TCPServer):
    """A stream server in memory; its address is any ``(name, number)``."""
