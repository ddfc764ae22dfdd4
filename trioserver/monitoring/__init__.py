"""Looking at what runs: the tree of all tasks of a Trio program.

Made of public names alone, of Trio's and of the library's, so it works in every Trio
program. It must not know how a server serves.
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
