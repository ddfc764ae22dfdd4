"""A server for some networks only: nobody else gets as far as the handler.

python examples/access_control.py [PORT [NETWORK...]]
"""

import logging
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import trio

import trioserver

MYSELF = ("127.0.0.0/8", "::1")


class PrivateServer(trioserver.TCPServer):
    allowed: Sequence[IPv4Network | IPv6Network]  # an annotation makes it a field of the server

    async def verify_request(
        self, request: trioserver.Connection, client_address: tuple[str, int]
    ) -> bool:
        client = ip_address(client_address[0])
        return any(client in network for network in self.allowed)


class Upper(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


def make_server(port: int, networks: Sequence[str]) -> PrivateServer:
    return PrivateServer(("", port), Upper, allowed=[ip_network(network) for network in networks])


async def main(
    port: int,
    networks: Sequence[str] = MYSELF,
    *,
    task_status: trio.TaskStatus[PrivateServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port, networks).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port, *networks = sys.argv[1:] or ["9999"]
    trioserver.run(make_server(int(port), networks or MYSELF))
