"""How a request went in a worker, as it tells its server: values for the wire."""

from __future__ import annotations

import traceback
from typing import Any, Self

import attrs

from ...._facts.events import Outcome
from ...._facts.verdict import describe_error
from .frames import FrameError, shorten


@attrs.define(kw_only=True)
class Result:
    """How a request went.

    Attributes:
      outcome: one of `Outcome`.
      reason: why.
      received: bytes read.
      sent: bytes written.
      at_eof: whether a read has met the end of input.
      ended_idle: whether the drain has ended a wait between two requests.
      broken: why nothing more can be sent, if that is so.
      shut: whether the handler has ended the output.
      detached: whether it has taken the descriptor over.
      shown: whether it knows the descriptor's number, and so may have written to it.
      error: the handler's own error, in words; ``""``.
      traceback: of that error.
    """

    outcome: str = Outcome.COMPLETED.value
    reason: str = ""
    received: int = 0
    sent: int = 0
    at_eof: bool = False
    ended_idle: bool = False
    broken: str = ""
    shut: bool = False
    detached: bool = False
    shown: bool = False
    error: str = ""
    traceback: str = ""

    @property
    def is_orderly(self) -> bool:
        """Whether all that is left to do is to end the output."""
        completed = self.outcome == Outcome.COMPLETED.value
        return completed and not (self.broken or self.shut or self.detached)

    def failed(self, error: BaseException) -> None:
        """The handler has raised ``error``."""
        self.outcome = Outcome.FAILED.value
        self.error = shorten(describe_error(error))
        self.traceback = shorten(traceback_of(error))

    def as_facts(self) -> dict[str, Any]:
        """For `wire.tell`: the outcome, and what is not as ever."""
        return {
            name: value
            for name, default in _DEFAULTS.items()
            if (value := getattr(self, name)) != default or name == "outcome"
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """What `as_facts` has made.

        Raises:
          WireError: it is something else.
        """
        understood = facts.get("outcome") in _OUTCOMES
        for name, value in facts.items():
            understood &= name in _DEFAULTS and type(value) is type(_DEFAULTS[name])
        if not understood:
            raise FrameError(f"not how a request ends: {facts!r}")
        return cls(**facts)


def traceback_of(error: BaseException) -> str:
    """The traceback as text, also of an error that cannot be shown, or is nested too deep."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as why:  # noqa: BLE001  (whatever somebody's own raises; RecursionError)
        where = "".join(traceback.format_tb(error.__traceback__))
        return (
            f"Traceback (most recent call last):\n{where}{type(error).__name__}"
            f" (which cannot be shown: {type(why).__name__})\n"
        )


_DEFAULTS: dict[str, Any] = attrs.asdict(Result())
_OUTCOMES = tuple(one.value for one in Outcome)
