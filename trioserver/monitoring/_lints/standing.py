"""Where each task of a tree stands: what cancels it, and until when it may run.

A task is in its own scopes, and around them in those of its parent, from the outermost one to that
of the nursery in which it runs, and so on up to the root. A cancellation reaches it from any of
them, unless a shielded scope is in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

from .._tree.tree import TaskTree
from .._tree.views import Cancellation, ScopeView, TaskView


@attrs.frozen
class Surroundings:
    """What comes from scopes to what is inside of them.

    Attributes:
      cancelled: the cancellation that reaches it; None if none does.
      deadline: by the Trio clock, of those that reach it the first one; ``inf``: there is none.
    """

    cancelled: Cancellation | None = None
    deadline: float = math.inf

    def inside(self, scope: ScopeView) -> Surroundings:
        """The same, as seen from inside one more scope."""
        if scope.shield:
            return Surroundings(scope.cancelled, scope.deadline)
        if scope.deadline >= self.deadline and (self.cancelled or scope.cancelled is None):
            return self  # as of most scopes: one object for all of them
        return Surroundings(self.cancelled or scope.cancelled, min(self.deadline, scope.deadline))


_OUTSIDE = Surroundings()


@attrs.define
class Standing:
    """Where a task stands.

    Attributes:
      task: which one.
      around: what reaches it from outside of its own scopes.
      now: what reaches it where it is: inside all of its scopes.
      holding_off: the shielded scope that keeps a cancellation away from it; and that one.
      waits_for: whether it has child tasks that a cancellation of its own reaches, too: they
        have to end before it can.
    """

    task: TaskView
    around: Surroundings
    now: Surroundings
    holding_off: tuple[int, ScopeView, Cancellation] | None = None
    waits_for: bool = False


def standings(tree: TaskTree) -> Iterator[Standing]:
    """Where each task of a tree stands, in the tree's order; complete when all are taken."""
    places: dict[tuple[int | None, int | None], Surroundings] = {}
    found: dict[int, Standing] = {}
    for task in tree.tasks:
        now = places.get((task.parent, task.nursery), _OUTSIDE)
        parent = found.get(task.parent) if task.parent is not None else None
        if parent is not None and now.cancelled:
            parent.waits_for = True
        found[task.id] = standing = Standing(task, now, now)
        for number, scope in enumerate(task.scopes):
            if scope.shield and now.cancelled and scope.cancelled is None:
                standing.holding_off = number, scope, now.cancelled
            now = now.inside(scope)
            if scope.nursery is not None:
                places[task.id, scope.nursery] = now
        standing.now = now
        yield standing
