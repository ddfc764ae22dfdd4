"""Datagrams that a plain function answers, in the task that receives them.

What that saves is a task, its scope, and all that a handler could ask of a `Datagram`: half of
the time. So there is no time-out, and nothing to cancel; such a function must not wait. What does
not go that way, an error, or a reply for which there is no room yet, is left to a task, as of any
other request. How many are answered before other tasks run is the accept loop's to say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import attrs
from trio.lowlevel import disable_ki_protection

from .._facts.address import Address
from .._facts.events import RequestInfo, enter_request
from .._requests.datagram import Datagram, ReplyFunction, checked_reply
from .._requests.datagram_socket import no_way_back
from .._sockets.transport import Data, DatagramTransport, Listener
from .accept_errors import next_client
from .acceptor import Acceptor
from .registry import RequestRegistry
from .request_task import Process, RequestTask


class CallsInContext(Protocol):
    """Calls a function in the context of the server's requests."""

    def __call__(self, function: Callable[..., Any], *arguments: object) -> Any: ...


@attrs.define(eq=False)
class Answerer:
    """Receives datagrams one by one, and answers them.

    Args:
      function: called with the data, the client's address and the server.
      server: that server.
      registry: counts them.
      acceptor: makes the tasks of those that cannot be answered at once.
      call: calls the function, so that none sees what another one has set.
    """

    _function: ReplyFunction
    _server: object
    _registry: RequestRegistry
    _acceptor: Acceptor
    _call: CallsInContext

    def next_task(self, listener: Listener) -> tuple[bool, RequestTask | None]:
        """Whether a datagram was there; and the task of one that is not answered yet.

        Raises:
          OSError: as `Acceptor.next_task` does.
        """
        accepted = next_client(listener)
        if accepted is None:
            return False, None
        transport, client_address = cast("tuple[DatagramTransport, Address]", accepted)
        info = self._acceptor.info_of(client_address, transport.local_address)
        self._registry.audience.tell("request_started", info)
        rest = self._rest_of(transport, info)
        task = None if rest is None else self._acceptor.task_of_rest(transport, info, rest)
        return True, task

    def _rest_of(self, transport: DatagramTransport, info: RequestInfo) -> Process | None:
        """Answer a datagram; what is left to do, if that cannot be done at once."""
        try:
            reply = checked_reply(self._call(self._ask, info, transport.data))
        except BaseException as error:  # noqa: BLE001  (raised by its task, whatever it is)
            return partial(_raise, error)
        if reply is not None and not _is_sent(transport, reply, info.client_address):
            return partial(_send, reply)
        self._registry.answered(info, len(transport.data), len(reply or b""))
        transport.close()
        return None

    @disable_ki_protection
    def _ask(self, info: RequestInfo, data: bytes) -> object:
        enter_request(info)
        return self._function(data, info.client_address, self._server)


def _is_sent(transport: DatagramTransport, reply: Data, address: Address) -> bool:
    """Send it now, if that can be done; an error is met again, and told, by who tries again."""
    try:
        return no_way_back(address) is None and transport.send_now(reply, address)
    except OSError:
        return False


async def _raise(error: BaseException, _request: Datagram, _client_address: Address) -> None:
    raise error


async def _send(reply: Data, request: Datagram, _client_address: Address) -> None:
    await request.reply(reply)
