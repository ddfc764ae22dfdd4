"""How a run serves: its nurseries, and what happens in which.

::

    serve
      requests nursery              owns every request, and their alarms, until the
                                      very end, and service_actions, until the drain
        accept                      until the drain begins
          loops nursery               owns the accept loops, one a listener
        drain_out                   while requests are left
          grace                       they end by themselves
          cut                         the rest is cancelled, with a reason, and
                                        requests that still run after cleanup are
                                        named

`handle_one` is the same for a single request: its end leaves the listeners open.

The rules that this file keeps:

* A slot is free before a client is accepted, and from the accept until the
  request's task owns the connection there is no checkpoint and no Ctrl-C.
* Whatever ends a run, a request that is cancelled is cancelled with a reason. Every
  request has one outcome, and is closed before `serve` returns.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio
from trio.lowlevel import enable_ki_protection

from .._facts.chains import lone_errors
from .._facts.events import ShutdownReport
from .accept import accept_loop, accept_now
from .admission import Takes
from .phase import Phase
from .request_nursery import why_it_ended
from .run import Run
from .service_actions import act_every


@enable_ki_protection
async def serve(run: Run, poll_interval: float, started: Callable[[], object]) -> ShutdownReport:
    """Serve until drained; raise what ended it otherwise.

    Args:
      poll_interval: seconds between two calls of ``service_actions``.
      started: called once clients are let in.
    """
    if run.stop is not None:
        run.ending.because(run.stop.reason)
    if not run.listeners:  # see `binding`
        await trio.lowlevel.checkpoint()
        started()
        return run.close()

    async def until_drained(requests: trio.Nursery) -> None:
        all_served = trio.CancelScope()
        requests.start_soon(run.drain.keep_alarms, all_served)
        try:
            if run.overrides("service_actions"):
                requests.start_soon(act_every, poll_interval, run.server, run.ending)
            await _run_accept_loops(run, ready)
            await run.ending.drain_out()
        except BaseException as error:
            run.ending.stop_accepting(why_it_ended(error))
            await run.ending.cut(why_it_ended(error))
            raise
        finally:
            all_served.cancel(reason="all requests have ended")

    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        started()

    run.admission.takes = Takes.ALL
    try:
        await _with_requests(run, until_drained)
        if not is_ready and run.stop is not None:
            ready()  # as after every shutdown(): the grace was over before it was ready
    finally:
        report = run.close()
    return report


@enable_ki_protection
async def handle_one(run: Run, patience: float) -> bool:
    """Serve one request, until it is closed; false if none came in ``patience`` seconds.

    The listeners stay open, also when this is cancelled.
    """

    async def until_closed(_: trio.Nursery) -> None:
        try:
            with trio.move_on_after(patience):
                await _run_accept_loops(run, lambda: None)
            # The last look: for clients that came in this very tick, or were there already.
            for listener in run.listeners:
                accept_now(listener, run.admission)
            await run.registry.until_all_closed_or(run.drain)
            if run.drain.began:
                await run.ending.drain_out()
        except BaseException as error:
            # The listeners stay open, but a shutdown() is meant for the next run now.
            run.requests.close()
            await run.ending.cut(why_it_ended(error))
            raise

    run.admission.takes = Takes.ONE
    if run.stop is not None:
        run.ending.stop_accepting(run.stop.reason)
        await trio.lowlevel.checkpoint()
        return False
    await _with_requests(run, until_closed)
    # When server_close has cut it, it has not timed out: no handle_timeout.
    return run.admission.is_done or run.everything.cancel_called


@enable_ki_protection
async def _with_requests(run: Run, body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Call ``body`` inside the nursery that owns the requests, and wait for them all."""
    run.everything = trio.CancelScope()
    with run.work.going_on():
        run.phase.enter(Phase.ACQUIRING)
        try:
            with run.everything, lone_errors():
                if run.stop is not None:
                    now = trio.current_time()
                    run.everything.deadline = now + run.stop.left(now)
                one = not run.admission.takes_all
                async with (
                    run.server._resources(for_one_request=one) as run.resources,
                    trio.open_nursery() as requests,
                ):
                    run.everything.deadline = math.inf
                    run.phase.enter(Phase.SERVING)
                    run.requests.open(requests)
                    try:
                        await body(requests)
                    finally:
                        run.requests.close()
        finally:
            run.requests.forget()
            run.resources = None
            if not run.drain.began:
                run.phase.enter(Phase.BOUND)


async def _run_accept_loops(run: Run, started: Callable[[], object]) -> None:
    """Run an accept loop for each listener, until all of them are over."""
    run.admission.reserve.take()
    with lone_errors():
        async with trio.open_nursery() as loops:
            run.ending.accepting = loops.cancel_scope
            for listener in run.listeners:
                loops.start_soon(accept_loop, listener, run.admission)
            started()
            if run.stop is not None:
                run.begin_drain(run.stop.left(trio.current_time()))
