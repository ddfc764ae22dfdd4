"""Who records: an observer of servers, which follows the tasks of a program in a block."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

import trioserver

from .._tree.scopes import describe
from .following import Following, FollowingScopes
from .keeping import AT_MOST, GAP, TRIGGERS, Keeping
from .recording import Recording, recording_of
from .ring import Ring
from .triggers import Triggers
from .values import request_as_json

LIMIT = 100_000
"""Events that are held unless somebody says otherwise: about 30 MB of them."""


def _checked(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a number of events, at least 1, not {limit!r}")
    return limit


class Recorder(trioserver.Observer):
    """Records what happens in a Trio program: its tasks, their scopes, and requests.

    It is an observer: in ``observers=(recorder,)`` of any number of servers it notes what becomes
    of requests. And in a block, within a Trio program, it notes how all tasks of the program
    begin and end, and the cancel scopes that they are in::

        recorder = Recorder()
        server = trioserver.TCPServer(address, Handler, observers=(recorder,))
        with recorder:
            ...
        Path("timeline.html").write_text(timeline(recorder.recording()))

    A scope that is entered and left without a wait in between is not noted. The recorder holds
    the last events, and folds those that it drops into what there was before.

    Args:
      limit: how many events it holds.
      scopes: whether scopes are noted, too. For that, Trio calls it after each step of each
        task, which a busy server of small requests pays for with a quarter of its time or more;
        without, it pays for tasks and requests that begin and end.

    Raises:
      ValueError: ``limit`` is not a number from 1 on.
    """

    def __init__(self, limit: int = LIMIT, *, scopes: bool = False) -> None:
        self._ring = Ring(_checked(limit))
        self._following = (FollowingScopes if scopes else Following)(self._note)
        self._triggers = Triggers()
        self._started: float | None = None
        self._ended: float | None = None
        self._clock: trio.abc.Clock | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def dropped(self) -> int:
        """How many events it holds no more, as there were too many."""
        return self._ring.dropped

    @property
    def failures(self) -> int:
        """How many things it could not note; the first is logged (``trioserver.monitoring``)."""
        return self._following.failures

    # The block ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Follow all tasks of this Trio program.

        Raises:
          RuntimeError: no Trio program runs here; or it has had its block.
        """
        if self._token is not None:
            raise RuntimeError("a recorder records one block: make another for another one")
        self._token = trio.lowlevel.current_trio_token()
        self._clock = trio.lowlevel.current_clock()
        self._started = self._now() if self._started is None else self._started
        self._following.begin(trio.lowlevel.current_root_task())
        trio.lowlevel.add_instrument(self._following)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Follow them no more; what was noted stays."""
        with contextlib.suppress(KeyError):  # as Trio has dropped it, for whatever reason
            trio.lowlevel.remove_instrument(self._following)
        self._following.end()
        self._ended = self._now()

    def recording(self) -> Recording:
        """What was noted so far, as a value; plain, and to be called in Trio's thread.

        Raises:
          RuntimeError: it has recorded nothing: there was no block, and no event.
        """
        return self._take()()

    def _take(self) -> Callable[[], Recording]:
        """Hold what was noted; the function makes a recording of it, which takes a while.

        Of a full ring a third of a second: in whatever thread.
        """
        if self._started is None:
            raise RuntimeError("nothing was recorded: no block (with recorder), and no event")
        if self._token is not None and self._ended is None:
            self._following.look_at_all()
        ring, ended = self._ring, self._now() if self._ended is None else self._ended
        return partial(
            recording_of,
            ring.events(),
            base=tuple(ring.base.events()),
            dropped=ring.dropped,
            started=self._started,
            exact_from=self._started if ring.base_at is None else ring.base_at,
            ended=ended,
        )

    def mark(self, text: str) -> None:
        """Note something of the program's own, in the task that calls.

        Raises:
          TypeError: ``text`` is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"a mark is a text, not {text!r}")
        self._note_here("mark", text=text)

    def note_blocked(self, seconds: float, where: str) -> None:
        """Note that the loop has not turned; from any thread, for whoever watches over the loop.

        It is noted when the loop turns again. Nothing is noted outside of the block.

        Args:
          seconds: how long.
          where: the code that has held it, in words.
        """
        if self._token is None or self._ended is not None:
            return
        if trio.lowlevel.in_trio_run():
            self._note_blocked(seconds, where)
            return
        with contextlib.suppress(trio.RunFinishedError):  # then nobody waits for it
            self._token.run_sync_soon(self._note_blocked, seconds, where)

    def _note_blocked(self, seconds: float, where: str) -> None:
        self._note("blocked", None, {"seconds": seconds, "where": where})
        self._triggers.pull("blocked")

    async def keep(
        self,
        folder: str | Path,
        on: Collection[str] = TRIGGERS,
        *,
        at_most: int = AT_MOST,
        gap: float = GAP,
        slow: float = math.inf,
    ) -> None:
        """Write the last events into a folder when something goes wrong, until it is cancelled.

        To be run beside servers, in the recorder's block: for each episode a page
        (`timeline`) and the recording as JSON, named after the time and what it was. What
        cannot be written is logged (``trioserver.monitoring``). When it is cancelled, it waits
        for the recorder's servers to end, for two seconds at most, as only then they tell who was
        cut; and it still writes that, within ten more.

        Args:
          folder: where to; it is made if it is not there.
          on: what is an episode: ``failed`` (a handler's error), ``cut`` (the grace is over, and
            requests were cut), ``blocked`` (`note_blocked` was called).
          at_most: how many episodes are written; later ones are not.
          gap: seconds after an episode in which nothing is another one.
          slow: seconds that a request may take; one that takes longer is an episode, too.

        Raises:
          ValueError: ``on`` has something else, or a number is out of range.
        """
        keeping = Keeping(Path(folder), on, at_most=at_most, gap=gap, slow=slow)
        await keeping.run(self._triggers, self._take)

    # What servers tell ------------------------------------------------------------------

    def server_listening(self, addresses: tuple[Any, ...]) -> None:
        """Note it."""
        self._triggers.opened()
        self._note_here("listening", addresses=[describe(address) for address in addresses])

    def request_started(self, info: trioserver.RequestInfo) -> None:
        """Note it."""
        self._note_here("request_started", request=request_as_json(info))

    def request_finished(
        self,
        info: trioserver.RequestInfo,
        outcome: trioserver.Outcome,
        record: trioserver.RequestRecord,
    ) -> None:
        """Note it."""
        self._note_end("request_finished", info, record)
        if outcome is trioserver.Outcome.FAILED:
            self._triggers.pull("failed")
        self._triggers.took(record.duration)

    def arrival_failed(
        self, info: trioserver.RequestInfo, record: trioserver.RequestRecord
    ) -> None:
        """Note it."""
        self._note_end("arrival_failed", info, record)

    def request_refused(self, client_address: Any, reason: str) -> None:
        """Note it."""
        self._note_here("request_refused", client=describe(client_address), reason=reason)

    def accept_failed(self, server_address: Any, error: OSError) -> None:
        """Note it."""
        self._note_here("accept_failed", listener=describe(server_address), error=str(error))

    def draining(self, grace: float) -> None:
        """Note it."""
        self._note_here("draining", grace=grace if math.isfinite(grace) else None)

    def server_closed(self, report: trioserver.ShutdownReport) -> None:
        """Note it."""
        self._note_here("closed", report=report.summary)
        if report.cancelled or report.killed or report.abandoned:
            self._triggers.pull("cut")
        self._triggers.closed()

    # Noting -----------------------------------------------------------------------------

    def _note_end(
        self, kind: str, info: trioserver.RequestInfo, record: trioserver.RequestRecord
    ) -> None:
        self._note_here(
            kind,
            request=request_as_json(info),
            outcome=record.outcome.value,
            reason=record.reason,
            duration=record.duration,
            bytes_received=record.bytes_received,
            bytes_sent=record.bytes_sent,
        )

    def _note_here(self, kind: str, **facts: Any) -> None:
        """Note an event of the current task, if there is one."""
        try:
            task = self._following.look_at(trio.lowlevel.current_task())
        except RuntimeError:  # between two steps
            task = None
        self._note(kind, task, facts)

    def _note(self, kind: str, task: int | None, facts: Any) -> None:
        now = self._now()
        if self._started is None:
            self._started = now
        self._ring.note(now, kind, task, facts)

    def _now(self) -> float:
        return trio.current_time() if self._clock is None else self._clock.current_time()
