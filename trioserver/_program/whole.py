"""A program as text, for its log: all of its tasks, and its servers."""

from __future__ import annotations

from collections.abc import Sequence

from .._servers.base import BaseServer
from ..monitoring._text.as_text import as_text
from ..monitoring._tree.taking import task_tree

MOST_REQUESTS = 100
"""Of each listener, or worker, that are listed; the others are counted."""


def whole(servers: Sequence[BaseServer]) -> str:
    """All tasks of this process, and where they wait; and what the servers do."""
    parts = [as_text(task_tree())]
    parts += [as_text(server.snapshot(), most=MOST_REQUESTS) for server in servers]
    return "\n".join(parts)
