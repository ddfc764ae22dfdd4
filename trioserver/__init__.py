"""The classic ``socketserver`` framework, rebuilt on Trio's structured concurrency."""

from ._adopt import adopt
from ._base import BaseServer
from ._config import Limits, Timeouts
from ._connection import Connection
from ._datagram import Datagram, DatagramSocket
from ._errors import (
    Draining,
    IdleTimeout,
    IncompleteRead,
    LimitExceeded,
    PeerGone,
    RequestEnded,
    WriteTimeout,
)
from ._events import (
    ListenerSnapshot,
    Outcome,
    RequestInfo,
    RequestRecord,
    RequestSnapshot,
    ServerSnapshot,
    ShutdownReport,
    Statistics,
    current_request,
)
from ._handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from ._observers import Observer, RequestLogFilter
from ._processes.errors import HandlerFailed, WorkerCrashed, WorkerStartError
from ._processes.mixin import (
    ForkingMixIn,
    ForkingTCPServer,
    ForkingUDPServer,
    ForkingUnixDatagramServer,
    ForkingUnixStreamServer,
    ProcessMixIn,
    ProcessTCPServer,
    ProcessUDPServer,
    ProcessUnixDatagramServer,
    ProcessUnixStreamServer,
)
from ._program import run
from ._published import publish as _publish
from ._reader import RequestReader
from ._receiving import IdleBlock
from ._servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from ._threads import (
    ThreadingMixIn,
    ThreadingTCPServer,
    ThreadingUDPServer,
    ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer,
)
from ._transport import DatagramTransport, Listener, PeerCredentials, Transport
from ._writer import RequestWriter

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "Connection",
    "Datagram",
    "DatagramRequestHandler",
    "DatagramSocket",
    "DatagramTransport",
    "Draining",
    "ForkingMixIn",
    "ForkingTCPServer",
    "ForkingUDPServer",
    "ForkingUnixDatagramServer",
    "ForkingUnixStreamServer",
    "HandlerFailed",
    "IdleBlock",
    "IdleTimeout",
    "IncompleteRead",
    "LimitExceeded",
    "Limits",
    "Listener",
    "ListenerSnapshot",
    "Observer",
    "Outcome",
    "PeerCredentials",
    "PeerGone",
    "ProcessMixIn",
    "ProcessTCPServer",
    "ProcessUDPServer",
    "ProcessUnixDatagramServer",
    "ProcessUnixStreamServer",
    "RequestEnded",
    "RequestInfo",
    "RequestLogFilter",
    "RequestReader",
    "RequestRecord",
    "RequestSnapshot",
    "RequestWriter",
    "ServerSnapshot",
    "ShutdownReport",
    "Statistics",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadingUnixDatagramServer",
    "ThreadingUnixStreamServer",
    "Timeouts",
    "Transport",
    "UDPServer",
    "UnixDatagramServer",
    "UnixStreamServer",
    "WorkerCrashed",
    "WorkerStartError",
    "WriteTimeout",
    "adopt",
    "current_request",
    "run",
]

_publish(__name__, globals(), __all__)
