"""Cases: programs with a site of their own, where the answers are."""

import functools
import re
import select
import socket
import socketserver
import ssl
import sys
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import attrs
import josepy
import mkdocs.livereload
import trustme
from acme import challenges
from acme.standalone import HTTP01RequestHandler, HTTP01Server
from case import HOST, PATIENCE, App, Case, answer_to
from cryptography.hazmat.primitives.asymmetric import ec
from programs import server_of
from standard_library import LongQueue, over_wsgi_handler, url_client

import trioserver

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


class Validations:
    """The validations that the server has to show at present, while others come and go."""

    def __init__(self):
        self._resources = {}

    def __iter__(self):
        return iter(list(self._resources.values()))

    @contextmanager
    def of(self, number, app):
        """Have the server prove that it holds the key, for one challenge."""
        challenge = challenges.HTTP01(token=number.to_bytes(challenges.HTTP01.TOKEN_SIZE, "big"))
        response, text = challenge.response_and_validation(ACCOUNT_KEY)
        validation = Validation(text, functools.partial(app.answer, number))
        resource = HTTP01RequestHandler.HTTP01Resource(challenge, response, validation)
        self._resources[number] = resource
        try:
            yield resource
        finally:
            del self._resources[number]


@attrs.frozen
class Validation:
    """A text that asks the application when it is sent."""

    text: str
    ask: Callable[[], int]

    def encode(self):
        self.ask()
        return self.text.encode()


ACCOUNT_KEY = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))


class Account(App):
    def __init__(self, *args):
        super().__init__(*args)
        self.validations = Validations()


class ChallengeServer(LongQueue, HTTP01Server):
    pass


def their_challenge_server(app):
    return ChallengeServer((HOST, 0), app.validations)


def our_challenge_server(app):
    handler = HTTP01RequestHandler.partial_init(app.validations, PATIENCE)
    return trioserver.ThreadingTCPServer((HOST, 0), handler)


@contextmanager
def challenge_client(address, app):
    host, port = address

    def ask(number):
        with app.validations.of(number, app) as (challenge, response, _):
            key = ACCOUNT_KEY.public_key()
            if not response.simple_verify(challenge, host, key, port, PATIENCE):
                raise ConnectionRefusedError  # it keeps the error to itself
        return answer_to(number)

    yield ask


# MkDocs: a page for each exchange. --------------------------------------------------------------


class LiveServer(LongQueue, mkdocs.livereload.LiveReloadServer):
    pass


def live_server(app):
    """One that builds a page when it is asked for."""
    server = LiveServer(lambda: None, HOST, 0, root=str(app.folder))

    def application(environ, start_response):
        number = environ["PATH_INFO"][1:]
        (app.folder / number).write_text(str(app.answer(int(number))))
        return server.serve_request(environ, start_response)

    server.set_app(application)
    return server


def their_live_server(app):
    server = live_server(app)
    server.server_bind()
    server.server_activate()
    return server


def our_live_server(app):
    with live_server(app) as theirs:
        return over_wsgi_handler(theirs.RequestHandlerClass, theirs.get_app())


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


def our_index(app):
    with their_index(app) as theirs:
        return over_wsgi_handler(theirs.RequestHandlerClass, theirs.get_app())


@contextmanager
def index_client(address, app):
    host, port = address

    def ask(number):
        url = f"http://{host}:{port}/simple/number-{number}/"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            (version,) = re.findall(rf">number-{number}-(\d+)\.tar\.gz<", response.read().decode())
        return int(version)

    yield ask


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


class CalendarServer(Reaps, LongQueue, radicale.server.ParallelHTTPServer):
    pass


class CalendarServerHTTPS(Reaps, LongQueue, radicale.server.ParallelHTTPSServer):
    pass


def calendars_of(app):
    """The configuration: of a site alone, with a certificate for it."""
    certificate = AUTHORITY.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(app.folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(app.folder / "certificate.pem")
    AUTHORITY.cert_pem.write_to_path(app.folder / "authority.pem")
    configuration = radicale.config.load()
    configuration.update(
        {
            "server": {
                "certificate": str(app.folder / "certificate.pem"),
                "key": str(app.folder / "key.pem"),
            },
            "storage": {"filesystem_folder": str(app.folder)},
            "web": {"type": functools.partial(Web, app)},
        },
        "the test",
    )
    return configuration


def their_calendar_server(kind, app):
    configuration = calendars_of(app)
    handler = radicale.server.RequestHandler
    server = kind(configuration, socket.AF_INET, (HOST, 0), handler)
    server.set_app(radicale.Application(configuration))
    return server


def our_calendar_server(app):
    application = radicale.Application(calendars_of(app))
    return over_wsgi_handler(radicale.server.RequestHandler, application)


@contextmanager
def calendar_client(scheme, address, app):
    host, port = address
    trust = ssl.create_default_context(cafile=app.folder / "authority.pem")
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust))

    def ask(number):
        url = f"{scheme}://{host}:{port}/.web/{number}"
        with opener.open(url, timeout=PATIENCE) as response:
            return int(response.read())

    yield ask


CASES = [
    Case(
        "acme",
        their_challenge_server,
        challenge_client,
        our_challenge_server,
        app=Account,
    ),
    Case(
        "MkDocs",
        their_live_server,
        url_client,
        our_live_server,
        # Its own shutdown() is for the thread that it has started itself.
        drain=socketserver.BaseServer.shutdown,
    ),
    Case("pypiserver", their_index, index_client, our_index),
    Case(
        "Radicale",
        functools.partial(their_calendar_server, CalendarServer),
        functools.partial(calendar_client, "http"),
        our_calendar_server,
    ),
    Case(
        "Radicale HTTPS",
        functools.partial(their_calendar_server, CalendarServerHTTPS),
        functools.partial(calendar_client, "https"),
    ),
]
