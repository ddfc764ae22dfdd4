"""What several runs of one server come to together, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from .events import Outcome, ShutdownReport, Statistics

_COUNTS = tuple(
    one.name for one in attrs.fields(Statistics) if one.name not in {"outcomes", "dropped"}
)


def sum_of(parts: Iterable[Statistics]) -> Statistics:
    """The counts of all of them together.

    What the kernel has dropped it counts for a socket, which they share, and not for each of them.
    """
    all_of_them = list(parts)
    counts = {name: sum(getattr(one, name) for one in all_of_them) for name in _COUNTS}
    outcomes = {it: sum(one.outcomes.get(it, 0) for one in all_of_them) for it in Outcome}
    dropped = max((one.dropped for one in all_of_them), default=0)
    return Statistics(**counts, dropped=dropped, outcomes=outcomes)


def without_end(statistics: Statistics) -> Statistics:
    """The final counts of a run whose process was killed, of which these were told last.

    Whoever was served then has gone with it.
    """
    outcomes = dict(statistics.outcomes)
    outcomes[Outcome.KILLED] = outcomes.get(Outcome.KILLED, 0) + statistics.active
    lost = statistics.unaccepted + statistics.waiting
    gone = {"active": 0, "waiting": 0, "lingering": 0, "unaccepted": lost}
    return attrs.evolve(statistics, outcomes=outcomes, **gone)


def report_of(
    reason: str, parts: Sequence[ShutdownReport], others: Iterable[Statistics]
) -> ShutdownReport:
    """The report of all of them together.

    Args:
      reason: what ended them.
      parts: of those that could tell.
      others: the counts of those that could not, or had ended before.
    """
    return ShutdownReport(
        reason=reason,
        grace=max((one.grace for one in parts), default=0.0),
        duration=max((one.duration for one in parts), default=0.0),
        requests=tuple(record for one in parts for record in one.requests),
        unaccepted=tuple(client for one in parts for client in one.unaccepted),
        statistics=sum_of([*(one.statistics for one in parts), *others]),
    )
