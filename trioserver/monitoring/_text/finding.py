"""One thing that is wrong with what runs, as a value, and as a line."""

from __future__ import annotations

from typing import Any

import attrs

from ..._facts.address import printable
from .._tree.views import TaskView


@attrs.frozen(kw_only=True)
class Finding:
    """Something that is wrong, or is likely to be.

    Attributes:
      lint: what finds such things: ``no-deadline``, say.
      message: what is wrong, since when, and what to do; one line, of printable characters.
      since: seconds that it has been so, as far as is known.
      server: whose it is: the index of its snapshot among those that were looked at; None if
        it is of none of them.
      request: the id of the request that it is about; None if it is about none.
      task: the number of the task that it is about, as in `task_tree`; None if it is about none.
    """

    lint: str
    message: str
    since: float
    server: int | None = None
    request: int | None = None
    task: int | None = None

    def __str__(self) -> str:
        return f"{printable(self.lint)}: {printable(self.message, 2000)}"

    def as_json(self) -> dict[str, Any]:
        """The same as values of JSON: an object with the attributes' names."""
        return attrs.asdict(self)


def task_in_words(task: TaskView) -> str:
    """Which task, and for which request it works, with what clients have named escaped."""
    name = f"task '{printable(task.name, 200)}'"
    whose = "" if task.request is None else str(task.request)
    return f"{name} of {whose}" if whose not in task.name else name


def in_short(text: str) -> str:
    """What programs or clients have said, on one line, for a message."""
    return printable(text, 200)
