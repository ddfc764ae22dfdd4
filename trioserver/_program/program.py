"""A program of servers, and the orders that it gets while they serve.

::

    SERVING -> LEAVING -> DRAINING -> CANCELLED -> OVER
       |                     |
       +---> HANDED_OVER ----+

LEAVING is left out unless the program has said for how long it is to be found unready first
(`ready_off`). No order takes a program back, and OVER comes from every stage: the servers may end
by themselves.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from .._facts.address import Address
from .._facts.observers import error_log, log_safely
from .._servers.base import BaseServer
from .._sockets.inherited import inheritance
from .notices import Notices, program_log
from .places import Places
from .reloading import can_reload, reloads
from .signals import ENDING, SignalRelay
from .successor import Successor, tell_ready
from .whole import whole

if TYPE_CHECKING:  # it brings multiprocessing
    from .workers.supervisor import Supervisor

Beside: TypeAlias = Callable[[Sequence[BaseServer]], Awaitable[object]]
"""What runs beside the servers of a program, and knows them."""


class Stage(enum.Enum):
    """How far a program is."""

    SERVING = "its servers start, or serve"
    LEAVING = "it says that it is not ready, and serves whoever comes all the same"
    HANDED_OVER = "another process lets clients in; requests may end, within the grace"
    DRAINING = "nobody else is let in; requests may end by themselves, within the grace"
    CANCELLED = "what is left is cancelled"
    OVER = "the servers have ended, and nobody is left to obey an order"


@attrs.define(eq=False)
class Program:
    """Servers that are all that there is to a program.

    Attributes:
      servers: which.
      grace: seconds of a drain; None: each server has its own.
      ready_off: seconds between the first order to end and the drain.
      start_timeout: seconds that a successor has to get ready.
      relay: where its orders come from.
      notices: who is told how it is.
      jobs: what runs beside the servers.
      supervisor: has workers serve; None: they are served here.
      stage: how far it is.
      everything: the scope around all of it.
      beside: the nursery of what goes on beside the servers, and ends with them.
      checks: the server that answers health checks.
      cancelled_by: the signal that has cancelled it.
    """

    servers: Sequence[BaseServer]
    grace: float | None
    ready_off: float
    start_timeout: float
    relay: SignalRelay
    notices: Notices
    jobs: Sequence[Beside] = ()
    supervisor: Supervisor | None = None
    stage: Stage = Stage.SERVING
    everything: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    beside: trio.Nursery = attrs.field(init=False)
    checks: BaseServer | None = None
    cancelled_by: int | None = None
    _places: Places = attrs.field(init=False)
    _successor: Successor | None = None
    _listening: int = 0
    _order: str = ""  # the first one to end

    # Its servers --------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Whether a server that is bound only now has to end at once."""
        return self.stage in {Stage.DRAINING, Stage.CANCELLED}

    def grace_of(self, server: BaseServer) -> float:
        """How many seconds a server has for its drain."""
        return server.timeouts.shutdown if self.grace is None else self.grace

    @property
    def all_servers(self) -> Sequence[BaseServer]:
        """Its servers, and the one that answers health checks."""
        return [*self.servers, *([] if self.checks is None else [self.checks])]

    def claim_sockets(self) -> None:
        """Have each server find what an earlier program has left for it."""
        self._places = Places.of(self.all_servers)
        self._places.claim()

    def one_more_listens(self) -> None:
        """Note that one more of the servers lets clients in."""
        self._listening += 1
        if self._is_listening and self.stage is Stage.SERVING:
            self._is_ready()

    def all_listen(self) -> None:
        """Note that all of the servers let clients in."""
        self._listening = len(self.servers) - 1
        self.one_more_listens()

    @property
    def _is_listening(self) -> bool:
        return self._listening == len(self.servers)

    def _is_ready(self) -> None:
        manager = self.notices.manager
        for name in inheritance.close_unclaimed():
            manager.let_go(name)
        if manager.keeps_sockets:
            for descriptor, name in self._places.keep():
                manager.keep(descriptor, name)
        self.notices.ready(self._addresses())
        if inheritance.ready is not None:
            tell_ready(inheritance.ready)
            inheritance.ready = None

    def why_not_ready(self) -> str:
        """Why nobody should send clients here now, in words; ``""``: they should."""
        if self.stage is not Stage.SERVING:
            return "it is about to end"
        for server in self.servers:
            if server._state != "serving":
                return f"{type(server).__name__} is {server._state}"
        return ""

    # Its orders ---------------------------------------------------------------------

    def obey(self, number: int) -> None:
        """Do what a signal orders, in Trio's thread."""
        if self.stage is Stage.OVER:
            return
        if number in ENDING:
            self.end(number)
        elif number == signal.SIGHUP:
            self.reload()
        elif number == signal.SIGUSR2:
            self.hand_over()
        else:
            self.show_tasks()

    def end(self, number: int) -> None:
        """Go one step further towards the end."""
        self._order = self._order or signal.Signals(number).name
        if self.stage is Stage.HANDED_OVER:
            self.stage = Stage.DRAINING  # as it has begun to already
        elif self.is_draining:
            self._cancel(number)
        elif self.stage is Stage.SERVING and self.ready_off:
            self.stage = Stage.LEAVING
            self.notices.leaving(self._order, self.ready_off)
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
        if self._successor is not None:
            self._successor.terminate()
        # In one step, so that all have stopped accepting before any waits.
        for server in self.servers:
            server._note_why(self._order)
            server.shutdown(self.grace)
        self.notices.draining(self._order)
        # By the bounds of the servers, everything is over then.
        ends = max(self.grace_of(server) + server.timeouts.cleanup for server in self.servers)
        if self.supervisor is not None:
            ends += self.supervisor.LONGEST_END
        self.beside.start_soon(self.notices.put_the_end_off, ends, self._what_is_left)

    def _what_is_left(self) -> str:
        left = sum(server.statistics().active for server in self.servers)
        return f"{left} requests are left"

    def _addresses(self) -> tuple[Address, ...]:
        shown = (one for server in self.servers for one in server.snapshot().listeners)
        return tuple(one.address for one in shown)

    def close(self) -> None:
        """End what goes on beside the servers, which have ended; no order is obeyed any more."""
        self.stage = Stage.OVER
        self.beside.cancel_scope.cancel(reason="the servers have ended")

    def _cancel(self, number: int) -> None:
        self.stage, self.cancelled_by = Stage.CANCELLED, number
        self.everything.cancel(reason=f"a second signal: {signal.Signals(number).name}")

    def reload(self) -> None:
        """Have each server that can read its files anew do so; one that fails goes on as it was."""
        if self.stage not in {Stage.SERVING, Stage.LEAVING}:
            return  # nobody comes any more to whom that would make a difference
        if self.supervisor is not None:
            self.beside.start_soon(self._restart, self.supervisor)
            return
        able = [server for server in self.servers if can_reload(server)]
        with self.notices.reloading() as outcome:
            done = sum(reloads(server) for server in able)
            if done < len(able):
                outcome.append(f"the last reload failed for {len(able) - done} of {len(able)}")
        level = logging.INFO if done == len(able) else logging.WARNING
        message = "SIGHUP: reloaded %d of the %d servers that can"
        log_safely(program_log, level, message, done, len(able))

    async def _restart(self, supervisor: Supervisor) -> None:
        """Have each worker be replaced by one that runs the code as it is now."""
        with self.notices.reloading() as outcome:
            if why_not := await supervisor.restart():
                outcome.append(f"the last restart of workers was given up: {why_not}")

    # Handing over -------------------------------------------------------------------

    def hand_over(self) -> None:
        """Start the program anew, to take the place of this one as soon as it is ready."""
        if why_not := self._why_not_hand_over():
            message = "SIGUSR2: this program does not hand over: %s"
            log_safely(error_log, logging.ERROR, message, why_not)
            return
        try:
            self._successor = Successor.start(self._places.named())
        except Exception as error:  # noqa: BLE001  (whatever it is, nothing has changed)
            log_safely(error_log, logging.ERROR, "SIGUSR2: cannot hand over: %s", error)
        else:
            message = "SIGUSR2: process %d is to take the place of this one"
            log_safely(program_log, logging.INFO, message, self._successor.pid)
            self.beside.start_soon(self._hand_over_to, self._successor)

    def _why_not_hand_over(self) -> str:
        if self.stage is not Stage.SERVING:
            return "it is about to end"
        if not self._is_listening:
            return "not all of its servers listen yet"
        if self._successor is not None:
            return "a successor is being started already"
        if os.getpid() == 1:
            return "it is process 1 of a container, which ends with it: replace the container"
        return ""

    async def _hand_over_to(self, successor: Successor) -> None:
        try:
            if not await successor.is_ready(self.start_timeout):
                return
        finally:
            self._successor = None
        if self.stage is Stage.SERVING:
            self.stage = Stage.HANDED_OVER
            self.relay.orders_left = 2  # as of a program without `ready_off`
            self.notices.handed_over(successor.pid)
            for server in self.all_servers:
                if server._state != "unbound":
                    server._give_away(self.grace_of(server))
        else:  # it was told to end in this very step
            successor.terminate()
        successor.let_go()

    # Looking ------------------------------------------------------------------------

    def show_tasks(self) -> None:
        """Log all tasks, and where they wait; so that it is seen where nobody set up a log."""
        log_safely(program_log, logging.WARNING, "SIGUSR1: the tasks are\n%s", whole(self.servers))
        if self.supervisor is not None:
            self.supervisor.show_tasks()
