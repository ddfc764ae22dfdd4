"""A tree of tasks as a tree of rich: each task's name, its scopes, and the line where it waits."""

from __future__ import annotations

import linecache

from rich.text import Text
from rich.tree import Tree

from .._text.words import printable
from .._tree.text import scope_in_words, shown_places
from .._tree.tree import TaskTree
from .._tree.views import TaskView


def tree_of_tasks(tree: TaskTree, most: int) -> Tree:
    """All tasks, each below its parent; of more than ``most`` the first ones."""
    shown = tree.tasks[:most]
    root = Tree(Text(f"{len(tree.tasks)} tasks", style="bold"))
    branches: dict[int | None, Tree] = {None: root}
    for task in shown:
        # The root's parent is outside of a part of a tree, too.
        above = branches.get(task.parent, root)
        branches[task.id] = above.add(_text_of(task, tree.at))
    if len(shown) < len(tree.tasks):
        root.add(Text(f"and {len(tree.tasks) - len(shown)} more", style="dim"))
    return root


def _text_of(task: TaskView, now: float) -> Text:
    # Of pieces, and of no markup: names may look like some.
    text = Text(printable(task.name))
    for scope in task.scopes:
        if words := scope_in_words(scope, now):
            style = "yellow" if scope.cancelled is None else "red"
            text.append(f"  [{words}]", style=style)
    if task.request is not None:
        text.append(f"  #{task.request.id}", style="cyan")
    for code, line in shown_places(task.stack, 1):
        source = linecache.getline(code.co_filename, line).strip()
        place = f"{code.co_filename}:{line} in {code.co_name}: {source}"
        text.append(f"\n{printable(place)}", style="dim")
    return text
