"""`run`: a whole program that is nothing but its servers.

Around Trio there are the signals, and the service manager, from the first instant to the last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio

from .._facts.callables import is_async_callable
from .._facts.events import ShutdownReport
from .._facts.processors import processors
from .._facts.validators import check_seconds
from .._servers.base import BaseServer
from .application import Given, servers_of
from .health import health_server
from .notices import Notices
from .program import Beside, Program
from .service_manager import told_by_environment
from .serving import serve, tell_of_cut_requests
from .signals import SignalRelay

if TYPE_CHECKING:  # it brings multiprocessing
    from .workers.supervisor import Supervisor

MOST_WORKERS = 1024
"""More are a mistake: each is a process, and each looks at all the others' numbers."""


def run(  # noqa: PLR0913  (each is one fact of a program)
    *servers: BaseServer | str | Callable[[], BaseServer | Sequence[BaseServer]],
    workers: int | Literal["auto"] = 1,
    total_requests: int | None = None,
    grace: float | None = None,
    ready_off: float = 0.0,
    health: Any = None,
    start_timeout: float = 60.0,
    on_ready: Callable[[tuple[Any, ...]], object] | None = None,
    beside: Sequence[Beside] = (),
) -> tuple[ShutdownReport, ...]:
    """Serve until a signal, as the main job of a program.

    The first SIGTERM or SIGINT (Ctrl-C) drains all servers, the second cancels
    what is left, a third ends the process on the spot, even one whose handler
    never lets go of the processor. SIGHUP has every server `reload <TCPServer.reload>` that
    can, or with workers replaces these, one by one; SIGUSR1 writes all tasks, and where they
    wait, to the log ``trioserver.program``. These and the next one are heeded only where the
    program does not handle them itself.

    SIGUSR2 hands over to new code: the program starts itself anew, by the command, in the
    directory and with the environment that it was started with itself, and passes its listening
    sockets on. When that successor lets clients in, this program drains and returns, and no
    client was turned away. One that fails to get ready is logged, and nothing has changed.

    With ``workers``, as many processes have all the servers each, and accept from the same
    listening sockets; this one binds those, starts the workers, replaces one that ends, and
    serves nobody itself. What a handler, a hook or an observer does for a request, it does in
    one of them; what binds and closes a server is called here, too, and observers are told here
    of what happens to all of it. A worker that SIGHUP starts imports the code as it is then.
    Servers that are given as a function that can be imported, or by ``"module:attribute"``, are
    made anew, too; of others it gets a copy.

    A service manager, such as systemd, that wants to hear of it (``NOTIFY_SOCKET``) is told when
    all servers listen, reload and drain, and why the end takes so long; and that Trio's loop
    turns, if it wants signs of life (``WATCHDOG_USEC``). If it keeps descriptors (``FDSTORE``), it
    keeps the listening sockets, and the program finds them when it is started again: clients
    that connect after a crash wait, and are served.

    Args:
      servers: at least one; they are served side by side. When one fails, the
        others are cancelled. Instead of a server it can be a plain function without arguments
        that returns one, or several, and is called when signals are heard already; or
        ``"module:attribute"``, which is imported then.
      workers: how many processes serve; ``"auto"``: as many as there are processors to use.
        With 1 it is this one.
      total_requests: how many requests each server may have at once, in all workers together,
        in the place of what its `Limits` say, which hold for each worker.
      grace: seconds for the drain; None is each server's ``timeouts.shutdown``.
      ready_off: seconds between the first signal and the drain. Meanwhile health checks are
        told that the program is not ready, and whoever comes is served all the same: so a
        balancer has the time to send clients elsewhere. One more signal cuts that short.
      health: where health checks are answered: ``(host, port)``, or a path of a Unix socket.
        By HTTP, ``GET /live`` is answered with 200 as long as Trio's loop turns, ``GET /ready``
        only if every listener accepts and no server drains or is suspended, and else with 503
        and the reason. None: nowhere.
      start_timeout: seconds that a successor, or a worker, has to get ready.
      on_ready: a plain function that is called once, with the addresses of all listeners, when
        all servers let clients in. None: nobody is told.
      beside: async functions that run beside the servers, from before they listen until they
        have ended, and are cancelled then: what watches them, for example. Each is called with
        the list of the servers, in this process. One that raises cancels everything, as in every
        nursery; one that returns is done.

    Returns:
      The reports, in the order of the servers, when all have drained; what the grace has cut
      is in the log, too. The process then goes on, and commonly ends with status 0.

    Raises:
      SystemExit: of status 128 + N when a second signal, of number N, had to
        cancel them.
      BaseException: what a server failed with, bare.
      TypeError, ValueError: an argument is wrong, and named; or something of a server does not
        pickle, so that no worker can have it.
      WorkerStartError: there is no worker, and several in a row could not get ready; it says
        why the last one could not.
      ImportError, AttributeError: there is no such module, or no such attribute in it.

    Signal handlers are as before when it returns or raises, and in every child
    that the program forks meanwhile; and so is the environment, in which children do not find
    what a service manager has put there for this program. In another thread than the main one
    there are no signals to wait for, and none are touched.
    """
    if not servers:
        raise TypeError("run() needs at least one server")
    wanted = _number_of(workers)
    _check_total(total_requests, wanted)
    check_seconds("grace", grace, zero=True, optional=True)
    check_seconds("ready_off", ready_off, zero=True)
    check_seconds("start_timeout", start_timeout)
    _check_beside(beside)
    relay = SignalRelay(orders_left=3 if ready_off else 2)
    # Before Trio comes, which has its own idea of Ctrl-C.
    with told_by_environment() as manager, relay.installed():
        made = [servers_of(given) for given in servers]
        found = [server for several in made for server in several]
        notices = Notices(manager, on_ready)
        program = Program(found, grace, ready_off, start_timeout, relay, notices, tuple(beside))
        if wanted > 1:
            program.supervisor = _supervisor(program, servers, made, wanted, total_requests)
        elif total_requests is not None:
            for server in found:
                server.limits = attrs.evolve(server.limits, requests=total_requests)
        if health is not None:
            program.checks = health_server(health, program.why_not_ready)
        program.claim_sockets()
        relay.has_begun = True
        reports = trio.run(serve, program)
    for server, report in zip(found, reports, strict=True):
        tell_of_cut_requests(server, report)
    return reports


def _number_of(workers: object) -> int:
    if workers == "auto":
        return processors()
    expected = f"a number between 1 and {MOST_WORKERS}, or 'auto'"
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be {expected}, not {workers!r}")
    if not 1 <= workers <= MOST_WORKERS:
        raise ValueError(f"workers must be {expected}, not {workers!r}")
    return workers


def _check_total(total: object, workers: int) -> None:
    expected = f"a number of at least {workers}, one for each worker, or None"
    if total is None:
        return
    if isinstance(total, bool) or not isinstance(total, int):
        raise TypeError(f"total_requests must be {expected}, not {total!r}")
    if total < workers:
        raise ValueError(f"total_requests must be {expected}, not {total!r}")


def _check_beside(beside: object) -> None:
    expected = "a list of async functions, each of which takes the list of the servers"
    if not isinstance(beside, (list, tuple)):
        raise TypeError(f"beside must be {expected}, not {beside!r}")
    for function in beside:
        if not is_async_callable(function):
            raise TypeError(f"beside must be {expected}; {function!r} is none")


def _supervisor(
    program: Program,
    given: Sequence[Given],
    made: Sequence[Sequence[BaseServer]],
    workers: int,
    total_requests: int | None,
) -> Supervisor:
    if not hasattr(os, "fork"):
        raise RuntimeError("workers need a POSIX system: here, run one program for each processor")
    from .workers.setup import packed  # noqa: PLC0415  (it brings multiprocessing)
    from .workers.supervisor import Supervisor  # noqa: PLC0415

    return Supervisor(
        program.servers,
        packed(given, made),
        workers,
        program.grace,
        program.start_timeout,
        total_requests,
    )
