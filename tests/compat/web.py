"""Cases: packages that web applications are made with, used as their documentation shows."""

from functools import partial
from wsgiref.simple_server import make_server

import bottle
import prometheus_client
from case import HOST, OURS, Case, anew, make, server_of, wsgi_case
from django.conf import settings
from django.core.servers import basehttp
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path
from prometheus_client.exposition import ThreadingWSGIServer, _SilentHandler
from prometheus_client.parser import text_string_to_metric_families
from standard_library import http_client, page, url_client, wsgi_app
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

# prometheus-client: one registry for each scrape, so that it can be told from others. ---


def metrics_app(app):
    def application(environ, start_response):
        registry = prometheus_client.CollectorRegistry()
        gauge = prometheus_client.Gauge("answer", "What was answered.", registry=registry)
        gauge.set(app.answer(int(environ["PATH_INFO"][1:])))
        return prometheus_client.make_wsgi_app(registry)(environ, start_response)

    return application


def their_metrics_server(app):
    return make_server(HOST, 0, metrics_app(app), ThreadingWSGIServer, _SilentHandler)


@anew
def metrics_client(address, app, number):
    (family,) = text_string_to_metric_families(page(address, number))
    return int(family.samples[0].value)


# Werkzeug: HTTP/1.1, connections are kept. --------------------------------------------------


class QuietWerkzeugHandler(WerkzeugHandler):
    def log(self, *args):
        pass


def their_werkzeug_server(app):
    handler = QuietWerkzeugHandler
    return make_werkzeug_server(HOST, 0, wsgi_app(app), threaded=True, request_handler=handler)


def our_werkzeug_server(app):
    facts = {"multithread": True, "multiprocess": False, "passthrough_errors": False}
    facts |= {"app": wsgi_app(app), "ssl_context": None, "_server_version": "Werkzeug"}
    return make(OURS, QuietWerkzeugHandler, **facts)


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


def their_django_test_server(app):
    server = basehttp.ThreadedWSGIServer(
        (HOST, 0), basehttp.WSGIRequestHandler, allow_reuse_address=False
    )
    server.set_app(django_app(app))
    return server


# Bottle: a connection for each exchange. ------------------------------------------------------


def their_bottle_server(app):
    site = bottle.Bottle()
    site.route("/<number:int>", callback=lambda number: str(app.answer(number)))
    return server_of(lambda: bottle.run(site, server="wsgiref", host=HOST, port=0, quiet=True))


CASES = [
    wsgi_case("prometheus-client", their_metrics_server, metrics_client),
    Case("Werkzeug", their_werkzeug_server, http_client, our_werkzeug_server),
    wsgi_case("Django runserver", partial(their_runserver, threading=True), http_client),
    Case("Django runserver --nothreading", partial(their_runserver, threading=False), http_client),
    Case("Django live test server", their_django_test_server, http_client),
    wsgi_case("bottle", their_bottle_server, url_client),
]
