"""Cases: packages of the index with servers of their own, used as their documentation shows."""

from __future__ import annotations

import functools
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import make_server

import dnslib.server
import fakeredis
import prometheus_client
import prometheus_client.exposition
import redis
import umodbus.client.tcp as modbus
import websocket
from case import HOST, PATIENCE, App, Ask, Case
from dnslib import QTYPE, RR, TXT, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer
from dulwich.client import TCPGitClient
from dulwich.errors import GitProtocolError, HangupException
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import MemoryRepo
from dulwich.server import DEFAULT_HANDLERS, Backend, TCPGitRequestHandler, TCPGitServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from prometheus_client.parser import text_string_to_metric_families
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer, _UDPHandler
from pythonosc.osc_tcp_server import ThreadingOSCTCPServer, _TCPHandler1_1
from pythonosc.tcp_client import SimpleTCPClient
from pythonosc.udp_client import SimpleUDPClient
from standard_library import LongQueue, http_client, over_wsgi_handler, wsgi_app
from umodbus.server.tcp import RequestHandler as ModbusHandler
from umodbus.server.tcp import get_server
from websocket_server import WebsocketServer
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

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


# prometheus-client: one registry for each scrape, so that it can be told from others. ---


def metrics_app(app: App) -> Any:
    def application(environ: Any, start_response: Any) -> Any:
        registry = prometheus_client.CollectorRegistry()
        gauge = prometheus_client.Gauge("answer", "What was answered.", registry=registry)
        gauge.set(app.answer(int(environ["PATH_INFO"][1:])))
        return prometheus_client.make_wsgi_app(registry)(environ, start_response)

    return application


class MetricsServer(LongQueue, prometheus_client.exposition.ThreadingWSGIServer):
    pass


def their_metrics_server(app: App) -> socketserver.BaseServer:
    handler = prometheus_client.exposition._SilentHandler
    return make_server(HOST, 0, metrics_app(app), MetricsServer, handler)


def our_metrics_server(app: App) -> trioserver.BaseServer:
    return over_wsgi_handler(prometheus_client.exposition._SilentHandler, metrics_app(app))


@contextmanager
def metrics_client(address: Any, app: App) -> Iterator[Ask]:
    host, port = address

    def ask(number: int) -> int:
        url = f"http://{host}:{port}/{number}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            text = response.read().decode()
        (family,) = text_string_to_metric_families(text)
        return int(family.samples[0].value)

    yield ask


# Werkzeug: HTTP/1.1, connections are kept. --------------------------------------------------


class QuietWerkzeugHandler(WerkzeugHandler):
    def log(self, *args: Any) -> None:
        pass


def their_werkzeug_server(app: App) -> socketserver.BaseServer:
    handler = QuietWerkzeugHandler
    return make_werkzeug_server(HOST, 0, wsgi_app(app), threaded=True, request_handler=handler)


def our_werkzeug_server(app: App) -> trioserver.BaseServer:
    server = trioserver.ThreadingTCPServer((HOST, 0), QuietWerkzeugHandler)
    server.app = wsgi_app(app)
    server.ssl_context = None
    server.multithread, server.multiprocess = True, False
    server.passthrough_errors = False
    server._server_version = "Werkzeug"
    return server


# dulwich: fetches of repositories that are made when they are asked for. -------------------


class Repositories(Backend):
    def __init__(self, app: App) -> None:
        self.app = app

    def open_repository(self, path: bytes) -> MemoryRepo:
        answer = self.app.answer(int(path.strip(b"/")))
        return repository_with(str(answer).encode())


def repository_with(content: bytes) -> MemoryRepo:
    """A repository whose only commit has ``content`` as its message and its only file."""
    blob = Blob.from_string(content)
    tree = Tree()
    tree.add(b"answer", 0o100644, blob.id)
    commit = Commit()
    commit.tree = tree.id
    commit.author = commit.committer = b"nobody <nobody@localhost>"
    commit.author_time = commit.commit_time = 0
    commit.author_timezone = commit.commit_timezone = 0
    commit.message = content
    repository = MemoryRepo()
    for one in (blob, tree, commit):
        repository.object_store.add_object(one)
    repository.refs[b"refs/heads/master"] = commit.id
    return repository


class GitServer(LongQueue, TCPGitServer):
    # In a fetch the server speaks, and then waits for what the client wants.
    ends_idle_reads = False


def their_git_server(app: App) -> socketserver.BaseServer:
    return GitServer(Repositories(app), HOST, 0)


def our_git_server(app: App) -> trioserver.BaseServer:
    handler = functools.partial(TCPGitRequestHandler, DEFAULT_HANDLERS)
    server = trioserver.ThreadingTCPServer((HOST, 0), handler, ends_idle_reads=False)
    server.backend = Repositories(app)
    return server


@contextmanager
def git_client(address: Any, app: App) -> Iterator[Ask]:
    host, port = address

    def ask(number: int) -> int:
        mine = MemoryRepo()
        result = TCPGitClient(host, port).fetch(f"/{number}", mine)
        return int(mine[result.refs[b"refs/heads/master"]].message)

    yield ask


# uModbus: numbers are addresses of registers, answers their values. ------------------------


def answer_registers(server: Any, app: App) -> None:
    @server.route(slave_ids=[1], function_codes=[3], addresses=range(0x10000))
    def read(slave_id: int, function_code: int, address: int) -> int:
        return app.answer(address)


def their_modbus_server(app: App) -> socketserver.BaseServer:
    server = get_server(socketserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


def our_modbus_server(app: App) -> trioserver.BaseServer:
    server = get_server(trioserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


@contextmanager
def modbus_client(address: Any, app: App) -> Iterator[Ask]:
    with socket.create_connection(address, PATIENCE) as connection:

        def ask(number: int) -> int:
            request = modbus.read_holding_registers(1, number, 1)
            (value,) = modbus.send_message(request, connection)
            return value

        yield ask


# python-osc --------------------------------------------------------------------------------


def osc_dispatcher(app: App) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.map("/ask", lambda path, number: ("/answer", app.answer(number)))
    return dispatcher


def our_osc_server(kind: Any, handler: Any, app: App) -> trioserver.BaseServer:
    server = kind((HOST, 0), handler)
    server.dispatcher = osc_dispatcher(app)
    return server


@contextmanager
def osc_client(kind: Any, address: Any, app: App) -> Iterator[Ask]:
    with kind(*address) as client:

        def ask(number: int) -> int:
            client.send_message("/ask", number)
            message = next(client.get_messages(PATIENCE), None)
            if message is None:
                raise ConnectionResetError("no reply")
            (answer,) = message.params
            return answer

        yield ask


# fakeredis: is the application itself. ------------------------------------------------------


class Database(App):
    """What it was asked for stands in the database; its lock holds answers back."""

    def serve(self, fake_server: fakeredis.FakeServer) -> None:
        self._server = fake_server

    def asked(self) -> list[int]:
        client = fakeredis.FakeStrictRedis(server=self._server)
        return [int(key) for key in client.scan_iter()]

    def hold(self) -> None:
        self._server.lock.acquire()

    def wait_inside(self, count: int) -> None:
        pass

    def release(self) -> None:
        self._server.lock.release()


def their_redis_server(app: Database) -> socketserver.BaseServer:
    server = fakeredis.TcpFakeServer((HOST, 0))
    app.serve(server.fake_server)
    return server


def our_redis_server(app: Database) -> trioserver.BaseServer:
    server = trioserver.ThreadingTCPServer((HOST, 0), TCPFakeRequestHandler)
    server.fake_server = fakeredis.FakeServer()
    server.clients = {}
    server._shutdown_event = threading.Event()
    app.serve(server.fake_server)
    return server


@contextmanager
def redis_client(address: Any, app: App) -> Iterator[Ask]:
    host, port = address
    options = {"retry": None, "socket_timeout": PATIENCE}
    with redis.Redis(host, port, single_connection_client=True, **options) as client:
        yield lambda number: client.incrby(number, 0xFFFF - number)


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
    Case("prometheus-client", their_metrics_server, metrics_client, our_metrics_server),
    Case("Werkzeug", their_werkzeug_server, http_client, our_werkzeug_server),
    Case(
        "dulwich",
        their_git_server,
        git_client,
        our_git_server,
        turned_away=(OSError, GitProtocolError, HangupException),
    ),
    Case(
        "uModbus",
        their_modbus_server,
        modbus_client,
        our_modbus_server,
        turned_away=(OSError, ValueError),
    ),
    Case(
        "python-osc UDP",
        lambda app: ThreadingOSCUDPServer((HOST, 0), osc_dispatcher(app)),
        functools.partial(osc_client, SimpleUDPClient),
        functools.partial(our_osc_server, trioserver.ThreadingUDPServer, _UDPHandler),
        clients_leave=True,
    ),
    Case(
        "python-osc TCP",
        lambda app: ThreadingOSCTCPServer((HOST, 0), osc_dispatcher(app)),
        functools.partial(osc_client, SimpleTCPClient),
        functools.partial(our_osc_server, trioserver.ThreadingTCPServer, _TCPHandler1_1),
    ),
    Case(
        "fakeredis",
        their_redis_server,
        redis_client,
        our_redis_server,
        app=Database,
        turned_away=(redis.ConnectionError,),
        # Its own shutdown() has each handler leave, in the middle of an exchange, too.
        drain=socketserver.BaseServer.shutdown,
        clients_leave=True,
    ),
    Case(
        "websocket-server",
        their_websocket_server,
        websocket_client,
        turned_away=(OSError, websocket.WebSocketException),
    ),
]
