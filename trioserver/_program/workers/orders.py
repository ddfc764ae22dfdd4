"""What a program orders its workers to do, as values."""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs


class Queue(enum.Enum):
    """What becomes of the clients that are queued in a server's sockets when it drains."""

    LAST_TAKES = "whoever of the workers is the last to have a socket takes its queue in"
    EVERYBODY_TAKES = "who is there is taken in, and the socket stays: a service manager keeps it"
    STAYS = "it is somebody else's, who accepts from it"


@attrs.frozen
class Drain:
    """Begin the drain of a server, within so many seconds; and why."""

    server: int
    seconds: float
    queue: Queue
    reason: str


@attrs.frozen
class Suspend:
    """Have a server accept nobody until it is resumed."""

    server: int


@attrs.frozen
class Resume:
    """Have a server accept again."""

    server: int


@attrs.frozen
class Reload:
    """Have a server make its TLS context anew."""

    server: int


@attrs.frozen
class Cancel:
    """Cancel everything; why."""

    reason: str


@attrs.frozen
class ShowTasks:
    """Log all tasks, and where they wait."""


Order: TypeAlias = Drain | Suspend | Resume | Reload | Cancel | ShowTasks
