"""A server behind HAProxy, which tells it who its clients are, and has the certificate.

    python examples/behind_haproxy.py [PORT]

HAProxy's side, for `haproxy -f haproxy.cfg`:

    defaults
        mode tcp
        timeout connect 5s
        timeout client 1m
        timeout server 1m
    frontend clients
        bind :4443 ssl crt both.pem
        default_backend app
    backend app
        server app 127.0.0.1:9999 send-proxy-v2-ssl

Ctrl-C drains the server. Whoever connects to its own port, and is no proxy of this machine, is
refused.
"""

import logging
import sys

import trio

import trioserver


class Whoami(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        host, port, *_ = self.client_address
        await self.wfile.write(f"you are {host}, port {port}\n".encode())
        proxy = self.request.proxy
        if proxy is not None and proxy.tls is not None:
            await self.wfile.write(f"by {proxy.tls.version} to the proxy\n".encode())
        async for line in self.rfile:
            await self.wfile.write(line.upper())


def make_server(port: int) -> trioserver.TCPServer:
    return trioserver.TCPServer(
        ("127.0.0.1", port),
        Whoami,
        proxy_protocol=trioserver.ProxyProtocol(trusted=["127.0.0.1"]),
        limits=trioserver.Limits(per_client=20),  # of a client, not of the proxy
    )


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.TCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
