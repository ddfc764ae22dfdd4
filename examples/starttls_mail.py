"""The beginning of a mail server, as of SMTP: it takes mail by TLS, and not before.

    python examples/starttls_mail.py CERTIFICATE KEY [PORT]

Try `openssl s_client -starttls smtp -quiet -connect localhost:2525`, and say EHLO me,
MAIL FROM:<a@example.org>, QUIT. Two PEM files are needed; trustme makes some for tests
(`python -m trustme`).
"""

import logging
import ssl
import sys
from collections.abc import Callable
from functools import partial

import trio

import trioserver


class MailServer(trioserver.TCPServer):
    make_context: Callable[[], ssl.SSLContext]  # an annotation makes it a field of the server

    async def server_activate(self) -> None:
        self.make_context()  # a wrong file is told now, and not to the first client
        await super().server_activate()


class Mail(trioserver.StreamRequestHandler):
    server: MailServer
    timeout = 300  # RFC 5321, 4.5.3.2.7

    async def handle(self) -> None:
        sender = b""
        await self.say(b"220 mail.example.org at your service")
        async for line in self.rfile:
            verb, _, rest = line.strip().partition(b" ")
            match verb.upper():
                case b"EHLO" if self.request.tls is None:
                    await self.say(b"250-hello " + rest, b"250 STARTTLS")
                case b"EHLO" | b"HELO":
                    await self.say(b"250 hello " + rest)
                case b"STARTTLS" if self.request.tls is None:
                    await self.say(b"220 go ahead")
                    await self.request.start_tls(self.server.make_context())
                    sender = b""  # RFC 3207, 4.2: forget what was said in clear
                case b"QUIT":
                    await self.say(b"221 bye")
                    return
                case b"MAIL" if self.request.tls is None:
                    await self.say(b"530 must issue a STARTTLS command first")
                case b"MAIL":
                    sender = rest.partition(b":")[2]
                    await self.say(b"250 mail of " + sender)
                case b"NOOP" | b"RSET":
                    await self.say(b"250 ok")
                case _:
                    await self.say(b"502 not here")

    async def say(self, *lines: bytes) -> None:
        await self.wfile.write(b"".join(line + b"\r\n" for line in lines))


def make_server(certificate: str, key: str, port: int) -> MailServer:
    context = partial(trioserver.server_context, certificate, key)
    return MailServer(("", port), Mail, make_context=context)


async def main(
    certificate: str,
    key: str,
    port: int,
    *,
    task_status: trio.TaskStatus[MailServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, certificate, key, port)``."""
    await make_server(certificate, key, port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    certificate, key, *port = sys.argv[1:]
    trioserver.run(make_server(certificate, key, int(port[0]) if port else 2525))
