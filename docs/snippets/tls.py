import socketserver
import sys

import trio
import trioserver


def make_context():
    return trioserver.server_context("cert.pem", "key.pem")


async def hello(request, client_address, server):
    await request.sendall(f"hello by {request.tls.version}\n".encode())


def by_tls():
    return trioserver.TCPServer(("", 4443), hello, ssl_context=make_context)


def make_context_for_members():
    return trioserver.server_context("cert.pem", "key.pem", client_ca="members-ca.pem")


class MembersServer(trioserver.TCPServer):
    async def process_request(self, request, client_address):
        subject = [pair for part in request.tls.peer_certificate["subject"] for pair in part]
        if ("organizationalUnitName", "members") not in subject:
            await request.sendall(b"members only\n")
        else:
            await super().process_request(request, client_address)


class Files(socketserver.StreamRequestHandler):
    def handle(self):
        print("agreed on", self.request.selected_alpn_protocol(), file=sys.stderr)
        for line in self.rfile:
            self.wfile.write(line.upper())


async def reload_every_day(server):
    while True:
        await trio.sleep(86_400)
        try:
            server.reload()
        except (OSError, ValueError) as error:
            print("the old certificate stays:", error, file=sys.stderr)


def make_contexts_by_name():
    default = trioserver.server_context("cert.pem", "key.pem")
    others = {"example.net": trioserver.server_context("net-cert.pem", "net-key.pem")}

    def choose(tls, name, context):
        tls.context = others.get(name, default)

    default.sni_callback = choose
    return default


class Mail(trioserver.StreamRequestHandler):
    async def handle(self):
        await self.wfile.write(b"220 ready\r\n")
        async for line in self.rfile:
            match line.strip().upper():
                case b"STARTTLS" if self.request.tls is None:
                    await self.wfile.write(b"220 go ahead\r\n")
                    await self.request.start_tls(make_context())
                case b"QUIT":
                    await self.wfile.write(b"221 bye\r\n")
                    break
                case _ if self.request.tls is None:
                    await self.wfile.write(b"530 must issue STARTTLS first\r\n")
                case command:
                    await self.wfile.write(b"250 " + command + b"\r\n")
