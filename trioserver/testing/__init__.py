"""Tools for testing servers: a network in memory, for a virtual clock, and what can be wrong."""

from .._published import publish as _publish
from ._clients import KernelDatagramClient
from ._descriptors import open_descriptors
from ._exchanges import Exchange
from ._factory import ServerFactory, servers_of_a_test
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
from ._fire_at import fire_at
from ._guard import Hung, wall_clock_guard
from ._in_thread import ThreadFaults, ThreadServer, serve_in_thread
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
from ._script import Unmet, open_scripted_server
from ._steps import Step, eof, expect, expect_eof, pause, reply
from ._sweep import Swept, run_trial, sweep
from ._sweep_faults import Cancel, CtrlC, ResetClient, ShutDown
from ._trial import Finding, Trial

__all__ = [
    "AcceptError",
    "Bandwidth",
    "Cancel",
    "CtrlC",
    "Duplicate",
    "Exchange",
    "Faults",
    "FaultyListener",
    "Finding",
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
    "ResetClient",
    "RunningServer",
    "ServerFactory",
    "ShutDown",
    "Slice",
    "SlowClose",
    "Stall",
    "Step",
    "Swept",
    "ThreadFaults",
    "ThreadServer",
    "Transcript",
    "Trial",
    "Unfinished",
    "Unmet",
    "eof",
    "expect",
    "expect_eof",
    "fire_at",
    "memory_pipe",
    "open_descriptors",
    "open_scripted_server",
    "open_test_server",
    "pause",
    "reply",
    "run_trial",
    "serve_in_thread",
    "servers_of_a_test",
    "sweep",
    "wall_clock_guard",
]

_publish(__name__, globals(), __all__)
