"""How fast things happen: the differences of what a monitor has told at two instants."""

from __future__ import annotations

from .parts import Rate
from .state import MonitorState


def rates_between(old: MonitorState | None, new: MonitorState) -> tuple[Rate | None, ...]:
    """The rate of each server; None where the two cannot be compared.

    So it is at first, after a new start of the program, and of a server that was bound anew.
    """
    if old is None or old.pid != new.pid or new.at <= old.at:
        return (None,) * len(new.servers)
    seconds = new.at - old.at
    found: list[Rate | None] = []
    for number, server in enumerate(new.servers):
        before = old.servers[number] if number < len(old.servers) else None
        if before is None or before.name != server.name or server.accepted < before.accepted:
            found.append(None)
            continue
        accepted = (server.accepted - before.accepted) / seconds
        found.append(Rate(accepted, max(0.0, server.ended - before.ended) / seconds))
    return tuple(found)
