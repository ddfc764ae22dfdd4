"""A server and its requests as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ..._facts.address import Address
from ..._facts.events import Statistics
from ..._facts.snapshots import (
    ListenerSnapshot,
    RequestSnapshot,
    ServerSnapshot,
    WorkerSnapshot,
)
from .words import describe, duration, printable, size


def check_most(most: object) -> None:
    """Refuse what is no number of requests to show; `math.inf` is one."""
    if isinstance(most, bool) or not isinstance(most, (int, float)):
        raise TypeError(f"most must be a number of at least 0, not {most!r}")
    if not most >= 0:
        raise ValueError(f"most must be a number of at least 0, not {most!r}")


def text_of_server(snapshot: ServerSnapshot, most: float = math.inf) -> str:
    """A server as a tree of lines: its listeners and workers, and below each its requests.

    Args:
      snapshot: the server.
      most: requests that are shown, the oldest first; others are counted.
    """
    head = (
        f"{printable(snapshot.name)}  {snapshot.state}  up {duration(snapshot.uptime)}"
        f"  {counts_in_words(snapshot.statistics)}{_slots_in_words(snapshot)}"
    )
    return "\n".join([head, *_branches([*_listeners(snapshot, most), *_workers(snapshot, most)])])


def counts_in_words(counts: Statistics) -> str:
    """The counts of a server that say most, in a line."""
    told = [f"total {counts.accepted}", f"active {counts.active}"]
    if counts.waiting:
        told.append(f"waiting {counts.waiting}")
    if counts.lingering:
        told.append(f"lingering {counts.lingering}")
    told += [f"{outcome.value} {number}" for outcome, number in counts.outcomes.items() if number]
    if counts.refused:
        told.append(f"turned away {counts.refused}")
    return "  ".join(told)


def _slots_in_words(snapshot: ServerSnapshot) -> str:
    if snapshot.slots is None:
        return ""
    if snapshot.free_slots is None:  # workers serve it, or nobody yet
        return f"  slots {snapshot.slots}"
    return f"  slots {snapshot.free_slots} of {snapshot.slots} free"


_Branch = tuple[str, Sequence[str]]
"""A line, and the lines below it."""


def _listeners(snapshot: ServerSnapshot, most: float) -> Iterator[_Branch]:
    by_listener: dict[Address, list[RequestSnapshot]] = {}
    for request in snapshot.requests:
        by_listener.setdefault(request.info.server_address, []).append(request)
    for listener in snapshot.listeners:
        yield _listener_in_words(listener), _requests(by_listener.pop(listener.address, ()), most)
    for address, requests in by_listener.items():  # a wildcard's, by the address that was met
        yield describe(address), _requests(requests, most)


def _listener_in_words(listener: ListenerSnapshot) -> str:
    state = "accepting" if listener.accepting else "not accepting"
    queued = f"  {listener.queued} in the queue" if listener.queued else ""
    return f"{describe(listener.address)}  {state}{queued}"


def _workers(snapshot: ServerSnapshot, most: float) -> Iterator[_Branch]:
    for worker in snapshot.workers:
        yield _worker_in_words(worker), _requests(worker.requests, most)


def _worker_in_words(worker: WorkerSnapshot) -> str:
    late = f"  told {worker.age:.1f} s ago" if worker.age > 2 else ""
    return (
        f"worker {worker.pid}  {worker.state}  generation {worker.generation}"
        f"  {counts_in_words(worker.statistics)}{late}"
    )


def _requests(requests: Sequence[RequestSnapshot], most: float) -> list[str]:
    shown = requests if len(requests) <= most else requests[: int(most)]
    lines = [request_in_words(request) for request in shown]
    if len(shown) < len(requests):
        lines.append(f"and {len(requests) - len(shown)} more")
    return lines


def request_in_words(request: RequestSnapshot) -> str:
    """A request in one line."""
    info = request.info
    left = "no deadline" if request.time_left == math.inf else f"left {request.time_left:.1f} s"
    return (
        f"#{info.id} {describe(info.client_address)}  {info.mode}  {request.state}"
        f"  age {request.age:.1f} s  {left}"
        f"  in {size(request.bytes_received)}  out {size(request.bytes_sent)}"
    )


def _branches(branches: Iterable[_Branch]) -> Iterator[str]:
    """The branches of a tree, with the lines that join them."""
    whole = list(branches)
    for number, (line, below) in enumerate(whole, 1):
        is_last = number == len(whole)
        yield f"{'└─' if is_last else '├─'} {line}"
        indent = "   " if is_last else "│  "
        yield from (f"{indent}├─ {one}" for one in below[:-1])
        yield from (f"{indent}└─ {one}" for one in below[-1:])
