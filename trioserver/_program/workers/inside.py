"""The life of a worker that has whole servers, from its first line to its last.

It serves them as a program of one process does, does what the program orders, tells it once a
second how its servers are, and at their end how they have ended.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import attrs
import trio

from ..._engine.peers import Peers
from ..._facts.chains import lone_errors
from ..._facts.observers import error_log, log_safely
from ..._facts.verdict import cancellations
from ..._modes.processes.protocol.channel import Channel
from ..._modes.processes.protocol.files import all_of
from ..._modes.processes.protocol.frames import Message, address_to_json, shorten, unpack
from ..._modes.processes.protocol.log import forward_records
from ..._modes.processes.protocol.result import traceback_of
from ..._modes.processes.worker.beginning import begin
from ..._servers.base import BaseServer
from ..._servers.ip_servers import TCPServer
from ..notices import program_log
from ..places import KernelListener
from ..whole import whole
from . import orders, wire
from .giving_way import give_way
from .orders import Order, Queue
from .scoreboard import Scoreboard
from .setup import Setup, servers_from

BETWEEN_NEWS = 1.0
"""Seconds between two times that it tells how its servers are."""

_AT_ONCE = 64
"""Records in a frame, which has a bound (`LONGEST_FROM_WORKER`)."""

T = TypeVar("T")


def main(
    control: socket.socket, lifeline: int, setup: int, parent: int, board: int, *sockets: int
) -> None:
    """Run such a worker.

    Args:
      control: the line to the program.
      lifeline: the descriptor that ends when the program does.
      setup: the descriptor of the file with a `Setup`, packed.
      parent: the process id of the program.
      board: the descriptor of the file for a `Scoreboard`.
      sockets: the descriptors of the listening sockets, in the order of the servers.

    Raises:
      SystemExit: it cannot get ready, or a server has failed; the program was told.
    """
    channel = begin(control, lifeline, parent)
    try:
        _work(channel, unpack(all_of(setup)), board, sockets)
    finally:
        channel.close()  # now, not when the last thread of a handler has ended


def _work(channel: Channel, setup: Setup, board: int, sockets: Sequence[int]) -> None:
    try:
        servers = servers_from(setup, sockets)
        scores = Scoreboard(board, len(setup.parts), setup.places)
        os.close(board)
        shift = Shift(channel, servers, _peers(servers, scores, setup.place))
        shift.suspended = {it for it in servers if setup.parts[it].is_suspended}
        forward_records(channel, setup.levels, with_requests=True)
    except BaseException as error:  # noqa: BLE001  (the program is told, and says it)
        channel.say(Message.NOT_READY, why=shorten(traceback_of(error)))
        raise SystemExit(1) from None
    try:
        trio.run(shift.serve)
    except BaseException as error:  # noqa: BLE001  (as above)
        shift.tell_failure(error)
        raise SystemExit(1) from None


def _peers(servers: Mapping[int, BaseServer], scores: Scoreboard, place: int) -> dict[int, Peers]:
    """What each server that has connections is to see of the other workers."""
    peers = {}
    for number, server in servers.items():
        if getattr(server, "socket_type", None) == socket.SOCK_STREAM:
            server._peers = peers[number] = scores.peers(number, place)
    return peers


@attrs.define(eq=False)
class Shift:
    """A worker's work.

    Attributes:
      suspended: the servers that accept nobody, from the beginning on.
      is_ready: whether its servers have let clients in.
    """

    _channel: Channel
    _servers: Mapping[int, BaseServer]
    _peers: Mapping[int, Peers]
    suspended: set[int] = attrs.field(factory=set)
    is_ready: bool = False
    _serving: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _has_failed: bool = False
    _left_out: set[int] = attrs.field(factory=set)  # which are somebody else's before they serve

    async def serve(self) -> None:
        """Serve until all servers have ended.

        Raises:
          BaseException: what a server has failed with, bare.
        """
        give_way()
        with lone_errors():
            async with trio.open_nursery() as beside:
                beside.start_soon(self._obey_all)
                with self._serving:
                    async with trio.open_nursery() as nursery:
                        for number in self._servers:
                            await nursery.start(self._serve_one, number)
                        self._get_ready()
                        beside.start_soon(self._tell_regularly)
                beside.cancel_scope.cancel(reason="the servers have ended")

    async def _serve_one(self, number: int, *, task_status: trio.TaskStatus[BaseServer]) -> None:
        server = self._servers[number]
        try:
            async with server:
                if server._left:
                    raise RuntimeError(
                        f"{type(server).__name__}.server_bind does not use the sockets that the"
                        " program has bound for its workers: have it call super().server_bind()"
                    )
                if number in self.suspended:
                    server.suspend()
                if number in self._left_out:
                    server._give_away(0.0)
                await server.serve_forever(task_status=task_status)
        except BaseException as error:
            if not cancellations(error):
                self.tell_failure(error)  # before its end, which is nobody's order then
            raise
        finally:
            self._tell_end(number, server)

    def _get_ready(self) -> None:
        for number, peers in self._peers.items():
            if number not in self.suspended:
                peers.come(0)
        self.is_ready = True
        self._tell()
        self._channel.say(Message.READY)

    # What it is ordered to do -----------------------------------------------------

    async def _obey_all(self) -> None:
        while (heard := await self._channel.listen_in_trio()) is not None:
            self._obey(unpack(heard[1]))
        self._serving.cancel(reason="the program has let go of its worker")

    def _obey(self, order: Order) -> None:
        match order:
            case orders.Cancel(reason):
                self._serving.cancel(reason=reason)
            case orders.ShowTasks():
                message = "SIGUSR1: the tasks of worker process %d are\n%s"
                log_safely(
                    program_log,
                    logging.WARNING,
                    message,
                    os.getpid(),
                    whole([*self._servers.values()]),
                )
            case _ if self._servers[order.server]._run is None:
                self._note(order)
            case orders.Drain():
                self._drain(order)
            case orders.Suspend(number):
                self._servers[number].suspend()
            case orders.Resume(number):
                self._servers[number].resume()
            case orders.Reload(number):
                self._reload(self._servers[number])

    def _note(self, order: Order) -> None:
        """Note an order for a server that is not bound yet, or has ended."""
        match order:
            case orders.Drain(number, seconds, Queue.STAYS):
                self._left_out.add(number)
            case orders.Drain(number, seconds):
                self._servers[number]._stop_next_run(seconds)
            case orders.Suspend(number):
                self.suspended.add(number)
            case orders.Resume(number):
                self.suspended.discard(number)

    def _drain(self, order: orders.Drain) -> None:
        server, run = self._servers[order.server], self._servers[order.server]._bound_run()
        server._note_why(order.reason)
        if order.server in self._peers:
            self._peers[order.server].leave()
        if order.queue is Queue.STAYS and not run.drain.began:
            server._give_away(order.seconds)
            return
        if order.queue is Queue.EVERYBODY_TAKES:
            for listener in cast("Iterable[KernelListener]", run.listeners):
                listener.is_kept = True
        server.shutdown(order.seconds)

    def _reload(self, server: BaseServer) -> None:
        try:
            cast("TCPServer", server).reload()
        except Exception as error:  # noqa: BLE001  (a file's, or the program's own)
            message = "%s could not reload in a worker, and goes on as it was"
            log_safely(error_log, logging.ERROR, message, type(server).__name__, exc_info=error)

    # What it tells ------------------------------------------------------------------

    async def _tell_regularly(self) -> None:
        while True:
            await trio.sleep(BETWEEN_NEWS)
            self._tell()

    def _tell(self) -> None:
        now = trio.current_time()
        for number, server in self._servers.items():
            facts = wire.snapshot_facts(server.snapshot(), now)
            self._channel.say(Message.TOLD, server=number, **facts)

    def tell_failure(self, error: BaseException) -> None:
        """Tell why this worker ends, though nobody has ordered that; the first reason counts."""
        if not self._has_failed:
            self._has_failed = True
            kind = Message.FAILED if self.is_ready else Message.NOT_READY
            self._channel.say(kind, why=shorten(traceback_of(error)))

    def _tell_end(self, number: int, server: BaseServer) -> None:
        report = server._report
        if report is None:  # it was never bound
            return
        now = trio.current_time()
        for records in _portions(report.requests):
            facts = [wire.record_facts(record, now) for record in records]
            self._channel.say(Message.RECORDS, server=number, records=facts)
        for clients in _portions(report.unaccepted):
            addresses = list(map(address_to_json, clients))
            self._channel.say(Message.RECORDS, server=number, unaccepted=addresses)
        self._channel.say(Message.ENDED, server=number, **wire.report_facts(report))


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(values), _AT_ONCE):
        yield values[first : first + _AT_ONCE]
