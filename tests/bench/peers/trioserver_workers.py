"""trioserver's stream servers in two workers."""

from __future__ import annotations

from _common import Stopping, ready, task
from trioserver_stream import Line, bulk

import trioserver


class Stop(trioserver.Observer):
    """Notes when the end begins."""

    stopping: Stopping

    def draining(self, grace: float) -> None:
        self.stopping = Stopping()


if __name__ == "__main__":
    asked, stop = task(), Stop()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    server = kind(
        asked.address,
        Line if asked.service == "line" else bulk,
        request_queue_size=asked.backlog,
        limits=trioserver.Limits(requests=20_000),
        observers=[stop],
    )
    trioserver.run(server, workers=2, grace=0, on_ready=lambda addresses: ready(addresses[0]))
    stop.stopping.done()
