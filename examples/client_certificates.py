"""A server by TLS that knows its clients by their certificates, and reads them anew at SIGHUP.

    python examples/client_certificates.py CERTIFICATE KEY CLIENT_CA [PORT]

Try `openssl s_client -quiet -connect localhost:4443 -cert ada.pem -key ada-key.pem`, and say
something. Who has no certificate of that authority does not get as far as the handler.
"""

import logging
import sys
from functools import partial

import trio

import trioserver


class Greets(trioserver.StreamRequestHandler):
    async def handle(self) -> None:
        tls = self.request.tls
        certificate = tls.peer_certificate if tls else None
        subject = dict(pair for part in (certificate or {})["subject"] for pair in part)
        await self.wfile.write(f"hello {subject.get('commonName')}\n".encode())
        async for line in self.rfile:
            await self.wfile.write(line.upper())


def make_server(certificate: str, key: str, client_ca: str, port: int) -> trioserver.TCPServer:
    make_context = partial(trioserver.server_context, certificate, key, client_ca=client_ca)
    return trioserver.TCPServer(("", port), Greets, ssl_context=make_context)


async def main(
    certificate: str,
    key: str,
    client_ca: str,
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.TCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, certificate, key, client_ca, port)``."""
    server = make_server(certificate, key, client_ca, port)
    await server.serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    certificate, key, client_ca, *port = sys.argv[1:]
    server = make_server(certificate, key, client_ca, int(port[0]) if port else 4443)
    trioserver.run(server)
