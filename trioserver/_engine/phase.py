"""The phases of a run, which of them may follow which, and what causes each step.

::

    BINDING -> BOUND <-> ACQUIRING -> SERVING -> DRAINING -> CUTTING -> CLOSED

`handle_request` goes from BOUND to SERVING and back, once for each request. A drain is
never taken back, and neither is a cut, with one exception: a `handle_request` that is
cancelled cuts only its own request, leaves the listeners open, and is BOUND again.
"""

from __future__ import annotations

import enum

import attrs


class Phase(enum.Enum):
    """What a run is doing."""

    BINDING = "the server makes its listeners"
    BOUND = "clients queue, and nothing serves them"
    ACQUIRING = "what handlers need is being made: worker processes, for example"
    SERVING = "clients are let in"
    DRAINING = "nobody else is let in; requests may end by themselves, within the grace"
    CUTTING = "what is left is cancelled, and waited for within bounds"
    CLOSED = "nothing is left, and the report is there"


MAY_FOLLOW: dict[Phase, dict[Phase, str]] = {
    Phase.BINDING: {
        Phase.BOUND: "binding has succeeded, or the grace of a shutdown was over before",
        Phase.CLOSED: "binding has failed",
    },
    Phase.BOUND: {
        Phase.ACQUIRING: "serve_forever or handle_request",
        Phase.DRAINING: "handle_request, after a shutdown",
        Phase.CLOSED: "the block is left",
    },
    Phase.ACQUIRING: {
        Phase.SERVING: "the resources are there",
        Phase.BOUND: "they could not be had, or not within the grace of a shutdown",
    },
    Phase.SERVING: {
        Phase.DRAINING: "shutdown; or the server is cancelled or fails",
        Phase.CUTTING: "handle_request is cancelled or fails",
        Phase.BOUND: "handle_request is done with its request",
    },
    Phase.DRAINING: {
        Phase.CUTTING: "the grace is over; or the server is cancelled or fails",
        Phase.CLOSED: "all requests have ended",
    },
    Phase.CUTTING: {
        Phase.BOUND: "the request of a handle_request is closed",
        Phase.CLOSED: "all requests are closed",
    },
    Phase.CLOSED: {},
}
"""For each phase, those that may follow it, each with what causes the step."""


@attrs.define(eq=False)
class CurrentPhase:
    """The phase that a run is in, in one object that all parts of the run look at."""

    now: Phase = Phase.BINDING

    def enter(self, phase: Phase) -> None:
        """Go on to a phase. To enter the present one again does nothing.

        Raises:
          RuntimeError: it must not follow the present one, which is a bug of the library.
        """
        if phase is self.now:
            return
        if phase not in MAY_FOLLOW[self.now]:
            raise RuntimeError(f"a run does not go from {self.now.name} to {phase.name}")
        self.now = phase
