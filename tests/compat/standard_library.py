"""Cases: the servers of the standard library, used as its documentation shows."""

import http.client
import io
import logging
import logging.handlers
import pickle
import socketserver
import struct
import urllib.error
import urllib.request
import xmlrpc.client
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from xmlrpc.server import (
    SimpleXMLRPCDispatcher,
    SimpleXMLRPCRequestHandler,
    SimpleXMLRPCServer,
)

from case import HOST, PATIENCE, QUEUE, Case, answer_to

import trioserver

# With a connection for each exchange, 20 clients at once are too many for the 5 that
# the queue of a classic server holds: the kernel drops what does not fit, and they
# try again a second later.


class LongQueue:
    """Room for all clients in the queue."""

    request_queue_size = QUEUE


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


def their_http_server(app):
    server = ThreadingHTTPServer((HOST, 0), Numbers)
    server.app = app
    return server


def our_http_server(app):
    server = trioserver.ThreadingTCPServer((HOST, 0), Numbers)
    server.app = app
    return server


@contextmanager
def http_client(address, app):
    """One connection, kept."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)

    def ask(number):
        connection.request("GET", f"/{number}")
        return int(connection.getresponse().read())

    try:
        yield ask
    finally:
        connection.close()


# xmlrpc.server -------------------------------------------------------------------------


class OneByOneXMLRPCServer(LongQueue, SimpleXMLRPCServer):
    pass


def their_xmlrpc_server(app):
    server = OneByOneXMLRPCServer((HOST, 0), logRequests=False)
    server.register_function(app.answer)
    return server


def our_xmlrpc_server(app):
    dispatcher = SimpleXMLRPCDispatcher()
    dispatcher.register_function(app.answer)
    server = trioserver.ThreadingTCPServer((HOST, 0), SimpleXMLRPCRequestHandler)
    server._marshaled_dispatch = dispatcher._marshaled_dispatch
    server.logRequests = False
    return server


@contextmanager
def xmlrpc_client(address, app):
    host, port = address
    with xmlrpc.client.ServerProxy(f"http://{host}:{port}/") as proxy:
        yield proxy.answer


# wsgiref: a connection for each exchange. ------------------------------------------------


class QuietWSGIRequestHandler(Quiet, WSGIRequestHandler):
    pass


class OneByOneWSGIServer(LongQueue, WSGIServer):
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
    return make_server(HOST, 0, wsgi_app(app), OneByOneWSGIServer, QuietWSGIRequestHandler)


def our_wsgi_server(app):
    return over_wsgi_handler(QuietWSGIRequestHandler, wsgi_app(app))


def over_wsgi_handler(handler, application):
    """Our server with the attributes that a handler of wsgiref asks for."""
    server = trioserver.ThreadingTCPServer((HOST, 0), handler)
    server.base_environ = {
        "SERVER_NAME": HOST,
        "SERVER_PORT": "0",
        "SCRIPT_NAME": "",
        "GATEWAY_INTERFACE": "CGI/1.1",
    }
    server.get_app = lambda: application
    return server


@contextmanager
def url_client(address, app):
    host, port = address

    def ask(number):
        url = f"http://{host}:{port}/{number}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return int(response.read())

    yield ask


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


class LogRecordSocketReceiver(LongQueue, socketserver.ThreadingTCPServer):
    """Of the cookbook."""

    allow_reuse_address = True


def their_log_receiver(app):
    server = LogRecordSocketReceiver((HOST, 0), LogRecordStreamHandler)
    server.app = app
    return server


def our_log_receiver(app):
    server = trioserver.ThreadingTCPServer((HOST, 0), LogRecordStreamHandler)
    server.app = app
    return server


@contextmanager
def log_client(address, app):
    def ask(number):
        handler = logging.handlers.SocketHandler(*address)
        try:
            handler.createSocket()
            if handler.sock is None:  # it keeps the error to itself
                raise ConnectionRefusedError
            handler.emit(logging.makeLogRecord({"msg": str(number)}))
        finally:
            handler.close()
        if not app.wait_done(number):
            raise ConnectionResetError
        return answer_to(number)

    yield ask


CASES = [
    Case("http.server", their_http_server, http_client, our_http_server),
    Case("xmlrpc.server", their_xmlrpc_server, xmlrpc_client, our_xmlrpc_server),
    Case("wsgiref.simple_server", their_wsgi_server, url_client, our_wsgi_server),
    Case("logging cookbook", their_log_receiver, log_client, our_log_receiver),
]
