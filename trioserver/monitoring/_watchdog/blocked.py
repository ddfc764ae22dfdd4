"""What has kept a Trio loop from turning, as a value."""

from __future__ import annotations

import attrs

from trioserver import RequestInfo


@attrs.frozen(kw_only=True)
class Blocked:
    """One time at which Trio's loop did not turn.

    Attributes:
      seconds: how long, in real time, as far as it was seen: the watchdog asks a few times a
        second.
      task: the name of the task that held it; ``""`` if no task did, or nobody could see.
      request: the request that this task works for; None if there is none.
      stack: the calls in which it was held, as a traceback shows them, the innermost one last;
        ``""`` if nobody could see: a call that held Python's lock was over before.
    """

    seconds: float
    task: str = ""
    request: RequestInfo | None = None
    stack: str = ""
