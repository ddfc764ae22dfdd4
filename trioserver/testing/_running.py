"""A server under test: it cannot leak, cannot hang, and cannot fail unseen.

The rules this file keeps:

* A handler's error fails the test that caused it, with its traceback, unless the test
  said that it expects it; whatever the client has made of it.
* Who still works on a request a second after the test is named, and fails it.
* The test's own failure is never replaced by what else has failed, which is added to it
  as notes.
* All that was opened is closed when the block is left, however that comes.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal

import trio

import trioserver

from ._clients import KernelDatagramClient
from ._clock import clock_that_waits
from ._exchanges import Exchange, Recorder
from ._faults import Fault, Faults
from ._guard import wall_clock_guard
from ._memory_datagrams import MemoryDatagramClient
from ._network import Network, Where, check_fit, server_for
from ._options import check_choice, check_flag

A_SECOND = 1.0
"""Seconds, by the Trio clock, that requests have to end after the test."""


class Unfinished(AssertionError):
    """Requests went on after the test; says which."""


class RunningServer:
    """A server under test, while it runs; made by `open_test_server`.

    Attributes:
      server: the server itself.
      address: where it listens: ``(host, port, ...)``, or a path.
    """

    def __init__(self, server: trioserver.BaseServer, network: Network, recorder: Recorder) -> None:
        self.server = server
        self.address: Any = server.server_address
        self._network = network
        self._recorder = recorder
        self._clients: list[trio.abc.AsyncResource] = []
        self._datagram_clients: list[MemoryDatagramClient | KernelDatagramClient] = []

    def __repr__(self) -> str:
        return f"<trioserver.testing.RunningServer: {self.server!r}>"

    @property
    def port(self) -> int:
        """The port number of an internet server.

        Raises:
          TypeError: it has none.
        """
        match self.address:
            case (_, int(port), *_):
                return port
        raise TypeError(f"{self.address!r} has no port")

    @property
    def faults(self) -> Faults:
        """What is wrong with the network; may be changed at any time.

        Raises:
          RuntimeError: it is a real one, and none were asked for at the beginning.
        """
        return self._network.faults

    @property
    def exchanges(self) -> list[Exchange]:
        """Its requests so far, in the order in which they began."""
        return list(self._recorder.exchanges)

    async def connect(self) -> trio.abc.HalfCloseableStream:
        """Connect; the stream is closed with the server at the latest.

        Raises:
          ConnectionRefusedError: nobody listens any more, or there is a `Refuse`.
        """
        stream = await self._network.connect(self.address)
        self._clients.append(stream)
        return stream

    async def client(self) -> MemoryDatagramClient | KernelDatagramClient:
        """Somebody who sends datagrams, and receives the replies; closed with the server."""
        client = await self._network.client(self.address)
        self._datagram_clients.append(client)
        return client

    async def wait_requests(self, number: int = 1) -> list[Exchange]:
        """Wait until so many requests have ended; all that have, the first to begin first.

        Raises:
          RuntimeError: the server has ended, with fewer.
        """

        def ended() -> list[Exchange]:
            return [one for one in self._recorder.exchanges if one.record is not None]

        if not await self._recorder.until(lambda: len(ended()) >= number):
            await trio.sleep(A_SECOND)  # one that has failed cancels this
            raise RuntimeError(
                f"the server has ended, and so have {len(ended())} requests: there will be no"
                f" {number}"
            )
        return ended()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        await self._recorder.until(lambda: not self._recorder.open)

    def check(self) -> None:
        """Raise what handlers and hooks have raised so far, which is forgotten by that.

        Raises:
          ExceptionGroup: of the errors; of each only once, so not at the end again.
        """
        self._recorder.check()

    async def stop(self, grace: float = 0) -> trioserver.ShutdownReport:
        """Shut the server down, and wait for its end.

        Args:
          grace: seconds that requests in flight have to end by themselves.
        """
        self.server.shutdown(grace)
        return await self.server.wait_closed()

    @asynccontextmanager
    async def expect_error(
        self, kind: type[Exception] | tuple[type[Exception], ...] = Exception
    ) -> AsyncIterator[list[Exception]]:
        """In the block, a handler or a hook raises this, which then does not fail the test.

        Gives a list, which has the errors in it when the block is over. They may come a
        second after it, by the Trio clock.

        Raises:
          AssertionError: none came.
        """
        found: list[Exception] = []
        errors, before = self._recorder.errors, list(self._recorder.errors)

        def new() -> list[Exception]:
            return [error for error in errors if error not in before]

        def came() -> bool:
            return any(isinstance(error, kind) for error in new())

        yield found
        with trio.move_on_after(A_SECOND):
            await self._recorder.until(came)
        others = [error for error in new() if not isinstance(error, kind)]
        found += (error for error in new() if isinstance(error, kind))
        errors[:] = [error for error in errors if error not in found]
        if not found:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(one.__name__ for one in kinds)
            instead = f"; there was {', '.join(map(repr, others))}" if others else ""
            raise AssertionError(f"no handler has raised {names}, which this test expects{instead}")

    # The end --------------------------------------------------------------------

    async def _close_clients(self) -> None:
        # All of them, also when the block was cancelled; it takes no time.
        with trio.move_on_after(A_SECOND, shield=True):
            for client in self._clients:
                await trio.aclose_forcefully(client)
        for one in self._datagram_clients:
            one.close()

    async def _refuse_unfinished(self) -> None:
        """Mend the network, and close the clients; raise if requests do not end by that."""
        self._network.mend()
        await self._close_clients()
        with trio.move_on_after(A_SECOND):
            await self.wait_idle()
        unfinished = [self._in_words(exchange) for exchange in self._recorder.open.values()]
        if unfinished:
            raise Unfinished(
                f"requests still go on {A_SECOND:g} s after the test:\n  " + "\n  ".join(unfinished)
            )

    def _in_words(self, exchange: Exchange) -> str:
        for request in self.server.snapshot().requests:
            if request.info.id == exchange.info.id:
                return f"{exchange.info}, {request.state}, for {request.age:.3f} s"
        return str(exchange.info)


@asynccontextmanager
async def open_test_server(
    server: trioserver.BaseServer | Callable[..., Any],
    *,
    transport: Where = "memory",
    faults: Faults | Sequence[Fault] | None = None,
    strict: bool = True,
    autojump: Literal["refuse", "wait"] = "refuse",
    guard: float = 60.0,
) -> AsyncIterator[RunningServer]:
    """Serve in a block, for a test; gives a `RunningServer`.

    Args:
      server: a server that is not bound, or a handler for one.
      transport: ``"memory"``; or ``"tcp"``, ``"udp"`` or ``"unix"`` for the real thing: a
        server on its own address, a handler on a free port, or in a folder that is made
        for it.
      faults: what is wrong with the network to begin with. On a real one, None is for
        never: then nothing is between the server and its sockets.
      strict: whether what a handler or hook raises, and requests that still go on a
        second after the block, fail the test; and whether faults that cannot apply are
        refused, those of streams on a server of datagrams, say.
      autojump: what to do on a clock with autojump when kernel, threads or processes
        take part: refuse, or have it stand still while a request is open.
      guard: real seconds that the block may take; ``inf``: any number.

    Raises:
      ExceptionGroup: what handlers and hooks have raised.
      Unfinished: requests went on.
      Hung: the block took too long by the wall clock; says where every task was.
      RuntimeError: the clock would jump while others work; or the server is bound already.
      TypeError: this server cannot be served so.
    """
    check_flag("strict", strict)
    check_choice("autojump", autojump, ("refuse", "wait"))
    recorder = Recorder()
    with ExitStack() as stack:
        served = server_for(server, transport, stack)
        check_fit(served, transport, with_faults=faults is not None, waits=autojump == "wait")
        kernel = transport != "memory"
        stack.enter_context(clock_that_waits(lambda: kernel and bool(recorder.open), kernel=kernel))
        # Outermost, so that what has kept a test waiting stands beside where it hung.
        stack.enter_context(_notes_of(recorder.errors))
        async with wall_clock_guard(guard):
            with bare():
                async with trio.open_nursery() as tasks:
                    network = Network(transport, faults, recorder, tasks, strict=strict)
                    stack.enter_context(network.under(served))
                    stack.enter_context(_watched(served, recorder))
                    try:
                        async with served.serving(grace=0):
                            running = RunningServer(served, network, recorder)
                            try:
                                yield running
                                if strict:
                                    await running._refuse_unfinished()
                            finally:
                                await running._close_clients()
                    finally:
                        tasks.cancel_scope.cancel(reason="the test is over")
    if strict:
        recorder.check()


@contextmanager
def _watched(server: trioserver.BaseServer, recorder: Recorder) -> Iterator[None]:
    """Have the recorder told of requests and errors."""
    observers, tell = server.observers, server.handle_error

    async def note_and_tell(request: Any, client_address: Any) -> None:
        recorder.note_error()
        await tell(request, client_address)

    server.observers = (*observers, recorder)
    vars(server)["handle_error"] = note_and_tell
    try:
        yield
    finally:
        del vars(server)["handle_error"]
        server.observers = observers


@contextmanager
def _notes_of(errors: list[Exception]) -> Iterator[None]:
    """Add these to what the block raises, which may follow from them."""
    try:
        yield
    except BaseException as error:
        for one in errors:
            error.add_note(
                f"A handler has failed, too:\n{''.join(traceback.format_exception(one))}"
            )
        raise


@contextmanager
def bare() -> Iterator[None]:
    """Let an error that is alone out of its nursery's group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
        context = alone.__context__
        try:
            raise alone
        finally:
            alone.__context__ = context  # not the group, which is only how it came here
            del alone, context
