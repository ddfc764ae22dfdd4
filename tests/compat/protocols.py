"""Cases: packages with a protocol of their own between programs."""

from __future__ import annotations

import functools
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dnslib.server
import websocket
from case import HOST, PATIENCE, App, Ask, Case
from dnslib import QTYPE, RR, TXT, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer
from standard_library import LongQueue
from websocket_server import WebsocketServer

import trioserver

# dnslib: names that are numbers, text records that are answers. ----------------------


class Resolver:
    def __init__(self, app: App) -> None:
        self.app = app

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        answer = self.app.answer(int(request.q.qname.label[0]))
        reply = request.reply()
        reply.add_answer(RR(request.q.qname, QTYPE.TXT, rdata=TXT(str(answer))))
        return reply


QUIET = DNSLogger(logf=lambda line: None)


class DNSOverTCPServer(LongQueue, dnslib.server.TCPServer):
    pass


def their_dns_server(app: App, *, tcp: bool) -> socketserver.BaseServer:
    kind = DNSOverTCPServer if tcp else dnslib.server.UDPServer
    return DNSServer(Resolver(app), HOST, 0, logger=QUIET, server=kind).server


def our_dns_server(app: App, *, tcp: bool) -> trioserver.BaseServer:
    kind = trioserver.ThreadingTCPServer if tcp else trioserver.ThreadingUDPServer
    server = kind((HOST, 0), DNSHandler)
    server.resolver = Resolver(app)
    server.logger = QUIET
    return server


@contextmanager
def dns_client(address: Any, app: App, *, tcp: bool) -> Iterator[Ask]:
    def ask(number: int) -> int:
        question = DNSRecord.question(str(number), "TXT")
        reply = DNSRecord.parse(question.send(*address, tcp=tcp, timeout=PATIENCE))
        assert reply.header.id == question.header.id
        return int(reply.rr[0].rdata.data[0])

    yield ask


# websocket-server ---------------------------------------------------------------------------


def answer_messages(server: Any, app: App) -> None:
    def received(client: Any, server: Any, message: str) -> None:
        server.send_message(client, str(app.answer(int(message))))

    server.set_fn_message_received(received)


def their_websocket_server(app: App) -> socketserver.BaseServer:
    server = WebsocketServer(HOST, 0)
    answer_messages(server, app)
    return server


@contextmanager
def websocket_client(address: Any, app: App) -> Iterator[Ask]:
    host, port = address
    connection = websocket.create_connection(f"ws://{host}:{port}/", timeout=PATIENCE)

    def ask(number: int) -> int:
        connection.send(str(number))
        return int(connection.recv())

    try:
        yield ask
    finally:
        connection.shutdown()


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
]
