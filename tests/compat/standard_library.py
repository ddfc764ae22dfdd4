"""Cases: the servers of the standard library, used as its documentation shows."""

import http.client
import io
import logging.handlers
import pickle
import socketserver
import struct
import urllib.request
import xmlrpc.client
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from case import HOST, OURS, PATIENCE, Case, anew, answer_to, make, wsgi_case

# http.server: one keep-alive connection for each client. ----------------------------


class Quiet:
    """Writes no line for each request."""

    def log_message(self, *args):
        pass


class Numbers(Quiet, SimpleHTTPRequestHandler):
    """Serves the answer as if it were a file."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        content = str(self.server.app.answer(int(self.path[1:]))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)


def http_client(address, app):
    """One connection, kept."""
    with closing(http.client.HTTPConnection(*address, timeout=PATIENCE)) as connection:

        def ask(number):
            connection.request("GET", f"/{number}")
            return int(connection.getresponse().read())

        yield ask


# xmlrpc.server -------------------------------------------------------------------------


def their_xmlrpc_server(app):
    server = SimpleXMLRPCServer((HOST, 0), logRequests=False)
    server.register_function(app.answer)
    return server


def our_xmlrpc_server(app):
    dispatcher = SimpleXMLRPCDispatcher()
    dispatcher.register_function(app.answer)
    facts = {"_marshaled_dispatch": dispatcher._marshaled_dispatch, "logRequests": False}
    return make(OURS, SimpleXMLRPCRequestHandler, **facts)


def xmlrpc_client(address, app):
    host, port = address
    with xmlrpc.client.ServerProxy(f"http://{host}:{port}/") as proxy:
        yield proxy.answer


# wsgiref: a connection for each exchange. ------------------------------------------------


class QuietWSGIRequestHandler(Quiet, WSGIRequestHandler):
    pass


def wsgi_app(app):
    """A WSGI application that is asked with its path."""

    def application(environ, start_response):
        content = str(app.answer(int(environ["PATH_INFO"][1:]))).encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
        start_response("200 OK", headers)
        return [content]

    return application


def their_wsgi_server(app):
    return make_server(HOST, 0, wsgi_app(app), WSGIServer, QuietWSGIRequestHandler)


def page(address, path, scheme="http", **options):
    """The page of that path."""
    host, port = address
    url = f"{scheme}://{host}:{port}/{path}"
    with urllib.request.urlopen(url, timeout=PATIENCE, **options) as response:  # noqa: S310
        return response.read().decode()


@anew
def url_client(address, app, number):
    return int(page(address, number))


# The receiver of the logging cookbook: records and no answers, so a client asks the
# application whether it has one.


class LogRecordStreamHandler(socketserver.StreamRequestHandler):
    """Of the cookbook, but that its records go to the application."""

    def handle(self):
        while True:
            chunk = self.connection.recv(4)
            if len(chunk) < 4:
                break
            slen = struct.unpack(">L", chunk)[0]
            chunk = self.connection.recv(slen)
            while len(chunk) < slen:
                chunk = chunk + self.connection.recv(slen - len(chunk))
            obj = pickle.loads(chunk)  # noqa: S301  (as the cookbook does)
            record = logging.makeLogRecord(obj)
            self.server.app.answer(int(record.getMessage()))


class LogRecordSocketReceiver(socketserver.ThreadingTCPServer):
    """Of the cookbook."""

    allow_reuse_address = True


@anew
def log_client(address, app, number):
    with closing(logging.handlers.SocketHandler(*address)) as handler:
        handler.createSocket()
        if handler.sock is None:  # it keeps the error to itself
            raise ConnectionRefusedError
        handler.emit(logging.makeLogRecord({"msg": str(number)}))
    if not app.wait_done(number):
        raise ConnectionResetError
    return answer_to(number)


CASES = [
    Case(
        "http.server",
        lambda app: make(ThreadingHTTPServer, Numbers, app=app),
        http_client,
        lambda app: make(OURS, Numbers, app=app),
    ),
    Case("xmlrpc.server", their_xmlrpc_server, xmlrpc_client, our_xmlrpc_server),
    wsgi_case("wsgiref.simple_server", their_wsgi_server, url_client),
    Case(
        "logging cookbook",
        lambda app: make(LogRecordSocketReceiver, LogRecordStreamHandler, app=app),
        log_client,
        lambda app: make(OURS, LogRecordStreamHandler, app=app),
    ),
]
