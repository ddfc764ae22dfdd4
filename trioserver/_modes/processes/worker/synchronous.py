"""A request in a worker, for a synchronous handler: constructing it handles the request."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

from ...._facts.events import enter_request
from ...._facts.verdict import as_errors, peers_doing
from ...._sockets.making import socket_of
from ...threads.blocking_socket import BlockingSocket
from ...threads.handlers import SyncDatagramSocket, handle
from ...threads.loan import Loan, LoanTerms
from ..protocol.channel import Channel
from ..protocol.frames import Message, shorten
from ..protocol.replies import Replies
from ..protocol.result import Result
from ..protocol.status import IDLE, READING, RECEIVED, SENT, STATE, WORKING, WRITING, SharedStatus
from ..protocol.task import ConnectionTask, DatagramTask, WorkerTask

T = TypeVar("T")


def serve(server: Any, task: WorkerTask, channel: Channel, shared_status: SharedStatus) -> None:
    """Handle one request, to its end, and tell the server how it went."""
    enter_request(task.info)
    if isinstance(task, DatagramTask):
        shared_status.begin(task.info.id)
        _tell(channel, _serve_datagram(server, task, channel))
        return
    shared_status.begin(task.info.id, task.stream.received, task.stream.sent)
    with _Owner(channel.take_descriptor()) as owner:
        result = _serve_connection(server, task, channel, shared_status, owner)
        ends_output = task.ends_output and result.is_orderly
        if not ends_output:
            owner.close()
        _tell(channel, result)
        # Not before that: a client that comes again at once finds this worker free.
        if ends_output:
            owner.end_output(task.kind)


def _tell(channel: Channel, result: Result) -> None:
    if channel.is_closed:  # this is a child that the handler has forked
        raise SystemExit(0)
    channel.say(Message.DONE, **result.as_facts())


def _serve_datagram(server: Any, task: DatagramTask, channel: Channel) -> Result:
    result = Result()
    replies = Replies(channel, task.info)
    way_back = SyncDatagramSocket(replies.send, task.info)
    try:
        handle(server.RequestHandlerClass, (task.data, way_back), task.client_address, server)
    except (Exception, GeneratorExit) as error:  # noqa: BLE001  (the server is told)
        _judge(result, error, task)
    finally:
        replies.close()
    return result


def _serve_connection(
    server: Any,
    task: ConnectionTask,
    channel: Channel,
    shared_status: SharedStatus,
    owner: _Owner,
) -> Result:
    stream = task.stream
    result = Result(stream=stream)
    terms = LoanTerms(
        info=task.info,
        drain=_DrainOnPage(shared_status, channel),
        new_until=task.new_until,
        ends_idle=task.ends_idle,
        idle=task.idle,
        write=task.write,
        hand_over=owner.hand_over,
    )
    sock = SeenSocket.of(task.kind, owner.number, Loan(terms, stream))
    sock.show_on(shared_status)
    try:
        handler = server.RequestHandlerClass
        work = partial(handle, handler, sock, task.client_address, server)
        sock.call(work, may_close_number=True)
    except (Exception, GeneratorExit) as error:  # noqa: BLE001  (the server is told)
        _judge(result, error, task)
    finally:
        if sock.is_lost():
            owner.detach()  # it may be a file's by now that the handler has opened
        sock.end()
    return result


class _Owner:
    """Keeps the descriptor of a request open in its block, and closes it after that.

    Attributes:
      number: the descriptor; -1 once it is not this owner's any more.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def detach(self) -> None:
        """Forget the descriptor: it is not this owner's to close any more."""
        self.number = -1

    def hand_over(self, loan: Loan) -> None:
        """Leave the descriptor to the handler, which detaches it."""
        self.detach()
        loan.note_detached()

    def end_output(self, kind: tuple[int, int, int]) -> None:
        """Tell the client that nothing more comes, and close, unless it is another's by now."""
        number, self.number = self.number, -1
        if number == -1:
            return
        with suppress(OSError), socket_of(kind, number) as last:
            last.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the descriptor, unless it is another's by now. Twice is once."""
        number, self.number = self.number, -1
        if number != -1:
            with suppress(OSError):  # the handler has made a file of it, which has closed it
                os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _judge(result: Result, error: BaseException, task: WorkerTask) -> None:
    theirs = peers_doing(error, task.info)
    if theirs is None:
        result.note_error(as_errors(error))
    else:
        outcome, reason = theirs
        result.outcome, result.reason = outcome.value, shorten(reason)


class _DrainOnPage:
    """Whether the server drains, as a worker learns it.

    The server writes it in the shared status, and then says it by the line, too. It says
    nothing else during the request of a connection.
    """

    def __init__(self, shared_status: SharedStatus, channel: Channel) -> None:
        self._shared_status = shared_status
        self.wakeup = channel

    @property
    def began(self) -> bool:
        """Whether the drain has begun; never for a child that the handler has forked."""
        return self._shared_status.drains and not self.wakeup.is_closed


class SeenSocket(BlockingSocket):
    """A blocking socket whose use the server can look at."""

    __slots__ = ("_afterwards", "_cells")

    # No other thread wants the interpreter. And to see that nothing drains, and then wait
    # for what is there, took longer than all else that a short request needs.
    _tries_always = True
    _cells: memoryview
    _afterwards: int

    def show_on(self, shared_status: SharedStatus) -> None:
        """Tell ``shared_status`` of every operation from now on."""
        self._cells, self._afterwards = shared_status.cells, WORKING

    def end(self) -> int:
        """As `BlockingSocket.end`. A thread that still waits in it tells nothing any more."""
        self._cells = _UNSEEN  # those that it had are of the next request by then
        return super().end()

    def as_one_write(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same, seen: its worker may be killed between two pieces."""
        self._afterwards = WRITING
        try:
            return super().as_one_write(function, *arguments)
        finally:
            self._cells[STATE] = self._afterwards = WORKING

    def _receive(self, *arguments: Any) -> Any:
        loan = self._loan
        if self._afterwards != WRITING:  # else another thread is in the middle of a write
            self._cells[STATE] = IDLE if loan.is_between_requests() else READING
        try:
            return super()._receive(*arguments)
        finally:
            cells = self._cells  # by now perhaps others
            cells[RECEIVED] = loan.stream.received
            cells[STATE] = self._afterwards

    def _write(self, *arguments: Any, **options: Any) -> int:
        self._cells[STATE] = WRITING
        try:
            return super()._write(*arguments, **options)
        finally:
            cells = self._cells
            cells[SENT] = self._loan.stream.sent
            cells[STATE] = self._afterwards


_UNSEEN = SharedStatus(-1).cells
