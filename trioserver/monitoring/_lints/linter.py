"""The linter: all lints, how long each thing may be so, and since when it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import attrs

from trioserver import ServerSnapshot, Timeouts

from .._text.finding import Finding, in_short
from .._tree.tree import TaskTree
from .._watchdog.blocked import Blocked
from .cases import Case
from .of_servers import idle_slots, no_deadline, reader_never_reads
from .of_tasks import child_outlives_request, long_shield, swallowed_cancellation
from .seen import RequestKey, Seen

BLOCKED_LOOP = "blocked-loop"

LINTS: Mapping[str, Callable[[Seen], Iterable[Case]]] = {
    "no-deadline": no_deadline,
    "swallowed-cancellation": swallowed_cancellation,
    "long-shield": long_shield,
    "child-outlives-request": child_outlives_request,
    "reader-never-reads": reader_never_reads,
    "idle-slots": idle_slots,
}
"""All but ``blocked-loop``, which nobody can see who looks from inside the loop."""

_MOST_BLOCKS = 100
"""That are kept until the next look. A block takes a second or so, and a look comes each second."""


def _check_bound(linter: object, field: attrs.Attribute[float], value: object) -> None:
    name = f"{type(linter).__name__}.{field.alias}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")


def _bound(default: float) -> float:
    bound: float = attrs.field(default=default, kw_only=True, validator=_check_bound)
    return bound


@attrs.define(eq=False)
class Linter:
    """Finds what is wrong in trees and snapshots. It remembers only since when things are so.

    Each lint has a bound in seconds: what has been so for longer is a finding. ``math.inf`` turns
    the lint off.

    Args:
      no_deadline: for a request that nothing ends. Long ones that are quiet are legitimate, and
        an hour is longer than most people mean.
      swallowed_cancellation: for a task that was cancelled, and is still there. Who lets
        `trio.Cancelled` pass is gone in the same step; a second is for those that compute.
      long_shield: for a shielded scope with a cancellation pending outside. By default what
        `trioserver.Timeouts` gives a clean-up.
      child_outlives_request: for a task of a request that has ended. What a program means to
        finish after a reply takes a moment, not longer than a clean-up.
      reader_never_reads: for a request that sends, while its client takes not a byte. A third
        of what `trioserver.Timeouts` allows, so that it is found before it is ended.
      idle_slots: for clients that are not accepted though there are slots. An accept that has
        failed for want of descriptors is tried again within a second.
      blocked_loop: for a look that comes late, see ``due`` of `look`. What the loop does
        between two turns takes milliseconds.
    """

    no_deadline: float = _bound(3600)
    swallowed_cancellation: float = _bound(1)
    long_shield: float = _bound(Timeouts().cleanup)
    child_outlives_request: float = _bound(5)
    reader_never_reads: float = _bound(10)
    idle_slots: float = _bound(5)
    blocked_loop: float = _bound(1)
    _since: dict[tuple[str, Hashable], float] = attrs.field(init=False, factory=dict, repr=False)
    _known: set[RequestKey] = attrs.field(init=False, factory=set, repr=False)
    _blocks: list[Blocked] = attrs.field(init=False, factory=list, repr=False)
    _blocks_dropped: int = attrs.field(init=False, default=0, repr=False)

    def look(
        self,
        tree: TaskTree,
        snapshots: Sequence[ServerSnapshot] = (),
        *,
        due: float = math.inf,
    ) -> tuple[Finding, ...]:
        """What is wrong now; nothing is changed but what the linter remembers.

        What is not in the data any more is forgotten. So what it remembers is bounded by the size
        of the tree, and something that ends and begins again counts anew.

        Args:
          tree: the tasks, with their stacks or without: with them, messages say where.
          snapshots: of the servers of the same process, taken in the same step, always the same
            ones in the same order.
          due: when this look was to come, by the Trio clock. If it comes much later, something
            has blocked the loop, or has stopped the process.
        """
        seen = Seen(tree, snapshots, self._known, self.no_deadline)
        since: dict[tuple[str, Hashable], float] = {}
        found = list(self._found_blocked(tree.at - due))
        for name, lint in LINTS.items():
            bound = getattr(self, name.replace("-", "_"))
            for case in lint(seen) if bound < math.inf else ():
                key = (name, case.key)
                since[key] = first = self._since.get(key, _first_of(case, tree.at))
                if tree.at - first > bound:
                    found.append(_finding(name, case, tree.at - first))
        self._since, self._known = since, seen.known
        return tuple(found)

    def note_blocked(self, blocked: Blocked) -> None:
        """Have the next look tell of a blocked loop; for ``on_blocked`` of a `Watchdog`."""
        if len(self._blocks) < _MOST_BLOCKS:
            self._blocks.append(blocked)
        else:
            self._blocks_dropped += 1

    def _found_blocked(self, late: float) -> Iterator[Finding]:
        blocks, self._blocks = self._blocks, []
        dropped, self._blocks_dropped = self._blocks_dropped, 0
        for block in blocks:
            request = block.request
            yield Finding(
                lint=BLOCKED_LOOP,
                message=_blocked_in_words(block),
                since=block.seconds,
                request=None if request is None else request.id,
            )
        if dropped:
            message = f"the loop was blocked {dropped} times more, of which nothing was kept"
            yield Finding(lint=BLOCKED_LOOP, message=message, since=0.0)
        if late > self.blocked_loop and not blocks:
            message = (
                f"the loop did not turn for {late:.1f} s, or the process was stopped; a Watchdog"
                " says what holds it"
            )
            yield Finding(lint=BLOCKED_LOOP, message=message, since=late)


def _first_of(case: Case, now: float) -> float:
    return now if case.began is None else case.began


def _finding(lint: str, case: Case, since: float) -> Finding:
    return Finding(
        lint=lint,
        message=case.say(since),
        since=since,
        server=case.server,
        request=case.request,
        task=case.task,
    )


def _blocked_in_words(blocked: Blocked) -> str:
    by = f" by task '{in_short(blocked.task)}'" if blocked.task else ""
    whose = "" if blocked.request is None else str(blocked.request)
    whose = f" of {whose}" if whose not in blocked.task else ""
    lines = [
        line.strip() for line in blocked.stack.splitlines() if line.lstrip().startswith("File")
    ]
    where = f", at {in_short(lines[-1])}" if lines else ""
    return (
        f"the loop was blocked{by}{whose} for {blocked.seconds:.1f} s{where}; await what waits,"
        " and have trio.to_thread run what computes or blocks"
    )
