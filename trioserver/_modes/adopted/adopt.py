"""`adopt`: serve with an object of `socketserver` that somebody else has built, as it is."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import trio

from ..._facts.bounded import Bounded
from ..._facts.config import Limits, Timeouts
from ..._facts.cpython import end_of_serve_forever, forget_shutdown, is_asked_to_shut_down
from ..._facts.events import ShutdownReport
from ..._facts.observers import log_lost
from ..threads.mixin import LEAST_PATIENCE
from .listener import listens, overrides
from .server import AdoptedServer

_BYPASSED = ("serve_forever", "handle_request", "process_request", "process_request_thread")


async def adopt(
    server: socketserver.BaseServer,
    *,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    max_threads: int = 40,
    observers: Sequence[object] = (),
    forking: Literal["threads"] | None = None,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> ShutdownReport:
    """Serve with ``server`` until it is shut down: instead of its ``serve_forever``.

    Its own ``get_request``, ``verify_request``, ``finish_request``,
    ``handle_error``, ``shutdown_request`` and ``service_actions`` are called, all
    but the first in threads; see `ThreadingMixIn` for what becomes of a thread
    whose request is cancelled. One with ``socketserver.ThreadingMixIn`` serves up
    to ``max_threads`` requests at once; another one, one after the other.

    Its ``shutdown()`` begins the drain, from any thread or task, and returns when
    nobody else is let in; this function, when everybody has been served. Before
    this was called, it waits until it is: so from another thread only, for in
    Trio's it would wait for ever. Cancelled, this cancels the requests. However
    it ends once it has begun to serve, the server's ``server_close`` is called.

    Args:
      server: bound and active.
      limits: how much it takes on at once.
      timeouts: how long it waits, in seconds.
      max_threads: how many threads at once.
      observers: see `Observer`.
      forking: ``"threads"`` to run the handlers of a ``ForkingMixIn`` in threads.
      task_status: ``started(server)`` is called once clients are let in.

    Returns:
      Who was served to the end, and who was not.

    Raises:
      TypeError: ``server`` is not a server of `socketserver`, has no socket, or
        is a forking one: a running Trio program must not fork, and in threads
        its handlers are not isolated.
      ValueError: it is not bound, or closed.
      RuntimeError: it is being served by this function already.
      OSError: its socket was closed while it was being served, as was found when
        somebody came.
    """
    _check(server, forking)
    _warn_of_bypassed(server)
    one_at_a_time = not isinstance(server, (socketserver.ThreadingMixIn, *_FORKING))
    if one_at_a_time:
        max_threads = 1  # limits.requests is how many may wait in a drain, too
    ours = AdoptedServer(
        server,
        one_at_a_time=one_at_a_time,
        limits=limits or Limits(),
        timeouts=timeouts or Timeouts(),
        max_threads=max_threads,
        daemon_threads=bool(getattr(server, "daemon_threads", False)),
        block_on_close=bool(getattr(server, "block_on_close", True)),
        ends_idle_reads=bool(getattr(server, "ends_idle_reads", True)),
    )
    try:
        with _shut_down_by_its_own(server, ours) as stopped:
            ours.observers = (*observers, _Tells(stopped))
            return await ours.serve_forever(task_status=_Started(task_status, server))
    finally:
        await _close(ours, type(server).__name__)


_FORKING = (socketserver.ForkingMixIn,) if hasattr(socketserver, "ForkingMixIn") else ()


def _check(server: Any, forking: str | None) -> None:
    if not isinstance(server, socketserver.BaseServer):
        raise TypeError(f"adopt() takes a server object of socketserver, not {server!r}")
    name, sock = type(server).__name__, getattr(server, "socket", None)
    if not isinstance(sock, socket.socket):
        raise TypeError(f"{name} has no socket to serve with: its socket is {sock!r}")
    if forking not in {None, "threads"}:
        raise ValueError(f'forking must be None or "threads", not {forking!r}')
    if isinstance(server, _FORKING) and forking is None:
        raise TypeError(
            f"{name} forks, which a running Trio program must not do:"
            ' pass forking="threads" to run its handlers in threads, without their isolation'
        )
    if "wait" in vars(end_of_serve_forever(server)):
        raise RuntimeError(f"{name} is being served by adopt() already")
    if sock.fileno() == -1:
        raise ValueError(f"{name} is closed")
    if not listens(sock):
        raise ValueError(
            f"{name} is not bound and listening: call its server_bind() and server_activate() first"
        )


def _warn_of_bypassed(server: socketserver.BaseServer) -> None:
    for name in _BYPASSED:
        if overrides(server, name):
            warnings.warn(
                f"{type(server).__name__}.{name} is not called under adopt()", stacklevel=3
            )


@attrs.frozen(eq=False)
class _Started:
    """Reports their server as started, not ours."""

    _task_status: trio.TaskStatus[Any]
    _server: socketserver.BaseServer

    def started(self, value: object = None) -> None:
        """Report their object as started; ``value`` is the server around it."""
        self._task_status.started(self._server)


@attrs.frozen(eq=False)
class _Tells:
    """An observer that sets an event when nobody else is let in."""

    _stopped: threading.Event

    def draining(self, grace: float) -> None:
        """Let the ``serve_forever`` of the foreign server return."""
        self._stopped.set()


@contextmanager
def _shut_down_by_its_own(
    server: socketserver.BaseServer, ours: AdoptedServer
) -> Iterator[threading.Event]:
    """Have the object's ``shutdown`` end the run.

    Subclasses override it and call the original, so it stays, and what it waits
    for is ours: the event is kept (who waits for it already must be woken) and
    its ``wait`` is replaced.
    """
    stopped = end_of_serve_forever(server)
    home = threading.get_ident()

    def wait(timeout: float | None = None) -> bool:
        ours.shutdown()
        # To wait in Trio's own thread would be to wait for oneself.
        return threading.get_ident() == home or threading.Event.wait(stopped, timeout)

    # In this order, so that a shutdown() in another thread is either seen below
    # or comes here.
    stopped.wait = wait  # type: ignore[method-assign]
    stopped.clear()
    if is_asked_to_shut_down(server):
        ours.shutdown()
    try:
        yield stopped
    finally:
        del stopped.wait
        forget_shutdown(server)
        stopped.set()


async def _close(ours: AdoptedServer, name: str) -> None:
    """Have its ``server_close`` called: in a thread, for it may join others.

    That has at least the moment that most of them need: the call is made whatever
    the bound.
    """
    seconds, first = ours.timeouts.cleanup, sys.exception()
    try:
        with Bounded(seconds, f"{name}.server_close", least=LEAST_PATIENCE):
            await ours.close_theirs()
    except BaseException as second:
        log_lost(first, second, "%s.server_close raised instead of what had ended the server", name)
        raise
    finally:
        del first  # no cycles
        await ours.end_threads()
