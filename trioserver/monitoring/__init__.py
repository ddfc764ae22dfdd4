"""Looking at what runs: the tree of all tasks of a Trio program.

Made of Trio's public names alone, so it works in every Trio program. It must not know that
there are servers.
"""

from .._published import publish as _publish
from ._task_tree import TaskTree, TaskView, as_text, task_tree, tasks_below

__all__ = [
    "TaskTree",
    "TaskView",
    "as_text",
    "task_tree",
    "tasks_below",
]

_publish(__name__, globals(), __all__)
