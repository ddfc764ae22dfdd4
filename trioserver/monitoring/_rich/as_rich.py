"""Anything that is seen, as a renderable of rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trioserver

from .._text.servers import check_most
from .._tree.tree import TaskTree


def as_rich(
    it: TaskTree | trioserver.ServerSnapshot | Sequence[trioserver.ServerSnapshot],
    *,
    most: int = 50,
) -> Any:
    """A tree of tasks, a server, or several, as a renderable of rich: `print` it to a console.

    What clients and programs have named is shown as plain text: it is no markup, and its control
    characters are escaped.

    Args:
      it: what `task_tree` or `trioserver.BaseServer.snapshot` has returned; or several of the
        latter.
      most: requests of each server, or worker, that are shown, the oldest first, or tasks of the
        tree; the others are counted.

    Returns:
      A ``rich.tree.Tree``; of several servers a ``rich.console.Group`` of such.

    Raises:
      ImportError: rich is not installed: ``pip install 'trioserver[live]'``.
      TypeError: it is something else, or ``most`` is no number.
      ValueError: ``most`` is less than 0.
    """
    try:
        import rich.console  # noqa: F401, PLC0415  (whoever calls this pays for it)
    except ImportError as error:
        raise ImportError("as_rich needs rich: pip install 'trioserver[live]'") from error
    from .servers import several_as_rich, tree_of_server  # noqa: PLC0415  (it needs rich)
    from .tasks import tree_of_tasks  # noqa: PLC0415  (it needs rich)

    check_most(most)
    if isinstance(it, TaskTree):
        return tree_of_tasks(it, most)
    if isinstance(it, trioserver.ServerSnapshot):
        return tree_of_server(it, most)
    given: Any = it
    several = given if isinstance(given, Sequence) else [given]
    for one in several:
        if not isinstance(one, trioserver.ServerSnapshot):
            wanted = "a TaskTree, a ServerSnapshot or a sequence of ServerSnapshots was expected"
            raise TypeError(f"{wanted}, not {one!r}")
    return several_as_rich(several, most)
