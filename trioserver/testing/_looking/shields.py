"""The last resort for what cannot be cancelled because it has shielded itself.

A test that hangs has to fail, whatever hangs in it. Trio lets nobody outside look at a
task's scopes, so this takes private names, and does nothing where Trio has them no more.
"""

from __future__ import annotations

from typing import Any

import trio

from ...monitoring import tasks_below


def lift_shields(root: trio.lowlevel.Task | None, below: trio.CancelScope) -> None:
    """Have what was cancelled in ``below`` reach all tasks from ``root`` down, shielded or not."""
    for task in tasks_below(root):
        status: Any = getattr(task, "_cancel_status", None)
        while status is not None and status._scope is not below:
            status._scope.shield = False
            status = status._parent
