"""gevent's `DatagramServer`: a greenlet for each datagram."""

from __future__ import annotations

from typing import Any

import gevent.server
from _common import datagram_socket, task
from _gevent import cooperative, serve


class Upper(gevent.server.DatagramServer):
    """Answer a datagram."""

    def handle(self, data: Any, address: Any) -> None:
        self.socket.sendto(data.upper(), address)


serve(Upper(cooperative(datagram_socket(task()))))
