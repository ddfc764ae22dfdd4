"""Tools for testing servers: a network in memory, for a virtual clock, and what can be wrong."""

from ._clients import KernelDatagramClient
from ._exchanges import Exchange
from ._faults import (
    AcceptError,
    Bandwidth,
    Duplicate,
    Faults,
    Latency,
    LimitData,
    Loss,
    Refuse,
    Reorder,
    Reset,
    Slice,
    SlowClose,
    Stall,
)
from ._guard import Hung, task_tree, wall_clock_guard
from ._lossy import LossyListener
from ._memory import (
    MemoryListener,
    MemoryMixIn,
    MemoryServer,
    MemoryTransport,
    Transcript,
    memory_pipe,
)
from ._memory_datagrams import (
    MemoryDatagramClient,
    MemoryDatagramListener,
    MemoryDatagramMixIn,
    MemoryDatagramServer,
)
from ._relay import FaultyListener
from ._running import RunningServer, Unfinished, open_test_server

__all__ = [
    "AcceptError",
    "Bandwidth",
    "Duplicate",
    "Exchange",
    "Faults",
    "FaultyListener",
    "Hung",
    "KernelDatagramClient",
    "Latency",
    "LimitData",
    "Loss",
    "LossyListener",
    "MemoryDatagramClient",
    "MemoryDatagramListener",
    "MemoryDatagramMixIn",
    "MemoryDatagramServer",
    "MemoryListener",
    "MemoryMixIn",
    "MemoryServer",
    "MemoryTransport",
    "Refuse",
    "Reorder",
    "Reset",
    "RunningServer",
    "Slice",
    "SlowClose",
    "Stall",
    "Transcript",
    "Unfinished",
    "memory_pipe",
    "open_test_server",
    "task_tree",
    "wall_clock_guard",
]
