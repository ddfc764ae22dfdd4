"""Tools for testing servers: a network in memory, for a virtual clock."""

from ._memory import MemoryListener, MemoryMixIn, MemoryServer, MemoryTransport, memory_pipe

__all__ = ["MemoryListener", "MemoryMixIn", "MemoryServer", "MemoryTransport", "memory_pipe"]
