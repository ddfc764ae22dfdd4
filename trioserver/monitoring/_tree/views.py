"""One task of a Trio program, and one scope that it is in, as values; nothing of Trio is held.

They are named tuples, since thousands are made at once: each in a fifth of the time that an object
takes whose attributes are set one by one, and then frozen.
"""

from __future__ import annotations

import math
from types import CodeType
from typing import NamedTuple

import attrs

from ..._facts.events import RequestInfo


@attrs.frozen
class Cancellation:
    """That a scope is cancelled, and why, as Trio has kept it.

    Attributes:
      reason: in words; ``""`` if nobody has said.
      source: what has cancelled it: ``explicit`` (a call), ``deadline``, ``nursery`` (a child
        has failed), ``shutdown`` or ``KeyboardInterrupt``; ``""`` where Trio does not tell.
      by: the task that has called ``cancel()``, as Trio shows it; ``""`` if none has.
    """

    reason: str = ""
    source: str = ""
    by: str = ""


class ScopeView(NamedTuple):
    """One cancel scope that a task is in, as it was at an instant.

    Attributes:
      deadline: by the Trio clock; ``inf`` if there is none.
      shield: whether cancellations from outside do not reach into it.
      nursery: the number of the nursery whose scope it is, counted from 0 in its task; None if
        it is no nursery's.
      cancelled: that it is cancelled, be it by its deadline, and why; None if it is not.
    """

    deadline: float = math.inf
    shield: bool = False
    nursery: int | None = None
    cancelled: Cancellation | None = None


class TaskView(NamedTuple):
    """One task, as it was at an instant.

    Attributes:
      id: a number that no other task of the process has or will have.
      parent: the number of the task in whose nursery it runs; None of the root.
      nursery: in which nursery of its parent, counted from 0; None of the root.
      depth: how many tasks it is below the root.
      name: what it is called.
      scopes: the scopes that it has entered itself and not left, outermost first.
      request: the request that it works for; None outside of requests.
      stack: where it waits: the code and the line of each call, the outermost one first; empty
        if nobody has asked for it.
    """

    id: int
    parent: int | None
    nursery: int | None
    depth: int
    name: str
    scopes: tuple[ScopeView, ...] = ()
    request: RequestInfo | None = None
    stack: tuple[tuple[CodeType, int], ...] = ()
