"""Whose fault an exception is: what it says of the request that it ended.

Pure functions of the exception. A handler may raise a group, and a group may
hold what the peer did, what the handler did and what was done to it, all at
once.
"""

from __future__ import annotations

import socketserver
from traceback import walk_tb

import trio

from .address import printable
from .chains import leaves
from .errors import (
    Draining,
    HandshakeFailed,
    IdleTimeout,
    IncompleteRead,
    LimitExceeded,
    PeerGone,
    RequestEnded,
    WriteTimeout,
)
from .events import Outcome, RequestInfo, same_request

# What the peer did, by the exception that tells; where a group has several of
# them, the first in this order names the outcome.
_PEER_OUTCOMES: tuple[tuple[type[RequestEnded], Outcome], ...] = (
    (IdleTimeout, Outcome.TIMED_OUT),
    (WriteTimeout, Outcome.TIMED_OUT),
    (LimitExceeded, Outcome.REFUSED),
    (HandshakeFailed, Outcome.REFUSED),
    (PeerGone, Outcome.DISCONNECTED),
    (IncompleteRead, Outcome.DISCONNECTED),
    (Draining, Outcome.DRAINED),
)

_HANDLES = socketserver.BaseRequestHandler.__init__.__code__


def peers_doing(error: BaseException, info: RequestInfo) -> tuple[Outcome, str] | None:
    """The outcome, and why, if nothing but the peer of request ``info`` is behind ``error``."""
    found = leaves(error)
    if not all(isinstance(leaf, RequestEnded) and same_request(leaf.info, info) for leaf in found):
        return None
    for kind, outcome in _PEER_OUTCOMES:
        for leaf in found:
            if isinstance(leaf, kind):
                return outcome, str(leaf)
    return None


def left_handle(error: BaseException) -> BaseException | None:
    """What had left a synchronous handler's ``handle`` when its ``finish`` raised ``error``.

    In `socketserver` the second one takes the place of the first, which is among
    its contexts, and has come by way of the same call.
    """
    calls = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code is _HANDLES]
    link, seen = error.__context__, {id(error)}
    while link is not None and id(link) not in seen:
        if any(frame in calls for frame, _ in walk_tb(link.__traceback__)):
            return link
        seen.add(id(link))
        link = link.__context__
    return None


def split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What ends with the request, and what goes on up."""
    if isinstance(error, Exception):  # a group, too, if it has nothing else
        return error, None
    return error.split(Exception) if isinstance(error, BaseExceptionGroup) else (None, error)


def as_errors(error: BaseException) -> BaseException:
    """``error``, with an error in the place of every ``GeneratorExit`` in it.

    As PEP 479 does for ``StopIteration``: raised by hand it is a mistake of the
    handler's, and must not look like the end of a coroutine.
    """
    if isinstance(error, GeneratorExit):
        mistake = RuntimeError("a handler or hook raised GeneratorExit")
        mistake.__cause__ = error
        return mistake
    if isinstance(error, BaseExceptionGroup) and _has_exit(error):
        group = error.derive([as_errors(child) for child in error.exceptions])
        return group.with_traceback(error.__traceback__)
    return error


def _has_exit(error: BaseException) -> bool:
    return any(isinstance(leaf, GeneratorExit) for leaf in leaves(error))


def cancellations(error: BaseException) -> list[trio.Cancelled]:
    """The cancellations in ``error``, if there is nothing else in it."""
    found = leaves(error)
    cancelled = [leaf for leaf in found if isinstance(leaf, trio.Cancelled)]
    return cancelled if len(cancelled) == len(found) else []


def lone(error: BaseException) -> BaseException:
    """The one thing that a group says which is not a cancellation; else the error itself.

    Groups of errors are somebody's own and stay as they are. One around a
    single ``SystemExit`` is only how it came out of a handler's nursery.
    """
    said = [leaf for leaf in leaves(error) if not isinstance(leaf, trio.Cancelled)]
    return said[0] if len(said) == 1 and not isinstance(said[0], Exception) else error


def describe_error(error: BaseException) -> str:
    """The exception for a record; its own ``__str__`` may fail."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(describe_error, leaves(error)))
    name = type(error).__name__
    try:
        return printable(f"{name}: {error}" if str(error) else name)
    except Exception:  # noqa: BLE001  (the name will do)
        return name
