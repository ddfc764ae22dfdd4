"""How a request went in a worker, as the worker tells its server: values for the wire.

A worker is not trusted: whoever takes it over must not get the server with it. So what it
tells is JSON, and every value is looked at before it is used.
"""

from __future__ import annotations

import traceback
from typing import Any, Self

import attrs
import trio

from ...._facts.events import Outcome, RequestInfo
from ...._facts.verdict import as_errors, describe_error, peers_doing
from ...._requests.stream_state import StreamState
from .frames import FrameError, shorten


@attrs.define(kw_only=True)
class Result:
    """What a worker reports of a request at its end.

    Attributes:
      outcome: one of `Outcome`.
      reason: why; ``""`` if there is nothing to say.
      stream: of a connection, what is known of its bytes now; nothing is pending.
      error: the handler's own error, in words; ``""`` if it has raised none.
      traceback: of that error.
    """

    outcome: str = Outcome.COMPLETED.value
    reason: str = ""
    stream: StreamState = attrs.field(factory=StreamState)
    error: str = ""
    traceback: str = ""

    @property
    def is_orderly(self) -> bool:
        """Whether all that is left to do is to end the output."""
        completed, stream = self.outcome == Outcome.COMPLETED.value, self.stream
        return completed and not (stream.broken or stream.output_ended or stream.detached)

    def note_error(self, error: BaseException) -> None:
        """Note that the handler has raised ``error``."""
        self.outcome = Outcome.FAILED.value
        self.error = shorten(describe_error(error))
        self.traceback = shorten(traceback_of(error))

    def judge(self, error: BaseException, info: RequestInfo) -> None:
        """Note what has ended the request: its peer, or an error of the handler's."""
        theirs = peers_doing(error, info)
        if theirs is None:
            self.note_error(as_errors(error))
        else:
            outcome, reason = theirs
            self.outcome, self.reason = outcome.value, shorten(reason)

    def as_facts(self) -> dict[str, Any]:
        """Values for `encode_facts`: the outcome, and what differs from the default."""
        facts: dict[str, Any] = {"outcome": self.outcome} | _differing(self, _TEXTS)
        stream = _differing(self.stream, _STREAM)
        if self.stream.broken is not None:
            stream["broken"] = shorten(self.stream.broken[1])
        return facts | {"stream": stream} if stream else facts

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Self:
        """The result of which `as_facts` has made ``facts``.

        Raises:
          FrameError: they are something else.
        """
        texts = dict(facts)
        stream = texts.pop("stream", {})
        if facts.get("outcome") not in _OUTCOMES or not _fit(texts, _TEXTS):
            raise FrameError(f"not how a request ends: {facts!r}")
        return cls(**texts, stream=_stream_from(stream))


def _differing(value: object, defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        name: one for name, default in defaults.items() if (one := getattr(value, name)) != default
    }


def _fit(facts: dict[str, Any], defaults: dict[str, Any]) -> bool:
    """Whether all facts are known, and of the type of their defaults."""
    return all(
        name in defaults and type(value) is type(defaults[name]) for name, value in facts.items()
    )


def _stream_from(facts: Any) -> StreamState:
    if not isinstance(facts, dict) or not _fit(facts, _STREAM | {"broken": ""}):
        raise FrameError(f"not how a request ends: {facts!r} of a connection")
    numbers = dict(facts)
    broken = numbers.pop("broken", None)
    if any(value < 0 for value in numbers.values()):
        raise FrameError(f"not how a request ends: {facts!r} of a connection")
    return StreamState(
        **numbers, broken=None if broken is None else (trio.BrokenResourceError, broken)
    )


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


_TEXTS = {"outcome": Outcome.COMPLETED.value, "reason": "", "error": "", "traceback": ""}
_OUTCOMES = tuple(one.value for one in Outcome)

# Numbers and truths. What is pending goes to a worker and does not come back, and of what
# has broken the stream only the words do.
_STREAM: dict[str, Any] = {
    field.name: field.default
    for field in attrs.fields(StreamState)
    if field.name not in {"pending", "broken"}
}
