"""What a viewer wants to see, read from what it has sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

SORT_KEYS = ("age", "left", "in", "out", "id", "state", "client")
"""By what requests can be sorted; with ``-`` before it, the other way round."""

MOST_REQUESTS = 2000
"""Requests of each server, or worker, that a viewer can have listed."""

LONGEST_FILTER = 200


class BadQuery(ValueError):
    """What a viewer has sent makes no sense; says what was wrong, and what was expected."""


@attrs.frozen
class Query:
    """What a viewer wants to see.

    Attributes:
      interval: seconds between two looks.
      most: requests of each server, or worker, that are listed.
      sort: by what, one of `SORT_KEYS`; with ``-`` before it, the other way round.
      filter: only requests are listed whose line has this text in it, in upper or lower case.
    """

    interval: float
    most: int
    sort: str = "age"
    filter: str = ""


def query_from(facts: object, default: Query) -> Query:
    """The query of such facts; what is not there is as in ``default``.

    Args:
      facts: a mapping of some of the fields of a `Query`, as JSON has it.
      default: the rest, and the shortest interval that there is.

    Raises:
      BadQuery: a field is wrong, or there is no such field.
    """
    if not isinstance(facts, Mapping):
        raise BadQuery(f"an object with interval, most, sort, filter was expected, not {facts!r}")
    fields = {field.name for field in attrs.fields(Query)}
    if unknown := sorted(str(name) for name in facts if name not in fields):
        raise BadQuery(
            f"{', '.join(unknown)}: there is no such field; there are interval, most,"
            " sort and filter"
        )
    values: dict[str, Any] = {**attrs.asdict(default), **facts}
    return Query(
        max(_number("interval", values["interval"], 3600.0), default.interval),
        int(_number("most", values["most"], MOST_REQUESTS)),
        _sort(values["sort"]),
        _filter(values["filter"]),
    )


def _number(name: str, value: object, most: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= float(value) <= most or math.isnan(float(value)):  # type: ignore[arg-type]
        raise BadQuery(f"{name} must be a number from 0 to {most:g}, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _sort(value: object) -> str:
    if not isinstance(value, str) or value.removeprefix("-") not in SORT_KEYS:
        raise BadQuery(
            f"sort must be one of {', '.join(SORT_KEYS)}, or -age and so on, not {value!r}"
        )
    return value


def _filter(value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_FILTER:
        raise BadQuery(f"filter must be a text of at most {LONGEST_FILTER} characters")
    return value.casefold()
