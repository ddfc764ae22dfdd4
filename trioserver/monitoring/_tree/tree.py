"""The tasks, nurseries and cancel scopes of a Trio program at one instant, as a value.

::

    TaskTree           all tasks, each before those below it
      TaskView           one task: its name, its parent, the request it works for
        ScopeView          a scope that it has entered, outermost first; some are nurseries'

A tree can be kept, compared and sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ..._facts.json_values import finite
from .text import text_of_tasks
from .views import ScopeView, TaskView

TREE_VERSION = 1
"""Of the form that `TaskTree.as_json` has; it changes when a field changes or goes."""


@attrs.frozen
class TaskTree:
    """The tasks of a Trio program, as they were at one instant; all of them at the same one.

    Attributes:
      at: when, by the Trio clock.
      tasks: each task before those below it; those of one nursery in the order of their start.
    """

    at: float
    tasks: tuple[TaskView, ...]

    def __str__(self) -> str:
        return text_of_tasks(self.tasks, self.at)

    def below(self, id: int) -> tuple[TaskView, ...]:
        """A task, and all tasks below it, in the order of the tree; none if it is not there."""
        return tuple(self._below(id))

    def _below(self, id: int) -> Iterator[TaskView]:
        depth: float = math.inf
        for task in self.tasks:
            if task.id == id:
                depth = task.depth
            elif task.depth <= depth < math.inf:
                return
            if depth < math.inf:
                yield task

    def as_json(self) -> Mapping[str, Any]:
        """The same as values of JSON, as `json.dumps` takes them; see ``TASK_TREE_SCHEMA``."""
        return {
            "schema": "trioserver.task_tree",
            "version": TREE_VERSION,
            "at": self.at,
            "tasks": [_task_as_json(task) for task in self.tasks],
        }


def _task_as_json(task: TaskView) -> dict[str, Any]:
    request = task.request
    return {
        "id": task.id,
        "parent": task.parent,
        "nursery": task.nursery,
        "depth": task.depth,
        "name": task.name,
        "request": None if request is None else request.id,
        "scopes": [_scope_as_json(scope) for scope in task.scopes],
        "stack": [
            {"file": code.co_filename, "line": line, "function": code.co_qualname}
            for code, line in task.stack
        ],
    }


def _scope_as_json(scope: ScopeView) -> dict[str, Any]:
    return {
        "deadline": finite(scope.deadline),
        "shield": scope.shield,
        "nursery": scope.nursery,
        "cancelled": None if scope.cancelled is None else attrs.asdict(scope.cancelled),
    }
