"""Looking at what runs: the tree of all tasks of a Trio program, and its servers.

Whatever shows a tree of tasks is made of Trio's public names alone, so it works in every Trio
program. Each part is loaded with the first look at one of its names.
"""

import typing

from .._published import load as _load

if typing.TYPE_CHECKING:  # see _LATER
    from ._rich.as_rich import as_rich
    from ._text.as_text import as_text
    from ._top.feed import ask_monitor
    from ._top.live import LiveScreen
    from ._top.parts import MonitorError
    from ._top.state import MonitorState
    from ._top.top import top
    from ._tree.taking import task_tree, tasks_below
    from ._tree.tree import TaskTree
    from ._tree.views import Cancellation, ScopeView, TaskView

__all__ = [
    "Cancellation",
    "LiveScreen",
    "MonitorError",
    "MonitorState",
    "ScopeView",
    "TaskTree",
    "TaskView",
    "as_rich",
    "as_text",
    "ask_monitor",
    "task_tree",
    "tasks_below",
    "top",
]

_LATER = {
    "_rich.as_rich": ("as_rich",),
    "_text.as_text": ("as_text",),
    "_top.feed": ("ask_monitor",),
    "_top.live": ("LiveScreen",),
    "_top.parts": ("MonitorError",),
    "_top.state": ("MonitorState",),
    "_top.top": ("top",),
    "_tree.taking": ("task_tree", "tasks_below"),
    "_tree.tree": ("TaskTree",),
    "_tree.views": ("Cancellation", "ScopeView", "TaskView"),
}


if not typing.TYPE_CHECKING:  # or checkers would take any name for one of ours

    def __getattr__(name: str) -> typing.Any:
        return _load(__name__, globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
