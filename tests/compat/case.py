"""What a case of the compatibility suite is: somebody's server, and a client of its protocol.

Whatever the protocol, a client asks with a number, and the application behind
the server answers with another one. The application knows which numbers it was
asked for; the client, which were answered. When the two differ, somebody was
cut off.
"""

import socketserver
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

import trioserver

HOST = "127.0.0.1"
PATIENCE = 20
"""Seconds that a client waits for anything: more than any exchange can take."""

QUEUE = 64
"""Room for all clients in the queue of a listening socket."""

LARGEST = 0xFFFF
"""Numbers fit into a register of Modbus."""


def answer_to(number):
    """What the application answers."""
    return LARGEST - number


class App:
    """The application behind every server. It can hold its answers back.

    Attributes:
      folder: for what a program has in files, as long as the test lasts.
    """

    def __init__(self, folder):
        self.folder = folder
        self._changed = threading.Condition()
        self._holding = False
        self._over = False
        self._inside = 0
        self._done = set()
        self._asked = []

    def answer(self, number):
        """The answer to ``number``, when answers are not held back; called in a server's thread."""
        with self._changed:
            self._asked.append(number)
            self._inside += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._holding, PATIENCE)
            self._inside -= 1
            self._done.add(number)
            self._changed.notify_all()
        return answer_to(number)

    def asked(self):
        """The numbers that it was asked for, whether or not the answers have arrived."""
        with self._changed:
            return list(self._asked)

    def wait_done(self, number):
        """Wait for the answer to ``number``; false if the server has ended without it."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._done or self._over, PATIENCE)
            return number in self._done

    def hold(self):
        """Hold answers back from now on."""
        with self._changed:
            self._holding = True

    def wait_inside(self, count):
        """Wait until ``count`` exchanges wait for their answers."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._inside >= count, PATIENCE), (
                f"{self._inside} of {count} exchanges have reached the application"
            )

    def release(self):
        """Let the answers go."""
        with self._changed:
            self._holding = False
            self._changed.notify_all()

    def close(self):
        """The test is over."""

    def server_is_over(self):
        """Nothing will be asked any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


Ask = Callable[[int], int]
"""One exchange: what a client asks with, and what it is answered with."""


@attrs.frozen
class Case:
    """One server, and how it is used.

    Attributes:
      name: of the test.
      theirs: makes their server, bound to a free port of ``HOST``.
      client: connects to an address, for as many exchanges as wanted.
      ours: makes our server over their handler class; None if that needs more
        of their server than attributes.
      app: makes the application behind either, given its folder.
      turned_away: what the client's library raises when it cannot connect, or
        when its connection ends before an answer has begun.
      drain: how their server is told to shut down.
      clients_leave: whether clients leave by themselves when the server drains,
        because nobody tells them: datagrams, and handlers that poll.
    """

    name: str
    theirs: Callable[[App], socketserver.BaseServer]
    client: Callable[[Any, App], AbstractContextManager[Ask]]
    ours: Callable[[App], trioserver.BaseServer] | None = None
    app: Callable[[Path], App] = App
    turned_away: tuple[type[Exception], ...] = (OSError,)
    drain: Callable[[Any], object] = lambda server: server.shutdown()
    clients_leave: bool = False

    def __str__(self):
        return self.name
