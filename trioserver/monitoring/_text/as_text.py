"""Anything that is seen, as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..._facts.snapshots import ServerSnapshot
from .._tree.tree import TaskTree
from .finding import Finding
from .servers import check_most, text_of_server


def as_text(
    it: TaskTree | ServerSnapshot | Finding | Sequence[Finding], *, most: float = math.inf
) -> str:
    """A tree of tasks, a server, or what is wrong with them, as lines of plain text.

    Of a task there are its name, its scopes and the lines of its own code in which it waits;
    those of Trio are left out, and those of this library where there are others. What clients and
    programs have named is shown with its control characters escaped, so a terminal takes it for
    nothing else.

    Args:
      it: what `task_tree`, `trioserver.BaseServer.snapshot` or `Linter.look` has returned, or one
        finding; each finding is one line.
      most: requests of each listener, or worker, that are shown; the others are counted.

    Raises:
      TypeError: it is something else, or ``most`` is no number.
      ValueError: ``most`` is less than 0.
    """
    check_most(most)
    if isinstance(it, TaskTree):
        return str(it)
    if isinstance(it, ServerSnapshot):
        return text_of_server(it, most)
    findings = (it,) if isinstance(it, Finding) else it
    if isinstance(findings, (tuple, list)) and all(isinstance(one, Finding) for one in findings):
        return "\n".join(map(str, findings))
    raise TypeError(f"a TaskTree, a ServerSnapshot or Findings were expected, not {it!r}")
