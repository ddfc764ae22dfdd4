"""Cases: packages with a protocol of their own between programs."""

import functools
import http.client
import json
import socket
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import dnslib.server
import websocket
from case import HOST, PATIENCE, Case
from dnslib import QTYPE, RR, TXT, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer
from programs import server_of
from pylsp.python_lsp import PythonLSPServer, start_tcp_lang_server
from standard_library import LongQueue
from websocket_server import WebsocketServer

import trioserver

# dnslib: names that are numbers, text records that are answers. ----------------------


class Resolver:
    def __init__(self, app):
        self.app = app

    def resolve(self, request, handler):
        answer = self.app.answer(int(request.q.qname.label[0]))
        reply = request.reply()
        reply.add_answer(RR(request.q.qname, QTYPE.TXT, rdata=TXT(str(answer))))
        return reply


QUIET = DNSLogger(logf=lambda line: None)


class DNSOverTCPServer(LongQueue, dnslib.server.TCPServer):
    pass


def their_dns_server(app, *, tcp):
    kind = DNSOverTCPServer if tcp else dnslib.server.UDPServer
    return DNSServer(Resolver(app), HOST, 0, logger=QUIET, server=kind).server


def our_dns_server(app, *, tcp):
    kind = trioserver.ThreadingTCPServer if tcp else trioserver.ThreadingUDPServer
    server = kind((HOST, 0), DNSHandler)
    server.resolver = Resolver(app)
    server.logger = QUIET
    return server


@contextmanager
def dns_client(address, app, *, tcp):
    def ask(number):
        question = DNSRecord.question(str(number), "TXT")
        reply = DNSRecord.parse(question.send(*address, tcp=tcp, timeout=PATIENCE))
        assert reply.header.id == question.header.id
        return int(reply.rr[0].rdata.data[0])

    yield ask


# websocket-server ---------------------------------------------------------------------------


def answer_messages(server, app):
    def received(client, server, message):
        server.send_message(client, str(app.answer(int(message))))

    server.set_fn_message_received(received)


def their_websocket_server(app):
    server = WebsocketServer(HOST, 0)
    answer_messages(server, app)
    return server


@contextmanager
def websocket_client(address, app):
    host, port = address
    connection = websocket.create_connection(f"ws://{host}:{port}/", timeout=PATIENCE)

    def ask(number):
        connection.send(str(number))
        return int(connection.recv())

    try:
        yield ask
    finally:
        connection.shutdown()


# python-lsp-server: a command, and a connection for each exchange. --------------------------


def language_server(app):
    class LanguageServer(PythonLSPServer):
        def execute_command(self, command, arguments):
            """The answer, in a thread of their pool."""
            return functools.partial(app.answer, *arguments)

    return LanguageServer


def their_language_server(app):
    return server_of(lambda: start_tcp_lang_server(HOST, 0, False, language_server(app)))


def our_language_server(app):
    with their_language_server(app) as theirs:
        return trioserver.ThreadingTCPServer((HOST, 0), theirs.RequestHandlerClass)


@attrs.frozen
class Editor:
    """The client's side of the protocol."""

    file: Any

    def call(self, method, **params):
        self.send({"id": method, "method": method, "params": params})
        response = self.receive()
        assert response["id"] == method
        return response["result"]

    def send(self, message):
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.file.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self.file.flush()

    def receive(self):
        headers = http.client.parse_headers(self.file)
        if not headers:
            raise ConnectionResetError("no response")
        return json.loads(self.file.read(int(headers["Content-Length"])))


@contextmanager
def language_client(address, app):
    def ask(number):
        with (
            socket.create_connection(address, PATIENCE) as connection,
            connection.makefile("rwb") as file,
        ):
            editor = Editor(file)
            editor.call("initialize", rootUri=app.folder.as_uri(), capabilities={})
            answer = editor.call("workspace/executeCommand", command="answer", arguments=[number])
            with suppress(OSError):  # a drain may be sooner
                editor.send({"method": "exit"})
            return answer

    yield ask


CASES = [
    *(
        Case(
            f"dnslib {name}",
            functools.partial(their_dns_server, tcp=tcp),
            functools.partial(dns_client, tcp=tcp),
            functools.partial(our_dns_server, tcp=tcp),
            clients_leave=not tcp,
        )
        for name, tcp in [("UDP", False), ("TCP", True)]
    ),
    Case(
        "websocket-server",
        their_websocket_server,
        websocket_client,
        turned_away=(OSError, websocket.WebSocketException),
    ),
    Case("python-lsp-server", their_language_server, language_client, our_language_server),
]
