"""Anything that is seen, as plain text."""

from __future__ import annotations

import math

from ..._facts.snapshots import ServerSnapshot
from .._tree.tree import TaskTree
from .servers import text_of_server


def as_text(it: TaskTree | ServerSnapshot, *, most: float = math.inf) -> str:
    """A tree of tasks, or a server, as lines of plain text.

    Of a task there are its name, its scopes and the lines of its own code in which it waits;
    those of Trio are left out, and those of this library where there are others. What clients and
    programs have named is shown with its control characters escaped, so a terminal takes it for
    nothing else.

    Args:
      it: what `task_tree` or `trioserver.BaseServer.snapshot` has returned.
      most: requests of each listener, or worker, that are shown; the others are counted.

    Raises:
      TypeError: it is something else.
    """
    if isinstance(it, TaskTree):
        return str(it)
    if isinstance(it, ServerSnapshot):
        return text_of_server(it, most)
    raise TypeError(f"a TaskTree or a ServerSnapshot was expected, not {it!r}")
