"""A program of servers, and the orders that it gets while they serve.

::

    SERVING -> LEAVING -> DRAINING -> CANCELLED

LEAVING is left out unless the program has said for how long it is to be found unready first
(`ready_off`). No order takes a program back.
"""

from __future__ import annotations

import enum
import logging
import signal
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from .._facts.address import describe
from .._facts.observers import error_log, log_safely
from .._servers.base import BaseServer
from .._servers.ip_servers import TCPServer
from ..monitoring import task_tree
from .notices import Notices, program_log
from .signals import ENDING, SignalRelay


class Stage(enum.Enum):
    """How far a program is."""

    SERVING = "its servers start, or serve"
    LEAVING = "it says that it is not ready, and serves whoever comes all the same"
    DRAINING = "nobody else is let in; requests may end by themselves, within the grace"
    CANCELLED = "what is left is cancelled"


@attrs.define(eq=False)
class Program:
    """Servers that are all that there is to a program.

    Attributes:
      servers: which.
      grace: seconds of a drain; None: each server has its own.
      ready_off: seconds between the first order to end and the drain.
      relay: where its orders come from.
      notices: who is told how it is.
      stage: how far it is.
      everything: the scope around all of it.
      beside: the nursery of what goes on beside the servers, and ends with them.
      cancelled_by: the signal that has cancelled it.
    """

    servers: Sequence[BaseServer]
    grace: float | None
    ready_off: float
    relay: SignalRelay
    notices: Notices
    stage: Stage = Stage.SERVING
    everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    beside: trio.Nursery = attrs.field(init=False)
    cancelled_by: int | None = None
    _listening: int = 0

    # Its servers --------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Whether a server that is bound only now has to end at once."""
        return self.stage in {Stage.DRAINING, Stage.CANCELLED}

    def grace_of(self, server: BaseServer) -> float:
        """How many seconds a server has for its drain."""
        return server.timeouts.shutdown if self.grace is None else self.grace

    def one_more_listens(self) -> None:
        """Note that one more of the servers lets clients in."""
        self._listening += 1
        if self._listening == len(self.servers) and self.stage is Stage.SERVING:
            self.notices.ready(self._addresses())

    def why_not_ready(self) -> str:
        """Why nobody should send clients here now, in words; ``""``: they should."""
        if self.stage is not Stage.SERVING:
            return "it is about to end"
        for server in self.servers:
            shown = server.snapshot()
            if not shown.listeners or not all(one.accepting for one in shown.listeners):
                return f"{shown.name} is {shown.state}"
        return ""

    # Its orders ---------------------------------------------------------------------

    def obey(self, number: int) -> None:
        """Do what a signal orders, in Trio's thread."""
        if number in ENDING:
            self.end(number)
        elif number == signal.SIGHUP:
            self.reload()
        else:
            self.show_tasks()

    def end(self, number: int) -> None:
        """Go one step further towards the end."""
        if self.is_draining:
            self._cancel(number)
        elif self.stage is Stage.SERVING and self.ready_off:
            self.stage = Stage.LEAVING
            self.notices.leaving(self.ready_off)
            self.beside.start_soon(self._drain_later)
        else:
            self._drain()

    async def _drain_later(self) -> None:
        await trio.sleep(self.ready_off)
        if self.stage is Stage.LEAVING:
            self.relay.orders_left -= 1  # the order to drain has come by itself
            self._drain()

    def _drain(self) -> None:
        self.stage = Stage.DRAINING
        # In one step, so that all have stopped accepting before any waits.
        for server in self.servers:
            server.shutdown(self.grace)
        self.notices.draining()
        # By the bounds of the servers, everything is over then.
        ends = (self.grace_of(server) + server.timeouts.cleanup for server in self.servers)
        self.beside.start_soon(self.notices.put_the_end_off, max(ends), self._what_is_left)

    def _what_is_left(self) -> str:
        return f"{sum(len(server.requests) for server in self.servers)} requests are left"

    def _addresses(self) -> str:
        listeners = (one for server in self.servers for one in server.snapshot().listeners)
        return ", ".join(describe(one.address) for one in listeners)

    def _cancel(self, number: int) -> None:
        self.stage, self.cancelled_by = Stage.CANCELLED, number
        self.everything.cancel(reason=f"a second signal: {signal.Signals(number).name}")

    def reload(self) -> None:
        """Have each server that can read its files anew do so; one that fails goes on as it was."""
        able = [server for server in self.servers if _can_reload(server)]
        with self.notices.reloading():
            done = sum(_reloads(server) for server in able)
        message = "SIGHUP: %d of %d servers that can have reloaded"
        log_safely(program_log, logging.INFO, message, done, len(able))

    def show_tasks(self) -> None:
        """Log all tasks, and where they wait; so that it is seen where nobody set up a log."""
        log_safely(program_log, logging.WARNING, "SIGUSR1: the tasks are\n%s", task_tree())


def _can_reload(server: BaseServer) -> bool:
    """Whether a server is bound, and has anything to reload."""
    if not isinstance(server, TCPServer):
        return hasattr(server, "reload") and server.snapshot().state != "unbound"
    has_more = type(server).reload is not TCPServer.reload or callable(server.ssl_context)
    return has_more and server.snapshot().state != "unbound"


def _reloads(server: Any) -> bool:
    """Have a server reload; whether it could."""
    try:
        server.reload()
    except Exception as error:  # noqa: BLE001  (a file's, or the program's own)
        message = "%s could not reload, and goes on as it was"
        log_safely(error_log, logging.ERROR, message, type(server).__name__, exc_info=error)
        return False
    return True
