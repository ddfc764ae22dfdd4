"""What a case of the compatibility suite is: somebody's server, and a client of its protocol.

Whatever the protocol, a client asks with a number, and the application behind
the server answers with another one. The application knows which numbers it was
asked for; the client, which were answered. When the two differ, somebody was
cut off.
"""

import socketserver
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import attrs

import trioserver

HOST = "127.0.0.1"
OURS = trioserver.ThreadingTCPServer
PATIENCE = 20
"""Seconds that a client waits for anything: more than any exchange can take."""

LARGEST = 0xFFFF
"""Numbers fit into a register of Modbus."""


def answer_to(number):
    """What the application answers."""
    return LARGEST - number


class App:
    """The application behind every server. It can hold its answers back.

    What a program has in files is in ``folder``, as long as the test lasts.
    """

    def __init__(self, folder):
        self.folder = folder
        self._changed = threading.Condition()
        self._holding = self._over = False
        self._inside = 0
        self._done, self._asked = set(), []

    def answer(self, number):
        """The answer to ``number``, when answers are not held back; called in a server's thread."""
        with self._changed:
            self._asked.append(number)
            self._inside += 1
            self._changed.notify_all()
            self._wait(lambda: not self._holding)
            self._inside -= 1
            self._done.add(number)
            self._changed.notify_all()
        return answer_to(number)

    def asked(self):
        """The numbers that it was asked for, whether or not the answers have arrived."""
        return self._asked

    def wait_done(self, number):
        """Wait for the answer to ``number``; false if the server has ended without it."""
        self._wait(lambda: number in self._done or self._over)
        return number in self._done

    def wait_inside(self, count):
        """Wait until ``count`` exchanges wait for their answers."""
        self._wait(lambda: self._inside >= count)

    def hold(self):
        self._now(_holding=True)

    def release(self):
        self._now(_holding=False)

    def server_is_over(self):
        self._now(_over=True)

    def close(self):
        """The test is over."""

    def _now(self, **facts):
        with self._changed:
            vars(self).update(facts)
            self._changed.notify_all()

    def _wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"{self._inside} are inside"


@attrs.frozen
class Case:
    """One server, and how it is used: made for an application, bound to a free port.

    Attributes:
      name: of the test.
      theirs: makes their server.
      client: given an address and the application, yields what asks, as often as wanted.
      ours: makes ours, over their handler class; None if that needs more than attributes of it.
      app: makes the application behind either, given its folder.
      turned_away: what the client's library raises when it cannot connect, or
        when its connection ends before an answer has begun.
      drain: how their server is told to shut down.
      clients_leave: whether clients leave by themselves when the server drains,
        because nobody tells them: datagrams, and handlers that poll.
    """

    name: str
    theirs: Callable[[App], socketserver.BaseServer]
    client: Any = attrs.field(converter=contextmanager)
    ours: Callable[[App], trioserver.BaseServer] | None = None
    app: Any = App
    turned_away: tuple[type[Exception], ...] = (OSError,)
    drain: Callable[[Any], object] = lambda server: server.shutdown()
    clients_leave: bool = False

    def __str__(self):
        return self.name


def make(kind, handler, **attributes):
    """A server on a free port, with what its handlers ask of it."""
    server = kind((HOST, 0), handler)
    for name, value in attributes.items():
        setattr(server, name, value)
    return server


def anew(ask):
    """A client with a connection for each exchange, which is ``ask(address, app, number)``."""

    def client(*address_and_app):
        yield partial(ask, *address_and_app)

    return client


def kept(connect, ask):
    """A client with one connection, which asks with ``ask(connection, number)``."""

    def client(address, app):
        with connect(*address) as connection:
            yield partial(ask, connection)

    return client


def wsgi_case(name, theirs, client, **more):
    """One of a server that is derived from wsgiref's: ours has its handlers, and what they ask."""

    def ours(app):
        with theirs(app) as it:
            facts = {"base_environ": it.base_environ, "get_app": it.get_app}
            return make(OURS, it.RequestHandlerClass, **facts)

    return Case(name, theirs, client, ours, **more)


def server_of(program):
    """What ``program`` would serve with, as it stands when it calls ``serve_forever``."""
    built = []

    def serve_forever(server, poll_interval=0.5):
        built.append(server)

    def server_close(server):
        """Not now: some programs call it when ``serve_forever`` has returned."""

    with (
        mock.patch.object(socketserver.BaseServer, "serve_forever", serve_forever),
        mock.patch.object(socketserver.TCPServer, "server_close", server_close),
    ):
        program()
    (server,) = built
    return server
