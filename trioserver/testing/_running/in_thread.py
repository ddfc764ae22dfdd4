"""A server under test for those who have no Trio: plain tests, `unittest`, a whole session."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trioserver

from .._faults.faults import Faults
from .._faults.kinds import Fault
from .._looking.guard import check_real_seconds
from .clients import blocking_client, path_of_its_own
from .exchanges import A_SECOND, Exchange
from .network import Where, has_datagrams
from .open_server import open_test_server
from .server import RunningServer
from .trio_thread import TrioThread


class ThreadFaults:
    """What is wrong with the network of a server in a thread: `Faults`, for other threads."""

    def __init__(self, faults: Faults, thread: TrioThread[RunningServer]) -> None:
        self._faults = faults
        self._thread = thread

    def __repr__(self) -> str:
        return repr(self._faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, *faults: Fault) -> None:
        """As `Faults.add`."""
        self._thread.call_now("faults.add()", self._faults.add, *faults)

    def remove(self, *faults: Fault) -> None:
        """As `Faults.remove`."""
        self._thread.call_now("faults.remove()", self._faults.remove, *faults)

    def clear(self) -> None:
        """As `Faults.clear`."""
        self._thread.call_now("faults.clear()", self._faults.clear)

    def during(self, *faults: Fault) -> AbstractContextManager[None]:
        """As `Faults.during`."""

        @asynccontextmanager
        async def during() -> AsyncIterator[None]:
            with self._faults.during(*faults):
                yield

        return self._thread.block("faults.during()", during())


class ThreadServer:
    """A server under test that runs in a thread of its own; made by `serve_in_thread`.

    Its methods may be called from any thread but that one. After the block they raise
    `RuntimeError`; the attributes stay. When the server has crashed, all that wait raise
    what it has crashed with.

    Attributes:
      server: the server itself.
      address: where it listens: ``(host, port, ...)``, or a path.
    """

    def __init__(self, running: RunningServer, thread: TrioThread[RunningServer]) -> None:
        self.server: trioserver.BaseServer = running.server
        self.address: Any = running.address
        self._running = running
        self._thread = thread
        self._clients: list[socket.socket] = []
        self._paths: list[str] = []

    def __repr__(self) -> str:
        return f"<trioserver.testing.ThreadServer: {self.server!r}>"

    @property
    def port(self) -> int:
        """The port number of an internet server.

        Raises:
          TypeError: it has none.
        """
        return self._running.port

    @property
    def exchanges(self) -> list[Exchange]:
        """Its requests so far, in the order in which they began."""
        return self._running.exchanges

    @property
    def faults(self) -> ThreadFaults:
        """What is wrong with the network; may be changed at any time, from here.

        Raises:
          RuntimeError: none were asked for at the beginning.
        """
        return ThreadFaults(self._running.faults, self._thread)

    def connect(self, timeout: float | None = None) -> socket.socket:
        """Connect; the socket is closed with the server at the latest.

        To a server of datagrams, this gives a socket that sends to it, and that it can
        reply to.

        Args:
          timeout: real seconds that this, and then each operation of the socket, may
            take; None is the patience of the server.

        Raises:
          ConnectionRefusedError: nobody listens any more.
          TimeoutError: it took longer.
        """
        self._thread.raise_if_ended("connect()")
        seconds = self._thread.patience if timeout is None else timeout
        if not has_datagrams(self.server):
            client = blocking_client(self.address, socket.SOCK_STREAM, seconds)
        elif isinstance(self.address, tuple):
            client = blocking_client(self.address, socket.SOCK_DGRAM, seconds)
        else:
            self._paths.append(path_of_its_own())
            client = blocking_client(self.address, socket.SOCK_DGRAM, seconds, self._paths[-1])
        self._clients.append(client)
        return client

    def wait_requests(self, number: int = 1, timeout: float | None = None) -> list[Exchange]:
        """Wait until so many requests have ended; all that have, the first to begin first.

        Args:
          number: of requests, since the beginning.
          timeout: real seconds that it may take; None is the patience of the server.

        Raises:
          Hung: it took longer; the message has the tree of all tasks.
        """
        what, wait = f"wait_requests({number})", self._running.wait_requests
        return self._thread.call(what, wait, number, seconds=timeout)

    def wait_idle(self, timeout: float | None = None) -> None:
        """Wait until no request is open.

        Args:
          timeout: real seconds that it may take; None is the patience of the server.

        Raises:
          Hung: it took longer; the message has the tree of all tasks.
        """
        self._thread.call("wait_idle()", self._running.wait_idle, seconds=timeout)

    def check(self) -> None:
        """Raise what handlers and hooks have raised so far, which is forgotten by that.

        So a server that tests share fails the one that has caused it.

        Raises:
          ExceptionGroup: of the errors; of each only once, so not at the end again.
        """
        self._thread.call_now("check()", self._running.check)

    def expect_error(
        self, kind: type[Exception] | tuple[type[Exception], ...] = Exception
    ) -> AbstractContextManager[list[Exception]]:
        """In the block, a handler or a hook raises this, which then does not fail the test.

        Gives a list, which has the errors in it when the block is over. They may come a
        second after it.

        Raises:
          AssertionError: none came.
        """
        block, seconds = self._running.expect_error(kind), A_SECOND + self._thread.patience
        return self._thread.block("expect_error()", block, seconds=seconds)

    def stop(self, grace: float = 0) -> trioserver.ShutdownReport:
        """Shut the server down, and wait for its end.

        Args:
          grace: seconds that requests in flight have to end by themselves.

        Raises:
          Hung: it took longer than that and the patience of the server.
        """
        seconds = grace + self._thread.patience
        return self._thread.call("stop()", self._running.stop, grace, seconds=seconds)

    def _close_clients(self) -> None:
        for client in self._clients:
            client.close()
        for path in self._paths:
            Path(path).unlink(missing_ok=True)


@contextmanager
def serve_in_thread(
    server: trioserver.BaseServer | Callable[..., Any],
    *,
    transport: Where = "tcp",
    faults: Faults | Sequence[Fault] | None = None,
    strict: bool = True,
    patience: float = 10.0,
) -> Iterator[ThreadServer]:
    """Serve in a plain block, for a test without Trio; gives a `ThreadServer`.

    Trio runs in a thread of its own, which ends with the block, whatever comes. No
    signals are used, so the block may stand in any thread. All else is as in
    `open_test_server`, on real sockets and the real clock.

    Args:
      server: a server that is not bound, or a handler for one.
      transport: ``"tcp"``, ``"udp"`` or ``"unix"``: a server on its own address, a
        handler on a free port, or in a folder that is made for it.
      faults: what is wrong with the network to begin with; None is for never.
      strict: whether what a handler or hook raises, and requests that still go on a
        second after the block, fail the test.
      patience: real seconds that the start, and that the end, may take; ``inf``: any
        number. The end is tried once more, by cancelling everything, for as long.

    Raises:
      ExceptionGroup: what handlers and hooks have raised.
      Unfinished: requests went on.
      Hung: the start or the end took too long. The message says where every task was;
        or, when a handler blocks Trio's loop, where that is. Such a thread cannot be
        ended from outside: it is left, and a note says so.
      TypeError: this server cannot be served so.

    What the start raises, and what the server has crashed with in the background, is
    raised as it is. The test's own failure is never replaced by any of these, which are
    added to it as notes.
    """
    check_real_seconds("patience", patience)
    if transport == "memory":
        raise ValueError(
            "a plain thread has no way into a network in memory: transport must be 'tcp', 'udp'"
            " or 'unix'"
        )
    block = open_test_server(
        server, transport=transport, faults=faults, strict=strict, guard=math.inf
    )
    name = f"serve_in_thread({getattr(server, '__name__', type(server).__name__)})"
    thread = TrioThread(block, name=name, patience=patience)
    with thread as running:
        served = ThreadServer(running, thread)
        try:
            yield served
        finally:
            served._close_clients()
