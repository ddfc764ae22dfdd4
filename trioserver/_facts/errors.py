"""What a handler can meet on its connection, and whose fault it is.

Every exception here is raised by a request itself (the connection or the
datagram a handler was given) and says why the request cannot go on. None of
them is the handler's mistake: let out of a handler, it ends that request with
one INFO record and no traceback. The same exception raised by something else,
another connection say, is an ordinary error of the handler that let it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def lone_errors() -> Iterator[None]:
    """Put around a nursery: take off the group that it wraps around a lone exception.

    Only the nursery's own group, so that a group which somebody raised arrives
    as it was. Cancellations that an error caused among its neighbours are not
    news, and do not count beside it.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        children = group.exceptions
        failures = [child for child in children if not _is_cancellation(child)] or children[:1]
        if len(failures) > 1:
            raise
        alone, context = failures[0], failures[0].__context__
        try:
            raise alone
        finally:
            # Not the group: it is only how the exception came here, and holds it.
            alone.__context__ = context
            del alone, context, failures, children


def _is_cancellation(error: BaseException) -> bool:
    return all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a traceback of ``error`` shows, itself first: its causes and contexts."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        hidden = link.__cause__ is not None or link.__suppress_context__
        link = link.__cause__ if hidden else link.__context__


def shows(error: BaseException, other: BaseException) -> bool:
    """Whether a traceback of ``error`` shows ``other``, too."""
    return any(link is other for link in chain(error))


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside nested groups, in order; ``[error]`` when it is none."""
    found: list[BaseException] = []
    ahead = [error]
    while ahead:  # no recursion, however deep somebody nests them
        one = ahead.pop()
        if isinstance(one, BaseExceptionGroup):
            ahead += reversed(one.exceptions)
        else:
            found.append(one)
    return found
