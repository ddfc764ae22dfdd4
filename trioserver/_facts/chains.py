"""Exceptions as data: groups and chains, and what a traceback shows of them.

An exception that is raised while another one is being handled has that one as its
``__context__``, and a traceback shows both, the first one above. Whoever handles the
first one sees no more than that, so what came second is put at the end of its chain.

Two facts make this delicate. A chain must not lead in a circle: to be shown, or
collected, it would never end. And a traceback holds the frames that it has passed,
with their variables, since Python 3.12 also the frame that called a deeper one; so a
function that keeps an exception in a variable is part of a cycle, unless it deletes
the variable at its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import format_exception_only

import trio


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


def chain_after(error: BaseException, second: BaseException) -> None:
    """Have tracebacks of ``error`` show ``second`` too, at the end of its chain.

    ``second`` was raised while ``error`` was being handled, so its own chain
    leads to ``error``, and is cut there. One that holds it in a group as well
    cannot be chained without a circle, and is noted instead.
    """
    link = _last_shown(second, before=error)
    link.__context__ = None
    if link.__cause__ is error:
        link.__cause__, link.__suppress_context__ = None, False
    if _leads_to(second, error):
        error.add_note("finish() then raised " + format_exception_only(second)[-1].strip())
        return
    last = _last_shown(error)
    if last is not second:
        last.__context__, last.__suppress_context__ = second, False


def _last_shown(error: BaseException, before: BaseException | None = None) -> BaseException:
    """The end of the chain that a traceback of ``error`` shows, or what leads to ``before``."""
    *_, last = itertools.takewhile(lambda link: link is not before, chain(error))
    return last


def _leads_to(start: BaseException, goal: BaseException) -> bool:
    """Whether ``goal`` is in the chains or groups of ``start``."""
    found: list[BaseException] = [start]
    seen: set[int] = set()
    while found:
        error = found.pop()
        if error is goal:
            return True
        if id(error) not in seen:
            seen.add(id(error))
            parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
            found += [part for part in (error.__cause__, error.__context__, *parts) if part]
    return False
