"""Tools for testing servers: a network in memory, for a virtual clock, and what can be wrong."""

from .._published import publish as _publish
from ._faults.faults import Faults
from ._faults.kinds import (
    AcceptError,
    Bandwidth,
    Duplicate,
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
from ._faults.lossy import LossyListener
from ._faults.relay import FaultyListener
from ._looking.descriptors import open_descriptors
from ._looking.guard import Hung, wall_clock_guard
from ._memory.datagrams import (
    MemoryDatagramClient,
    MemoryDatagramListener,
    MemoryDatagramMixIn,
    MemoryDatagramServer,
)
from ._memory.listener import MemoryListener
from ._memory.pipe import MemoryTransport, Transcript, memory_pipe
from ._memory.servers import MemoryMixIn, MemoryServer
from ._running.clients import KernelDatagramClient
from ._running.exchanges import Exchange
from ._running.factory import ServerFactory, servers_of_a_test
from ._running.in_thread import ThreadFaults, ThreadServer, serve_in_thread
from ._running.no_findings import Findings, no_findings
from ._running.open_server import Unfinished, open_test_server
from ._running.server import RunningServer
from ._running.tls import TestTLS, TLSClient
from ._script.script import Unmet, open_scripted_server
from ._script.steps import Step, eof, expect, expect_eof, pause, reply
from ._sweeping.fire_at import fire_at
from ._sweeping.harm import Cancel, CtrlC, ResetClient, ShutDown
from ._sweeping.sweep import Swept, run_trial, sweep
from ._sweeping.trial import Finding, Trial

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
    "Findings",
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
    "TLSClient",
    "TestTLS",
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
    "no_findings",
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
