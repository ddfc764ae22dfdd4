"""The classic ``socketserver`` framework, rebuilt on Trio's structured concurrency."""

import typing

from ._facts.config import Limits, Timeouts
from ._facts.errors import (
    Draining,
    HandshakeFailed,
    IdleTimeout,
    IncompleteRead,
    LimitExceeded,
    PeerGone,
    RequestEnded,
    WriteTimeout,
)
from ._facts.events import (
    Outcome,
    RequestInfo,
    RequestRecord,
    ShutdownReport,
    Statistics,
    current_request,
)
from ._facts.observers import Observer, RequestLogFilter
from ._facts.proxy import ProxyInfo, ProxyProtocol, ProxyTLS
from ._facts.snapshots import (
    ListenerSnapshot,
    RequestSnapshot,
    ServerSnapshot,
    WorkerSnapshot,
)
from ._facts.tls import TLSInfo
from ._published import load as _load
from ._published import publish as _publish

if typing.TYPE_CHECKING:  # see _LATER
    from ._modes.adopted.adopt import adopt
    from ._modes.processes.protocol.errors import HandlerFailed, WorkerCrashed, WorkerStartError
    from ._modes.processes.server.mixin import ProcessMixIn
    from ._modes.processes.server.servers import (
        ForkingMixIn,
        ForkingTCPServer,
        ForkingUDPServer,
        ForkingUnixDatagramServer,
        ForkingUnixStreamServer,
        ProcessTCPServer,
        ProcessUDPServer,
        ProcessUnixDatagramServer,
        ProcessUnixStreamServer,
    )
    from ._modes.threads.mixin import (
        ThreadingMixIn,
        ThreadingTCPServer,
        ThreadingUDPServer,
        ThreadingUnixDatagramServer,
        ThreadingUnixStreamServer,
    )
    from ._program.run import run
    from ._requests.connection import Connection
    from ._requests.datagram import Datagram
    from ._requests.datagram_socket import DatagramSocket
    from ._requests.idle_block import IdleBlock
    from ._requests.reader import RequestReader
    from ._requests.writer import RequestWriter
    from ._servers.base import BaseServer
    from ._servers.handlers import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
    from ._servers.ip_servers import TCPServer, UDPServer
    from ._servers.unix_servers import UnixDatagramServer, UnixStreamServer
    from ._sockets.inherited import inherited_sockets
    from ._sockets.server_context import server_context
    from ._sockets.transport import DatagramTransport, Listener, PeerCredentials, Transport

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
    "HandshakeFailed",
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
    "ProxyInfo",
    "ProxyProtocol",
    "ProxyTLS",
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
    "TLSInfo",
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
    "WorkerSnapshot",
    "WorkerStartError",
    "WriteTimeout",
    "adopt",
    "current_request",
    "inherited_sockets",
    "run",
    "server_context",
]

# Loaded when somebody asks for one of their names: four fifths of the time that the import took.
# What is told (errors, events, settings) is there at once, since tracebacks, logs and pickles show
# it whether anybody has asked for its names or not.
_LATER = {
    "_modes.adopted.adopt": ("adopt",),
    "_modes.processes.protocol.errors": ("HandlerFailed", "WorkerCrashed", "WorkerStartError"),
    "_modes.processes.server.mixin": ("ProcessMixIn",),
    "_modes.processes.server.servers": (
        "ForkingMixIn",
        "ForkingTCPServer",
        "ForkingUDPServer",
        "ForkingUnixDatagramServer",
        "ForkingUnixStreamServer",
        "ProcessTCPServer",
        "ProcessUDPServer",
        "ProcessUnixDatagramServer",
        "ProcessUnixStreamServer",
    ),
    "_modes.threads.mixin": (
        "ThreadingMixIn",
        "ThreadingTCPServer",
        "ThreadingUDPServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
    ),
    "_program.run": ("run",),
    "_requests.connection": ("Connection",),
    "_requests.datagram": ("Datagram",),
    "_requests.datagram_socket": ("DatagramSocket",),
    "_requests.idle_block": ("IdleBlock",),
    "_requests.reader": ("RequestReader",),
    "_requests.writer": ("RequestWriter",),
    "_servers.base": ("BaseServer",),
    "_servers.handlers": ("BaseRequestHandler", "DatagramRequestHandler", "StreamRequestHandler"),
    "_servers.ip_servers": ("TCPServer", "UDPServer"),
    "_servers.unix_servers": ("UnixDatagramServer", "UnixStreamServer"),
    "_sockets.inherited": ("inherited_sockets",),
    "_sockets.server_context": ("server_context",),
    "_sockets.transport": ("DatagramTransport", "Listener", "PeerCredentials", "Transport"),
}

_publish(__name__, globals(), [name for name in __all__ if name in globals()])


if not typing.TYPE_CHECKING:  # or checkers would take any name for one of ours

    def __getattr__(name: str) -> typing.Any:
        return _load(__name__, globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
