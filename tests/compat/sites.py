"""Cases: programs with a site of their own, where the answers are."""

import re
import select
import socket
import socketserver
import ssl
import sys
import warnings
from functools import partial
from unittest import mock

import josepy
import mkdocs.livereload
import trustme
from acme.challenges import HTTP01
from acme.standalone import HTTP01RequestHandler, HTTP01Server
from case import HOST, OURS, PATIENCE, App, Case, anew, answer_to, make, server_of, wsgi_case
from cryptography.hazmat.primitives.asymmetric import ec
from standard_library import page, url_client

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

# acme: challenges that are verified as a certificate authority does it. ----------------------

ACCOUNT_KEY = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))


class Validations(dict):
    """The validations that the server has to show at present, while others come and go."""

    def __iter__(self):
        return iter(list(self.values()))


class Validation(str):
    """A text that asks the application when it is sent."""

    __slots__ = ("ask",)

    def encode(self):
        self.ask()
        return super().encode()


class Account(App):
    def __init__(self, *args):
        super().__init__(*args)
        self.validations = Validations()


def our_challenge_server(app):
    return make(OURS, HTTP01RequestHandler.partial_init(app.validations, PATIENCE))


@anew
def challenge_client(address, app, number):
    host, port = address
    challenge = HTTP01(token=number.to_bytes(HTTP01.TOKEN_SIZE, "big"))
    response, text = challenge.response_and_validation(ACCOUNT_KEY)
    shown = HTTP01RequestHandler.HTTP01Resource(challenge, response, Validation(text))
    shown.validation.ask = partial(app.answer, number)
    app.validations[number] = shown
    try:
        if not response.simple_verify(challenge, host, ACCOUNT_KEY.public_key(), port, PATIENCE):
            raise ConnectionRefusedError  # it keeps the error to itself
    finally:
        del app.validations[number]
    return answer_to(number)


# MkDocs: a page for each exchange. --------------------------------------------------------------


def their_live_server(app):
    """One that builds a page when it is asked for."""
    server = mkdocs.livereload.LiveReloadServer(lambda: None, HOST, 0, root=str(app.folder))

    def application(environ, start_response):
        number = environ["PATH_INFO"][1:]
        (app.folder / number).write_text(str(app.answer(int(number))))
        return server.serve_request(environ, start_response)

    server.set_app(application)
    server.server_bind()
    server.server_activate()
    return server


# pypiserver: a project for each number, with one version. -------------------------------------


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


# Radicale: a site beside its calendars, also over HTTPS. --------------------------------------

AUTHORITY = trustme.CA()


class Web(radicale.web.BaseWeb):
    def __init__(self, app, configuration):
        super().__init__(configuration)
        self._app = app

    def get(self, environ, base_prefix, path, *args):
        content = str(self._app.answer(int(path.removeprefix("/.web/"))))
        return 200, {"Content-Type": "text/plain"}, content, None


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


class CalendarServer(Reaps, radicale.server.ParallelHTTPServer):
    pass


class CalendarServerHTTPS(Reaps, radicale.server.ParallelHTTPSServer):
    pass


def their_calendar_server(kind, app):
    """One that has a site alone, and a certificate for it."""
    files = {name: app.folder / f"{name}.pem" for name in ("key", "certificate", "authority")}
    certificate = AUTHORITY.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(files["key"])
    certificate.cert_chain_pems[0].write_to_path(files["certificate"])
    AUTHORITY.cert_pem.write_to_path(files.pop("authority"))
    settings = {
        "server": {name: str(file) for name, file in files.items()},
        "storage": {"filesystem_folder": str(app.folder)},
        "web": {"type": partial(Web, app)},
    }
    configuration = radicale.config.load()
    configuration.update(settings, "the test")
    handler = radicale.server.RequestHandler
    server = kind(configuration, socket.AF_INET, (HOST, 0), handler)
    server.set_app(radicale.Application(configuration))
    return server


def calendar_client(scheme, address, app):
    trust = ssl.create_default_context(cafile=app.folder / "authority.pem")
    yield lambda number: int(page(address, f".web/{number}", scheme, context=trust))


CASES = [
    Case(
        "acme",
        lambda app: HTTP01Server((HOST, 0), app.validations),
        challenge_client,
        our_challenge_server,
        app=Account,
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
        "Radicale", partial(their_calendar_server, CalendarServer), partial(calendar_client, "http")
    ),
    Case(
        "Radicale HTTPS",
        partial(their_calendar_server, CalendarServerHTTPS),
        partial(calendar_client, "https"),
    ),
]
