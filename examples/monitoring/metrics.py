"""A server whose metrics Prometheus reads: run it, and get /metrics where it says.

python examples/monitoring/metrics.py
"""

from collections.abc import Sequence
from functools import partial

import prometheus_client
import trio

import trioserver
from trioserver.monitoring import PrometheusObserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def expose(_servers: Sequence[trioserver.BaseServer]) -> None:
    # Its thread is the library's own; it only reads numbers, and ends with this function.
    web, thread = prometheus_client.start_http_server(0, "127.0.0.1")
    print(f"its metrics are at http://127.0.0.1:{web.server_port}/metrics", flush=True)
    try:
        await trio.sleep_forever()
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def main() -> None:
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper, observers=[PrometheusObserver("upper")])
    tell = partial(print, "it serves on", flush=True)
    trioserver.run(server, on_ready=lambda places: tell(*places), beside=[expose])


if __name__ == "__main__":
    main()
