"""Cases: packages for the web, used as their documentation shows."""

from __future__ import annotations

import socketserver
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import make_server

import prometheus_client
import prometheus_client.exposition
from case import HOST, PATIENCE, App, Ask, Case
from prometheus_client.parser import text_string_to_metric_families
from standard_library import LongQueue, http_client, over_wsgi_handler, wsgi_app
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

import trioserver

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


CASES = [
    Case("prometheus-client", their_metrics_server, metrics_client, our_metrics_server),
    Case("Werkzeug", their_werkzeug_server, http_client, our_werkzeug_server),
]
