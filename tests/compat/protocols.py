"""Cases: packages with a protocol of their own between programs."""

import http.client
import json
import socket
from contextlib import suppress
from functools import partial

import websocket
from case import HOST, OURS, PATIENCE, Case, anew, make, server_of
from dnslib import QTYPE, RR, TXT, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer
from pylsp.python_lsp import PythonLSPServer, start_tcp_lang_server
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


def dns_case(name, *, tcp):
    """The client has a socket for each exchange."""

    @anew
    def client(address, app, number):
        question = DNSRecord.question(str(number), "TXT")
        reply = DNSRecord.parse(question.send(*address, tcp=tcp, timeout=PATIENCE))
        assert reply.header.id == question.header.id
        return int(reply.rr[0].rdata.data[0])

    kind = OURS if tcp else trioserver.ThreadingUDPServer
    return Case(
        name,
        lambda app: DNSServer(Resolver(app), HOST, 0, tcp, QUIET).server,
        client,
        lambda app: make(kind, DNSHandler, resolver=Resolver(app), logger=QUIET),
        clients_leave=not tcp,
    )


# websocket-server ---------------------------------------------------------------------------


def their_websocket_server(app):
    def received(client, server, message):
        server.send_message(client, str(app.answer(int(message))))

    server = WebsocketServer(HOST, 0)
    server.set_fn_message_received(received)
    return server


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


def their_language_server(app):
    class LanguageServer(PythonLSPServer):
        def execute_command(self, command, arguments):
            """The answer, in a thread of their pool."""
            return partial(app.answer, *arguments)

    return server_of(lambda: start_tcp_lang_server(HOST, 0, False, LanguageServer))


def our_language_server(app):
    with their_language_server(app) as theirs:
        return make(OURS, theirs.RequestHandlerClass)


def send(file, message):
    """Send a message of the language server's protocol."""
    content = json.dumps({"jsonrpc": "2.0", **message}).encode()
    file.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
    file.flush()


def call(file, method, **params):
    """Call a method of a language server."""
    send(file, {"id": method, "method": method, "params": params})
    headers = http.client.parse_headers(file)
    if not headers:
        raise ConnectionResetError("no response")
    response = json.loads(file.read(int(headers["Content-Length"])))
    assert response["id"] == method
    return response["result"]


@anew
def language_client(address, app, number):
    with socket.create_connection(address, PATIENCE) as editor, editor.makefile("rwb") as file:
        call(file, "initialize", rootUri=app.folder.as_uri(), capabilities={})
        answer = call(file, "workspace/executeCommand", command="answer", arguments=[number])
        with suppress(OSError):  # a drain may be sooner
            send(file, {"method": "exit"})
        return answer


CASES = [
    dns_case("dnslib UDP", tcp=False),
    dns_case("dnslib TCP", tcp=True),
    Case(
        "websocket-server",
        their_websocket_server,
        websocket_client,
        turned_away=(OSError, websocket.WebSocketException),
    ),
    Case("python-lsp-server", their_language_server, language_client, our_language_server),
]
