"""What is seen in one look: the tasks where they stand, and the requests of all servers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeAlias

import attrs

from trioserver import RequestInfo, RequestSnapshot, ServerSnapshot

from .._tree.tree import TaskTree
from .._tree.views import TaskView
from .standing import Standing, standings

OF_ONE_INSTANT = 1.0
"""Seconds by which the tree and a snapshot may differ. The clock of each Trio program begins at a
random time, so a snapshot of another process differs by hours."""

RequestKey: TypeAlias = Hashable


@attrs.frozen
class Served:
    """A request as a snapshot has it.

    Attributes:
      server: the index of that snapshot.
      request: the request.
    """

    server: int
    request: RequestSnapshot


@attrs.define(eq=False)
class Seen:
    """One look.

    Attributes:
      tree: the tasks.
      snapshots: the servers.
      known: requests of these servers, by their keys, of which there are tasks: their ends
        are known, too.
      oldest: seconds that a request may last without a deadline.
      tasks: where each task stands, by its number.
      here: the requests that the servers of this process have.
    """

    tree: TaskTree
    snapshots: Sequence[ServerSnapshot]
    known: set[RequestKey]
    oldest: float
    tasks: dict[int, Standing] = attrs.field(init=False)
    here: dict[RequestKey, Served] = attrs.field(init=False, factory=dict)
    _keys: dict[int, RequestKey] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.tasks = {standing.task.id: standing for standing in standings(self.tree)}
        ours = [it for it in enumerate(self.snapshots) if self._is_of_here(it[1])]
        for index, snapshot in ours:
            for request in snapshot.requests:
                self.here[self.key_of(request.info)] = Served(index, request)
        addresses = [it.address for _, snapshot in ours for it in snapshot.listeners]
        known = set()
        for standing in self.tasks.values():
            info = standing.task.request
            if info is None or (key := self.key_of(info)) in known:
                continue
            if key in self.here or key in self.known or info.server_address in addresses:
                known.add(key)
        self.known = known

    def key_of(self, info: RequestInfo) -> RequestKey:
        """The same for all infos of one request, and for no other one.

        Ids alone begin at 1 in each run of a server.
        """
        key = self._keys.get(id(info))  # what is seen keeps it: no other object has its number
        if key is None:
            key = info.id, info.started, info.started_at, repr(info.server_address)
            self._keys[id(info)] = key
        return key

    def served(self, task: TaskView) -> Served | None:
        """The request that a task works for, as its server has it now."""
        return None if task.request is None else self.here.get(self.key_of(task.request))

    def requests(self) -> Iterator[Served]:
        """All requests, those of workers too."""
        for index, snapshot in enumerate(self.snapshots):
            for request in snapshot.requests:
                yield Served(index, request)
            for worker in snapshot.workers:
                for request in worker.requests:
                    yield Served(index, request)

    def _is_of_here(self, snapshot: ServerSnapshot) -> bool:
        """Whether it lists the requests whose tasks are in the tree; those of workers are not."""
        differences = (
            abs(request.info.started + request.age - self.tree.at) for request in snapshot.requests
        )
        return not snapshot.workers and all(it < OF_ONE_INSTANT for it in differences)
