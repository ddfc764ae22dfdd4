"""The ready-made servers whose handlers run in worker processes."""

from __future__ import annotations

from ...._servers.fields import make_fields
from ...._servers.ip_servers import TCPServer, UDPServer
from ...._servers.unix_servers import UnixDatagramServer, UnixStreamServer
from .mixin import ProcessMixIn


@make_fields
class ProcessTCPServer(ProcessMixIn, TCPServer):
    """Serves TCP connections, each handler in a worker process."""


@make_fields
class ProcessUDPServer(ProcessMixIn, UDPServer):
    """Serves UDP datagrams, each handler in a worker process."""


@make_fields
class ProcessUnixStreamServer(ProcessMixIn, UnixStreamServer):
    """Serves Unix stream connections, each handler in a worker process."""


@make_fields
class ProcessUnixDatagramServer(ProcessMixIn, UnixDatagramServer):
    """Serves Unix datagrams, each handler in a worker process."""


ForkingMixIn = ProcessMixIn


ForkingTCPServer = ProcessTCPServer


ForkingUDPServer = ProcessUDPServer


ForkingUnixStreamServer = ProcessUnixStreamServer


ForkingUnixDatagramServer = ProcessUnixDatagramServer
