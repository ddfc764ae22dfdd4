"""How a worker sends datagrams: its server sends them, from the address that was asked."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import trio

from ...._facts.errors import PeerGone, RequestEnded, WriteTimeout
from ...._facts.events import RequestInfo
from ...._sockets.transport import Data
from .frames import LARGEST_DATAGRAM, Message, address_to_json, pack, unpack

if TYPE_CHECKING:  # for workers, and so for POSIX
    from .channel import Channel

_RAISED: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        *(PeerGone, WriteTimeout, OSError, TimeoutError, trio.ClosedResourceError),
        *(TypeError, ValueError, OverflowError),  # of an address that is none
    )
}


class Replies:
    """Sends datagrams for one request, one at a time, from any thread."""

    def __init__(self, channel: Channel, info: RequestInfo) -> None:
        self._channel = channel
        self._info = info
        self._lock = threading.Lock()
        self._unanswered = 0
        self._is_over = False

    def send(self, data: Data, address: Any) -> int:
        """Have the server send one datagram, and wait for that. See `DatagramSocket.sendto`."""
        with memoryview(data).cast("B") as view:
            payload = bytes(view)
        if len(payload) > LARGEST_DATAGRAM:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        to = address_to_json(address)
        with self._lock:
            if self._is_over:
                raise trio.ClosedResourceError("the request is over, and its way back is closed")
            self._hear_out()
            self._channel.say(Message.REPLY, payload, to=to)
            self._unanswered += 1
            self._raise(self._hear_out())
        return len(payload)

    def close(self) -> None:
        """Send no more, and wait until a datagram of another thread is on its way.

        What comes by the line then is the next request: a thread that went on listening
        would take it.
        """
        with self._lock:
            self._is_over = True
            self._hear_out()

    def _hear_out(self) -> Any:
        """The server's last answer, and those before it to which no one has listened.

        A signal handler may have raised in the wait for one of them.
        """
        answer = None
        while self._unanswered:
            heard = self._channel.listen()
            if heard is None:
                raise SystemExit("the server is gone")
            kind, body = heard
            if kind is Message.SENT:
                self._unanswered -= 1
                answer = unpack(body)
        return answer

    def _raise(self, error: tuple[str, tuple[Any, ...]] | None) -> None:
        if error is None:
            return
        name, arguments = error
        kind = _RAISED.get(name, OSError)
        if issubclass(kind, RequestEnded):
            raise kind(*arguments, info=self._info)
        raise kind(*arguments)


def as_answer(error: Exception | None) -> bytes:
    """The body of `Message.SENT`: what the sending has raised, if anything."""
    if error is None:
        return pack(None)
    kind = next((name for name, cls in _RAISED.items() if type(error) is cls), "OSError")
    return pack((kind, error.args))
