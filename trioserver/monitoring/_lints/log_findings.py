"""Looking at a running program again and again, and logging what is wrong."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

import attrs
import trio

from trioserver import BaseServer

from .._text.finding import Finding
from .._tree.taking import task_tree
from .linter import BLOCKED_LOOP, Linter

log = logging.getLogger("trioserver.monitoring")

_SHARE = 0.05
"""Of the time, that looking may take."""


async def log_findings(
    servers: BaseServer | Iterable[BaseServer],
    *,
    every: float = 1.0,
    linter: Linter | None = None,
) -> NoReturn:
    """Look at the program and its servers, and log what is wrong, until cancelled.

    Each thing is logged once, as a warning of the logger ``trioserver.monitoring``; when it is
    over and comes again, it is logged again. What fails in here is logged too, once, and ends
    nothing. It is not for tests by a virtual clock, which it would keep going; see
    `trioserver.testing.no_findings`.

    Args:
      servers: one server or several; it does not matter whether they serve.
      every: seconds from one look to the next; more, where a look takes more than a twentieth
        of that.
      linter: None: one as it is by default.

    Raises:
      TypeError: ``every`` is no number, or ``servers`` are no servers.
      ValueError: it is not a number of seconds above 0.
    """
    if isinstance(every, bool) or not isinstance(every, (int, float)):
        raise TypeError(f"every must be a number of seconds, not {every!r}")
    if not 0 < every < math.inf:
        raise ValueError(f"every must be a number of seconds above 0, not {every!r}")
    looking = Looking(_several(servers), Linter() if linter is None else linter)
    due = trio.current_time()
    failed = False
    while True:
        await trio.sleep_until(due)
        began = time.perf_counter()
        try:
            for finding in looking.new(due):
                _log_safely("%s", finding)
            failed = False
        except Exception as error:  # noqa: BLE001  (whatever it is: the servers go on)
            if not failed:
                _log_safely("looking for what is wrong has failed", error=error)
            failed = True
        cost = time.perf_counter() - began
        due = trio.current_time() + max(every, cost * (1 / _SHARE - 1))


def _log_safely(message: str, *values: object, error: Exception | None = None) -> None:
    with contextlib.suppress(Exception):  # of a logging handler's: there is nobody left to tell
        log.warning(message, *values, exc_info=error)


def _several(servers: object) -> Sequence[BaseServer]:
    whose = (servers,) if isinstance(servers, BaseServer) else servers
    several = tuple(whose) if isinstance(whose, Iterable) else (whose,)
    for one in several:
        if not isinstance(one, BaseServer):
            raise TypeError(f"servers must be a server or several, not {one!r}")
    return several


@attrs.define(eq=False)
class Looking:
    """Looks at this program, and tells what is new.

    Attributes:
      servers: whose snapshots are looked at.
      linter: finds what is wrong.
    """

    servers: Sequence[BaseServer]
    linter: Linter
    _before: set[object] = attrs.field(init=False, factory=set)

    def new(self, due: float = math.inf) -> list[Finding]:
        """What is wrong and was not at the last look; plain, to be called in Trio's thread.

        Args:
          due: when the look was to come, by the Trio clock; ``inf``: at no time.
        """
        found = self._look(due, stacks=False)
        new = {key: finding for key, finding in found.items() if key not in self._before}
        self._before = set(found)
        if any(finding.task is not None for finding in new.values()):
            # Where they wait takes three times as long, so it is asked for only now.
            again = self._look(math.inf, stacks=True)
            new = {key: again.get(key, finding) for key, finding in new.items()}
        return list(new.values())

    def _look(self, due: float, *, stacks: bool) -> dict[object, Finding]:
        tree = task_tree(stacks=stacks)
        snapshots = [server.snapshot() for server in self.servers]
        found: dict[object, Finding] = {}
        for number, finding in enumerate(self.linter.look(tree, snapshots, due=due)):
            # A block is over when it is found: each one is another.
            which = (tree.at, number) if finding.lint == BLOCKED_LOOP else None
            key = (finding.lint, finding.server, finding.request, finding.task, which)
            found[key] = finding
        return found
