"""Tools for testing servers: a network in memory, for a virtual clock."""

from ._memory import MemoryListener, MemoryMixIn, MemoryServer, MemoryTransport, memory_pipe
from ._memory_datagrams import (
    MemoryDatagramClient,
    MemoryDatagramListener,
    MemoryDatagramMixIn,
    MemoryDatagramServer,
)

__all__ = [
    "MemoryDatagramClient",
    "MemoryDatagramListener",
    "MemoryDatagramMixIn",
    "MemoryDatagramServer",
    "MemoryListener",
    "MemoryMixIn",
    "MemoryServer",
    "MemoryTransport",
    "memory_pipe",
]
