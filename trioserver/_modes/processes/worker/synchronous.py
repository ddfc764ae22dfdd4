"""A request in a worker, for a synchronous handler: constructing it handles the request."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar, cast

import attrs

from ...._facts.events import enter_request
from ...._sockets.making import Kind, socket_of
from ...._sockets.tls_records import TLSRecords
from ...threads.handlers import SyncDatagramSocket, handle
from ...threads.loan import Loan, LoanTerms
from ..protocol.channel import Channel
from ..protocol.frames import Message
from ..protocol.replies import Replies
from ..protocol.result import Result
from ..protocol.status import SharedStatus
from ..protocol.task import ArrivalTask, ConnectionTask, DatagramTask, unpack_task
from .contexts import Contexts
from .seen_socket import SeenSocket, SeenTLSSocket

T = TypeVar("T")


@attrs.define(eq=False)
class Requests:
    """The requests of one worker, one after the other."""

    _server: Any
    _channel: Channel
    _shared_status: SharedStatus
    _contexts: Contexts
    _arrived: _Arrived | None = None

    def take_up(self, kind: Message, body: bytes) -> None:
        """Do what the server says, to its end, and tell the server how it went."""
        arrived, self._arrived = self._arrived, None
        if kind is Message.FORGET:
            if arrived is not None:
                self._end(arrived)
            return
        task = unpack_task(kind, body)
        enter_request(task.info)
        if kind is Message.ARRIVAL:
            self._arrived = self._arrive(task)
        elif kind is Message.DATAGRAM:
            self._shared_status.begin(task.info.id)
            _tell(self._channel, _serve_datagram(self._server, task, self._channel))
        else:
            _serve(self._server, task, self._channel, self._shared_status, arrived)

    def _arrive(self, task: ArrivalTask) -> _Arrived | None:
        """Agree on TLS with a client; None if that fails, of which the server was told."""
        self._shared_status.begin(task.info.id, tls=True)
        owner = _Owner(self._channel.take_descriptor())
        result = Result()
        try:
            records = TLSRecords(self._contexts.of(task.as_of))
            records.feed(task.ciphertext)
            terms = LoanTerms(
                info=task.info,
                drain=_DrainOnPage(self._shared_status, self._channel),
                new_until=task.new_until,
                handshake=max(0, task.until - time.monotonic()),
            )
            loan = Loan(terms, result.stream, records=records)
            sock = self._tls_socket(task.kind, owner.number, loan)
            try:
                sock.call(sock.shake_hands)
            finally:
                sock.end()
        except (Exception, GeneratorExit) as error:  # noqa: BLE001  (the server is told)
            result.judge(error, task.info)
            owner.close()
            _tell(self._channel, result)
            return None
        self._channel.say(Message.ARRIVED)
        return _Arrived(task, owner, records)

    def _tls_socket(self, kind: Kind, number: int, loan: Loan) -> SeenTLSSocket:
        sock = SeenSocket.of(kind, number, loan)  # which is one by TLS, as the loan is
        sock.show_on(self._shared_status)
        return cast("SeenTLSSocket", sock)

    def _end(self, arrived: _Arrived) -> None:
        """End a connection in order that nobody is going to serve."""
        terms = LoanTerms(arrived.task.info, _DrainOnPage(self._shared_status, self._channel))
        with arrived.owner as owner:
            loan = Loan(terms, records=arrived.records)
            sock = self._tls_socket(arrived.task.kind, owner.number, loan)
            sock.say_goodbye(self._server.timeouts.linger)
            sock.end()
        _tell(self._channel, Result(stream=loan.stream))


@attrs.frozen(eq=False)
class _Arrived:
    """A connection with whose client TLS is agreed on, and that has no handler yet."""

    task: ArrivalTask
    owner: _Owner
    records: TLSRecords


def _serve(
    server: Any,
    task: ConnectionTask,
    channel: Channel,
    shared_status: SharedStatus,
    arrived: _Arrived | None,
) -> None:
    """Handle the request of one connection."""
    records = None if arrived is None else arrived.records
    stream, by_tls = task.stream, arrived is not None
    shared_status.begin(task.info.id, stream.received, stream.sent, tls=by_tls)
    with _Owner(channel.take_descriptor()) if arrived is None else arrived.owner as owner:
        result = _serve_connection(server, task, channel, shared_status, owner, records)
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
        result.judge(error, task.info)
    finally:
        replies.close()
    return result


def _serve_connection(
    server: Any,
    task: ConnectionTask,
    channel: Channel,
    shared_status: SharedStatus,
    owner: _Owner,
    records: TLSRecords | None,
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
        handshake=server.timeouts.handshake,
        hand_over=owner.hand_over,
    )
    sock = SeenSocket.of(task.kind, owner.number, Loan(terms, stream, records=records))
    sock.show_on(shared_status)
    try:
        handler = server.RequestHandlerClass
        work = partial(handle, handler, sock, task.client_address, server)
        sock.call(work, may_close_number=True)
    except (Exception, GeneratorExit) as error:  # noqa: BLE001  (the server is told)
        result.judge(error, task.info)
    finally:
        if sock.is_lost():
            owner.detach()  # it may be a file's by now that the handler has opened
        elif isinstance(sock, SeenTLSSocket):  # here, as the server knows nothing of the TLS
            if sock._number() == -1 and owner.number != -1:  # closed, and its end may wait for room
                sock = SeenSocket.of(task.kind, owner.number, sock._loan)
                sock.show_on(shared_status)
            cast("SeenTLSSocket", sock).say_goodbye(server.timeouts.linger)
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
