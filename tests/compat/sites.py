"""Cases: servers of pages, and of the standard library, used as their documentation shows."""

import http.client
import io
import logging.handlers
import pickle
import re
import select
import socket
import socketserver
import ssl
import struct
import sys
import urllib.request
import warnings
import xmlrpc.client
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest import mock
from wsgiref.simple_server import make_server
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import bottle
import josepy
import mkdocs.livereload
import prometheus_client
import trustme
from acme.challenges import HTTP01
from acme.standalone import HTTP01RequestHandler, HTTP01Server
from case import HOST, OURS, PATIENCE, App, Case, anew, answer_to, kept, make, server_of, wsgi_case
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path
from prometheus_client.exposition import ThreadingWSGIServer, _SilentHandler
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

# The copy of Bottle in pypiserver uses the module cgi, and leaves an import hook of an old kind
# behind: Python 3.11 warns of both, and 3.12 of a class that Radicale needs.
with warnings.catch_warnings(), mock.patch.object(sys, "meta_path", sys.meta_path.copy()):
    warnings.simplefilter("ignore")
    import pypiserver.__main__
    import radicale.config
    import radicale.server
    import radicale.web
    from pypiserver.backend import SimpleFileBackend
    from pypiserver.core import PkgFile


class Numbers(SimpleHTTPRequestHandler):
    """Serves the answer as if it were a file."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        content = str(self.server.app.answer(int(self.path[1:]))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)


def ask_page(connection, number):
    connection.request("GET", f"/{number}")
    return int(connection.getresponse().read())


http_client = kept(
    lambda *address: closing(http.client.HTTPConnection(*address, timeout=PATIENCE)), ask_page
)


# xmlrpc.server
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


# wsgiref: a connection for each exchange.
def wsgi_app(app):
    def application(environ, start_response):
        content = str(app.answer(int(environ["PATH_INFO"][1:]))).encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
        start_response("200 OK", headers)
        return [content]

    return application


def page(address, path, scheme="http", **options):
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


# prometheus-client: one registry for each scrape, so that it can be told from others.
def metrics_app(app):
    def application(environ, start_response):
        registry = prometheus_client.CollectorRegistry()
        gauge = prometheus_client.Gauge("answer", "What was answered.", registry=registry)
        gauge.set(app.answer(int(environ["PATH_INFO"][1:])))
        return prometheus_client.make_wsgi_app(registry)(environ, start_response)

    return application


@anew
def metrics_client(address, app, number):
    (family,) = text_string_to_metric_families(page(address, number))
    return int(family.samples[0].value)


# Werkzeug: HTTP/1.1, connections are kept.
def our_werkzeug_server(app):
    facts = {"multithread": True, "multiprocess": False, "passthrough_errors": False}
    facts |= {"app": wsgi_app(app), "ssl_context": None, "_server_version": "Werkzeug"}
    return make(OURS, WerkzeugHandler, **facts)


# Django: the servers of "runserver", and the one of its tests.
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    # In memory for SQLite; by its usual name Django would know, and never close it.
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "file::memory:"}},
    LOGGING_CONFIG=None,
)


def django_view(request, number):
    """The answer by way of a database, whose connections belong to a thread each."""
    answer = request.environ["compat.app"].answer(number)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [answer])
        (answer,) = cursor.fetchone()
    return HttpResponse(answer, content_type="text/plain")


urlpatterns = [path("<int:number>", django_view)]


def django_app(app):
    django = get_wsgi_application()
    return lambda environ, start_response: django({**environ, "compat.app": app}, start_response)


def their_runserver(app, *, threading):
    return server_of(lambda: basehttp.run(HOST, 0, django_app(app), threading=threading))


def their_django_test_server(app):
    kind = partial(basehttp.ThreadedWSGIServer, allow_reuse_address=False)
    return make(kind, basehttp.WSGIRequestHandler, application=django_app(app))


# Bottle: a connection for each exchange.
def their_bottle_server(app):
    site = bottle.Bottle()
    site.route("/<number:int>", callback=lambda number: str(app.answer(number)))
    return server_of(lambda: bottle.run(site, server="wsgiref", host=HOST, port=0, quiet=True))


# acme: challenges that are verified as a certificate authority does it.
ACCOUNT_KEY = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))


class Validations(dict):
    """The validations that the server has to show at present, while others come and go."""

    def __iter__(self):
        return iter(list(self.values()))


def account(folder):
    app = App(folder)
    app.validations = Validations()
    return app


@anew
def challenge_client(address, app, number):
    host, port = address
    challenge = HTTP01(token=number.to_bytes(HTTP01.TOKEN_SIZE, "big"))
    response, text = challenge.response_and_validation(ACCOUNT_KEY)

    def encode():
        """It asks the application when it is sent."""
        app.answer(number)
        return text.encode()

    shown = challenge, response, SimpleNamespace(encode=encode)
    app.validations[number] = HTTP01RequestHandler.HTTP01Resource(*shown)
    try:
        if not response.simple_verify(challenge, host, ACCOUNT_KEY.public_key(), port, PATIENCE):
            raise ConnectionRefusedError  # it keeps the error to itself
    finally:
        del app.validations[number]
    return answer_to(number)


# MkDocs: a page for each exchange.
def their_live_server(app):
    """One that builds a page when it is asked for."""
    server = mkdocs.livereload.LiveReloadServer(None, HOST, 0, root=str(app.folder))

    def application(environ, start_response):
        number = environ["PATH_INFO"][1:]
        (app.folder / number).write_text(str(app.answer(int(number))))
        return server.serve_request(environ, start_response)

    server.set_app(application)
    server.server_bind()
    server.server_activate()
    return server


# pypiserver: a project for each number, with one version.
class Index(SimpleFileBackend):
    def __init__(self, app, config):
        super().__init__(config)
        self._app = app

    def find_project_packages(self, project):
        version = str(self._app.answer(int(project.removeprefix("number-"))))
        name = f"{project}-{version}.tar.gz"
        yield PkgFile(project, version, fn=str(self._app.folder / name), relfn=name)


def their_index(app):
    arguments = ["run", "--server=wsgiref", f"--interface={HOST}", "--port=0", str(app.folder)]
    server = server_of(lambda: pypiserver.__main__.main(arguments))
    config = server.get_app()._pypiserver_config
    config.backend = Index(app, config)
    return server


@anew
def index_client(address, app, number):
    shown = page(address, f"simple/number-{number}/")
    (version,) = re.findall(rf">number-{number}-(\d+)\.tar\.gz<", shown)
    return int(version)


# Radicale: a site beside its calendars, also over HTTPS.
AUTHORITY = trustme.CA()


class Reaps:
    """Does between two requests, and in the end, what `radicale.server.serve` does there."""

    def service_actions(self):
        super().service_actions()
        finished, _, _ = select.select(list(self.worker_sockets), [], [], 0)
        for worker_socket in finished:
            self.worker_sockets.remove(worker_socket)
            worker_socket.close()

    def server_close(self):
        for worker_socket in self.worker_sockets:
            worker_socket.recv(1)
            worker_socket.close()
        super().server_close()


def their_calendar_server(base, app):
    """One that has a site alone, and a certificate for it."""
    files = {name: app.folder / f"{name}.pem" for name in ("key", "certificate", "authority")}
    certificate = AUTHORITY.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(files["key"])
    certificate.cert_chain_pems[0].write_to_path(files["certificate"])
    AUTHORITY.cert_pem.write_to_path(files.pop("authority"))

    def web(configuration):
        def get(environ, base_prefix, path, *args):
            content = str(app.answer(int(path.removeprefix("/.web/"))))
            return 200, {"Content-Type": "text/plain"}, content, None

        return SimpleNamespace(get=get)

    configuration = radicale.config.load()
    facts = {
        "server": {name: str(file) for name, file in files.items()},
        "storage": {"filesystem_folder": str(app.folder)},
        "web": {"type": web},
    }
    configuration.update(facts, "the test")
    handler = radicale.server.RequestHandler
    kind = partial(type(base.__name__, (Reaps, base), {}), configuration, socket.AF_INET)
    return make(kind, handler, application=radicale.Application(configuration))


def calendar_client(scheme, address, app):
    trust = ssl.create_default_context(cafile=app.folder / "authority.pem")
    yield lambda number: int(page(address, f".web/{number}", scheme, context=trust))


CASES = [
    Case(
        "http.server",
        lambda app: make(ThreadingHTTPServer, Numbers, app=app),
        http_client,
        lambda app: make(OURS, Numbers, app=app),
    ),
    Case("xmlrpc.server", their_xmlrpc_server, xmlrpc_client, our_xmlrpc_server),
    wsgi_case("wsgiref.simple_server", lambda app: make_server(HOST, 0, wsgi_app(app)), url_client),
    Case(
        "logging cookbook",
        lambda app: make(socketserver.ThreadingTCPServer, LogRecordStreamHandler, app=app),
        log_client,
        lambda app: make(OURS, LogRecordStreamHandler, app=app),
    ),
    wsgi_case(
        "prometheus-client",
        lambda app: make_server(HOST, 0, metrics_app(app), ThreadingWSGIServer, _SilentHandler),
        metrics_client,
    ),
    Case(
        "Werkzeug",
        lambda app: make_werkzeug_server(HOST, 0, wsgi_app(app), threaded=True),
        http_client,
        our_werkzeug_server,
    ),
    wsgi_case("Django runserver", partial(their_runserver, threading=True), http_client),
    Case("Django runserver --nothreading", partial(their_runserver, threading=False), http_client),
    Case("Django live test server", their_django_test_server, http_client),
    wsgi_case("bottle", their_bottle_server, url_client),
    Case(
        "acme",
        lambda app: HTTP01Server((HOST, 0), app.validations),
        challenge_client,
        lambda app: make(OURS, HTTP01RequestHandler.partial_init(app.validations, PATIENCE)),
        app=account,
    ),
    wsgi_case(
        "MkDocs",
        their_live_server,
        url_client,
        # Its own shutdown() is for the thread that it has started itself.
        drain=socketserver.BaseServer.shutdown,
    ),
    wsgi_case("pypiserver", their_index, index_client),
    wsgi_case(
        "Radicale",
        partial(their_calendar_server, radicale.server.ParallelHTTPServer),
        partial(calendar_client, "http"),
    ),
    Case(
        "Radicale HTTPS",
        partial(their_calendar_server, radicale.server.ParallelHTTPSServer),
        partial(calendar_client, "https"),
    ),
]
