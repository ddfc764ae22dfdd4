"""What a handler can meet on its connection, and whose fault it is.

Every exception here is raised by a request itself (the connection or the
datagram a handler was given) and says why the request cannot go on. None of
them is the handler's mistake: let out of a handler, it ends that request with
one INFO record and no traceback. The same exception raised by something else,
another connection say, is an ordinary error of the handler that let it out.
"""

from __future__ import annotations

import trio


class RequestEnded(Exception):
    """The request cannot go on, and its handler is not to blame.

    The common base of everything in this module; catch it to clean up after
    "the client went away, was too slow, or sent too much" in one place.

    Attributes:
      info: the `RequestInfo` of the request that raised it.
    """

    info: object

    def __init__(self, message: str, *, info: object = None) -> None:
        super().__init__(message)
        self.info = info


class IdleTimeout(RequestEnded, TimeoutError):
    """The peer kept a read waiting for too long.

    Raised when ``Timeouts.idle`` seconds passed without a byte, or when a line
    or delimited read was not complete ``Timeouts.line`` seconds after its
    first byte. What had arrived stays in the buffer: a handler that catches
    this can go on reading, or say goodbye and return.
    """


class WriteTimeout(RequestEnded, TimeoutError):
    """The peer took no byte for ``Timeouts.write`` seconds while a send waited.

    An unknown part of the data is on its way, so the connection can only be
    closed: every later send raises this again.
    """


class PeerGone(RequestEnded, trio.BrokenResourceError, ConnectionError):
    """The peer reset the connection, or closed it while we were sending.

    Every later send raises this again. The kernel's own error is its
    ``__cause__``.
    """


class HandshakeFailed(RequestEnded, trio.BrokenResourceError, ConnectionError):
    """The peer has not agreed on TLS: it speaks none, say, or has the wrong certificate.

    Nothing is sent or received any more. OpenSSL's own error (`ssl.SSLError`), where it has one,
    is the ``__cause__``.
    """


class IncompleteRead(RequestEnded, EOFError):
    """The peer ended its sending side in the middle of what a read asked for.

    Attributes:
      partial: the bytes that did arrive; they are taken from the buffer.
    """

    partial: bytes

    def __init__(self, message: str, *, partial: bytes, info: object = None) -> None:
        super().__init__(message, info=info)
        self.partial = partial


class LimitExceeded(RequestEnded, ValueError):
    """The peer sent more than ``Limits.line`` or ``Limits.read`` allows.

    Nothing is lost: the bytes that arrived are still in the buffer, and a read
    with an explicit size gets them.
    """


class Draining(RequestEnded):
    """The server drains, and this wait was between requests.

    Raised inside ``with request.idle():`` and by a read that waits for the
    first byte of a connection. A handler that lets it out has ended properly;
    one that wants to say goodbye catches it, writes, and returns.
    """
