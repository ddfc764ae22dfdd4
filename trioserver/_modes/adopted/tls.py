"""TLS of foreign servers: their sockets agree on it, in a thread, and say why they could not."""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from ..._facts.errors import HandshakeFailed, IdleTimeout, PeerGone
from ..._sockets.tls_errors import in_words

T = TypeVar("T")


def over_tls(request: Any, function: Callable[[], T]) -> T:
    """Call ``function``; what its TLS socket raises because the peer has left is told as that."""
    try:
        return function()
    except (ConnectionError, ssl.SSLEOFError) as error:
        if not is_raised_by(error, request._transport.theirs):
            raise  # some other connection's
        message = f"the peer is gone: {error.strerror or error}"
        raise PeerGone(message, info=request.info) from error


def is_raised_by(error: BaseException, sock: socket.socket) -> bool:
    """Whether it comes out of a method of ``sock``: the innermost frame is one of its own."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_locals.get("self") is sock


def shake_hands(request: Any, *, owed: bool) -> None:
    """Agree on TLS, within the bound for it.

    Args:
      owed: whether the accept would have done that. If not, their own methods do, and are
        to find out by themselves that it fails: they may have something to clean up.
    """
    transport = request._transport
    transport.needs_handshake = False
    try:
        transport.theirs.do_handshake()
    except OSError as error:  # ssl.SSLError is one
        if not owed:
            return
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise HandshakeFailed(f"TLS: {in_words(error)}", info=request.info) from error
        if isinstance(error, TimeoutError) and error.errno is None:
            message = "TLS: no handshake within the time-out of get_request's socket"
            raise IdleTimeout(message, info=request.info) from error
        raise PeerGone("TLS: the peer left during the handshake", info=request.info) from error
