"""A worker's way to send datagrams: its server does, from the address that was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .._errors import PeerGone, RequestEnded, WriteTimeout
from .._events import RequestInfo
from .._transport import Data
from .wire import Say, address_to_json, pack, unpack

if TYPE_CHECKING:  # for workers, and so for POSIX
    from .channel import Channel

_RAISED: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (PeerGone, WriteTimeout, OSError, TimeoutError, trio.ClosedResourceError)
}


class Replies:
    """Sends datagrams for one request, one at a time."""

    def __init__(self, channel: Channel, info: RequestInfo) -> None:
        self._channel = channel
        self._info = info

    def send(self, data: Data, address: Any) -> int:
        """Have one sent; waits for it. See `DatagramSocket.sendto`."""
        with memoryview(data).cast("B") as view:
            payload = bytes(view)
        self._channel.say(Say.REPLY, payload, to=address_to_json(address))
        while (heard := self._channel.listen()) is not None:
            kind, body = heard
            if kind is Say.SENT:
                self._raise(unpack(body))
                return len(payload)
        raise SystemExit("the server is gone")

    def _raise(self, error: tuple[str, tuple[Any, ...]] | None) -> None:
        if error is None:
            return
        name, arguments = error
        kind = _RAISED.get(name, OSError)
        if issubclass(kind, RequestEnded):
            raise kind(*arguments, info=self._info)
        raise kind(*arguments)


def as_answer(error: Exception | None) -> bytes:
    """The body of `Say.SENT`: what the sending has raised, if anything."""
    if error is None:
        return pack(None)
    kind = next((name for name, cls in _RAISED.items() if type(error) is cls), "OSError")
    return pack((kind, error.args))
