"""Reading the PROXY header of a connection: its bytes are no input, and no byte more is read."""

from __future__ import annotations

from .._facts.errors import PeerGone
from .._facts.events import LEFT_IN_SILENCE, RequestInfo
from .._facts.proxy import ProxyInfo
from .._sockets.proxy_protocol import missing, parse
from .receiving import Receiver


async def read_proxy_header(receiver: Receiver, info: RequestInfo) -> ProxyInfo:
    """Read the header that the connection begins with.

    Until its first byte, a drain may end the wait, as that for a first request.

    Raises:
      BadHeader: what came is none; says why.
      Draining: the server drains, and nothing had come.
      PeerGone: the peer has left before it was whole.

    Whatever happens, what was read is dropped. Cancelled, the connection can only be closed.
    """
    portion = receiver.portion
    try:
        while left := missing(receiver.buffer):
            receiver.portion = left
            if not await receiver.fill(between_requests=True):
                raise PeerGone("the peer has ended its output", info=info)
        return parse(bytes(receiver.buffer))
    except PeerGone as error:
        if receiver.buffer:
            raise PeerGone("PROXY: the peer left in the middle of a header", info=info) from error
        raise PeerGone(f"PROXY: {LEFT_IN_SILENCE}", info=info) from error
    finally:
        receiver.portion = portion
        receiver.stream.received -= len(receiver.buffer)
        receiver.buffer.clear()
