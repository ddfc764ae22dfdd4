"""The lints of requests and servers: those that wait for what does not come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from trioserver import RequestInfo

from .cases import Case
from .seen import Seen, Served


def no_deadline(seen: Seen) -> Iterator[Case]:
    """A request that nothing will end."""
    for served in seen.requests():
        request = served.request
        if request.age <= seen.oldest or request.time_left < math.inf:
            continue
        if request.state in {"idle", "closing"}:
            continue
        if _ends_by_what_is_around(seen, served):
            continue

        def say(since: float, info: RequestInfo = request.info) -> str:
            return (
                f"{info} has no deadline, and has lasted for {since:.1f} s; set Timeouts.request,"
                " or the deadline of its cancel_scope in the handler"
            )

        yield _case(seen, served, say, began=seen.tree.at - request.age)


def _ends_by_what_is_around(seen: Seen, served: Served) -> bool:
    """Whether a scope around its task has a deadline; those within may be of single waits."""
    number = served.request.task
    standing = None if number is None else seen.tasks.get(number)
    info = None if standing is None else standing.task.request
    if standing is None or info is None or seen.key_of(info) != seen.key_of(served.request.info):
        return False
    return standing.around.deadline < math.inf


def reader_never_reads(seen: Seen) -> Iterator[Case]:
    """A request that sends to a client that takes nothing."""
    for served in seen.requests():
        request = served.request
        if request.state != "writing":
            continue

        def say(
            since: float, info: RequestInfo = request.info, sent: int = request.bytes_sent
        ) -> str:
            return (
                f"{info} has waited for {since:.1f} s for its client to read, {sent} bytes were"
                " sent before; lower Timeouts.write, or send less to who does not read"
            )

        yield _case(seen, served, say, request.bytes_sent)


def idle_slots(seen: Seen) -> Iterator[Case]:
    """A server that has room, and lets clients wait."""
    for index, snapshot in enumerate(seen.snapshots):
        if not snapshot.free_slots:
            continue
        counts = snapshot.statistics
        queued = sum(listener.queued or 0 for listener in snapshot.listeners)
        waiting = counts.waiting + (queued if snapshot.state == "serving" else 0)
        if not waiting:
            continue

        def say(since: float, waiting: int = waiting, free: int = snapshot.free_slots) -> str:
            return (
                f"{waiting} clients have waited for {since:.1f} s, none was accepted, and"
                f" {free} slots are free; look at get_request and at errors of accept"
            )

        yield Case(key=(index, counts.accepted), say=say, server=index)


def _case(
    seen: Seen,
    served: Served,
    say: Callable[[float], str],
    more: object = None,
    *,
    began: float | None = None,
) -> Case:
    info = served.request.info
    return Case(
        key=(seen.key_of(info), more),
        say=say,
        began=began,
        server=served.server,
        request=info.id,
        task=served.request.task,
    )
