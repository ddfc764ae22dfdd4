"""A WSGI application, served by the standard library's `wsgiref` handler in threads.

python examples/wsgi_app.py [PORT]
"""

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler

import trio

import trioserver

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Any other application will do: one of Flask or Django is called in the same way."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"Hello, {environ['REMOTE_ADDR']}: this is {environ['PATH_INFO']}\n".encode()]


class WSGIServer(trioserver.ThreadingTCPServer):
    """What the handler asks its server for, beside sockets and threads."""

    application: "WSGIApplication"  # an annotation makes it a field of the server

    @property
    def base_environ(self) -> dict[str, str]:
        host, port = self.server_address[:2]
        return {"SERVER_NAME": host, "SERVER_PORT": str(port), "SCRIPT_NAME": ""}

    def get_app(self) -> "WSGIApplication":
        return self.in_threads

    def in_threads(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        # The handler claims that there is only one thread, which was true of its own server.
        environ["wsgi.multithread"] = True
        return self.application(environ, start_response)


def make_server(port: int, application: "WSGIApplication" = hello) -> WSGIServer:
    return WSGIServer(("localhost", port), WSGIRequestHandler, application=application)


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[WSGIServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
    trioserver.run(make_server(port))
