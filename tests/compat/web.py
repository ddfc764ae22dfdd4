"""Cases: packages that web applications are made with, used as their documentation shows."""

import functools
import urllib.request
from contextlib import contextmanager
from wsgiref.simple_server import make_server

import bottle
import prometheus_client
import prometheus_client.exposition
from case import HOST, PATIENCE, Case
from django.conf import settings
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path
from programs import server_of
from prometheus_client.parser import text_string_to_metric_families
from standard_library import LongQueue, http_client, over_wsgi_handler, url_client, wsgi_app
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

import trioserver

# prometheus-client: one registry for each scrape, so that it can be told from others. ---


def metrics_app(app):
    def application(environ, start_response):
        registry = prometheus_client.CollectorRegistry()
        gauge = prometheus_client.Gauge("answer", "What was answered.", registry=registry)
        gauge.set(app.answer(int(environ["PATH_INFO"][1:])))
        return prometheus_client.make_wsgi_app(registry)(environ, start_response)

    return application


class MetricsServer(LongQueue, prometheus_client.exposition.ThreadingWSGIServer):
    pass


def their_metrics_server(app):
    handler = prometheus_client.exposition._SilentHandler
    return make_server(HOST, 0, metrics_app(app), MetricsServer, handler)


def our_metrics_server(app):
    return over_wsgi_handler(prometheus_client.exposition._SilentHandler, metrics_app(app))


@contextmanager
def metrics_client(address, app):
    host, port = address

    def ask(number):
        url = f"http://{host}:{port}/{number}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            text = response.read().decode()
        (family,) = text_string_to_metric_families(text)
        return int(family.samples[0].value)

    yield ask


# Werkzeug: HTTP/1.1, connections are kept. --------------------------------------------------


class QuietWerkzeugHandler(WerkzeugHandler):
    def log(self, *args):
        pass


def their_werkzeug_server(app):
    handler = QuietWerkzeugHandler
    return make_werkzeug_server(HOST, 0, wsgi_app(app), threaded=True, request_handler=handler)


def our_werkzeug_server(app):
    server = trioserver.ThreadingTCPServer((HOST, 0), QuietWerkzeugHandler)
    server.app = wsgi_app(app)
    server.ssl_context = None
    server.multithread, server.multiprocess = True, False
    server.passthrough_errors = False
    server._server_version = "Werkzeug"
    return server


# Django: the servers of "runserver", and the one of its tests. ------------------------------

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


class DjangoTestServer(LongQueue, basehttp.ThreadedWSGIServer):
    pass


def their_django_test_server(app):
    server = DjangoTestServer((HOST, 0), basehttp.WSGIRequestHandler, allow_reuse_address=False)
    server.set_app(django_app(app))
    return server


def our_django_server(app):
    return over_wsgi_handler(basehttp.WSGIRequestHandler, django_app(app))


# Bottle: a connection for each exchange. ------------------------------------------------------


def bottle_app(app):
    site = bottle.Bottle()
    site.route("/<number:int>", callback=lambda number: str(app.answer(number)))
    return site


def their_bottle_server(app):
    options = {"server": "wsgiref", "host": HOST, "port": 0, "quiet": True}
    return server_of(lambda: bottle.run(bottle_app(app), **options))


def our_bottle_server(app):
    with their_bottle_server(app) as theirs:
        return over_wsgi_handler(theirs.RequestHandlerClass, theirs.get_app())


CASES = [
    Case("prometheus-client", their_metrics_server, metrics_client, our_metrics_server),
    Case("Werkzeug", their_werkzeug_server, http_client, our_werkzeug_server),
    Case(
        "Django runserver",
        functools.partial(their_runserver, threading=True),
        http_client,
        our_django_server,
    ),
    Case(
        "Django runserver --nothreading",
        functools.partial(their_runserver, threading=False),
        http_client,
    ),
    Case("Django live test server", their_django_test_server, http_client),
    Case("bottle", their_bottle_server, url_client, our_bottle_server),
]
