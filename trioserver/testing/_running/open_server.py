"""Serving for the length of a test: nothing leaks, nothing hangs, and nothing fails unseen.

The rules this file keeps:

* An error of a handler fails the test that caused it, with its traceback, whatever the
  client has made of it; unless the test said that it expects it.
* A request that still goes on a second after the test is named, and fails it.
* The test's own failure is never replaced by what else has failed; that is added to it
  as notes.
* Everything that was opened is closed when the block is left, in whatever way.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any, Literal

import trio

import trioserver

from ...monitoring import Linter
from .._faults.faults import Faults
from .._faults.kinds import Fault
from .._looking.guard import wall_clock_guard
from .clock import clock_that_waits
from .exchanges import A_SECOND, Exchange, Recorder
from .network import Network, Where, check_fit, server_for
from .no_findings import no_findings
from .options import check_choice, check_flag
from .server import RunningServer
from .tls import with_tls


@asynccontextmanager
async def open_test_server(  # noqa: PLR0913  (each one is of its own, and has a default)
    server: trioserver.BaseServer | Callable[..., Any],
    *,
    transport: Where = "memory",
    faults: Faults | Sequence[Fault] | None = None,
    strict: bool = True,
    autojump: Literal["refuse", "wait"] = "refuse",
    tls: bool = False,
    guard: float = 60.0,
    linter: Linter | None = None,
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
      tls: whether the server speaks TLS, with a certificate of an authority that is made for
        tests, and `RunningServer.connect` trusts. It needs trustme (the extra ``test``).
      guard: real seconds that the block may take; ``inf``: any number.
      linter: what it finds while the block runs fails the test, see `no_findings`; None: nobody
        looks.

    Raises:
      ExceptionGroup: what handlers and hooks have raised.
      Unfinished: requests went on.
      Hung: the block took too long by the wall clock; says where every task was.
      Findings: the linter has found something.
      RuntimeError: the clock would jump while others work; or the server is bound already; or
        there is no trustme.
      TypeError: this server cannot be served so.
    """
    check_flag("strict", strict)
    check_flag("tls", tls)
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
                    agreed = stack.enter_context(with_tls(served)) if tls else None
                    try:
                        async with served.serving(grace=0):
                            running = RunningServer(served, network, recorder, agreed)
                            try:
                                async with _lints_of(running, linter):
                                    yield running
                                if strict:
                                    await _refuse_unfinished(served, network, recorder)
                            finally:
                                await network.close_clients()
                    finally:
                        tasks.cancel_scope.cancel(reason="the test is over")
    if strict:
        recorder.check()


def _lints_of(running: RunningServer, linter: Linter | None) -> AbstractAsyncContextManager[object]:
    return nullcontext() if linter is None else no_findings(running, linter=linter)


class Unfinished(AssertionError):
    """Requests went on after the test; says which."""


async def _refuse_unfinished(
    server: trioserver.BaseServer, network: Network, recorder: Recorder
) -> None:
    """Mend the network, and close the clients; raise if requests do not end by that."""
    network.mend()
    await network.close_clients()
    with trio.move_on_after(A_SECOND):
        await recorder.until(lambda: not recorder.open)
    unfinished = [_in_words(server, exchange) for exchange in recorder.open.values()]
    if unfinished:
        raise Unfinished(
            f"requests still go on {A_SECOND:g} s after the test:\n  " + "\n  ".join(unfinished)
        )


def _in_words(server: trioserver.BaseServer, exchange: Exchange) -> str:
    for request in server.snapshot().requests:
        if request.info.id == exchange.info.id:
            return f"{exchange.info}, {request.state}, for {request.age:.3f} s"
    return str(exchange.info)


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
