"""Admission control: which clients become requests, are refused, or wait.

The accept loops ask it whether there is room, and it decides what becomes of those that the
acceptor has. In a drain it is the waiting room for clients that the kernel had accepted already.

A client is a connection, or the sender of one datagram: a request. From the
accept until its task owns it nothing here waits.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

import attrs

from .._facts.address import Address, client_key
from .._facts.observers import error_log, log_safely
from .._requests.drain import Drain
from .._sockets.binding import most_queued
from .._sockets.transport import Listener
from .accept_errors import ReserveDescriptor, Tier, tier_of
from .acceptor import Acceptor
from .answering import Answerer
from .hooks import ServerHooks
from .peers import Peers, slots_of
from .registry import RequestRegistry
from .request_task import RequestEvents, RequestTask
from .slots import Slots

TOO_MANY = "too many of this client (per_client)"


class Takes(enum.Enum):
    """How many requests may still begin."""

    ALL = "as many as come: serve_forever"
    ONE = "one: handle_request"
    NOBODY = "none: handle_request has its one"


@attrs.define(eq=False)
class Admission:
    """Lets clients in, as long as there is room.

    Attributes:
      waiting: clients accepted by the drain and not yet started.
      takes: how many requests may still begin.
      reserve: the descriptor for the time when there are no others.
      slots: how many of them may be served at once.
    """

    _server: ServerHooks
    _events: RequestEvents
    _registry: RequestRegistry
    _drain: Drain
    _acceptor: Acceptor
    _answerer: Answerer | None
    _spawn: Callable[[RequestTask], None]
    waiting: deque[RequestTask] = attrs.field(factory=deque)
    takes: Takes = Takes.ALL
    reserve: ReserveDescriptor = attrs.field(factory=ReserveDescriptor)
    slots: Slots = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        server = self._server
        self.slots = slots_of(server.limits, server._most_requests(), server._peers)

    # For the accept loops ----------------------------------------------------

    @property
    def peers(self) -> Peers | None:
        """Others that accept from the same listeners; None: nobody does."""
        return self._server._peers

    def is_open(self) -> bool:
        """Whether clients are still let in."""
        return not self._drain.began and self.takes is not Takes.NOBODY

    @property
    def takes_all(self) -> bool:
        """Whether as many requests are taken as come, not just ``handle_request``'s one."""
        return self.takes is Takes.ALL

    @property
    def is_done(self) -> bool:
        """Whether ``handle_request`` has its request."""
        return self.takes is Takes.NOBODY

    def take_nobody(self) -> None:
        """Let in no more clients, except those that a drain takes in."""
        self.takes = Takes.NOBODY

    @property
    def answers_at_once(self) -> bool:
        """Whether datagrams are answered without tasks."""
        return self._answerer is not None and self.takes_all

    def has_room(self) -> bool:
        """Whether one more client may be accepted now, be it to turn it away."""
        return self.slots.has_room()

    async def wait_for_room(self) -> None:
        """Wait until one more client may be accepted. No checkpoint if it may be now."""
        await self.slots.wait_for_room()

    def admit(self, listener: Listener) -> bool:
        """Accept one client and start its task; false when none is there."""
        answerer = self._answerer if self.answers_at_once else None
        somebody, task = (answerer or self._acceptor).next_task(listener)
        if task is not None:
            self._let_in(task)
        return somebody

    def shed(self, listener: Listener) -> bool:
        """Accept one client and turn it away; false when none is there."""
        somebody, task = self._acceptor.next_in_row(listener)
        if task is not None:
            self._refuse(task, "out of descriptors")
        return somebody

    def accept_failed(self, address: Address, error: OSError) -> None:
        """Count an error of an accept on ``address``, and tell observers."""
        self._registry.accept_failed(address, error)

    # What becomes of it -------------------------------------------------------

    def _let_in(self, task: RequestTask) -> None:
        if self._drain.began:
            self.waiting.append(task)
            self.start_waiting()
        elif task.client_key is not None and self.slots.is_full_for(task.client_key):
            self._refuse(task, TOO_MANY)
        elif self.slots.free:
            self._start(task)
        else:
            self._turn_away(task)

    def _turn_away(self, task: RequestTask) -> None:
        when_full = self._server.limits.when_full
        if callable(when_full) and self.slots.may_turn_away():
            self.slots.turning_away += 1
            task.rejection = when_full
            self._spawn(task)
        else:
            self._refuse(task, "the server is full (requests)")

    def _start(self, task: RequestTask) -> None:
        self.slots.take(task.client_key)
        if self.takes is Takes.ONE:
            self.take_nobody()
        self._spawn(task)

    def _refuse(self, task: RequestTask, reason: str) -> None:
        task.request.reset()
        self._registry.refused(task.client_address, reason)

    def count_client(self, task: RequestTask) -> bool:
        """Count a client that has its slot already; false if it has as many as it may."""
        if self._server.limits.per_client is None:
            return True
        by_proxy = task.info.proxy is not None and task.info.proxy.source is not None
        user_id = None if by_proxy else task.request.user_id()  # else it is the proxy's
        client = client_key(task.client_address, user_id)
        if self.slots.is_full_for(client):
            return False
        self.slots.count(client)
        task.client_key = client
        return True

    def leave(self, task: RequestTask) -> None:
        """Free the place of a request whose outcome is decided, and start a waiting client."""
        if task.rejection is None:
            self.slots.give_back(task.client_key)
        else:
            self.slots.turned_away()
        if self.waiting:
            self.start_waiting()

    # The waiting room -----------------------------------------------------------

    def take_in_queue(self, listener: Listener) -> None:
        """Accept what the kernel has completed, until the waiting room is full; reset the rest.

        It raises nothing: the code that began the drain is not to blame.
        """
        try:
            self._take_in(listener)
        except Exception as error:  # noqa: BLE001  (a get_request's)
            message = "could not accept the clients that were waiting when the drain began"
            log_safely(error_log, logging.ERROR, message, exc_info=error)
        except BaseException as error:  # noqa: BLE001  (on_exit has it raised)
            self._events.on_exit(error)

    def _take_in(self, listener: Listener) -> None:
        most = self._server._waiting_room() + self.slots.free  # these do not have to wait
        for _ in range(most_queued(listener)):
            try:
                somebody, task = self._acceptor.next_in_row(listener, in_drain=True)
            except OSError as error:
                self.accept_failed(listener.address, error)
                if tier_of(error) is Tier.FATAL:
                    raise
                self.reserve.release_for(partial(self._turn_queue_away, listener))
                return
            if not somebody:
                return
            if task is not None:
                self.waiting.append(task)
            if len(self.waiting) > most:
                self._leave_unserved(self.waiting.pop())

    def _turn_queue_away(self, listener: Listener) -> None:
        for _ in range(most_queued(listener)):
            somebody, task = self._acceptor.next_in_row(listener, in_drain=True)
            if not somebody:
                return
            if task is not None:
                self._leave_unserved(task)

    def start_waiting(self) -> None:
        """Start the requests in the waiting room, as far as there are slots."""
        while self.waiting and self.slots.free:
            task = self.waiting.popleft()
            if self.slots.is_full_for(task.client_key):
                self._leave_unserved(task)
            else:
                self._start(task)

    def empty_waiting_room(self) -> None:
        """Turn away the clients that are still waiting."""
        while self.waiting:
            self._leave_unserved(self.waiting.popleft())

    def _leave_unserved(self, task: RequestTask) -> None:
        task.request.reset()
        self._registry.unaccepted(task.client_address)
